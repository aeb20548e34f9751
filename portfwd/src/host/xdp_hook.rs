//! The XDP hook of a device, as `ip link set xdp` knows it: what another has
//! attached there is taken off and put back.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_core::NLM_F_ACK;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::netlink;

/// Of linux/if_link.h.
const UPDATE_IF_NOEXIST: u32 = 1 << 0;
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

/// Takes off the program of a device.
///
/// # Errors
///
/// What the kernel answers: EBUSY where a link holds the program, which only
/// its owner lets go.
pub fn clear(ifindex: u32, generic: bool) -> io::Result<()> {
    const NONE: i32 = -1;
    set(ifindex, NONE, mode(generic))
}

/// Attaches a program to a device whose hook is free.
///
/// # Errors
///
/// What the kernel answers.
pub fn put_back(ifindex: u32, generic: bool, program: BorrowedFd<'_>) -> io::Result<()> {
    let flags = mode(generic) | UPDATE_IF_NOEXIST;
    set(ifindex, program.as_raw_fd(), flags)
}

const fn mode(generic: bool) -> u32 {
    if generic { SKB_MODE } else { DRV_MODE }
}

fn set(ifindex: u32, program: i32, flags: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = vec![LinkAttribute::Xdp(vec![
        LinkXdp::Fd(program),
        LinkXdp::Flags(flags),
    ])];
    let question = RouteNetlinkMessage::SetLink(message);
    netlink::ask(NETLINK_ROUTE, question, NLM_F_ACK).map(drop)
}
