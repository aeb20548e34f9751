//! The TC hooks.

use core::{mem, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED,
        bpf_fib_lookup as FibLookup,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_head,
        bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use portfwd_common::{Addr, Family, Mac};

use crate::{
    hook::{
        Frame, Hook, LISTEN, Link, NO_SOCKET, Readable, Room, SocketState, Steering, UdpSocket, Way,
    },
    maps::checks_mtu,
    packet::{Packet, Tuple},
    remember::Reserved,
    tables::{Draft, Tables},
};

mod apart;
mod rewrite;
mod sockets;

/// `skb->pkt_type` of a frame for this host.
const PACKET_HOST: u32 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_MTU_CHK_SEGS`.
const CHECK_SEGMENTS: u64 = 1;
/// `ENODEV`.
const NO_DEVICE: i64 = -19;
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// The VLAN id in a tag; 0 is a priority tag, which the stack ignores.
const VLAN_ID: u32 = 0x0fff;

/// Length of a `bpf_fib_lookup` in words.
const FIB_WORDS: usize = mem::size_of::<FibLookup>() / 4;

/// A packet at TC; its IP header starts `L2` bytes into the frame. That is a
/// property of the device: there is a program for each.
pub struct Tc<'a, const L2: usize> {
    context: &'a TcContext,
    egress: bool,
}

impl<'a, const L2: usize> Tc<'a, L2> {
    /// A packet that arrives.
    pub const fn ingress(context: &'a TcContext) -> Self {
        Self {
            context,
            egress: false,
        }
    }

    /// A packet that leaves.
    pub const fn egress(context: &'a TcContext) -> Self {
        Self {
            context,
            egress: true,
        }
    }

    #[inline(always)]
    const fn skb(&self) -> *mut __sk_buff {
        self.context.skb.skb
    }

    /// The frame offset of an offset from the IP header.
    #[inline(always)]
    const fn at(offset: u32) -> u32 {
        L2 as u32 + offset
    }

    /// A pointer to a `V` in the packet.
    #[inline(always)]
    fn at_offset<V>(&self, offset: usize) -> Option<*const V> {
        let start = self.context.data() + L2 + offset;
        if start + mem::size_of::<V>() > self.context.data_end() {
            return None;
        }
        Some(start as *const V)
    }
}

impl<const L2: usize> Readable for Tc<'_, L2> {
    #[inline(always)]
    fn frame(&self) -> Frame {
        // SAFETY: the context of a TC program.
        let skb = unsafe { &*self.skb() };
        Frame {
            ethertype: u16::from_be(skb.protocol as u16),
            ifindex: skb.ifindex,
            len: skb.len.saturating_sub(L2 as u32),
            gso_size: skb.gso_size,
            for_host: self.egress || skb.pkt_type == PACKET_HOST,
            vlan: skb.vlan_present != 0 && skb.vlan_tci & VLAN_ID != 0,
            forwarded: self.egress && skb.ingress_ifindex != 0,
        }
    }

    #[inline(always)]
    fn pull(&mut self, len: usize) {
        let wanted = (L2 + len) as u32;
        let linear = (self.context.data_end() - self.context.data()) as u32;
        // SAFETY: the context of a TC program.
        let len = unsafe { (*self.skb()).len };
        if linear < wanted && linear < len {
            let wanted = if wanted < len { wanted } else { len };
            // SAFETY: as above. A failure shows when the bytes are loaded.
            unsafe { bpf_skb_pull_data(self.skb(), wanted) };
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        // SAFETY: in bounds by the check against `data_end`. The words need not
        // be aligned: the verifier knows whether the machine minds.
        self.at_offset(offset).map(|words| unsafe { *words })
    }
}

impl<const L2: usize> Hook for Tc<'_, L2> {
    #[inline(always)]
    fn link(&self) -> Option<Link> {
        let start = self.context.data();
        if L2 == 0 || start + mem::size_of::<[Mac; 2]>() > self.context.data_end() {
            return None;
        }
        // SAFETY: in bounds.
        let [dst, src] = unsafe { *(start as *const [Mac; 2]) };
        Some(Link { dst, src })
    }

    #[inline(always)]
    fn copy(&self, offset: u16, to: &mut [u8; 64], len: u32) -> bool {
        // SAFETY: the buffer holds 64 bytes, and the caller asks for no more.
        unsafe {
            bpf_skb_load_bytes(
                self.skb().cast(),
                Self::at(offset.into()),
                to.as_mut_ptr().cast(),
                len,
            ) == 0
        }
    }

    #[inline(never)]
    fn may_be_local(&self, packet: &Packet) -> bool {
        let tuple = &packet.tuple;
        let (src, dst) = (tuple.src.0, tuple.dst.0);
        let (family, [a, b, c, d], [e, f, g, h]) = match packet.family {
            Family::V4 => (AF_INET, [src[3], 0, 0, 0], [dst[3], 0, 0, 0]),
            Family::V6 => (AF_INET6, src, dst),
        };
        let [s0, s1] = tuple.sport.to_be_bytes();
        let [d0, d1] = tuple.dport.to_be_bytes();
        let head = u32::from_ne_bytes([family, packet.proto.number(), s0, s1]);
        let dport = u32::from_ne_bytes([d0, d1, 0, 0]);
        // The words of a `bpf_fib_lookup`; no length, which would refuse GSO.
        let mut fib: [u32; FIB_WORDS] = [
            head,
            dport,
            packet.ifindex,
            0,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            0,
            0,
            0,
            0,
        ];
        // SAFETY: `fib` is valid for its size.
        let answer = unsafe {
            bpf_fib_lookup(
                self.context.as_ptr(),
                (&raw mut fib).cast(),
                mem::size_of::<FibLookup>() as i32,
                0,
            )
        };
        // 4 for local routes, and for none at all, where the stack will not
        // deliver either; 5 when the device does not forward and the address
        // was not looked at.
        answer == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)
            || answer == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
    }

    #[inline(always)]
    fn tcp_socket(&self, family: Family, tuple: &Tuple) -> SocketState {
        self.state_of_tcp(family, tuple)
    }

    #[inline(always)]
    fn udp_socket(&self, family: Family, tuple: &Tuple) -> UdpSocket {
        self.find_udp(family, tuple)
    }

    #[inline(always)]
    fn sent_by_socket(&self, packet: &Packet) -> bool {
        // Resets and the answers of TIME_WAIT sockets leave through a socket
        // of the kernel's own: the table knows whether the tuple has one.
        !matches!(
            self.tcp_socket(packet.family, &packet.tuple.reversed()),
            NO_SOCKET | LISTEN
        )
    }

    #[inline(always)]
    fn steer(&self, packet: &Packet, addr: &Addr, port: u16) -> Steering {
        self.assign(packet, addr, port)
    }

    #[inline(never)]
    fn room(&self, packet: &Packet, ifindex: u32) -> Room {
        let unknown = Room {
            exists: true,
            fits: true,
            mtu: 0,
        };
        if !checks_mtu() {
            return unknown;
        }
        // SAFETY: the context of a TC program.
        let is_gso = unsafe { (*self.skb()).gso_size } != 0;
        let (mut mtu, flags) = if is_gso {
            (0, CHECK_SEGMENTS)
        } else {
            (packet.len, 0)
        };
        // SAFETY: `mtu` is valid: the length of layer 3 goes in, the MTU comes out.
        let answer = unsafe { bpf_check_mtu(self.skb().cast(), ifindex, &raw mut mtu, 0, flags) };
        match answer {
            0 => Room { mtu, ..unknown },
            NO_DEVICE => Room {
                exists: false,
                ..unknown
            },
            1.. => Room {
                fits: false,
                mtu,
                ..unknown
            },
            _ => unknown,
        }
    }

    #[inline(always)]
    fn reserve_next<T: Tables>(&self, _: &T, _: &mut Draft) -> Reserved {
        Reserved::from(if L2 == 0 {
            apart::portfwd_port_l3(self.skb())
        } else {
            apart::portfwd_port(self.skb())
        })
    }

    #[inline(always)]
    fn rewrite(&mut self, packet: &Packet, to: &Tuple, hops: u8) {
        match packet.family {
            Family::V4 => self.rewrite_v4(packet, to, hops),
            Family::V6 => self.rewrite_v6(packet, to, hops),
        }
    }

    #[inline(always)]
    fn set_mss(&mut self, packet: &Packet, offset: u16, from: u16, to: u16) {
        self.write_mss(packet, offset, from, to);
    }

    #[inline(always)]
    fn send(&mut self, way: &Way) {
        // SAFETY: the context of a TC program. Without memory for a header the
        // packet is lost, as in any device.
        unsafe {
            // A priority tag ends here, as it does in the stack.
            if (*self.skb()).vlan_present != 0 {
                bpf_skb_vlan_pop(self.skb());
            }
            if L2 == 0 {
                // `bpf_redirect_neigh` takes an Ethernet header off.
                bpf_skb_change_head(self.skb(), ETHERNET, 0);
            } else if way.peer {
                self.store(0, &way.link, 0);
                bpf_redirect_peer(way.ifindex, 0);
                return;
            }
            if way.hop.is_unspecified() {
                bpf_redirect_neigh(way.ifindex, ptr::null_mut(), 0, 0);
                return;
            }
            let Addr([a, b, c, d]) = way.hop;
            // The words of a `bpf_redir_neigh`.
            let mut hop = [AF_INET6.into(), a, b, c, d];
            let size = mem::size_of_val(&hop) as i32;
            bpf_redirect_neigh(way.ifindex, (&raw mut hop).cast(), size, 0);
        }
    }

    #[inline(always)]
    fn relay(&mut self, _: &mut Draft) {
        if L2 == 0 {
            apart::portfwd_relay_l3(self.skb());
        } else {
            apart::portfwd_relay(self.skb());
        }
    }
}
