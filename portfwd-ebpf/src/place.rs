//! Rewriting: what a packet without a flow becomes.

use portfwd_common::{Addr, Family, Flow, Proto, Verdict};

use crate::{
    claim::Claimed,
    hook::{Hook, LISTEN, UdpSocket},
    packet::{Packet, Tuple},
    tables::{Draft, Tables},
};

/// What a packet becomes, if a flow can be made for it.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The tuple, with the source port that the client chose.
    pub to: Tuple,
    /// Rule slot, or [`Flow::NO_RULE`].
    pub slot: u32,
    /// The rule's generation.
    pub generation: u32,
    /// Flags that the flow starts with.
    pub flags: u16,
}

/// Places the first packet of a flow on the rule's target.
#[inline(always)]
pub fn place<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
    claimed: &Claimed,
) -> Result<(), Verdict> {
    let Draft {
        packet, placement, ..
    } = draft;
    if is_stray(packet) {
        return Err(Verdict::Stray);
    }
    let (target, port) = claimed.target(tables, packet).ok_or(Verdict::NoRule)?;
    placement.to = packet.tuple;
    placement.to.dst = target.addr;
    placement.to.dport = port;
    placement.slot = claimed.slot;
    placement.generation = claimed.rule.generation;
    placement.flags = 0;
    if listens(hook, packet, &placement.to) {
        Ok(())
    } else {
        Err(Verdict::NoListener)
    }
}

/// A packet to a target port itself: it stays as it is, and its tuple is kept
/// from flows that come later. Where one has it already the packet gets
/// another source port, since the target could not tell the two apart.
#[inline(always)]
pub fn direct(draft: &mut Draft) -> Result<(), Verdict> {
    let Draft {
        packet, placement, ..
    } = draft;
    if is_stray(packet) {
        return Err(Verdict::Direct);
    }
    placement.to = packet.tuple;
    placement.slot = Flow::NO_RULE;
    placement.generation = 0;
    placement.flags = Flow::DIRECT;
    Ok(())
}

/// UDP that a program of this host exchanges over a connected socket on the
/// dialled port itself: an exchange that is older than the rule.
#[inline(always)]
pub fn is_own_exchange<H: Hook>(hook: &H, packet: &Packet) -> bool {
    matches!(packet.proto, Proto::Udp)
        && hook.udp_socket(packet.family, &packet.tuple) == UdpSocket::Connected
}

/// TCP that opens nothing: without a flow it has no place.
#[inline(always)]
const fn is_stray(packet: &Packet) -> bool {
    matches!(packet.proto, Proto::Tcp) && !packet.is_open() && !packet.is_ack()
}

/// True when a socket would take the rewritten packet.
#[inline(always)]
fn listens<H: Hook>(hook: &H, packet: &Packet, to: &Tuple) -> bool {
    match packet.proto {
        Proto::Tcp => hook.tcp_socket(packet.family, &listening(packet.family, to)) == LISTEN,
        Proto::Udp | Proto::Sctp => hook.udp_socket(packet.family, to) != UdpSocket::None,
    }
}

/// The tuple that finds only listeners: no connection has this source.
#[inline(always)]
pub const fn listening(family: Family, to: &Tuple) -> Tuple {
    let src = match family {
        Family::V4 => Addr::V4_UNSPECIFIED,
        Family::V6 => Addr::UNSPECIFIED,
    };
    Tuple {
        src,
        sport: 0,
        ..*to
    }
}
