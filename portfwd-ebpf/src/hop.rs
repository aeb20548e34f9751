//! Next hops for the accelerator, which asks nobody for a route or a neighbour:
//! they are learned where packets that TC has sent leave, and count for the
//! second in which one did. So each second one packet for each next hop goes by
//! TC, where the kernel sees that its neighbour is used, and where another
//! address of it shows.

use portfwd_common::{
    Device, Family, Flow, FlowKey, Mac,
    device::{CONFIRMED_SLOTS, Confirmed},
};

use crate::{
    hook::{Frame, Hook, Link},
    packet::{ETH_P_IP, ETH_P_IPV6},
    tables::{Draft, Table, Tables},
};

/// Where hops and protocol stand in their header, before the addresses.
const IPV4_HOPS: usize = 8;
/// Where the addresses do.
const IPV6_SRC: usize = 8;

/// Is it the packet that was sent to another host on this CPU just now? Asked of
/// the bytes that were written then. A packet that waits for its neighbour is not
/// met again so, and what this host sends itself meanwhile is none, whatever its
/// tuple.
#[inline(always)]
pub fn is_sent<H: Hook>(hook: &mut H, draft: &mut Draft, frame: &Frame) -> bool {
    let sent = core::mem::replace(&mut draft.sent, 0);
    frame.forwarded && sent == frame.ifindex && carries(hook, draft, frame)
}

/// Does the frame carry the draft's packet as it was rewritten?
#[inline(always)]
fn carries<H: Hook>(hook: &mut H, draft: &Draft, frame: &Frame) -> bool {
    let Draft {
        packet, placement, ..
    } = draft;
    let to = &placement.to;
    hook.pull(packet.headers.into());
    let has_addrs = match packet.family {
        Family::V4 => {
            frame.ethertype == ETH_P_IP
                && hook
                    .load(IPV4_HOPS)
                    .is_some_and(|[hops, src, dst]: [u32; 3]| {
                        hops.to_ne_bytes()[1] == packet.proto.number()
                            && [src, dst] == [to.src.v4_word(), to.dst.v4_word()]
                    })
        }
        Family::V6 => {
            let ([a, b, c, d], [e, f, g, h]) = (to.src.0, to.dst.0);
            frame.ethertype == ETH_P_IPV6 && hook.load(IPV6_SRC) == Some([a, b, c, d, e, f, g, h])
        }
    };
    // No header is longer, which the verifier cannot know of what lies in a map.
    let transport = packet.transport & 63;
    has_addrs && hook.load(transport.into()) == Some([to.port_word()])
}

/// Learns the next hop of a packet that was sent, where XDP can send by the
/// device too.
#[inline(always)]
pub fn learn<H: Hook, T: Tables>(hook: &H, tables: &T, draft: &Draft, frame: &Frame) {
    let device = tables.device(frame.ifindex);
    if device.mtu == 0 {
        return;
    }
    let Some(Link { dst, src }) = hook.link() else {
        return;
    };
    if src != device.mac {
        return;
    }
    let Place { slot, tag } = place(frame.ifindex, dst);
    let seen = tables.now();
    tables.confirm(slot, Confirmed { tag, seen });
    let Draft { packet, flow, .. } = draft;
    // Where a client is answered by another interface than it comes in by, it
    // may not be served there: XDP, which asks for no more than a hop, gets none.
    let is_astray = flow.flags & Flow::REPLY == 0 && flow.ifindex != packet.ifindex;
    let epoch = if is_astray { 0 } else { tables.epoch() };
    if flow.hop == dst && flow.epoch == epoch {
        return;
    }
    let key = packet.tuple.key(packet.proto, FlowKey::INGRESS);
    if !tables.learn(Table::Flows, &key, dst, epoch) {
        tables.learn(Table::New, &key, dst, epoch);
    }
}

/// The addresses of the frame that a packet of a flow leaves in by a device,
/// where they are known and were used in this second.
#[inline(always)]
pub fn link<T: Tables>(
    tables: &T,
    flow: &Flow,
    ifindex: u32,
    device: &Device,
    now: u32,
) -> Option<Link> {
    if flow.epoch == 0 || flow.epoch != tables.epoch() {
        return None;
    }
    let Place { slot, tag } = place(ifindex, flow.hop);
    if tables.confirmed(slot) != (Confirmed { tag, seen: now }) {
        return None;
    }
    Some(Link {
        dst: flow.hop,
        src: device.mac,
    })
}

/// Where a next hop stands among the confirmed ones.
struct Place {
    slot: u32,
    tag: u32,
}

#[inline(always)]
fn place(ifindex: u32, [a, b, c]: Mac) -> Place {
    /// 2^64 over the golden ratio: Knuth's multiplicative hash.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let hop = u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32;
    let hash = (hop ^ u64::from(ifindex) << 40).wrapping_mul(GOLDEN);
    Place {
        slot: (hash >> 32) as u32 & (CONFIRMED_SLOTS - 1),
        tag: (hash >> 32) as u32 ^ hash as u32,
    }
}
