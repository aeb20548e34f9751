//! The short walk, at XDP: a packet of a known flow to another host, or of its
//! replies, is forwarded completely, or goes on as it came to the walk at TC,
//! which can do everything. Nothing is remembered here: what would change a flow
//! goes on too.

use portfwd_common::{Family, Flow, FlowKey, Proto, Verdict, settings::UNWRITTEN};

use crate::{
    hook::Express,
    hop, known,
    outcome::Outcome,
    packet::{self, ACK, FIN, Packet, RST, SYN},
    ports,
    tables::{Table, Tables},
};

/// A packet that was forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// The packet as it came.
    pub packet: Packet,
    /// The interface that it leaves by.
    pub ifindex: u32,
    /// What it counts for.
    pub outcome: Outcome,
}

/// Forwards the packet of a frame; none, and nothing was written, where that is
/// for TC.
#[inline(always)]
pub fn walk<E: Express, T: Tables>(hook: &mut E, tables: &T) -> Option<Sent> {
    let packet = plain(hook)?;
    if !ports::may_cross(tables, &packet) {
        return None;
    }
    let now = tables.now();
    let flow = known(tables, &packet, now)?;
    let (ifindex, outcome) = way(tables, &packet, flow)?;
    let device = tables.device(ifindex);
    // Nothing is sent by a device without one, whatever length the packet says.
    if device.mtu == 0 || packet.len > u32::from(device.mtu) {
        return None;
    }
    let link = hop::link(tables, flow, ifindex, &device, now)?;
    let to = known::rewritten(flow);
    hook.express(&packet, &to, &link).then_some(Sent {
        packet,
        ifindex,
        outcome,
    })
}

/// The packet, where it is one that can be forwarded without a second thought.
#[inline(always)]
fn plain<E: Express>(hook: &mut E) -> Option<Packet> {
    let frame = hook.frame();
    if !frame.for_host {
        return None;
    }
    let network = packet::network(hook, &frame).ok()?;
    let is_plain = network.transport == plain_header(network.family);
    if !is_plain || network.hops <= 1 || network.len > frame.len {
        return None;
    }
    let packet = packet::transport(hook, &frame, &network).ok()?;
    const TURNS: u8 = SYN | FIN | RST;
    let goes_on = match packet.proto {
        Proto::Tcp => packet.flags & (TURNS | ACK) == ACK,
        Proto::Udp | Proto::Sctp => true,
    };
    goes_on.then_some(packet)
}

/// Length of an IP header without options and extensions.
#[inline(always)]
const fn plain_header(family: Family) -> u16 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// The flow of a packet that changes nothing of it. Whether its rule is still
/// there is not asked: a change of rules ends the epoch of its next hop.
#[inline(always)]
fn known<'t, T: Tables>(tables: &'t T, packet: &Packet, now: u32) -> Option<&'t Flow> {
    let key = packet.tuple.key(packet.proto, FlowKey::INGRESS);
    let (flow, unwritten) = match (tables.flow(Table::Flows, &key), packet.proto) {
        (Some(flow), _) => (flow, UNWRITTEN),
        // Half-open TCP is on its way to a proof.
        (None, Proto::Tcp) => return None,
        (None, Proto::Udp | Proto::Sctp) => (tables.flow(Table::New, &key)?, 0),
    };
    // The tuple of a flow that has ended may go to another after a short while
    // without packets: each of them is written down.
    let is_live = flow.flags & Flow::DIRECT == 0 && !known::has_ended(flow.flags);
    if !is_live || now.saturating_sub(flow.seen) > unwritten {
        return None;
    }
    let is_udp = !matches!(packet.proto, Proto::Tcp);
    let is_reply = flow.flags & Flow::REPLY != 0;
    let is_answered = flow.flags & Flow::ANSWERED != 0;
    // A client's packet after an answer proves the flow; the first answer is
    // remembered.
    let is_first = is_reply && is_udp && flow.flags & (Flow::ANSWERED | Flow::PROVEN) == 0;
    let goes_on = !is_first && (is_reply || !is_answered);
    goes_on.then_some(flow)
}

/// The interface that a packet of a flow leaves by, and what it counts for.
#[inline(always)]
fn way<T: Tables>(tables: &T, packet: &Packet, flow: &Flow) -> Option<(u32, Outcome)> {
    let rule = flow.rule.into();
    if flow.flags & Flow::REPLY != 0 {
        let outcome = Outcome::of_rule(Verdict::Returned, rule).back();
        return (flow.ifindex != 0).then_some((flow.ifindex, outcome));
    }
    // A client that comes in by another interface than before is TC's matter.
    if u32::from(flow.target) == Flow::NO_TARGET || flow.ifindex != packet.ifindex {
        return None;
    }
    let target = tables.target(flow.target.into())?;
    let outcome = Outcome::of_rule(Verdict::Forwarded, rule);
    (target.ifindex != 0).then_some((target.ifindex, outcome))
}
