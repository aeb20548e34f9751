//! The walk of a packet that arrives on a device.

use portfwd_common::{Addr, Family, Flow, FlowKey, PortEntry, Proto, Verdict};

use crate::{
    claim::{self, Claimed},
    hook::{ESTABLISHED, Frame, Hook, LOOPBACK_IFINDEX},
    known::{self, Known},
    outcome::Outcome,
    packet::{self, Packet, Tuple},
    place, ports, remember, steer,
    tables::{Draft, Table, Tables},
};

/// Finds the packet in a frame and what the rules know of its port, or says why
/// it cannot be ours.
#[inline(always)]
pub fn find<'t, H: Hook, T: Tables>(
    hook: &mut H,
    tables: &'t T,
    frame: &Frame,
) -> Result<(&'t mut Draft, PortEntry), Verdict> {
    // What the link sent to all may be to a loopback address all the same.
    if !frame.for_host && !tables.guards(frame.ifindex) {
        return Err(Verdict::NotForHost);
    }
    if frame.vlan {
        return Err(Verdict::Vlan);
    }
    let network = packet::network(hook, frame)?;
    if frame.ifindex != LOOPBACK_IFINDEX {
        guard(tables, frame, network.family, &network.src)?;
        guard(tables, frame, network.family, &network.dst)?;
    }
    if !frame.for_host {
        return Err(Verdict::NotForHost);
    }
    let packet = packet::transport(hook, frame, &network)?;
    let entry = ports::named(tables.port(packet.proto, packet.tuple.dport))?;
    if packet.tuple.dst.names_no_host_of(packet.family) {
        return Err(Verdict::NotForHost);
    }
    Ok((tables.draft(&packet).ok_or(Verdict::NoRule)?, entry))
}

/// A loopback address never crosses a device: the stack drops it, and where a
/// rule had to open 127.0.0.0/8 for its replies, this does.
#[inline(always)]
fn guard<T: Tables>(tables: &T, frame: &Frame, family: Family, addr: &Addr) -> Result<(), Verdict> {
    if !addr.is_loopback_of(family) {
        return Ok(());
    }
    if tables.guards(frame.ifindex) {
        return Err(Verdict::Guarded);
    }
    Err(Verdict::NotLocal)
}

/// Forwards a packet to a port that a rule names, or leaves it alone.
#[inline(always)]
pub fn walk<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    entry: PortEntry,
) -> Result<Outcome, Outcome> {
    let Draft { packet, key, .. } = draft;
    *key = packet.tuple.key(packet.proto, FlowKey::INGRESS);
    if is_tracked(tables, entry, packet)
        && let Some(known) = known::flow(tables, key)
        && let Some(outcome) = go_on(hook, tables, key, packet, &known)
    {
        return Ok(outcome);
    }
    if entry.class() != 0 && !packet.is_open() && known::is_foreign(tables, key) {
        return Err(Verdict::Foreign.into());
    }
    match claim::rule(tables, entry, packet) {
        Ok(claimed) => match claimed_by(hook, tables, packet, &claimed)? {
            Next::Leave(outcome) => return Ok(outcome),
            Next::Rewrite => place::place(hook, tables, draft, &claimed)?,
        },
        Err(Verdict::NoRule | Verdict::NotListed) if is_target(tables, entry, packet) => {
            local(hook, packet).map_err(|_| Verdict::Direct)?;
            place::direct(draft)?;
        }
        Err(verdict) => return Err(verdict.into()),
    }
    open(hook, tables, draft)
}

/// How a packet that a rule claims goes on.
enum Next {
    /// It is done.
    Leave(Outcome),
    /// It gets a flow.
    Rewrite,
}

/// A packet without a flow that a rule claims.
#[inline(always)]
fn claimed_by<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    packet: &Packet,
    claimed: &Claimed,
) -> Result<Next, Verdict> {
    let steers = steer::steers(tables, &claimed.rule);
    if matches!(packet.proto, Proto::Tcp) {
        let slot = if steers { claimed.slot } else { Flow::NO_RULE };
        if let Some(outcome) = steer::connected(hook, packet, slot) {
            return Ok(Next::Leave(outcome));
        }
    }
    if place::is_own_exchange(hook, packet) {
        tables.put_foreign(
            &packet.tuple.key(packet.proto, FlowKey::INGRESS),
            tables.now(),
        );
        return Err(Verdict::Foreign);
    }
    local(hook, packet)?;
    if matches!(packet.proto, Proto::Tcp)
        && steers
        && let Some(outcome) = steer::steer(hook, tables, packet, claimed)?
    {
        return Ok(Next::Leave(outcome));
    }
    Ok(Next::Rewrite)
}

/// Is the packet's destination this host's?
#[inline(always)]
fn local<H: Hook>(hook: &H, packet: &Packet) -> Result<(), Verdict> {
    if packet.on_loopback() || hook.may_be_local(packet) {
        Ok(())
    } else {
        Err(Verdict::NotLocal)
    }
}

/// The first packet of a flow.
#[inline(always)]
fn open<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
) -> Result<Outcome, Outcome> {
    let is_new = match remember::remember(hook, tables, draft) {
        // No rule claims it: nothing to keep its tuple is no reason to drop it.
        Err(Verdict::TableFull) if draft.placement.flags & Flow::DIRECT != 0 => {
            return Err(Verdict::Direct.into());
        }
        result => result?,
    };
    let Draft {
        packet, placement, ..
    } = draft;
    // UDP opens with its first packet, TCP with the handshake's end.
    let opens = is_new && matches!(packet.proto, Proto::Udp);
    Ok(go(hook, packet, &placement.to, placement.slot, opens))
}

/// Sends a packet of a flow on its way.
#[inline(always)]
fn go<H: Hook>(hook: &mut H, packet: &Packet, to: &Tuple, slot: u32, opens: bool) -> Outcome {
    let verdict = match (slot, to.sport == packet.tuple.sport) {
        (Flow::NO_RULE, true) => Verdict::Direct,
        (Flow::NO_RULE, false) => Verdict::Moved,
        _ => Verdict::Rewritten,
    };
    if *to != packet.tuple {
        hook.rewrite(packet, to);
    }
    Outcome::of_rule(verdict, slot).opening(opens && slot != Flow::NO_RULE)
}

/// May packets to the port have a flow?
#[inline(always)]
fn is_tracked<T: Tables>(tables: &T, entry: PortEntry, packet: &Packet) -> bool {
    let tracked = entry.0 & (PortEntry::TRACKED | PortEntry::TARGET) != 0;
    tracked && (matches!(packet.proto, Proto::Udp) || tables.tracks_tcp())
}

/// Is the port the target of a rule that rewrites?
#[inline(always)]
fn is_target<T: Tables>(tables: &T, entry: PortEntry, packet: &Packet) -> bool {
    entry.has(PortEntry::TARGET) && is_tracked(tables, entry, packet)
}

/// The next packet of a flow; none when the flow turns out to have lost its
/// tuple to another one.
#[inline(always)]
fn go_on<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    key: &FlowKey,
    packet: &Packet,
    known: &Known<'_>,
) -> Option<Outcome> {
    let proves = known::proves(packet, known.flow) || is_established(hook, packet, known);
    let proved = proves && known::proved(tables, key, packet, known);
    if !proved && !known::keep_warm(tables, key, packet, known) {
        return None;
    }
    let to = known::rewritten(known.flow);
    let opens = proved && matches!(packet.proto, Proto::Tcp);
    Some(go(hook, packet, &to, known.flow.rule, opens))
}

/// TCP whose SYN-ACK nobody remembers: the table lost the flow during the
/// handshake, and a SYN cookie completed it.
#[inline(always)]
fn is_established<H: Hook>(hook: &H, packet: &Packet, known: &Known<'_>) -> bool {
    matches!(packet.proto, Proto::Tcp)
        && matches!(known.table, Table::New)
        && known.flow.flags & Flow::ANSWERED == 0
        && packet.is_ack()
        && hook.tcp_socket(packet.family, &known::rewritten(known.flow)) == ESTABLISHED
}
