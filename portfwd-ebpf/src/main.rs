//! The programs: entry points without logic.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the classifier macro drops the comments")]

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use aya_log_ebpf::info;
use portfwd_common::{Action, Family, Proto, Verdict};
use portfwd_ebpf::{
    accelerate,
    cgroup::{self, V4, V6},
    egress,
    hook::{Frame, Readable as _},
    ingress,
    maps::Maps,
    outcome::{self, Outcome},
    packet::Packet,
    ports::Named,
    tables::{Draft, Tables as _},
    tc::Tc,
    xdp::Xdp,
};

const ETHERNET: usize = 14;
const BARE: usize = 0;

/// Every call goes on; the verifier takes no other answer from recvmsg.
const ALLOW: i32 = 1;

/// TC ingress of devices with an Ethernet header.
#[classifier]
pub fn portfwd_in(context: TcContext) -> i32 {
    run(
        &context,
        Tc::<ETHERNET>::ingress(&context),
        ingress::find,
        ingress::walk,
    )
}

/// TC ingress of devices without a link-layer header.
#[classifier]
pub fn portfwd_in_l3(context: TcContext) -> i32 {
    run(
        &context,
        Tc::<BARE>::ingress(&context),
        ingress::find,
        ingress::walk,
    )
}

/// TC ingress of devices whose clients are not served, with an Ethernet header.
#[classifier]
pub fn portfwd_back(context: TcContext) -> i32 {
    run(
        &context,
        Tc::<ETHERNET>::ingress(&context),
        ingress::find,
        ingress::walk_back,
    )
}

/// TC ingress of devices whose clients are not served, without a link-layer
/// header.
#[classifier]
pub fn portfwd_back_l3(context: TcContext) -> i32 {
    run(
        &context,
        Tc::<BARE>::ingress(&context),
        ingress::find,
        ingress::walk_back,
    )
}

/// TC egress of devices with an Ethernet header.
#[classifier]
pub fn portfwd_out(context: TcContext) -> i32 {
    run(
        &context,
        Tc::<ETHERNET>::egress(&context),
        egress::find,
        egress::walk,
    )
}

/// TC egress of devices without a link-layer header.
#[classifier]
pub fn portfwd_out_l3(context: TcContext) -> i32 {
    run(
        &context,
        Tc::<BARE>::egress(&context),
        egress::find,
        egress::walk,
    )
}

/// XDP of devices with an Ethernet header.
#[xdp]
pub fn portfwd_xdp(context: XdpContext) -> u32 {
    let maps = Maps::open();
    let device = maps.device(context.ingress_ifindex() as u32);
    let mut hook = Xdp::new(&context, device.mac);
    match accelerate::walk(&mut hook, &maps) {
        Some(sent) => {
            outcome::count(&maps, &hook.frame(), &sent.packet, &sent.outcome);
            maps.count_verdict(sent.outcome.verdict);
            hook.send(sent.ifindex)
        }
        None => {
            maps.count_verdict(Verdict::Deferred);
            xdp_action::XDP_PASS
        }
    }
}

/// A program of this host connects a socket, over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn pf_connect4(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::connect::<V4>(&context) };
    ALLOW
}

/// A program of this host connects a socket, over IPv6.
#[cgroup_sock_addr(connect6)]
pub fn pf_connect6(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::connect::<V6>(&context) };
    ALLOW
}

/// It sends a datagram to an address, over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn pf_sendmsg4(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::send::<V4>(&context) };
    ALLOW
}

/// It sends a datagram to an address, over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn pf_sendmsg6(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::send::<V6>(&context) };
    ALLOW
}

/// It is told where a datagram came from, over IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn pf_recvmsg4(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::answer::<V4>(&context) };
    ALLOW
}

/// It is told where a datagram came from, over IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn pf_recvmsg6(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::answer::<V6>(&context) };
    ALLOW
}

/// It asks for a socket's peer, over IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn pf_peername4(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::answer::<V4>(&context) };
    ALLOW
}

/// It asks for a socket's peer, over IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn pf_peername6(context: SockAddrContext) -> i32 {
    // SAFETY: the attach type says so.
    unsafe { cgroup::answer::<V6>(&context) };
    ALLOW
}

/// Walks a packet, if it may be ours.
#[inline(always)]
fn run<'a, const L2: usize>(
    context: &TcContext,
    mut hook: Tc<'a, L2>,
    find: impl Fn(&mut Tc<'a, L2>, &Maps, &mut Draft) -> Result<Named, Verdict>,
    walk: impl Fn(&mut Tc<'a, L2>, &Maps, &mut Draft, Named) -> Outcome,
) -> i32 {
    let maps = Maps::open();
    let Some(draft) = maps.draft() else {
        return leave(&maps, Verdict::NoRule.into());
    };
    // Before the walk, which may put a header in front.
    let frame = hook.frame();
    match find(&mut hook, &maps, draft) {
        Err(verdict) => leave(&maps, verdict.into()),
        Ok(named) => {
            let outcome = walk(&mut hook, &maps, draft, named);
            finish(context, &maps, &frame, &draft.packet, outcome)
        }
    }
}

/// Counts what a rule did and tells of new flows.
#[inline(always)]
fn finish(
    context: &TcContext,
    maps: &Maps,
    frame: &Frame,
    packet: &Packet,
    outcome: Outcome,
) -> i32 {
    outcome::count(maps, frame, packet, &outcome);
    if outcome.opens {
        announce(context, packet, &outcome);
    }
    leave(maps, outcome)
}

/// The one exit.
#[inline(always)]
fn leave(maps: &Maps, outcome: Outcome) -> i32 {
    maps.count_verdict(outcome.verdict);
    match outcome.verdict.action() {
        // Not 0, which would hide the packet from the programs behind.
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
        Action::Send => TC_ACT_REDIRECT,
    }
}

/// The level is a global: the verifier removes the calls where it is off.
#[inline(always)]
fn announce(context: &TcContext, packet: &Packet, outcome: &Outcome) {
    let way = if outcome.verdict == Verdict::Rewritten {
        "rewritten"
    } else if outcome.verdict == Verdict::Forwarded {
        "sent on"
    } else {
        "steered"
    };
    match packet.family {
        Family::V4 => announce_v4(context, packet, way, outcome.slot + 1),
        Family::V6 => announce_v6(context, packet, way, outcome.slot + 1),
    }
}

#[inline(always)]
const fn proto(packet: &Packet) -> &'static str {
    match packet.proto {
        Proto::Tcp => "tcp",
        Proto::Udp | Proto::Sctp => "udp",
    }
}

#[inline(never)]
fn announce_v4(context: &TcContext, packet: &Packet, way: &str, rule: u32) {
    let tuple = &packet.tuple;
    info!(
        context,
        "{} {:i}:{} -> {:i}:{} {} by rule {}",
        proto(packet),
        u32::from_be(tuple.src.v4_word()),
        tuple.sport,
        u32::from_be(tuple.dst.v4_word()),
        tuple.dport,
        way,
        rule
    );
}

#[inline(never)]
fn announce_v6(context: &TcContext, packet: &Packet, way: &str, rule: u32) {
    let tuple = &packet.tuple;
    info!(
        context,
        "{} [{:i}]:{} -> [{:i}]:{} {} by rule {}",
        proto(packet),
        *tuple.src.bytes(),
        tuple.sport,
        *tuple.dst.bytes(),
        tuple.dport,
        way,
        rule
    );
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
