//! Port forwarding inside the Linux kernel.
//!
//! Rules go one way: [`rule`] reads what was typed, [`plan`] lays it out for
//! the kernel, [`dataplane`] loads and writes it. [`host`] is everything else
//! that a host has: devices, routes, namespaces, locks, sysctls; [`reach`] says
//! which way its routes lead to a target, `hops` and `homes` which way back to a
//! client.
//! [`accelerate`] decides on which devices XDP helps, `accelerator` does it.
//! [`Forwarder`] puts them together, [`counters`] is the way back to people.

pub mod accelerate;
mod accelerator;
pub mod counters;
pub mod dataplane;
pub mod error;
mod forwarder;
mod homes;
mod hops;
pub mod host;
pub mod plan;
pub mod reach;
pub mod rule;
mod table;

pub use accelerator::DeviceMode;
pub use error::Error;
pub use forwarder::{Forwarder, Interfaces, Options, Tcp};
