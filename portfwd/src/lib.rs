//! Port forwarding inside the Linux kernel.

pub mod error;
pub mod host;
pub mod plan;
pub mod rule;

pub use error::Error;
