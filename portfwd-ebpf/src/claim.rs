//! Which rule claims a packet.

use portfwd_common::{
    Addr, ClaimKey, Family, Flow, FromKey, PortEntry, Proto, RuleEntry, TargetEntry, Verdict,
};

use crate::{packet::Packet, tables::Tables};

/// What a client dialled: by a packet, or by a call on a socket of this host.
#[derive(Clone, Copy, Debug)]
pub struct Dialled<'a> {
    /// Protocol.
    pub proto: Proto,
    /// Family of the address.
    pub family: Family,
    /// Address.
    pub addr: &'a Addr,
    /// Port.
    pub port: u16,
}

impl<'a> Dialled<'a> {
    /// Where a client's packet goes.
    #[inline(always)]
    pub const fn by(packet: &'a Packet) -> Self {
        Self {
            proto: packet.proto,
            family: packet.family,
            addr: &packet.tuple.dst,
            port: packet.tuple.dport,
        }
    }
}

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
pub fn slot<T: Tables>(
    tables: &T,
    entry: PortEntry,
    proto: Proto,
    family: Family,
    addr: &Addr,
) -> u32 {
    if entry.class() == 0 {
        return Flow::NO_RULE;
    }
    let mut key = ClaimKey {
        addr: *addr,
        class: entry.class(),
        bank: tables.bank(),
        proto: proto as u8,
        family: family as u8,
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

/// The rule that claims what was dialled, if it lists the source.
#[inline(always)]
pub fn rule<T: Tables>(
    tables: &T,
    entry: PortEntry,
    dialled: &Dialled<'_>,
    source: &Addr,
) -> Result<Claimed, Verdict> {
    let slot = slot(tables, entry, dialled.proto, dialled.family, dialled.addr);
    let rule = tables.rule(slot).ok_or(Verdict::NoRule)?;
    if serves(tables, slot, &rule, source) {
        Ok(Claimed { slot, rule })
    } else {
        Err(Verdict::NotListed)
    }
}

/// Does the rule in the slot list the client?
#[inline(always)]
pub fn serves<T: Tables>(tables: &T, slot: u32, rule: &RuleEntry, client: &Addr) -> bool {
    rule.flags & RuleEntry::HAS_FROM == 0
        || tables.lists(&FromKey {
            slot: slot.to_be(),
            addr: *client,
        })
}

impl Claimed {
    /// Where it goes.
    #[inline(always)]
    pub fn target<'t, T: Tables>(&self, tables: &'t T) -> Option<&'t TargetEntry> {
        tables.target(self.rule.targets)
    }
}
