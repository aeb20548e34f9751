//! The walk of a packet that arrives on a device.

use portfwd_common::{Addr, Family, Flow, FlowKey, PortEntry, Proto, TargetEntry, Verdict};

use crate::{
    claim::{self, Claimed, Dialled},
    hook::{ESTABLISHED, Frame, Hook, LOOPBACK_IFINDEX},
    known::{self, Progress},
    outcome::Outcome,
    packet::{self, Packet},
    place::{self, Placement},
    ports::{self, Named},
    relay, remember, steer,
    tables::{Draft, Table, Tables},
};

/// Puts the packet of a frame into the draft with the key of its flow, and finds
/// what the rules know of its ports, or says why it cannot be ours.
#[inline(never)]
pub fn find<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
) -> Result<Named, Verdict> {
    draft.sent = 0;
    let frame = &hook.frame();
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
    let named = ports::arriving(tables, &packet)?;
    if packet.tuple.dst.names_no_host_of(packet.family) {
        return Err(Verdict::NotForHost);
    }
    draft.packet = packet;
    draft.key = packet.tuple.key(packet.proto, FlowKey::INGRESS);
    Ok(named)
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

/// Forwards a packet to a port that a rule names, gives a reply of another host
/// back, or leaves it alone.
#[inline(always)]
pub fn walk<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    named: Named,
) -> Outcome {
    if is_tracked(tables, named, &draft.packet)
        && let Some(outcome) = follow(hook, tables, draft, named)
    {
        return outcome;
    }
    begin(hook, tables, draft, named)
}

/// Gives a reply of another host back where no client is served.
#[inline(always)]
pub fn walk_back<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    named: Named,
) -> Outcome {
    if named.across()
        && let Some(table) = known::meet(tables, draft, false)
        && draft.flow.flags & Flow::REPLY != 0
        && let Some(outcome) = give_back(hook, tables, draft, table)
    {
        return outcome;
    }
    Verdict::NoRule.into()
}

/// A packet of a flow; none where there is no flow.
#[inline(never)]
fn follow<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    named: Named,
) -> Option<Outcome> {
    let opens = named.entry().class() != 0 && may_open(&draft.packet);
    let table = known::meet(tables, draft, opens)?;
    if draft.flow.flags & Flow::REPLY == 0 {
        go_on(hook, tables, draft, table)
    } else {
        give_back(hook, tables, draft, table)
    }
}

/// Can the packet be the first of a flow?
#[inline(always)]
const fn may_open(packet: &Packet) -> bool {
    !matches!(packet.proto, Proto::Tcp) || packet.is_open()
}

/// A packet without a flow.
#[inline(always)]
fn begin<H: Hook, T: Tables>(hook: &mut H, tables: &T, draft: &mut Draft, named: Named) -> Outcome {
    match place(hook, tables, draft, named.entry()) {
        Ok(()) => open(hook, tables, draft),
        Err(outcome) => outcome,
    }
}

/// Chooses what a packet without a flow becomes, unless it is done.
#[inline(never)]
fn place<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
    entry: PortEntry,
) -> Result<(), Outcome> {
    let Draft { packet, key, .. } = draft;
    if entry.class() != 0 && !packet.is_open() && known::is_foreign(tables, key) {
        return Err(Verdict::Foreign.into());
    }
    if entry.has(PortEntry::REMOTE) && tables.is_remote(&packet.tuple.dst) {
        return Ok(place::direct(draft, 0)?);
    }
    match claim::rule(tables, entry, &Dialled::by(packet), &packet.tuple.src) {
        Ok(claimed) => {
            let target = claimed.target(tables).ok_or(Verdict::NoRule)?;
            match claimed_by(hook, tables, draft, &claimed, target)? {
                Next::Leave(outcome) => return Err(outcome),
                Next::Here => place::on_this_host(hook, tables, draft, &claimed, target)?,
                Next::There => {
                    place::on_other_host(tables, draft, &claimed, target)?;
                    relay::towards(hook, draft, target)?;
                }
            }
        }
        Err(Verdict::NoRule | Verdict::NotListed) if is_target(tables, entry, packet) => {
            local(hook, packet).map_err(|_| Verdict::Direct)?;
            place::direct(draft, Flow::TWIN_LEAVES)?;
        }
        Err(verdict) => return Err(verdict.into()),
    }
    Ok(())
}

/// How a packet that a rule claims goes on.
enum Next {
    /// It is done.
    Leave(Outcome),
    /// It gets a flow to a socket of this host.
    Here,
    /// It gets a flow to another host.
    There,
}

/// A packet without a flow that a rule claims.
#[inline(always)]
fn claimed_by<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &Draft,
    claimed: &Claimed,
    target: &TargetEntry,
) -> Result<Next, Verdict> {
    let Draft { packet, key, .. } = draft;
    let steers = target.is_local() && steer::steers(tables, &claimed.rule);
    if matches!(packet.proto, Proto::Tcp) {
        let slot = if steers { claimed.slot } else { Flow::NO_RULE };
        if let Some(outcome) = steer::connected(hook, packet, slot) {
            return Ok(Next::Leave(outcome));
        }
    }
    if place::is_own_exchange(hook, packet) {
        tables.put_foreign(key, tables.now());
        return Err(Verdict::Foreign);
    }
    if !target.is_local() {
        return elsewhere(tables, packet);
    }
    local(hook, packet)?;
    if matches!(packet.proto, Proto::Tcp)
        && steers
        && let Some(outcome) = steer::steer(hook, packet, claimed, target)?
    {
        return Ok(Next::Leave(outcome));
    }
    Ok(Next::Here)
}

/// A packet to another host comes from the network: for the programs of this
/// one the connect hooks dial the target itself, since its replies to what they
/// sent over `lo` would seem to come from this host and be dropped.
#[inline(always)]
fn elsewhere<T: Tables>(tables: &T, packet: &Packet) -> Result<Next, Verdict> {
    if packet.on_loopback() {
        return Err(Verdict::Unhooked);
    }
    // The kernel says whose an address is only where it forwards.
    if !tables.is_own(&packet.tuple.dst) {
        return Err(Verdict::NotLocal);
    }
    let src = &packet.tuple.src;
    if src.names_no_host_of(packet.family) || tables.is_own(src) {
        return Err(Verdict::Martian);
    }
    Ok(Next::There)
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
#[inline(never)]
fn open<H: Hook, T: Tables>(hook: &mut H, tables: &T, draft: &mut Draft) -> Outcome {
    let is_new = match remember::remember(hook, tables, draft) {
        Ok(is_new) => is_new,
        // No rule claims it: nothing to keep its tuple is no reason to drop it.
        Err(Verdict::TableFull) if draft.placement.flags & Flow::DIRECT != 0 => {
            return Verdict::Direct.into();
        }
        Err(verdict) => return verdict.into(),
    };
    // UDP opens with its first packet, TCP with the handshake's end.
    let opens = is_new && matches!(draft.packet.proto, Proto::Udp);
    let Placement { slot, target, .. } = draft.placement;
    go(hook, draft, slot, target).opening(opens && slot != Flow::NO_RULE)
}

/// Sends a packet of a flow on its way, which its placement says; to another
/// host the way is chosen.
#[inline(always)]
fn go<H: Hook>(hook: &mut H, draft: &mut Draft, slot: u32, target: u32) -> Outcome {
    if target != Flow::NO_TARGET {
        hook.relay(draft);
        return Outcome::of_rule(Verdict::Forwarded, slot);
    }
    let Draft {
        packet, placement, ..
    } = draft;
    let to = &placement.to;
    let verdict = match (slot, to.sport == packet.tuple.sport) {
        (Flow::NO_RULE, true) => Verdict::Direct,
        (Flow::NO_RULE, false) => Verdict::Moved,
        _ => Verdict::Rewritten,
    };
    if *to != packet.tuple {
        hook.rewrite(packet, to, packet.hops);
    }
    Outcome::of_rule(verdict, slot)
}

/// May packets with these ports have a flow?
#[inline(always)]
fn is_tracked<T: Tables>(tables: &T, named: Named, packet: &Packet) -> bool {
    const TRACKED: u32 = PortEntry::TRACKED | PortEntry::REMOTE;
    let entry = named.entry();
    named.across() || entry.0 & TRACKED != 0 || is_target(tables, entry, packet)
}

/// Is the port the target, on this host, of a rule that rewrites?
#[inline(always)]
fn is_target<T: Tables>(tables: &T, entry: PortEntry, packet: &Packet) -> bool {
    entry.has(PortEntry::TARGET) && (matches!(packet.proto, Proto::Udp) || tables.tracks_tcp())
}

/// The next packet of a flow; none when the flow turns out to have lost its
/// tuple to another one. What cannot be sent on changes no flow.
#[inline(always)]
fn go_on<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    table: Table,
) -> Option<Outcome> {
    let (rule, target) = (draft.flow.rule.into(), draft.flow.target.into());
    if target != Flow::NO_TARGET
        && let Err(verdict) = towards(hook, tables, draft, target)
    {
        return Some(verdict.into());
    }
    let proves = known::proves(draft) || is_established(hook, draft, table);
    let opens = match known::advance(tables, draft, table, proves) {
        Progress::Lost => return None,
        Progress::On => false,
        Progress::Proved => matches!(draft.packet.proto, Proto::Tcp) && rule != Flow::NO_RULE,
    };
    Some(go(hook, draft, rule, target).opening(opens))
}

#[inline(always)]
fn towards<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
    target: u32,
) -> Result<(), Verdict> {
    let target = tables.target(target).ok_or(Verdict::NoRoute)?;
    relay::towards(hook, draft, target)
}

/// A reply of another host.
#[inline(always)]
fn give_back<H: Hook, T: Tables>(
    hook: &mut H,
    tables: &T,
    draft: &mut Draft,
    table: Table,
) -> Option<Outcome> {
    let (rule, ifindex) = (draft.flow.rule.into(), draft.flow.ifindex);
    if ifindex != 0
        && let Err(verdict) = relay::back(hook, tables, draft, ifindex)
    {
        return Some(verdict.into());
    }
    known::answered(tables, draft, table);
    known::watch_end(tables, draft, table);
    if !known::keep_warm(tables, draft, table) {
        return None;
    }
    if ifindex != 0 {
        hook.relay(draft);
        return Some(Outcome::of_rule(Verdict::Returned, rule).back());
    }
    // The stack routes it to the client, or has it itself.
    let Draft {
        packet, placement, ..
    } = draft;
    if placement.to == packet.tuple {
        return Some(Verdict::Direct.into());
    }
    hook.rewrite(packet, &placement.to, packet.hops);
    Some(Outcome::of_rule(Verdict::Restored, rule).back())
}

/// TCP whose SYN-ACK nobody remembers: the table lost the flow during the
/// handshake, and a SYN cookie completed it.
#[inline(always)]
fn is_established<H: Hook>(hook: &H, draft: &Draft, table: Table) -> bool {
    let Draft {
        packet,
        placement,
        flow,
        ..
    } = draft;
    matches!(packet.proto, Proto::Tcp)
        && matches!(table, Table::New)
        && flow.flags & Flow::ANSWERED == 0
        && u32::from(flow.target) == Flow::NO_TARGET
        && packet.is_ack()
        && hook.tcp_socket(packet.family, &placement.to) == ESTABLISHED
}
