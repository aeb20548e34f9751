//! Which rule claims a packet.

use portfwd_common::{Addr, ClaimKey, Flow, FromKey, PortEntry, RuleEntry, TargetEntry, Verdict};

use crate::{packet::Packet, tables::Tables};

/// A rule, found.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    /// Its slot.
    pub slot: u32,
    /// The rule.
    pub rule: RuleEntry,
}

/// The slot of the rule that claims the port of `addr`: one that names the
/// address, else one that listens on every address, else [`Flow::NO_RULE`].
#[inline(never)]
pub fn slot<T: Tables>(tables: &T, entry: PortEntry, packet: &Packet, addr: &Addr) -> u32 {
    if entry.class() == 0 {
        return Flow::NO_RULE;
    }
    let mut key = ClaimKey {
        addr: *addr,
        class: entry.class(),
        bank: tables.bank(),
        proto: packet.proto as u8,
        family: packet.family as u8,
        reserved: 0,
    };
    if entry.has(PortEntry::PROBE_ADDR)
        && let Some(slot) = tables.claim(&key)
    {
        return slot;
    }
    if entry.has(PortEntry::PROBE_ANY) {
        key.addr = Addr::UNSPECIFIED;
        return tables.claim(&key).unwrap_or(Flow::NO_RULE);
    }
    Flow::NO_RULE
}

/// The rule that claims an arriving packet, if its source is listed.
#[inline(always)]
pub fn rule<T: Tables>(tables: &T, entry: PortEntry, packet: &Packet) -> Result<Claimed, Verdict> {
    let slot = slot(tables, entry, packet, &packet.tuple.dst);
    let rule = tables.rule(slot).ok_or(Verdict::NoRule)?;
    if rule.flags & RuleEntry::HAS_FROM != 0 {
        let key = FromKey {
            slot: slot.to_be(),
            addr: packet.tuple.src,
        };
        if !tables.lists(&key) {
            return Err(Verdict::NotListed);
        }
    }
    Ok(Claimed { slot, rule })
}

impl Claimed {
    /// Where the packet goes: address and port on this host.
    #[inline(always)]
    pub fn target<T: Tables>(&self, tables: &T, packet: &Packet) -> Option<(TargetEntry, u16)> {
        let mut target = tables.target(self.rule.targets)?;
        if target.addr.is_unspecified() {
            target.addr = packet.tuple.dst;
        }
        Some((target, self.rule.target_port(packet.tuple.dport)))
    }
}
