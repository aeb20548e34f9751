//! What is remembered of a packet's tuple.

use portfwd_common::{Flow, FlowKey, Proto};

use crate::{
    packet::{Packet, Tuple},
    tables::{NotInserted, Table, Tables},
};

/// A flow entry and where it was found.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The entry.
    pub flow: &'a Flow,
    /// Its table.
    pub table: Table,
}

/// The live entry for a key. Expired ones, and UDP flows of a rule whose slot
/// has been given to another, count as absent.
#[inline(always)]
pub fn flow<'t, T: Tables>(tables: &'t T, key: &FlowKey) -> Option<Known<'t>> {
    if let Some(flow) = live(tables, Table::Flows, key) {
        return Some(Known {
            flow,
            table: Table::Flows,
        });
    }
    let flow = live(tables, Table::New, key)?;
    Some(Known {
        flow,
        table: Table::New,
    })
}

#[inline(always)]
fn live<'t, T: Tables>(tables: &'t T, table: Table, key: &FlowKey) -> Option<&'t Flow> {
    let flow = tables.flow(table, key)?;
    // Another CPU may have seen a later second.
    let age = tables.now().saturating_sub(flow.seen);
    let lifetime = tables.lifetime(key.proto, flow.flags & Flow::PROVEN != 0);
    if age > lifetime || is_outlived(tables, key, flow) {
        // Not left behind: an entry in one table would hide one in the other.
        tables.remove(table, key);
        return None;
    }
    Some(flow)
}

#[inline(always)]
fn is_outlived<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) -> bool {
    if flow.rule == Flow::NO_RULE || key.proto == Proto::Tcp.number() {
        return false;
    }
    match tables.rule(flow.rule) {
        Some(rule) => rule.generation != flow.generation,
        None => true,
    }
}

/// What a packet with a flow becomes.
#[inline(always)]
pub const fn rewritten(flow: &Flow) -> Tuple {
    Tuple {
        src: flow.src,
        dst: flow.dst,
        sport: flow.sport,
        dport: flow.dport,
    }
}

/// The key of replies to `tuple` as they leave this host. A UDP socket that is
/// not connected may answer from any of its addresses, so none is asked for.
#[inline(always)]
pub const fn reply_key(tuple: &Tuple, proto: Proto) -> FlowKey {
    let mut key = tuple.reversed().key(proto, FlowKey::EGRESS);
    if matches!(proto, Proto::Udp) {
        key.src = portfwd_common::Addr::UNSPECIFIED;
    }
    key
}

/// The key of the other entry of a flow.
#[inline(always)]
fn twin_key(flow: &Flow, proto: Proto) -> FlowKey {
    let tuple = rewritten(flow);
    if flow.flags & Flow::REPLY == 0 {
        reply_key(&tuple, proto)
    } else {
        tuple.reversed().key(proto, FlowKey::INGRESS)
    }
}

/// Keeps a flow alive, both entries, at most once a second. False when the
/// other entry is another flow's by now; then this one is gone.
#[inline(always)]
pub fn keep_warm<T: Tables>(tables: &T, key: &FlowKey, packet: &Packet, known: &Known<'_>) -> bool {
    let now = tables.now();
    if known.flow.seen == now {
        return true;
    }
    tables.touch(known.table, key, now);
    if touch_twin(tables, packet, known, now) {
        return true;
    }
    tables.remove(known.table, key);
    false
}

/// Touches the other entry, and puts it back if the LRU took it: a flow is two
/// entries or none. False when another flow has its key.
#[inline(never)]
fn touch_twin<T: Tables>(tables: &T, packet: &Packet, known: &Known<'_>, now: u32) -> bool {
    let key = twin_key(known.flow, packet.proto);
    if let Some(twin) = tables.flow(known.table, &key) {
        let ours = answers(packet, known.flow, twin);
        if ours {
            tables.touch(known.table, &key, now);
        }
        return ours;
    }
    if tables.flow(known.table.other(), &key).is_some() {
        return false;
    }
    let twin = twin_of(packet, known.flow, now);
    tables.insert(known.table, &key, &twin) != Err(NotInserted::Exists)
}

/// Is `twin` the other entry of `flow`, whose packet this is? A UDP reply may
/// come from another address than the client's packets go to.
#[inline(always)]
fn answers(packet: &Packet, flow: &Flow, twin: &Flow) -> bool {
    let to = rewritten(twin).reversed();
    if flow.flags & Flow::REPLY != 0 {
        return to.sport == packet.tuple.sport && to.dport == packet.tuple.dport;
    }
    to == packet.tuple
}

/// The other entry of the flow whose entry a packet has met.
#[inline(always)]
fn twin_of(packet: &Packet, flow: &Flow, now: u32) -> Flow {
    let tuple = packet.tuple.reversed();
    Flow {
        src: tuple.src,
        dst: tuple.dst,
        sport: tuple.sport,
        dport: tuple.dport,
        seen: now,
        ifindex: 0,
        flags: flow.flags ^ Flow::REPLY,
        ..*flow
    }
}

/// The client's entry of the flow that `reply` is of, whose packets become
/// `to`.
#[inline(always)]
pub const fn forward_of(reply: &Flow, to: &Tuple) -> Flow {
    Flow {
        src: to.src,
        dst: to.dst,
        sport: to.sport,
        dport: to.dport,
        ifindex: 0,
        flags: reply.flags & !Flow::REPLY,
        ..*reply
    }
}

/// Moves a flow to the table of those that are proved. True when it did.
#[inline(never)]
fn promote<T: Tables>(tables: &T, key: &FlowKey, packet: &Packet, known: &Known<'_>) -> bool {
    let now = tables.now();
    let mut forward = *known.flow;
    forward.flags = forward.flags & !Flow::ANSWERED | Flow::PROVEN;
    forward.seen = now;
    let twin = twin_key(&forward, packet.proto);
    if !tables.put(Table::Flows, &twin, &twin_of(packet, &forward, now)) {
        return false;
    }
    if !tables.put(Table::Flows, key, &forward) {
        tables.remove(Table::Flows, &twin);
        return false;
    }
    tables.remove(Table::New, &twin);
    // Of two CPUs that come here, one removes it.
    tables.remove(Table::New, key)
}

/// True when a client's packet proves that the client receives.
#[inline(always)]
pub const fn proves(packet: &Packet, flow: &Flow) -> bool {
    if flow.flags & Flow::ANSWERED == 0 {
        return false;
    }
    match packet.proto {
        Proto::Tcp => packet.is_ack() && packet.ack == flow.isn.wrapping_add(1),
        Proto::Udp | Proto::Sctp => true,
    }
}

/// Remembers that the target answered, in both entries: a UDP flow once, TCP at
/// each SYN-ACK of a new handshake, since a client may come again from the same
/// port while its flow lives.
#[inline(always)]
pub fn answered<T: Tables>(tables: &T, key: &FlowKey, packet: &Packet, known: &Known<'_>) {
    let flow = known.flow;
    let is_news = match packet.proto {
        Proto::Tcp => packet.is_syn_ack() && flow.isn != packet.seq,
        Proto::Udp | Proto::Sctp => flow.flags & (Flow::ANSWERED | Flow::PROVEN) == 0,
    };
    if !is_news {
        return;
    }
    let flags = flow.flags | Flow::ANSWERED;
    let twin = twin_key(flow, packet.proto);
    tables.mark(known.table, key, flags, packet.seq);
    tables.mark(known.table, &twin, flags ^ Flow::REPLY, packet.seq);
}

/// The client has proved that it receives: from now on the flow lives where a
/// flood cannot reach it, and the handshake is counted. True when it was.
#[inline(always)]
pub fn proved<T: Tables>(tables: &T, key: &FlowKey, packet: &Packet, known: &Known<'_>) -> bool {
    match known.table {
        Table::New => promote(tables, key, packet, known),
        Table::Flows => {
            let flow = known.flow;
            tables.mark(known.table, key, flow.flags & !Flow::ANSWERED, flow.isn);
            true
        }
    }
}

/// True when the tuple is of a flow that this host, or NAT behind it, started
/// itself. Keeps the entry alive.
#[inline(always)]
pub fn is_foreign<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    let Some(seen) = tables.foreign(key) else {
        return false;
    };
    let now = tables.now();
    if now.saturating_sub(seen) > tables.lifetime(key.proto, true) {
        return false;
    }
    if seen != now {
        tables.put_foreign(key, now);
    }
    true
}
