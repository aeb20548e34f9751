//! Taking samples and making numbers of them.

pub mod cpu;
pub mod rounds;
pub mod stats;
