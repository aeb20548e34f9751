//! The TC hooks.

use core::{
    mem::{self, MaybeUninit},
    ptr,
};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED, bpf_fib_lookup as FibLookup,
        bpf_sock, bpf_sock_tuple,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_fib_lookup, bpf_l3_csum_replace, bpf_l4_csum_replace,
        bpf_redirect_neigh, bpf_redirect_peer, bpf_sk_assign, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
        bpf_skb_vlan_pop, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    },
    programs::TcContext,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};
use portfwd_common::{Addr, Family, Proto};

use crate::{
    hook::{Frame, Hook, LISTEN, NO_SOCKET, Room, SocketState, Steering, UdpSocket, Way},
    maps::{self, Maps, checks_mtu},
    packet::{Packet, Tuple},
    place::listening,
    relay,
    remember::{self, Reserved},
    tables::{Draft, Tables},
};

/// `skb->pkt_type` of a frame for this host.
const PACKET_HOST: u32 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ESOCKTNOSUPPORT: i64 = 94;
/// `BPF_MTU_CHK_SEGS`.
const CHECK_SEGMENTS: u64 = 1;
/// `ENODEV`.
const NO_DEVICE: i64 = -19;
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// The namespace that the program runs in (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;
/// The VLAN id in a tag; 0 is a priority tag, which the stack ignores.
const VLAN_ID: u32 = 0x0fff;

/// Length of a `bpf_fib_lookup` in words.
const FIB_WORDS: usize = mem::size_of::<FibLookup>() / 4;

/// Where fields stand in their headers.
const IPV4_TTL: u32 = 8;
const IPV4_CHECKSUM: u32 = 10;
const IPV4_SRC: u32 = 12;
const IPV4_DST: u32 = 16;
const IPV6_HOP_LIMIT: u32 = 7;
const IPV6_SRC: u32 = 8;
const IPV6_DST: u32 = 24;
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;

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

    #[inline(always)]
    fn tcp_lookup(&self, family: Family, tuple: &Tuple) -> *mut bpf_sock {
        let context = self.context.as_ptr().cast();
        // SAFETY: the tuple is valid for `size` bytes; every caller releases
        // what is found.
        with_socket_tuple(family, tuple, |words, size| unsafe {
            bpf_skc_lookup_tcp(context, words, size, CURRENT_NETNS, 0)
        })
    }
}

/// Lends the words of a `bpf_sock_tuple` and how many bytes of it the family
/// uses. Each family's words stand for themselves: the stack is short.
#[inline(always)]
fn with_socket_tuple<R>(
    family: Family,
    tuple: &Tuple,
    lookup: impl Fn(*mut bpf_sock_tuple, u32) -> R,
) -> R {
    let ports = port_word(tuple);
    match family {
        Family::V4 => {
            let mut words = [tuple.src.v4_word(), tuple.dst.v4_word(), ports];
            lookup(words.as_mut_ptr().cast(), 12)
        }
        Family::V6 => {
            let ([a, b, c, d], [e, f, g, h]) = (tuple.src.0, tuple.dst.0);
            let mut words = [a, b, c, d, e, f, g, h, ports];
            lookup(words.as_mut_ptr().cast(), 36)
        }
    }
}

impl<const L2: usize> Hook for Tc<'_, L2> {
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

    #[inline(never)]
    fn tcp_socket(&self, family: Family, tuple: &Tuple) -> SocketState {
        let socket = self.tcp_lookup(family, tuple);
        if socket.is_null() {
            return NO_SOCKET;
        }
        // SAFETY: not null, and released right after.
        unsafe {
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state
        }
    }

    #[inline(never)]
    fn udp_socket(&self, family: Family, tuple: &Tuple) -> UdpSocket {
        let context = self.context.as_ptr().cast();
        // SAFETY: the tuple is valid for `size` bytes; what is found is
        // released.
        unsafe {
            let socket = with_socket_tuple(family, tuple, |words, size| {
                bpf_sk_lookup_udp(context, words, size, CURRENT_NETNS, 0)
            });
            if socket.is_null() {
                return UdpSocket::None;
            }
            let connected = (*socket).dst_port != 0;
            bpf_sk_release(socket.cast());
            if connected {
                UdpSocket::Connected
            } else {
                UdpSocket::Bound
            }
        }
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

    #[inline(never)]
    fn steer(&self, packet: &Packet, addr: &Addr, port: u16) -> Steering {
        let to = Tuple {
            dst: *addr,
            dport: port,
            ..packet.tuple
        };
        let socket = self.tcp_lookup(packet.family, &listening(packet.family, &to));
        if socket.is_null() {
            return Steering::NoListener;
        }
        // SAFETY: not null until it is released, on every path.
        unsafe {
            if (*socket).state != LISTEN {
                bpf_sk_release(socket.cast());
                return Steering::NoListener;
            }
            let cookie = packet.is_ack() && self.completes_cookie(packet, socket);
            if packet.is_ack() && !cookie {
                bpf_sk_release(socket.cast());
                return Steering::NoHandshake;
            }
            let error = bpf_sk_assign(self.context.as_ptr(), socket.cast(), 0);
            bpf_sk_release(socket.cast());
            // The verdict does not hang on the assignment otherwise: a test
            // run has no socket to give a packet to (EOPNOTSUPP).
            if error == -ESOCKTNOSUPPORT {
                Steering::Refused
            } else {
                Steering::Assigned { cookie }
            }
        }
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
    fn rewrite(&mut self, packet: &Packet, to: &Tuple) {
        let from = &packet.tuple;
        let checksum = Checksum {
            offset: Self::at(u32::from(packet.transport) + checksum_offset(packet.proto)),
            flags: checksum_flags(packet.proto),
        };
        if from.sport != to.sport || from.dport != to.dport {
            self.rewrite_ports(packet, to, checksum);
        }
        match packet.family {
            Family::V4 => {
                self.rewrite_v4(&from.src, &to.src, IPV4_SRC, checksum);
                self.rewrite_v4(&from.dst, &to.dst, IPV4_DST, checksum);
            }
            Family::V6 => {
                self.rewrite_v6(&from.src, &to.src, IPV6_SRC, checksum);
                self.rewrite_v6(&from.dst, &to.dst, IPV6_DST, checksum);
            }
        }
    }

    #[inline(always)]
    fn hop(&mut self, packet: &Packet) {
        let hops = packet.hops.wrapping_sub(1);
        match packet.family {
            Family::V4 => {
                let word = |hops| u16::from_ne_bytes([hops, packet.proto.number()]).into();
                let (from, to) = (word(packet.hops), word(hops));
                let at = Self::at(IPV4_CHECKSUM);
                // SAFETY: as for the ports.
                unsafe { bpf_l3_csum_replace(self.skb(), at, from, to, 2) };
                self.store(Self::at(IPV4_TTL), &hops, 0);
            }
            // As for the addresses.
            Family::V6 => {
                let recompute = BPF_F_RECOMPUTE_CSUM.into();
                self.store(Self::at(IPV6_HOP_LIMIT), &hops, recompute);
            }
        }
    }

    #[inline(always)]
    fn set_mss(&mut self, packet: &Packet, offset: u16, from: u16, to: u16) {
        let (old, new) = (from.to_be(), to.to_be());
        let at = Self::at(u32::from(packet.transport) + TCP_CHECKSUM);
        // The sum is over words of 16 bits, and the option may lie across two.
        let odd = offset.wrapping_sub(packet.transport) & 1 == 1;
        let (out, new_word) = if odd {
            (old.swap_bytes(), new.swap_bytes())
        } else {
            (old, new)
        };
        // SAFETY: as for the ports.
        unsafe { bpf_l4_csum_replace(self.skb(), at, out.into(), new_word.into(), 2) };
        self.store(Self::at(offset.into()), &new, 0);
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

/// Parts of the programs that the verifier checks once, and not at each call:
/// it does so for global functions (5.6), which it knows by the linkage. They
/// find the packet in the draft. `skb` is the context of a TC program.
mod apart {
    use super::*;

    /// Lends the packet of the draft to a part.
    #[inline(always)]
    fn with<const L2: usize>(
        skb: *mut __sk_buff,
        part: impl Fn(&mut Tc<'_, L2>, &Maps, &mut Draft) -> u32,
    ) -> u32 {
        let context = TcContext::new(skb);
        match maps::draft() {
            Some(draft) => part(&mut Tc::ingress(&context), &Maps::open(), draft),
            None => Reserved::Full as u32,
        }
    }

    macro_rules! parts {
        ($($name:ident $l2:literal $part:expr;)*) => {
            $(#[unsafe(no_mangle)]
            #[inline(never)]
            pub(super) extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
                with::<$l2>(skb, $part)
            })*
        };
    }

    parts! {
        portfwd_port 14 |hook, maps, draft| remember::reserve_next(hook, maps, draft) as u32;
        portfwd_port_l3 0 |hook, maps, draft| remember::reserve_next(hook, maps, draft) as u32;
        portfwd_relay 14 |hook, _, draft| relay_now(hook, draft);
        portfwd_relay_l3 0 |hook, _, draft| relay_now(hook, draft);
    }

    #[inline(always)]
    fn relay_now<const L2: usize>(hook: &mut Tc<'_, L2>, draft: &mut Draft) -> u32 {
        relay::send(hook, draft);
        0
    }
}

/// A sum of 0 means none to UDP: it stays 0, and a computed 0 becomes 0xffff
/// (RFC 768). To TCP it is a sum like any other.
#[inline(always)]
const fn checksum_flags(proto: Proto) -> u64 {
    match proto {
        Proto::Tcp => 0,
        Proto::Udp | Proto::Sctp => BPF_F_MARK_MANGLED_0 as u64,
    }
}

#[inline(always)]
const fn checksum_offset(proto: Proto) -> u32 {
    match proto {
        Proto::Tcp => TCP_CHECKSUM,
        Proto::Udp | Proto::Sctp => UDP_CHECKSUM,
    }
}

/// The transport checksum: where it is, and how a zero is to be read.
#[derive(Clone, Copy)]
struct Checksum {
    offset: u32,
    flags: u64,
}

impl<const L2: usize> Tc<'_, L2> {
    /// # Safety
    ///
    /// `socket` must be a listener that has not been released.
    #[inline(always)]
    unsafe fn completes_cookie(&self, packet: &Packet, socket: *mut bpf_sock) -> bool {
        let mut ip = MaybeUninit::<Ipv6Hdr>::uninit();
        let mut tcp = MaybeUninit::<TcpHdr>::uninit();
        let length = match packet.family {
            Family::V4 => Ipv4Hdr::LEN,
            Family::V6 => Ipv6Hdr::LEN,
        };
        // SAFETY: each buffer is valid for the length that is read into it,
        // and `socket` by the contract above.
        unsafe {
            self.copy(0, ip.as_mut_ptr().cast(), length)
                && self.copy(
                    packet.transport.into(),
                    tcp.as_mut_ptr().cast(),
                    TcpHdr::LEN,
                )
                && bpf_tcp_check_syncookie(
                    socket.cast(),
                    ip.as_mut_ptr().cast(),
                    length as u32,
                    tcp.as_mut_ptr().cast(),
                    TcpHdr::LEN as u32,
                ) == 0
        }
    }

    /// # Safety
    ///
    /// `to` must be valid for `len` bytes.
    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: usize) -> bool {
        // SAFETY: as the caller says.
        unsafe {
            bpf_skb_load_bytes(self.skb().cast(), Self::at(offset), to.cast(), len as u32) == 0
        }
    }

    #[inline(always)]
    fn store<V>(&self, offset: u32, value: &V, flags: u64) {
        let size = mem::size_of::<V>() as u32;
        // SAFETY: `value` is valid for its size. Cannot fail: the parser has
        // read these bytes.
        unsafe {
            bpf_skb_store_bytes(
                self.skb(),
                offset,
                core::ptr::from_ref(value).cast(),
                size,
                flags,
            )
        };
    }

    /// Both ports at once; the sum over them stays the same, so a device's sum
    /// over the whole packet does too, unless the packet carries none.
    #[inline(always)]
    fn rewrite_ports(&self, packet: &Packet, to: &Tuple, checksum: Checksum) {
        let from = port_word(&packet.tuple);
        let word = port_word(to);
        // SAFETY: the context of a TC program; a failure is impossible as above.
        unsafe {
            bpf_l4_csum_replace(
                self.skb(),
                checksum.offset,
                from.into(),
                word.into(),
                checksum.flags | 4,
            )
        };
        let flags = if packet.unsummed {
            BPF_F_RECOMPUTE_CSUM.into()
        } else {
            0
        };
        self.store(Self::at(packet.transport.into()), &word, flags);
    }

    #[inline(always)]
    fn rewrite_v4(&self, from: &Addr, to: &Addr, offset: u32, checksum: Checksum) {
        let (from, to) = (from.v4_word(), to.v4_word());
        if from == to {
            return;
        }
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | checksum.flags | 4;
        // SAFETY: as for the ports.
        unsafe {
            bpf_l4_csum_replace(self.skb(), checksum.offset, from.into(), to.into(), pseudo);
            bpf_l3_csum_replace(
                self.skb(),
                Self::at(IPV4_CHECKSUM),
                from.into(),
                to.into(),
                4,
            );
        }
        self.store(Self::at(offset), &to, 0);
    }

    #[inline(always)]
    fn rewrite_v6(&self, from: &Addr, to: &Addr, offset: u32, checksum: Checksum) {
        if from == to {
            return;
        }
        let (mut old, mut new) = (from.0, to.0);
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | checksum.flags;
        // SAFETY: 16 bytes each; then as for the ports.
        unsafe {
            let difference = bpf_csum_diff(old.as_mut_ptr(), 16, new.as_mut_ptr(), 16, 0);
            bpf_l4_csum_replace(self.skb(), checksum.offset, 0, difference as u64, pseudo);
        }
        // IPv6 has no header checksum whose change balances the address's in
        // a device's sum over the whole packet.
        self.store(Self::at(offset), &new, BPF_F_RECOMPUTE_CSUM.into());
    }
}

/// Source and destination port as they lie in the header.
#[inline(always)]
const fn port_word(tuple: &Tuple) -> u32 {
    ((tuple.sport as u32) << 16 | tuple.dport as u32).to_be()
}
