//! Sending a packet on to another host, as a router does.

use portfwd_common::{Addr, Family, TargetEntry, Verdict};

use crate::{
    hook::{Hook, Room, Way},
    mss,
    tables::{Draft, Tables},
};

/// Chooses the way to a target, if there is one that the packet may take.
#[inline(always)]
pub fn towards<H: Hook>(hook: &H, draft: &mut Draft, target: &TargetEntry) -> Result<(), Verdict> {
    if target.ifindex == 0 {
        return Err(Verdict::NoRoute);
    }
    draft.way = Way {
        ifindex: target.ifindex,
        peer: target.flags & TargetEntry::PEER != 0,
        link: target.link,
        mtu: 0,
        hop: target.hop,
    };
    admit(hook, draft)
}

/// Chooses the way of replies, by the interface that the client is behind, if
/// the packet may take it.
#[inline(always)]
pub fn back<H: Hook, T: Tables>(
    hook: &H,
    tables: &T,
    draft: &mut Draft,
    ifindex: u32,
) -> Result<(), Verdict> {
    draft.way = Way {
        ifindex,
        peer: false,
        link: [0; 3],
        mtu: 0,
        hop: Addr::UNSPECIFIED,
    };
    let Draft {
        packet,
        placement,
        way,
        ..
    } = draft;
    if matches!(packet.family, Family::V6) {
        tables.next_hop(ifindex, &placement.to.dst, &mut way.hop);
    }
    admit(hook, draft)
}

/// Whether the packet may take the chosen way. Asked before anything is
/// written.
#[inline(always)]
fn admit<H: Hook>(hook: &H, draft: &mut Draft) -> Result<(), Verdict> {
    let Draft { packet, way, .. } = draft;
    if packet.hops <= 1 {
        return Err(Verdict::HopLimit);
    }
    let Room { exists, fits, mtu } = hook.room(packet, way.ifindex);
    if !exists {
        return Err(Verdict::NoRoute);
    }
    if !fits {
        return Err(Verdict::TooLarge);
    }
    way.mtu = mtu;
    Ok(())
}

/// Gives an admitted packet the tuple of its placement and sends it.
#[inline(always)]
pub fn send<H: Hook>(hook: &mut H, draft: &mut Draft) {
    let Draft {
        packet,
        placement,
        way,
        options,
        sent,
        ..
    } = draft;
    *sent = way.ifindex;
    hook.rewrite(packet, &placement.to, packet.hops.wrapping_sub(1));
    if packet.is_syn() {
        // What one end may send comes in where the other end's leaves.
        let came = hook.room(packet, packet.ifindex).mtu;
        mss::clamp(hook, packet, options, smaller(came, way.mtu));
    }
    hook.send(way);
}

/// The smaller of two MTUs, of which 0 is not known.
#[inline(always)]
const fn smaller(one: u32, other: u32) -> u32 {
    if one == 0 || other != 0 && other < one {
        other
    } else {
        one
    }
}
