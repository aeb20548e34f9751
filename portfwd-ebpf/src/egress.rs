//! The walk of a packet that leaves by a device.

use portfwd_common::{Addr, Family, Flow, FlowKey, PortEntry, Proto, Verdict};

use crate::{
    claim,
    hook::{Frame, Hook, LOOPBACK_IFINDEX},
    known::{self, Known},
    outcome::Outcome,
    packet::{self, Network, Packet},
    ports, steer,
    tables::{Draft, Tables},
};

/// Finds the packet in a frame and what the rules know of the port that it
/// leaves from, or says why it cannot be ours.
#[inline(always)]
pub fn find<'t, H: Hook, T: Tables>(
    hook: &mut H,
    tables: &'t T,
    frame: &Frame,
) -> Result<(&'t mut Draft, PortEntry), Verdict> {
    if frame.vlan {
        return Err(Verdict::Vlan);
    }
    let network = packet::network(hook, frame)?;
    named(hook, tables, frame, &network)
        .map_err(|verdict| shielded(tables, frame, network.family, &network.src, verdict))
}

#[inline(always)]
fn named<'t, H: Hook, T: Tables>(
    hook: &H,
    tables: &'t T,
    frame: &Frame,
    network: &Network,
) -> Result<(&'t mut Draft, PortEntry), Verdict> {
    let packet = packet::transport(hook, frame, network)?;
    let entry = ports::named(tables.port(packet.proto, packet.tuple.sport))?;
    Ok((tables.draft(&packet).ok_or(Verdict::NoRule)?, entry))
}

/// The verdict on a packet that keeps its source: it must not show a loopback
/// address where a rule opened them.
#[inline(always)]
pub fn shielded<T: Tables>(
    tables: &T,
    frame: &Frame,
    family: Family,
    src: &Addr,
    verdict: Verdict,
) -> Verdict {
    if is_leak(tables, frame, family, src) {
        Verdict::Guarded
    } else {
        verdict
    }
}

#[inline(always)]
fn is_leak<T: Tables>(tables: &T, frame: &Frame, family: Family, src: &Addr) -> bool {
    frame.ifindex != LOOPBACK_IFINDEX && src.is_loopback_of(family) && tables.guards(frame.ifindex)
}

/// Restores a reply from a port that a rule names, or remembers what this host
/// started itself.
#[inline(always)]
pub fn walk<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    frame: &Frame,
    packet: &Packet,
    entry: PortEntry,
) -> Result<Outcome, Outcome> {
    match answer(hook, tables, frame, packet, entry) {
        Err(_) if is_leak(tables, frame, packet.family, &packet.tuple.src) => {
            Err(Verdict::Guarded.into())
        }
        result => result,
    }
}

/// A reply is `Ok`; whatever keeps its own source is `Err`.
#[inline(always)]
fn answer<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    frame: &Frame,
    packet: &Packet,
    entry: PortEntry,
) -> Result<Outcome, Outcome> {
    if entry.has(PortEntry::TARGET) && !frame.forwarded {
        let key = known::reply_key(&packet.tuple.reversed(), packet.proto);
        if let Some(known) = known::flow(tables, &key) {
            return restore(hook, tables, &key, packet, &known);
        }
    }
    let slot = claim::slot(tables, entry, packet, &packet.tuple.src);
    if slot == Flow::NO_RULE {
        return Err(Verdict::NoRule.into());
    }
    let replies = packet.tuple.reversed().key(packet.proto, FlowKey::INGRESS);
    if known::is_foreign(tables, &replies) {
        return Err(Verdict::Foreign.into());
    }
    if is_restored(tables, packet, &replies) {
        return Err(Verdict::Restored.into());
    }
    if starts(tables, frame, packet) {
        tables.put_foreign(&replies, tables.now());
        return Err(Verdict::Foreign.into());
    }
    if frame.forwarded || !is_steered(tables, packet, slot) || !hook.sent_by_socket(packet) {
        return Err(Verdict::NoRule.into());
    }
    Err(Outcome::of_rule(Verdict::Connected, slot).back())
}

/// Does the rule reach its target without a flow?
#[inline(always)]
fn is_steered<T: Tables>(tables: &T, packet: &Packet, slot: u32) -> bool {
    matches!(packet.proto, Proto::Tcp)
        && tables
            .rule(slot)
            .is_some_and(|rule| steer::steers(tables, &rule))
}

/// A reply that got its source back on another device, such as the VLAN device
/// above this one.
#[inline(always)]
fn is_restored<T: Tables>(tables: &T, packet: &Packet, replies: &FlowKey) -> bool {
    matches!(packet.proto, Proto::Udp) && known::flow(tables, replies).is_some()
}

/// Does the packet belong to a flow of this host, or of NAT behind it, that a
/// listen port is no part of? TCP tells by its SYN, unless the packet is only
/// forwarded; of UDP from a listen port all is.
#[inline(always)]
fn starts<T: Tables>(tables: &T, frame: &Frame, packet: &Packet) -> bool {
    if frame.forwarded {
        return tables.is_own(&packet.tuple.src);
    }
    matches!(packet.proto, Proto::Udp) || packet.is_open()
}

/// Gives a reply the source that the client dialled.
#[inline(always)]
fn restore<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    key: &FlowKey,
    packet: &Packet,
    known: &Known<'_>,
) -> Result<Outcome, Outcome> {
    known::answered(tables, key, packet, known);
    known::keep_warm(tables, key, packet, known);
    if known.flow.flags & Flow::DIRECT != 0 && known.flow.dport == packet.tuple.dport {
        return Err(Verdict::Direct.into());
    }
    hook.rewrite(packet, &known::rewritten(known.flow));
    Ok(Outcome::of_rule(Verdict::Restored, known.flow.rule).back())
}
