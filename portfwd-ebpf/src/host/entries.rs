//! A flow table in memory.

use std::collections::HashMap;

use portfwd_common::{Flow, FlowKey, names};

use crate::tables::Table;

/// What a flow table does with an entry that it has no room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// It takes the place of the entry that was used least recently.
    Evict,
    /// It is refused.
    Refuse,
}

/// One flow table.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) flows: HashMap<FlowKey, &'static Flow>,
    /// When each entry was used last, by [`super::Memory::calls`].
    pub(super) used: HashMap<FlowKey, u64>,
    pub(super) capacity: usize,
}

impl Entries {
    pub(super) fn forget(&mut self, key: &FlowKey) -> bool {
        self.used.remove(key);
        self.flows.remove(key).is_some()
    }
}

/// The map that stands for the table.
pub(super) const fn name(table: Table) -> &'static str {
    match table {
        Table::New => names::NEW,
        Table::Flows => names::FLOWS,
    }
}
