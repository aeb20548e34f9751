//! Flows: what is remembered of a translated connection.

use crate::{Addr, Mac, map_type};

/// A flow entry's key: the tuple of a packet as it arrives at a hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Source address. Unspecified for UDP replies of this host: an unconnected
    /// socket may answer from another of its addresses than the dialled one.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// [`FlowKey::INGRESS`] or [`FlowKey::EGRESS`]: on `lo` one packet passes
    /// both hooks with one tuple.
    pub side: u8,
    /// Zero.
    pub reserved: u16,
}
map_type!(FlowKey, 40);

impl FlowKey {
    /// Packets that arrive on a device.
    pub const INGRESS: u8 = 0;
    /// Packets that this host sends.
    pub const EGRESS: u8 = 1;
}

/// One direction of a flow: what a packet with the key becomes. A flow is two
/// entries, each complete; each one's key can be computed from the other.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Source address after the rewrite.
    pub src: Addr,
    /// Destination address after the rewrite.
    pub dst: Addr,
    /// Source port after the rewrite.
    pub sport: u16,
    /// Destination port after the rewrite.
    pub dport: u16,
    /// The next hop's Ethernet address, learned where a packet of this entry
    /// left by TC. It counts in its epoch only.
    pub hop: Mac,
    /// [`crate::Forwarder::epoch`] in which `hop` was learned; 0: it was not.
    pub epoch: u8,
    /// Zero.
    pub reserved: u8,
    /// Rule slot, or [`Flow::NO_RULE`].
    pub rule: u16,
    /// The rule's generation when the flow began, the low half.
    pub generation: u16,
    /// Index of the target on another host that packets go to, or
    /// [`Flow::NO_TARGET`]: the stack has them next.
    pub target: u16,
    /// `Flow::*` bits.
    pub flags: u16,
    /// Interface that replies of another host leave by: the one that leads to
    /// the client's network, else the one that its latest packet came in by.
    /// 0: the stack has them next.
    pub ifindex: u32,
    /// Time of the last packet, in seconds as [`crate::names::TICK`] counts them.
    pub seen: u32,
    /// TCP: the server's initial sequence number, once its SYN-ACK was seen.
    pub isn: u32,
}
map_type!(Flow, 64);

impl Flow {
    /// `rule` of a flow that no rule made: a direct flow to a target port.
    pub const NO_RULE: u32 = u16::MAX as u32;
    /// `target` where the stack delivers or routes the packet itself.
    pub const NO_TARGET: u32 = u16::MAX as u32;

    /// This entry is of the direction from target to client.
    pub const REPLY: u16 = 1;
    /// The target has answered.
    pub const ANSWERED: u16 = 1 << 1;
    /// The client has proved that it receives: a second datagram after a
    /// reply, or the acknowledgement of the server's SYN.
    pub const PROVEN: u16 = 1 << 2;
    /// Nothing is changed: the entry only keeps the tuple from others.
    pub const DIRECT: u16 = 1 << 3;
    /// Packets of the other direction are met as they leave this host; without
    /// it as they arrive.
    pub const TWIN_LEAVES: u16 = 1 << 4;
    /// TCP: the client has sent a FIN.
    pub const FIN_CLIENT: u16 = 1 << 5;
    /// TCP: the target has sent a FIN.
    pub const FIN_TARGET: u16 = 1 << 6;
    /// TCP: one of them has sent a RST, and neither anything since.
    pub const RESET: u16 = 1 << 7;
}

/// Traffic that this host, or NAT behind it, started itself from a port that a
/// rule listens on; keyed by the tuple of its replies.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Foreign {
    /// Time of the last packet, in seconds as [`crate::names::TICK`] counts them.
    pub seen: u32,
}
map_type!(Foreign, 4);
