//! The parts of a run, in their order, one file each.

mod bystander;
mod control;
mod full_tables;
mod local_udp;
mod new_flows;
mod overhead;
mod programs;
mod rules;
mod tcp;
mod udp;

use anyhow::Result;

use crate::bench::Bench;

/// A part of a run.
pub struct Part {
    /// What `--part` takes.
    pub name: &'static str,
    /// What `--list` says of it.
    pub about: &'static str,
    /// Runs its cases; an error fails the part, and the next one goes on.
    pub run: fn(&mut Bench) -> Result<()>,
}

/// All parts.
pub const ALL: &[Part] = &[
    overhead::PART,
    udp::PART,
    new_flows::PART,
    rules::PART,
    local_udp::PART,
    bystander::PART,
    full_tables::PART,
    control::PART,
    programs::PART,
    tcp::STREAM,
    tcp::REQUESTS,
    tcp::CONNECTIONS,
    tcp::LOCAL,
];
