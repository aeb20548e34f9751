//! Rewriting: what a packet without a flow becomes.

use portfwd_common::{Addr, Family, Flow, FlowKey, Proto, TargetEntry, Verdict};

use crate::{
    claim::Claimed,
    hook::{Hook, LISTEN, NO_SOCKET, UdpSocket},
    known,
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
    /// Flags that the client's entry starts with.
    pub flags: u16,
    /// Where the client's packets are met: [`FlowKey::INGRESS`], or
    /// [`FlowKey::EGRESS`] for those of this host.
    pub side: u8,
    /// The source address is this host's, who shares its ports with the flow.
    pub masquerades: bool,
    /// As in [`Flow::target`].
    pub target: u32,
    /// As in [`Flow::ifindex`].
    pub ifindex: u32,
}

impl Placement {
    /// A packet met on `side` that stays as it is, for the slot of a rule and
    /// its generation; the stack has it next.
    #[inline(always)]
    const fn kept(packet: &Packet, slot: u32, generation: u32, side: u8) -> Self {
        Self {
            to: packet.tuple,
            slot,
            generation,
            flags: 0,
            side,
            masquerades: false,
            target: Flow::NO_TARGET,
            ifindex: 0,
        }
    }
}

/// What a packet becomes on its rule's target, with its own source.
#[inline(always)]
const fn on_target(packet: &Packet, claimed: &Claimed, target: &TargetEntry) -> Placement {
    let generation = claimed.rule.generation;
    let mut placement = Placement::kept(packet, claimed.slot, generation, FlowKey::INGRESS);
    placement.to.dst = *target.addr_for(&packet.tuple.dst);
    placement.to.dport = claimed.rule.target_port(packet.tuple.dport);
    placement
}

/// Places the first packet of a flow on a target of this host.
#[inline(always)]
pub fn on_this_host<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
    claimed: &Claimed,
    target: &TargetEntry,
) -> Result<(), Verdict> {
    let Draft {
        packet, placement, ..
    } = draft;
    *placement = on_target(packet, claimed, target);
    placement.flags = Flow::TWIN_LEAVES;
    // Without forwarding the kernel does not say whose the dialled address is.
    // A port alone may be rewritten all the same, since the stack drops what is
    // not local, but another address would make it so.
    let moves = placement.to.dst != packet.tuple.dst && !packet.on_loopback();
    if moves && !tables.is_own(&packet.tuple.dst) {
        return Err(Verdict::NotLocal);
    }
    takes(hook, packet, &placement.to)
}

/// Places the first packet of a flow on a target that is another host. The
/// client's address is kept where the rule says so, and not where the target
/// could not answer to it: a host takes no packet from its own address, and a
/// link-local one means nothing on another link.
#[inline(always)]
pub fn on_other_host<T: Tables>(
    tables: &T,
    draft: &mut Draft,
    claimed: &Claimed,
    target: &TargetEntry,
) -> Result<(), Verdict> {
    let Draft {
        packet, placement, ..
    } = draft;
    if matches!(packet.proto, Proto::Tcp) && !packet.is_open() {
        return Err(Verdict::Stray);
    }
    *placement = on_target(packet, claimed, target);
    placement.target = claimed.rule.targets;
    placement.ifindex = known::home(tables, packet);
    placement.masquerades = !preserves(packet, placement.ifindex, target);
    if placement.masquerades {
        if target.source.is_unspecified() {
            return Err(Verdict::NoRoute);
        }
        placement.to.src = target.source;
    }
    Ok(())
}

#[inline(always)]
fn preserves(packet: &Packet, home: u32, target: &TargetEntry) -> bool {
    let always = target.flags & TargetEntry::PRESERVE != 0;
    let across = target.flags & TargetEntry::PRESERVE_ACROSS != 0
        && packet.ifindex != target.ifindex
        && home != target.ifindex;
    let wanted = always || across;
    let src = &packet.tuple.src;
    wanted && *src != target.addr && !src.is_link_local_of(packet.family)
}

/// A packet to a target port itself: it stays as it is, and its tuple is kept
/// from flows that come later. Where one has it already the packet gets
/// another source port, since the target could not tell the two apart.
#[inline(always)]
pub fn direct(draft: &mut Draft, flags: u16) -> Result<(), Verdict> {
    let Draft {
        packet, placement, ..
    } = draft;
    if is_stray(packet) {
        return Err(Verdict::Direct);
    }
    *placement = Placement::kept(packet, Flow::NO_RULE, 0, FlowKey::INGRESS);
    placement.flags = Flow::DIRECT | flags;
    Ok(())
}

/// A packet of this host to a target port of another host, whose tuple a
/// masqueraded flow has: it gets another source port.
#[inline(always)]
pub fn own(draft: &mut Draft) {
    let Draft {
        packet, placement, ..
    } = draft;
    *placement = Placement::kept(packet, Flow::NO_RULE, 0, FlowKey::EGRESS);
    placement.flags = Flow::DIRECT;
    placement.masquerades = true;
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
