//! Rewriting: what a packet without a flow becomes.

use portfwd_common::{Addr, Family, Flow, Proto, Verdict};

use crate::{
    claim::Claimed,
    hook::{Hook, LISTEN, NO_SOCKET, UdpSocket},
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
    let (target, port) = claimed.target(tables, packet).ok_or(Verdict::NoRule)?;
    placement.to = packet.tuple;
    placement.to.dst = target.addr;
    placement.to.dport = port;
    placement.slot = claimed.slot;
    placement.generation = claimed.rule.generation;
    placement.flags = 0;
    // Without forwarding the kernel does not say whose the dialled address is.
    // A port alone may be rewritten all the same, since the stack drops what is
    // not local, but another address would make it so.
    let moves = target.addr != packet.tuple.dst && !packet.on_loopback();
    if moves && !tables.is_own(&packet.tuple.dst) {
        return Err(Verdict::NotLocal);
    }
    takes(hook, packet, &placement.to)
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

/// Would a socket take the rewritten packet? An ACK opens no flow, but finds
/// the connection of one that was lost.
#[inline(always)]
fn takes<H: Hook>(hook: &H, packet: &Packet, to: &Tuple) -> Result<(), Verdict> {
    let (found, otherwise) = match packet.proto {
        Proto::Udp | Proto::Sctp => (
            hook.udp_socket(packet.family, to) != UdpSocket::None,
            Verdict::NoListener,
        ),
        Proto::Tcp if packet.is_open() => {
            let listener = hook.tcp_socket(packet.family, &listening(packet.family, to));
            (listener == LISTEN, Verdict::NoListener)
        }
        Proto::Tcp => {
            let socket = hook.tcp_socket(packet.family, to);
            (
                packet.is_ack() && !matches!(socket, NO_SOCKET | LISTEN),
                Verdict::Stray,
            )
        }
    };
    if found { Ok(()) } else { Err(otherwise) }
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
