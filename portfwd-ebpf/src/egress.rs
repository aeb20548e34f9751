//! The walk of a packet that leaves by a device.

use portfwd_common::{Addr, Family, Flow, FlowKey, PortEntry, Proto, TargetEntry, Verdict};

use crate::{
    claim,
    hook::{Frame, Hook, LOOPBACK_IFINDEX},
    hop,
    known::{self, Progress},
    outcome::Outcome,
    packet::{self, Network, Packet},
    place,
    ports::{self, Named},
    remember, steer,
    tables::{Draft, Table, Tables},
};

/// Puts the packet of a frame into the draft and finds what the rules know of its
/// ports, or says why it cannot be ours.
#[inline(never)]
pub fn find<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
) -> Result<Named, Verdict> {
    let frame = &hook.frame();
    if hop::is_sent(hook, draft, frame) {
        hop::learn(hook, tables, draft, frame);
        return Err(Verdict::Passing);
    }
    if frame.vlan {
        return Err(Verdict::Vlan);
    }
    let network = packet::network(hook, frame)?;
    named(hook, tables, draft, frame, &network)
        .map_err(|verdict| shielded(tables, frame, network.family, &network.src, verdict))
}

#[inline(always)]
fn named<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
    frame: &Frame,
    network: &Network,
) -> Result<Named, Verdict> {
    let packet = packet::transport(hook, frame, network)?;
    let named = ports::leaving(tables, &packet)?;
    draft.packet = packet;
    Ok(named)
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

/// Restores a reply from a port that a rule names, gives what this host sends
/// to a target another source port where it must, or remembers what this host
/// started itself.
#[inline(always)]
pub fn walk<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    named: Named,
) -> Outcome {
    if named.across() && tables.is_remote(&draft.packet.tuple.dst) {
        let frame = hook.frame();
        if frame.forwarded {
            keep_clear(tables, draft);
        } else if frame.ifindex != LOOPBACK_IFINDEX
            && let Some(outcome) = dial(hook, tables, draft)
        {
            return outcome;
        }
    }
    answered(hook, tables, draft, named)
}

/// What NAT on this host has given its address on the way to a target, and no
/// flow has: keeps the tuple from flows that come later.
#[inline(never)]
fn keep_clear<T: Tables>(tables: &T, draft: &mut Draft) {
    let Draft { packet, key, .. } = draft;
    if !tables.is_own(&packet.tuple.src) {
        return;
    }
    *key = packet.tuple.reversed().key(packet.proto, FlowKey::INGRESS);
    if known::surely(tables, key, tables.now()).is_none() && !known::is_foreign(tables, key) {
        tables.put_foreign(key, tables.now());
    }
}

/// A packet of this host to a target on another: if a masqueraded flow has its
/// tuple already it gets another source port, and its flow stays with that.
#[inline(never)]
fn dial<H: Hook, T: Tables>(hook: &mut H, tables: &T, draft: &mut Draft) -> Option<Outcome> {
    let Draft { packet, key, .. } = draft;
    *key = packet.tuple.key(packet.proto, FlowKey::EGRESS);
    if !has_moved(tables, draft) {
        let Draft { packet, key, .. } = draft;
        let opens = !matches!(packet.proto, Proto::Tcp) || packet.is_open();
        *key = packet.tuple.reversed().key(packet.proto, FlowKey::INGRESS);
        if !opens || !is_a_flows(tables, key) {
            return None;
        }
        place::own(draft);
        if let Err(verdict) = remember::remember(hook, tables, draft) {
            return Some(verdict.into());
        }
    }
    let Draft {
        packet, placement, ..
    } = draft;
    hook.rewrite(packet, &placement.to, packet.hops);
    Some(Verdict::Moved.into())
}

/// Do the replies of a flow come with this tuple? A client's packets may: those
/// of a target that dials this host from the target port.
#[inline(always)]
fn is_a_flows<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    known::surely(tables, key, tables.now())
        .is_some_and(|known| known.flow.flags & Flow::REPLY != 0)
}

/// A packet of a flow of this host that has another source port already.
#[inline(always)]
fn has_moved<T: Tables>(tables: &T, draft: &mut Draft) -> bool {
    let Some(table) = known::meet(tables, draft, false) else {
        return false;
    };
    if draft.flow.flags & Flow::REPLY != 0 {
        return false;
    }
    let proves = known::proves(draft);
    known::advance(tables, draft, table, proves) != Progress::Lost
}

/// What keeps its own source must not show a loopback address.
#[inline(never)]
fn answered<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    named: Named,
) -> Outcome {
    // Asked again, since a function has five arguments at most.
    let frame = &hook.frame();
    match answer(hook, tables, frame, draft, named) {
        Err(_) if leaks(tables, frame, &draft.packet) => Verdict::Guarded.into(),
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn leaks<T: Tables>(tables: &T, frame: &Frame, packet: &Packet) -> bool {
    is_leak(tables, frame, packet.family, &packet.tuple.src)
}

/// A reply is `Ok`; whatever keeps its own source is `Err`.
#[inline(always)]
fn answer<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    frame: &Frame,
    draft: &mut Draft,
    named: Named,
) -> Result<Outcome, Outcome> {
    let entry = named.entry();
    let Draft { packet, key, .. } = draft;
    if entry.has(PortEntry::TARGET) && !frame.forwarded {
        *key = known::reply_key(&packet.tuple.reversed(), packet.proto, FlowKey::EGRESS);
        if let Some(table) = known::meet(tables, draft, false) {
            return restore(hook, tables, draft, table);
        }
    }
    let Draft { packet, key, .. } = draft;
    let slot = claim::slot(
        tables,
        entry,
        packet.proto,
        packet.family,
        &packet.tuple.src,
    );
    if slot == Flow::NO_RULE {
        return Err(Verdict::NoRule.into());
    }
    *key = packet.tuple.reversed().key(packet.proto, FlowKey::INGRESS);
    if known::is_foreign(tables, key) {
        return Err(Verdict::Foreign.into());
    }
    if (named.across() || entry.has(PortEntry::TRACKED))
        && known::surely(tables, key, tables.now()).is_some()
    {
        return Err(on_its_way(frame).into());
    }
    if starts(tables, frame, packet) {
        tables.put_foreign(key, tables.now());
        return Err(Verdict::Foreign.into());
    }
    if frame.forwarded || !is_steered(tables, packet, slot) || !hook.sent_by_socket(packet) {
        return Err(Verdict::NoRule.into());
    }
    Err(Outcome::of_rule(Verdict::Connected, slot).back())
}

/// A packet of a flow that has been rewritten before: a reply of this host on
/// another device, such as the VLAN device above this one, or what is relayed.
#[inline(always)]
const fn on_its_way(frame: &Frame) -> Verdict {
    if frame.forwarded {
        Verdict::Passing
    } else {
        Verdict::Restored
    }
}

/// Does the rule reach the client's target without a flow?
#[inline(always)]
fn is_steered<T: Tables>(tables: &T, packet: &Packet, slot: u32) -> bool {
    matches!(packet.proto, Proto::Tcp)
        && tables.rule(slot).is_some_and(|rule| {
            steer::steers(tables, &rule)
                && claim::serves(tables, slot, &rule, &packet.tuple.dst)
                && tables
                    .target(rule.targets)
                    .is_some_and(TargetEntry::is_local)
        })
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
    draft: &mut Draft,
    table: Table,
) -> Result<Outcome, Outcome> {
    known::answered(tables, draft, table);
    known::watch_end(tables, draft, table);
    known::keep_warm(tables, draft, table);
    let Draft {
        packet,
        placement,
        flow,
        ..
    } = draft;
    if flow.flags & Flow::DIRECT != 0 && flow.dport == packet.tuple.dport {
        return Err(Verdict::Direct.into());
    }
    hook.rewrite(packet, &placement.to, packet.hops);
    Ok(Outcome::of_rule(Verdict::Restored, flow.rule.into()).back())
}
