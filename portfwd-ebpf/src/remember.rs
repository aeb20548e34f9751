//! Making a flow: the reply's entry first, since inserting it allocates the
//! source port and proves that no other flow has the tuple; then the client's.
//! Only when both stand may the packet be touched.

use portfwd_common::{Flow, FlowKey, Proto, Verdict};

use crate::{
    hook::{Hook, LISTEN, NO_SOCKET, TIME_WAIT},
    known,
    packet::{Packet, Tuple},
    place::Placement,
    tables::{Draft, NotInserted, Table, Tables},
};

/// Ports below are not handed out.
const FIRST_PORT: u32 = 1024;

/// What happened to a tuple that was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reserved {
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

/// Eight tries: the client's own source port, then others. Written out, since
/// kernels before 6.4 take no loop whose head follows a call.
#[inline(always)]
fn reserve_any<H: Hook, T: Tables>(hook: &H, tables: &T, draft: &mut Draft) -> Reserved {
    macro_rules! attempt {
        () => {
            match reserve_next(hook, tables, draft) {
                Reserved::Taken | Reserved::Again => {}
                done => return done,
            }
        };
    }
    draft.tried = 0;
    attempt!();
    attempt!();
    attempt!();
    attempt!();
    attempt!();
    attempt!();
    attempt!();
    attempt!();
    Reserved::Taken
}

/// Asks for the reply's tuple with the next source port.
#[inline(never)]
fn reserve_next<H: Hook, T: Tables>(hook: &H, tables: &T, draft: &mut Draft) -> Reserved {
    draft.placement.to.sport = source_port(&draft.packet, draft.tried);
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
fn source_port(packet: &Packet, attempt: u32) -> u16 {
    let tuple = &packet.tuple;
    if attempt == 0 {
        return tuple.sport;
    }
    let mut hash = u32::from(tuple.sport) << 16 | u32::from(tuple.dport);
    for word in tuple.src.0 {
        hash = (hash ^ word).wrapping_mul(GOLDEN);
        // A product carries to the left only.
        hash ^= hash >> 15;
    }
    let step = mixed(hash.wrapping_add(attempt.wrapping_mul(GOLDEN)));
    (FIRST_PORT + step % (65_536 - FIRST_PORT)) as u16
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
        key,
        flow,
        ..
    } = draft;
    *key = known::reply_key(&placement.to, packet.proto);
    if let Some(found) = known::flow(tables, key) {
        if known::rewritten(found.flow) == packet.tuple.reversed() {
            // The client's entry is on its way from another CPU, or the LRU
            // took it: then it comes back. One that is there is as good.
            *key = packet.tuple.key(packet.proto, FlowKey::INGRESS);
            *flow = known::forward_of(found.flow, &placement.to);
            let _exists = tables.insert(found.table, key, flow);
            return Reserved::Same;
        }
        return if is_shared(packet, placement, found.flow) {
            Reserved::Same
        } else {
            Reserved::Taken
        };
    }
    if is_connected(hook, packet, placement) {
        return Reserved::Taken;
    }
    *flow = entry(tables, &packet.tuple.reversed(), placement, Flow::REPLY);
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

/// Two direct flows that differ in this host's address alone may have one
/// entry, as long as it changes neither.
#[inline(always)]
fn is_shared(packet: &Packet, placement: &Placement, found: &Flow) -> bool {
    placement.flags & found.flags & Flow::DIRECT != 0
        && placement.to.sport == packet.tuple.sport
        && found.dport == packet.tuple.sport
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
    *key = packet.tuple.key(packet.proto, FlowKey::INGRESS);
    *flow = entry(tables, &placement.to, placement, 0);
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
            let lost = known::reply_key(&placement.to, packet.proto);
            placement.to = known::rewritten(winner);
            tables.remove(Table::New, &lost);
            Ok(false)
        }
        None => {
            tables.remove(Table::New, &known::reply_key(&placement.to, packet.proto));
            Err(Verdict::TableFull)
        }
    }
}

#[inline(always)]
fn entry<T: Tables>(tables: &T, tuple: &Tuple, placement: &Placement, flags: u16) -> Flow {
    Flow {
        src: tuple.src,
        dst: tuple.dst,
        sport: tuple.sport,
        dport: tuple.dport,
        rule: placement.slot,
        generation: placement.generation,
        ifindex: 0,
        seen: tables.now(),
        isn: 0,
        flags: placement.flags | flags,
        reserved: 0,
    }
}
