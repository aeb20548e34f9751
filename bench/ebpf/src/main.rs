//! The programs of the benchmark. None is part of portfwd.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macros drop the comments")]

use aya_ebpf::{
    Global,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_redirect,
    macros::{classifier, map, socket_filter, xdp},
    maps::{Array, PerCpuArray},
    programs::{SkBuffContext, TcContext, XdpContext},
};
use portfwd_yardstick::{FRAME, Plan, Progress, Rewrite, SinkMode, at};

const ETHERTYPE_IPV4: u16 = 0x0800;
const UDP: u8 = 17;
const TTL: u8 = 64;

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map]
static PROGRESS: Array<Progress> = Array::with_max_entries(1, 0);
#[map]
static COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static MODE: Array<u32> = Array::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static REWRITE: Global<Rewrite> = Global::new(Rewrite {
    ifindex: 0,
    source: 0,
    addr: [0; 4],
    port: [0; 2],
    padding: [0; 2],
    ip_delta: 0,
    udp_delta: 0,
    macs: [0; 12],
});

/// Makes the plan's next frame of whatever the buffer holds, and sends it.
#[xdp]
pub fn yard_generate(context: XdpContext) -> u32 {
    generate(&context).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn generate(context: &XdpContext) -> Option<u32> {
    let frame = Bytes::of_xdp(context)?;
    let plan = PLAN.get(0)?;
    let progress = PROGRESS.get_ptr_mut(0)?;
    // SAFETY: the pointer is to the map's only value, and one generator runs.
    let progress = unsafe { &mut *progress };
    let (saddr, sport, dport) = (progress.saddr, progress.sport, progress.dport);
    advance(progress, plan);

    let addresses = (saddr >> 16) + (saddr & 0xffff);
    let ip_sum = !fold(plan.ip_sum + addresses);
    let ports = u32::from(sport) + u32::from(dport);
    let udp_sum = match !fold(plan.udp_sum + addresses + ports) {
        0 => 0xffff,
        sum => sum,
    };
    // SAFETY: all offsets are within FRAME bytes.
    unsafe {
        frame.put(at::MAC_TO, plan.macs);
        frame.put(at::ETHERTYPE, ETHERTYPE_IPV4.to_be());
        frame.put(at::IP, [0x45u8, 0]);
        frame.put(at::IP + 2, ((FRAME - at::IP) as u16).to_be());
        frame.put(at::IP + 4, 0u32);
        frame.put(at::TTL, [TTL, UDP]);
        frame.put(at::IP_SUM, ip_sum.to_be());
        frame.put(at::SADDR, saddr.to_be());
        frame.put(at::DADDR, plan.daddr.to_be());
        frame.put(at::SPORT, sport.to_be());
        frame.put(at::DPORT, dport.to_be());
        frame.put(at::UDP_LEN, ((FRAME - at::SPORT) as u16).to_be());
        frame.put(at::UDP_SUM, udp_sum.to_be());
    }
    // SAFETY: a helper without a pointer.
    Some(unsafe { bpf_redirect(plan.ifindex, 0) } as u32)
}

#[inline(always)]
fn advance(progress: &mut Progress, plan: &Plan) {
    progress.sent += 1;
    if progress.dport == plan.dport_last {
        progress.dport = plan.dport;
    } else {
        progress.dport += 1;
    }
    progress.flow = progress.flow.wrapping_add(1);
    if progress.flow == plan.flows {
        progress.flow = 0;
        progress.saddr = plan.saddr;
        progress.sport = plan.sport;
    } else if progress.sport == plan.sport_last {
        progress.saddr = progress.saddr.wrapping_add(1);
        progress.sport = plan.sport;
    } else {
        progress.sport += 1;
    }
}

/// Counts IPv4 UDP, and drops it or sends it back. All else passes.
#[xdp]
pub fn yard_sink(context: XdpContext) -> u32 {
    sink(&context).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn sink(context: &XdpContext) -> Option<u32> {
    let frame = Bytes::of_xdp(context)?;
    match taken(frame)? {
        SinkMode::Drop => Some(xdp_action::XDP_DROP),
        // Not XDP_TX: without a program at the other end, a veth does not tell
        // it that there is something in its ring.
        // SAFETY: a helper without a pointer.
        SinkMode::Echo => Some(unsafe { bpf_redirect(context.ingress_ifindex() as u32, 0) } as u32),
    }
}

/// The same at TC ingress.
#[classifier]
pub fn yard_sink_tc(context: TcContext) -> i32 {
    let taken = Bytes::of_tc(&context).and_then(taken);
    match taken {
        None => TC_ACT_UNSPEC,
        Some(SinkMode::Drop) => TC_ACT_SHOT,
        Some(SinkMode::Echo) => {
            // SAFETY: the context is the kernel's; a helper without a pointer.
            unsafe { bpf_redirect((*context.skb.skb).ifindex, 0) as i32 }
        }
    }
}

/// Counts the frame if it is the load's, and turns it round if it is to go
/// back.
#[inline(always)]
fn taken(frame: Bytes) -> Option<SinkMode> {
    if !frame.is_udp() {
        return None;
    }
    count();
    if *MODE.get(0)? != SinkMode::Echo as u32 {
        return Some(SinkMode::Drop);
    }
    // SAFETY: all offsets are within FRAME bytes.
    unsafe {
        frame.swap::<[u8; 6]>(at::MAC_TO, at::MAC_FROM);
        frame.swap::<u32>(at::SADDR, at::DADDR);
        frame.swap::<u16>(at::SPORT, at::DPORT);
    }
    Some(SinkMode::Echo)
}

/// Rewrites one end of IPv4 UDP by constants and sends it on.
#[xdp]
pub fn yard_xdp(context: XdpContext) -> u32 {
    let Some(frame) = Bytes::of_xdp(&context) else {
        return xdp_action::XDP_PASS;
    };
    if !frame.is_udp() {
        return xdp_action::XDP_PASS;
    }
    let rewrite = REWRITE.load();
    frame.rewrite(&rewrite);
    // SAFETY: a helper without a pointer.
    unsafe { bpf_redirect(rewrite.ifindex, 0) as u32 }
}

/// The same at TC ingress.
#[classifier]
pub fn yard_tc(context: TcContext) -> i32 {
    let Some(frame) = Bytes::of_tc(&context) else {
        return TC_ACT_UNSPEC;
    };
    if !frame.is_udp() {
        return TC_ACT_UNSPEC;
    }
    let rewrite = REWRITE.load();
    frame.rewrite(&rewrite);
    // SAFETY: a helper without a pointer.
    match unsafe { bpf_redirect(rewrite.ifindex, 0) } as i32 {
        sent if sent >= 0 => sent,
        _ => TC_ACT_SHOT,
    }
}

#[xdp]
pub fn yard_empty_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn yard_empty_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Counts what a socket is given, and has it dropped.
#[socket_filter]
pub fn yard_socket(_: SkBuffContext) -> i64 {
    count();
    0
}

#[inline(always)]
fn count() {
    if let Some(count) = COUNT.get_ptr_mut(0) {
        // SAFETY: the value belongs to this CPU.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The first FRAME bytes of a packet, which are there.
#[derive(Clone, Copy)]
struct Bytes(usize);

impl Bytes {
    #[inline(always)]
    fn of_xdp(context: &XdpContext) -> Option<Self> {
        Self::within(context.data(), context.data_end())
    }

    #[inline(always)]
    fn of_tc(context: &TcContext) -> Option<Self> {
        Self::within(context.data(), context.data_end())
    }

    #[inline(always)]
    fn within(start: usize, end: usize) -> Option<Self> {
        (start + FRAME <= end).then_some(Self(start))
    }

    #[inline(always)]
    fn is_udp(self) -> bool {
        // SAFETY: within FRAME bytes.
        let (ethertype, header, protocol): (u16, u8, u8) = unsafe {
            (
                self.get(at::ETHERTYPE),
                self.get(at::IP),
                self.get(at::TTL + 1),
            )
        };
        ethertype == ETHERTYPE_IPV4.to_be() && header == 0x45 && protocol == UDP
    }

    #[inline(always)]
    fn rewrite(self, rewrite: &Rewrite) {
        let (addr, port) = if rewrite.source == 0 {
            (at::DADDR, at::DPORT)
        } else {
            (at::SADDR, at::SPORT)
        };
        // SAFETY: all offsets are within FRAME bytes.
        unsafe {
            self.put(at::MAC_TO, rewrite.macs);
            self.put(addr, rewrite.addr);
            self.put(port, rewrite.port);
            self.put(at::TTL, self.get::<u8>(at::TTL) - 1);
            self.adjust(at::IP_SUM, rewrite.ip_delta);
            self.adjust(at::UDP_SUM, rewrite.udp_delta);
        }
    }

    /// # Safety
    ///
    /// `at` and the two bytes there are within FRAME.
    #[inline(always)]
    unsafe fn adjust(self, at: usize, delta: u32) {
        // SAFETY: promised by the caller.
        unsafe {
            let sum = !self.get::<u16>(at);
            self.put(at, !fold(u32::from(sum) + delta));
        }
    }

    /// # Safety
    ///
    /// `at` and the bytes of `T` there are within FRAME.
    #[inline(always)]
    unsafe fn get<T: Copy>(self, at: usize) -> T {
        // SAFETY: promised by the caller; the packet has FRAME bytes.
        unsafe { ((self.0 + at) as *const T).read_unaligned() }
    }

    /// # Safety
    ///
    /// As for `get`.
    #[inline(always)]
    unsafe fn put<T: Copy>(self, at: usize, value: T) {
        // SAFETY: promised by the caller; the packet has FRAME bytes.
        unsafe { ((self.0 + at) as *mut T).write_unaligned(value) }
    }

    /// # Safety
    ///
    /// As for `get`, at both places.
    #[inline(always)]
    unsafe fn swap<T: Copy>(self, one: usize, other: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            let (a, b) = (self.get::<T>(one), self.get::<T>(other));
            self.put(one, b);
            self.put(other, a);
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
