//! TCP, measured by closed loops of real sockets: bytes, requests and
//! connections a second, to another host and to a service of this one.

pub mod client;
pub mod contestant;
pub mod load;
pub mod peer;
pub mod server;
pub mod site;
pub mod wire;
