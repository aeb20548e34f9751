//! What is remembered of a packet's tuple.

use portfwd_common::{Addr, Flow, FlowKey, Proto};

use crate::{
    packet::{FIN, Packet, RST, Tuple},
    tables::{Draft, Life, Marks, NotInserted, Table, Tables},
};

/// A flow entry and where it was found.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The entry.
    pub flow: &'a Flow,
    /// Its table.
    pub table: Table,
}

/// The live entry for a key at a time. Expired ones, and UDP flows of a rule
/// whose slot has been given to another, count as absent. So may one that
/// another CPU promotes in between: see [`surely`].
#[inline(always)]
pub fn flow<'t, T: Tables>(tables: &'t T, key: &FlowKey, now: u32) -> Option<Known<'t>> {
    if let Some(flow) = live(tables, Table::Flows, key, now) {
        return Some(Known {
            flow,
            table: Table::Flows,
        });
    }
    let flow = live(tables, Table::New, key, now)?;
    Some(Known {
        flow,
        table: Table::New,
    })
}

/// The same for a packet that would be lost without its flow.
#[inline(always)]
pub fn surely<'t, T: Tables>(tables: &'t T, key: &FlowKey, now: u32) -> Option<Known<'t>> {
    if let Some(known) = flow(tables, key, now) {
        return Some(known);
    }
    let flow = live(tables, Table::Flows, key, now)?;
    Some(Known {
        flow,
        table: Table::Flows,
    })
}

/// Puts the live entry for the draft's key into the draft, with what it makes
/// of the packet, and says where it is. A copy: the memory of an entry that is
/// removed may be another flow's at once. What `opens` a flow finds one that was
/// promoted in between when it makes it anew.
#[inline(always)]
pub fn meet<T: Tables>(tables: &T, draft: &mut Draft, opens: bool) -> Option<Table> {
    draft.now = tables.now();
    let Known { flow, table } = match opens {
        true => flow(tables, &draft.key, draft.now)?,
        false => surely(tables, &draft.key, draft.now)?,
    };
    draft.flow = *flow;
    draft.placement.to = rewritten(&draft.flow);
    Some(table)
}

#[inline(always)]
fn live<'t, T: Tables>(tables: &'t T, table: Table, key: &FlowKey, now: u32) -> Option<&'t Flow> {
    let flow = tables.flow(table, key)?;
    // Another CPU may have seen a later second.
    let age = now.saturating_sub(flow.seen);
    let lifetime = tables.lifetime(key.proto, life(flow.flags));
    if age > lifetime || is_outlived(tables, key, flow) {
        // Not left behind: an entry in one table would hide one in the other.
        tables.remove(table, key);
        return None;
    }
    Some(flow)
}

#[inline(always)]
const fn life(flags: u16) -> Life {
    if flags & Flow::PROVEN == 0 || has_ended(flags) {
        Life::Transitory
    } else {
        Life::Proven
    }
}

/// Has TCP with these flags come to its end, orderly or by a reset?
#[inline(always)]
pub const fn has_ended(flags: u16) -> bool {
    const BOTH: u16 = Flow::FIN_CLIENT | Flow::FIN_TARGET;
    flags & BOTH == BOTH || flags & Flow::RESET != 0
}

/// True for a TCP flow that ended so many seconds ago.
#[inline(always)]
pub fn is_closed<T: Tables>(tables: &T, flow: &Flow, seconds: u32) -> bool {
    has_ended(flow.flags) && tables.now().saturating_sub(flow.seen) >= seconds
}

/// Removes both entries of a flow of `proto`, of which one was found for `key`.
#[inline(never)]
pub fn forget<T: Tables>(tables: &T, proto: Proto, key: &FlowKey, known: &Known<'_>) {
    let twin = twin_key(known.flow, proto);
    tables.remove(known.table, &twin);
    tables.remove(known.table, key);
}

#[inline(always)]
fn is_outlived<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) -> bool {
    if u32::from(flow.rule) == Flow::NO_RULE || key.proto == Proto::Tcp.number() {
        return false;
    }
    match tables.rule(flow.rule.into()) {
        Some(rule) => rule.generation as u16 != flow.generation,
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

/// The key of replies to `tuple` where they are met: as they leave this host,
/// or as they arrive from another. A UDP socket that is not connected may
/// answer from any of its host's addresses, so none is asked for.
#[inline(always)]
pub const fn reply_key(tuple: &Tuple, proto: Proto, side: u8) -> FlowKey {
    let mut key = tuple.reversed().key(proto, side);
    if matches!(proto, Proto::Udp) && side == FlowKey::EGRESS {
        key.src = Addr::UNSPECIFIED;
    }
    key
}

/// Where the packets of the other direction are met.
#[inline(always)]
pub const fn twin_side(flags: u16) -> u8 {
    if flags & Flow::TWIN_LEAVES != 0 {
        FlowKey::EGRESS
    } else {
        FlowKey::INGRESS
    }
}

/// The key of the other entry of a flow.
#[inline(always)]
fn twin_key(flow: &Flow, proto: Proto) -> FlowKey {
    let tuple = rewritten(flow);
    let side = twin_side(flow.flags);
    if flow.flags & Flow::REPLY == 0 {
        reply_key(&tuple, proto, side)
    } else {
        tuple.reversed().key(proto, side)
    }
}

/// The flags of the other entry, of one whose packets are met on `side`.
#[inline(always)]
pub const fn twin_flags(flags: u16, side: u8) -> u16 {
    let shared = (flags ^ Flow::REPLY) & !Flow::TWIN_LEAVES;
    if side == FlowKey::EGRESS {
        shared | Flow::TWIN_LEAVES
    } else {
        shared
    }
}

/// Keeps the flow that a packet has met alive, both entries, at most once a
/// second, and at once when the client comes in by another interface. False
/// when the other entry is another flow's by now; then this one is gone.
#[inline(always)]
pub fn keep_warm<T: Tables>(tables: &T, draft: &mut Draft, table: Table) -> bool {
    let Draft {
        packet,
        key,
        flow,
        now,
        ..
    } = draft;
    let now = *now;
    let ifindex = client_ifindex(tables, packet, flow);
    if flow.seen == now && flow.ifindex == ifindex {
        return true;
    }
    flow.seen = now;
    flow.ifindex = ifindex;
    tables.touch(table, key, now, ifindex);
    if touch_twin(tables, draft, table) {
        return true;
    }
    tables.remove(table, &draft.key);
    false
}

/// The interface that the client is behind; it stays where the stack has the
/// replies.
#[inline(always)]
fn client_ifindex<T: Tables>(tables: &T, packet: &Packet, flow: &Flow) -> u32 {
    let stays = flow.ifindex == 0 || flow.flags & Flow::REPLY != 0;
    if stays || flow.ifindex == packet.ifindex {
        return flow.ifindex;
    }
    home(tables, packet)
}

/// The interface that a client is answered by: the one that leads to its
/// network, so that an address that is borrowed gets no answer; where only
/// default routes do, the one that the packet came in by.
#[inline(always)]
pub fn home<T: Tables>(tables: &T, packet: &Packet) -> u32 {
    match tables.home(&packet.tuple.src) {
        0 => packet.ifindex,
        home => home,
    }
}

/// Touches the other entry, and puts it back if the LRU took it: a flow is two
/// entries or none. False when another flow has its key.
#[inline(never)]
fn touch_twin<T: Tables>(tables: &T, draft: &Draft, table: Table) -> bool {
    let Draft { packet, flow, .. } = draft;
    let key = twin_key(flow, packet.proto);
    if let Some(twin) = tables.flow(table, &key) {
        let ours = answers(packet, flow, twin);
        if ours {
            tables.touch(table, &key, flow.seen, flow.ifindex);
        }
        return ours;
    }
    if let Some(twin) = tables.flow(table.other(), &key) {
        // Another flow's, unless another CPU has just promoted both.
        return answers(packet, flow, twin);
    }
    let twin = twin_of(flow, &packet.tuple.reversed(), draft.key.side);
    tables.insert(table, &key, &twin) != Err(NotInserted::Exists)
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

/// The other entry of a flow of which one is known, whose packets are met on
/// `side`; those of the other become `to`.
#[inline(always)]
pub const fn twin_of(flow: &Flow, to: &Tuple, side: u8) -> Flow {
    Flow {
        src: to.src,
        dst: to.dst,
        sport: to.sport,
        dport: to.dport,
        flags: twin_flags(flow.flags, side),
        hop: [0; 3],
        epoch: 0,
        ..*flow
    }
}

/// Moves a flow to the table of those that are proved. True when it did.
#[inline(never)]
fn promote<T: Tables>(tables: &T, draft: &mut Draft) -> bool {
    let Draft {
        packet,
        key,
        flow,
        now,
        ..
    } = draft;
    flow.flags = flow.flags & !Flow::ANSWERED | Flow::PROVEN;
    flow.seen = *now;
    flow.ifindex = client_ifindex(tables, packet, flow);
    let twin = twin_key(flow, packet.proto);
    let other = twin_of(flow, &packet.tuple.reversed(), key.side);
    if !tables.put(Table::Flows, &twin, &other) {
        return false;
    }
    if !tables.put(Table::Flows, key, flow) {
        tables.remove(Table::Flows, &twin);
        return false;
    }
    tables.remove(Table::New, &twin);
    // Of two CPUs that come here, one removes it.
    tables.remove(Table::New, key)
}

/// What a client's packet made of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The flow had lost its tuple to another one, and is gone.
    Lost,
    /// It goes on.
    On,
    /// It proves that the client receives.
    Proved,
}

/// Takes the flow that a client's packet has met one packet further. Where the
/// packet proves that the client receives, the flow lives from now on where a
/// flood cannot reach it.
#[inline(always)]
pub fn advance<T: Tables>(tables: &T, draft: &mut Draft, table: Table, proves: bool) -> Progress {
    if proves && matches!(table, Table::New) && promote(tables, draft) {
        watch_end(tables, draft, Table::Flows);
        return Progress::Proved;
    }
    if !keep_warm(tables, draft, table) {
        return Progress::Lost;
    }
    let again = proves && matches!(table, Table::Flows);
    if again {
        // Of the next handshake from the same port.
        mark(tables, draft, table, 0, Flow::ANSWERED);
    }
    watch_end(tables, draft, table);
    if again {
        Progress::Proved
    } else {
        Progress::On
    }
}

/// True when a client's packet proves that the client receives.
#[inline(always)]
pub const fn proves(draft: &Draft) -> bool {
    let Draft { packet, flow, .. } = draft;
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
pub fn answered<T: Tables>(tables: &T, draft: &mut Draft, table: Table) {
    let Draft { packet, flow, .. } = draft;
    let is_news = match packet.proto {
        Proto::Tcp => packet.is_syn_ack() && flow.isn != packet.seq,
        Proto::Udp | Proto::Sctp => flow.flags & (Flow::ANSWERED | Flow::PROVEN) == 0,
    };
    if is_news {
        flow.isn = packet.seq;
        mark(tables, draft, table, Flow::ANSWERED, 0);
    }
}

/// Remembers how far a TCP connection is on its way to its end, in both
/// entries: a closed one is forgotten like one that never was established. A
/// reset may be forged: what comes after it takes it back (RFC 7857,
/// section 2.1). A SYN begins anew.
#[inline(always)]
pub fn watch_end<T: Tables>(tables: &T, draft: &mut Draft, table: Table) {
    let flags = draft.flow.flags;
    let ending = ending(&draft.packet, flags);
    if ending != flags {
        mark(tables, draft, table, ending & !flags, flags & !ending);
    }
}

#[inline(always)]
const fn ending(packet: &Packet, flags: u16) -> u16 {
    let fin = if flags & Flow::REPLY == 0 {
        Flow::FIN_CLIENT
    } else {
        Flow::FIN_TARGET
    };
    if packet.flags & RST != 0 {
        flags | Flow::RESET
    } else if packet.is_open() {
        flags & !(Flow::FIN_CLIENT | Flow::FIN_TARGET | Flow::RESET)
    } else if packet.flags & FIN != 0 {
        flags & !Flow::RESET | fin
    } else {
        flags & !Flow::RESET
    }
}

/// Sets and clears flags that both entries have alike, in both.
#[inline(never)]
fn mark<T: Tables>(tables: &T, draft: &mut Draft, table: Table, set: u16, clear: u16) {
    let Draft {
        packet, key, flow, ..
    } = draft;
    let marks = Marks {
        set,
        clear,
        isn: flow.isn,
    };
    marks.write(flow);
    mark_entry(tables, table, key, &marks);
    mark_entry(tables, table, &twin_key(flow, packet.proto), &marks);
}

#[inline(always)]
fn mark_entry<T: Tables>(tables: &T, table: Table, key: &FlowKey, marks: &Marks) {
    // Another CPU may have promoted it since it was met.
    if !tables.mark(table, key, marks) {
        tables.mark(table.other(), key, marks);
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
    if now.saturating_sub(seen) > tables.lifetime(key.proto, Life::Proven) {
        return false;
    }
    if seen != now {
        tables.put_foreign(key, now);
    }
    true
}
