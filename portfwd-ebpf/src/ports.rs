//! The first question: does any rule name one of the ports?

use portfwd_common::{PortEntry, Verdict};

use crate::{packet::Packet, tables::Tables};

/// What the rules know of a packet's ports: one word, since a function of a
/// program has five arguments at most.
#[derive(Clone, Copy, Debug)]
pub struct Named(PortEntry);

impl Named {
    /// In no entry of the port table.
    const ACROSS: u32 = 1 << 31;

    /// The entry of the port at this host's end.
    #[inline(always)]
    pub const fn entry(self) -> PortEntry {
        PortEntry(self.0.0 & !Self::ACROSS)
    }

    /// True when the port at the other end is a target port of another host.
    #[inline(always)]
    pub const fn across(self) -> bool {
        self.0.has(Self::ACROSS)
    }
}

/// The ports of a packet that arrives: two loads, and most packets of a host
/// are out.
#[inline(always)]
pub fn arriving<T: Tables>(tables: &T, packet: &Packet) -> Result<Named, Verdict> {
    let tuple = &packet.tuple;
    both(tables, packet, tuple.dport, tuple.sport)
}

/// Can a packet that arrives belong to a rule for another host? One load for
/// the client's packets.
#[inline(always)]
pub fn may_cross<T: Tables>(tables: &T, packet: &Packet) -> bool {
    let port = |port| tables.port(packet.proto, port);
    port(packet.tuple.dport).class() != 0 || port(packet.tuple.sport).has(PortEntry::REMOTE)
}

/// The ports of a packet that leaves.
#[inline(always)]
pub fn leaving<T: Tables>(tables: &T, packet: &Packet) -> Result<Named, Verdict> {
    let tuple = &packet.tuple;
    both(tables, packet, tuple.sport, tuple.dport)
}

#[inline(always)]
fn both<T: Tables>(tables: &T, packet: &Packet, here: u16, there: u16) -> Result<Named, Verdict> {
    let entry = tables.port(packet.proto, here);
    let across = if tables.port(packet.proto, there).has(PortEntry::REMOTE) {
        Named::ACROSS
    } else {
        0
    };
    named(PortEntry(entry.0 | across)).map(Named)
}

/// The entry of a port that a rule names.
#[inline(always)]
pub const fn named(entry: PortEntry) -> Result<PortEntry, Verdict> {
    if entry.0 == 0 {
        Err(Verdict::NoRule)
    } else {
        Ok(entry)
    }
}
