//! The programs: entry points without logic.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the classifier macro drops the comments")]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::info;
use portfwd_common::{Action, Family, Proto, Verdict};
use portfwd_ebpf::{
    egress,
    hook::{Frame, Hook as _},
    ingress,
    maps::Maps,
    outcome::{self, Outcome},
    packet::Packet,
    tables::Tables as _,
    tc::Tc,
};

const ETHERNET: usize = 14;
const BARE: usize = 0;

/// TC ingress of devices with an Ethernet header.
#[classifier]
pub fn portfwd_in(context: TcContext) -> i32 {
    arrive(&context, Tc::<ETHERNET>::ingress(&context))
}

/// TC ingress of devices without a link-layer header.
#[classifier]
pub fn portfwd_in_l3(context: TcContext) -> i32 {
    arrive(&context, Tc::<BARE>::ingress(&context))
}

/// TC egress of devices with an Ethernet header.
#[classifier]
pub fn portfwd_out(context: TcContext) -> i32 {
    depart(&context, Tc::<ETHERNET>::egress(&context))
}

/// TC egress of devices without a link-layer header.
#[classifier]
pub fn portfwd_out_l3(context: TcContext) -> i32 {
    depart(&context, Tc::<BARE>::egress(&context))
}

#[inline(always)]
fn arrive<const L2: usize>(context: &TcContext, mut hook: Tc<'_, L2>) -> i32 {
    let maps = Maps::open();
    let frame = hook.frame();
    match ingress::find(&mut hook, &maps, &frame) {
        Err(verdict) => leave(&maps, verdict.into()),
        Ok((draft, entry)) => {
            let (Ok(outcome) | Err(outcome)) = ingress::walk(&mut hook, &maps, draft, entry);
            finish(context, &maps, &frame, &draft.packet, outcome)
        }
    }
}

#[inline(always)]
fn depart<const L2: usize>(context: &TcContext, mut hook: Tc<'_, L2>) -> i32 {
    let maps = Maps::open();
    let frame = hook.frame();
    match egress::find(&mut hook, &maps, &frame) {
        Err(verdict) => leave(&maps, verdict.into()),
        Ok((draft, entry)) => {
            let packet = &draft.packet;
            let (Ok(outcome) | Err(outcome)) =
                egress::walk(&mut hook, &maps, &frame, packet, entry);
            finish(context, &maps, &frame, packet, outcome)
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
    }
}

/// The level is a global: the verifier removes the calls where it is off.
#[inline(always)]
fn announce(context: &TcContext, packet: &Packet, outcome: &Outcome) {
    let way = if outcome.verdict == Verdict::Rewritten {
        "rewritten"
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
