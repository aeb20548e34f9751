//! Port forwarding inside the Linux kernel.

pub mod error;

pub use error::Error;
