//! Making a flow: the reply's entry first, since inserting it allocates the
//! source port and proves that no other flow has the tuple; then the client's.
//! Only when both stand may the packet be touched.

use portfwd_common::{Flow, FlowKey, Proto, Verdict};

use crate::{
    hook::{Hook, LISTEN, NO_SOCKET, TIME_WAIT, UdpSocket},
    known,
    packet::{Packet, Tuple},
    place::Placement,
    tables::{Draft, NotInserted, Table, Tables},
};

/// Ports below are not handed out.
const FIRST_PORT: u32 = 1024;

/// What happened to a tuple that was asked for.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// It is ours.
    Ours,
    /// The same flow has it: another CPU was faster.
    Same,
    /// Another flow has it, or a socket.
    Taken,
    /// Another CPU was at it: ask again.
    Again,
    /// There is no room.
    Full,
}

impl From<u32> for Reserved {
    /// Back from the number, in which a part of the program that is verified
    /// by itself gives it.
    #[inline(always)]
    fn from(number: u32) -> Self {
        const OURS: u32 = Reserved::Ours as u32;
        const SAME: u32 = Reserved::Same as u32;
        const TAKEN: u32 = Reserved::Taken as u32;
        const AGAIN: u32 = Reserved::Again as u32;
        match number {
            OURS => Self::Ours,
            SAME => Self::Same,
            TAKEN => Self::Taken,
            AGAIN => Self::Again,
            _ => Self::Full,
        }
    }
}

/// Makes the flow of a draft; it gets the first source port that is free. True
/// when this packet made it, false when another CPU did.
#[inline(always)]
pub fn remember<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
) -> Result<bool, Verdict> {
    match reserve_any(hook, tables, draft) {
        Reserved::Ours => finish(tables, draft),
        Reserved::Same => Ok(false),
        Reserved::Taken | Reserved::Again => Err(Verdict::NoPort),
        Reserved::Full => Err(Verdict::TableFull),
    }
}

/// Source ports that are tried for a packet, and as many again of which those
/// of closed flows, and of ones that came to nothing, may be had.
const TRIES: u32 = 24;
/// Of those, the first ones from outside the range that this host gives its own
/// connections, where a flow shares the ports with them.
const TRIES_OUTSIDE: u32 = 14;
/// Seconds without a packet after which they may.
const CLOSED_FOR: u32 = 2;

/// The client's own source port, then others.
#[inline(always)]
fn reserve_any<H: Hook, T: Tables>(hook: &H, tables: &T, draft: &mut Draft) -> Reserved {
    draft.tried = 0;
    for _ in 0..2 * TRIES {
        match hook.reserve_next(tables, draft) {
            Reserved::Taken | Reserved::Again => {}
            done => return done,
        }
    }
    Reserved::Taken
}

/// Asks for the reply's tuple with the next source port.
#[inline(always)]
pub fn reserve_next<H: Hook, T: Tables>(hook: &H, tables: &T, draft: &mut Draft) -> Reserved {
    draft.placement.to.sport = source_port(tables, draft);
    let reserved = reserve(hook, tables, draft);
    if reserved == Reserved::Taken {
        draft.tried += 1;
    }
    reserved
}

/// The source port to try: the packet's own, then a walk through the
/// unprivileged ports that starts where the tuple says, so that two CPUs try
/// the same ports in the same order.
#[inline(always)]
fn source_port<T: Tables>(tables: &T, draft: &Draft) -> u16 {
    let (packet, tried) = (&draft.packet, draft.tried);
    if tried == 0 {
        return packet.tuple.sport;
    }
    let number = number(&packet.tuple, tried);
    if !draft.placement.masquerades {
        return (FIRST_PORT + pick(number, 65_536 - FIRST_PORT)) as u16;
    }
    let (first, last) = tables.local_ports();
    let outside = tried % TRIES < TRIES_OUTSIDE;
    shared_port(number, first.into(), last.into(), outside)
}

/// A port that this host may use itself: outside its range first, which keeps
/// clear of the connections that it will open.
#[inline(always)]
const fn shared_port(number: u32, first: u32, last: u32, outside: bool) -> u16 {
    let first = if first < FIRST_PORT {
        FIRST_PORT
    } else {
        first
    };
    let inside = (last + 1).saturating_sub(first);
    let others = 65_536 - FIRST_PORT - inside;
    if !outside || others == 0 {
        return (first + pick(number, inside)) as u16;
    }
    let port = FIRST_PORT + pick(number, others);
    if port < first {
        port as u16
    } else {
        (port + inside) as u16
    }
}

/// One of `count` numbers, without a division, which could be one by 0.
#[inline(always)]
const fn pick(number: u32, count: u32) -> u32 {
    ((number as u64 * count as u64) >> 32) as u32
}

/// A number that hangs on the tuple and on how many ports were tried.
#[inline(always)]
fn number(tuple: &Tuple, tried: u32) -> u32 {
    let mut hash = u32::from(tuple.sport) << 16 | u32::from(tuple.dport);
    for word in tuple.src.0 {
        hash = (hash ^ word).wrapping_mul(GOLDEN);
        // A product carries to the left only.
        hash ^= hash >> 15;
    }
    mixed(hash.wrapping_add(tried.wrapping_mul(GOLDEN)))
}

/// Every bit of the result hangs on every bit of `hash` (MurmurHash3's
/// finaliser): without it a client would be given a few of the ports only.
#[inline(always)]
const fn mixed(mut hash: u32) -> u32 {
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// 2^32 over the golden ratio: Knuth's multiplicative hash.
const GOLDEN: u32 = 0x9e37_79b1;

/// Asks for the reply's tuple.
#[inline(always)]
fn reserve<H: Hook, T: Tables>(hook: &H, tables: &T, draft: &mut Draft) -> Reserved {
    let Draft {
        packet,
        placement,
        tried,
        key,
        flow,
        ..
    } = draft;
    let side = known::twin_side(placement.flags);
    *key = known::reply_key(&placement.to, packet.proto, side);
    if let Some(found) = known::flow(tables, key, tables.now()) {
        if known::rewritten(found.flow) == packet.tuple.reversed() {
            // The client's entry is on its way from another CPU, or the LRU
            // took it: then it comes back. One that is there is as good.
            *key = packet.tuple.key(packet.proto, placement.side);
            *flow = known::twin_of(found.flow, &placement.to, side);
            let _exists = tables.insert(found.table, key, flow);
            return Reserved::Same;
        }
        if is_shared(packet, placement, found.flow) {
            return Reserved::Same;
        }
        if *tried < TRIES || !may_be_taken(tables, packet.proto, &found) {
            return Reserved::Taken;
        }
        // Better than to drop the packet: at worst a peer in TIME_WAIT answers
        // a SYN with an old acknowledgement, and takes the next one.
        known::forget(tables, packet.proto, key, &found);
    }
    if placement.masquerades && known::is_foreign(tables, key) {
        return Reserved::Taken;
    }
    if is_a_sockets(hook, packet, placement) {
        return Reserved::Taken;
    }
    *flow = reply_entry(tables, packet, placement);
    match tables.insert(Table::New, key, flow) {
        Ok(()) => {}
        Err(NotInserted::Exists) => return Reserved::Again,
        Err(NotInserted::Full) => return Reserved::Full,
    }
    // Another CPU may have moved a flow between the tables at that moment.
    if tables.flow(Table::Flows, key).is_some() {
        tables.remove(Table::New, key);
        return Reserved::Again;
    }
    Reserved::Ours
}

/// May a flow give its tuple up where none is free? One that is closed, and one
/// that has come to nothing so far: a flood has no other.
#[inline(always)]
fn may_be_taken<T: Tables>(tables: &T, proto: Proto, found: &known::Known<'_>) -> bool {
    let flags = found.flow.flags;
    let answered = matches!(proto, Proto::Udp) && flags & Flow::ANSWERED != 0;
    let unproved = matches!(found.table, Table::New) && flags & Flow::DIRECT == 0 && !answered;
    let idle = tables.now().saturating_sub(found.flow.seen) >= CLOSED_FOR;
    unproved && idle || known::is_closed(tables, found.flow, CLOSED_FOR)
}

/// Two direct flows that differ in this host's address alone may have one
/// entry, as long as it changes neither.
#[inline(always)]
fn is_shared(packet: &Packet, placement: &Placement, found: &Flow) -> bool {
    placement.flags & found.flags & Flow::DIRECT != 0
        && placement.to.sport == packet.tuple.sport
        && found.dport == packet.tuple.sport
}

/// Does a socket of this host have the tuple?
#[inline(always)]
fn is_a_sockets<H: Hook>(hook: &H, packet: &Packet, placement: &Placement) -> bool {
    if placement.masquerades {
        let mine = placement.side == FlowKey::EGRESS && packet.tuple.sport == placement.to.sport;
        return !mine && receives(hook, packet, &placement.to.reversed());
    }
    placement.target == Flow::NO_TARGET && is_connected(hook, packet, placement)
}

/// Would a socket receive replies with the tuple? A listener too, and what is
/// in TIME_WAIT.
#[inline(always)]
fn receives<H: Hook>(hook: &H, packet: &Packet, replies: &Tuple) -> bool {
    match packet.proto {
        Proto::Tcp => hook.tcp_socket(packet.family, replies) != NO_SOCKET,
        Proto::Udp | Proto::Sctp => hook.udp_socket(packet.family, replies) != UdpSocket::None,
    }
}

/// TCP: a connection that the kernel knows has the tuple; one without a flow,
/// since it is older than the forwarder. An ACK without a flow may be of a
/// flow that was lost, and its first source port finds its connection again.
#[inline(always)]
fn is_connected<H: Hook>(hook: &H, packet: &Packet, placement: &Placement) -> bool {
    matches!(packet.proto, Proto::Tcp)
        && placement.flags & Flow::DIRECT == 0
        && !packet.is_ack()
        && !matches!(
            hook.tcp_socket(packet.family, &placement.to),
            NO_SOCKET | LISTEN | TIME_WAIT
        )
}

/// Makes the client's entry of a flow whose reply entry stands.
#[inline(always)]
fn finish<T: Tables>(tables: &T, draft: &mut Draft) -> Result<bool, Verdict> {
    let Draft {
        packet,
        placement,
        key,
        flow,
        ..
    } = draft;
    *key = packet.tuple.key(packet.proto, placement.side);
    *flow = entry(tables, &placement.to, placement, placement.flags);
    let Err(error) = tables.insert(Table::New, key, flow) else {
        return Ok(true);
    };
    let winner = if error == NotInserted::Exists {
        tables.flow(Table::New, key)
    } else {
        None
    };
    match winner {
        // It found our reply entry: one flow, and this packet opened it.
        Some(winner) if known::rewritten(winner) == placement.to => Ok(true),
        Some(winner) => {
            give_up(tables, packet, placement, key);
            placement.to = known::rewritten(winner);
            Ok(false)
        }
        None => {
            give_up(tables, packet, placement, key);
            Err(Verdict::TableFull)
        }
    }
}

/// Removes the reply entry of a flow that was not made.
#[inline(always)]
fn give_up<T: Tables>(tables: &T, packet: &Packet, placement: &Placement, key: &mut FlowKey) {
    let side = known::twin_side(placement.flags);
    *key = known::reply_key(&placement.to, packet.proto, side);
    tables.remove(Table::New, key);
}

#[inline(always)]
fn reply_entry<T: Tables>(tables: &T, packet: &Packet, placement: &Placement) -> Flow {
    let flags = known::twin_flags(placement.flags, placement.side);
    entry(tables, &packet.tuple.reversed(), placement, flags)
}

#[inline(always)]
fn entry<T: Tables>(tables: &T, tuple: &Tuple, placement: &Placement, flags: u16) -> Flow {
    Flow {
        src: tuple.src,
        dst: tuple.dst,
        sport: tuple.sport,
        dport: tuple.dport,
        hop: [0; 3],
        epoch: 0,
        reserved: 0,
        rule: placement.slot as u16,
        generation: placement.generation as u16,
        target: placement.target as u16,
        flags,
        ifindex: placement.ifindex,
        seen: tables.now(),
        isn: 0,
    }
}
