//! How much room the tables of flows have, and what it costs.

use std::fmt;

use portfwd_common::{
    Flow, FlowKey,
    flow::Foreign,
    settings::{MOST_FLOWS, flow_entries},
};

use super::machine;
use crate::Error;

/// `struct htab_elem` without the key, and `struct bucket` (kernel/bpf/hashtab.c).
const ELEMENT: u64 = 48;
const BUCKET: u64 = 16;

/// The tables that remember flows. Their memory is taken at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowTables {
    flows: u32,
    cpus: u32,
}

impl FlowTables {
    /// Tables for so many flows, [`MOST_FLOWS`] at most, on this machine.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where the number of CPUs is not known.
    pub fn new(flows: u32) -> Result<Self, Error> {
        let cpus = aya::util::nr_cpus().map_err(|(file, error)| machine(file, error))?;
        Ok(Self::on(cpus as u32, flows))
    }

    fn on(cpus: u32, flows: u32) -> Self {
        Self {
            flows: flows.clamp(1, MOST_FLOWS),
            cpus,
        }
    }

    /// Flows that there is room for.
    pub const fn flows(self) -> u32 {
        self.flows
    }

    /// Entries for flows whose client has proved that it receives.
    pub(super) const fn proven(self) -> u32 {
        flow_entries(self.flows, self.cpus)
    }

    /// Entries for the others, and for traffic of this host's own.
    pub(super) const fn unproven(self) -> u32 {
        flow_entries(self.flows / 4, self.cpus)
    }

    /// What the tables take of the kernel's memory.
    pub fn memory(self) -> Memory {
        let flow = size_of::<Flow>();
        Memory(
            table(self.proven(), flow)
                + table(self.unproven(), flow)
                + table(self.unproven(), size_of::<Foreign>()),
        )
    }
}

/// Bytes of an LRU hash, whose entries are made at the start.
fn table(entries: u32, value: usize) -> u64 {
    let entries = u64::from(entries);
    let key = size_of::<FlowKey>();
    let element = ELEMENT + (key.next_multiple_of(8) + value.next_multiple_of(8)) as u64;
    entries * element + entries.next_power_of_two() * BUCKET
}

/// An amount of memory; prints in MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Memory(pub u64);

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use portfwd_common::settings::DEFAULT_MAX_FLOWS;

    use super::*;

    /// What `fdinfo` said of each table on Linux 6.18 with two CPUs, in KiB.
    #[test]
    fn a_table_takes_what_the_kernel_says() {
        let tables = FlowTables::on(2, DEFAULT_MAX_FLOWS);
        for (entries, value, kib) in [
            (tables.proven(), size_of::<Flow>(), 56_871),
            (tables.unproven(), size_of::<Flow>(), 14_247),
            (tables.unproven(), size_of::<Foreign>(), 9_753),
        ] {
            let computed = table(entries, value) / 1024;
            assert!(kib - computed <= 2, "{computed} of {kib}");
        }
    }

    #[test]
    fn the_sum_is_printed_in_mebibytes() {
        let tables = FlowTables::on(2, DEFAULT_MAX_FLOWS);
        assert_eq!(tables.memory().to_string(), "79.0 MiB");
    }

    #[test]
    fn one_flow_has_room_and_the_most_does_not_overflow() {
        for cpus in [1, 8192] {
            let one = FlowTables::on(cpus, 1);
            assert!(one.proven() > 2 * cpus && one.unproven() > cpus);
            let most = FlowTables::on(cpus, MOST_FLOWS);
            assert!(most.proven() > 2 * MOST_FLOWS);
            assert!(most.memory() > FlowTables::on(cpus, MOST_FLOWS / 2).memory());
        }
        assert_eq!(FlowTables::on(1, 0), FlowTables::on(1, 1));
        assert_eq!(FlowTables::on(1, u32::MAX), FlowTables::on(1, MOST_FLOWS));
    }
}
