//! What is written to a packet, with the sums that cover it.

use core::{mem, ptr};

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes},
};
use network_types::ip::Ipv4Hdr;
use portfwd_common::Proto;

use super::Tc;
use crate::{
    checksum::{changed, changed_addr, folded, updated},
    hook::Readable as _,
    packet::{Packet, Tuple},
};

/// Where fields stand in their headers.
const IPV4_HOPS: usize = 8;
const IPV6_HOP_LIMIT: u32 = 7;
const IPV6_ADDRS: u32 = 8;
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;

impl<const L2: usize> Tc<'_, L2> {
    /// The network header changes in one piece with the ports, where they follow
    /// it. Its own checksum balances what changes in it, and the transport
    /// checksum the ports, so a device's sum over the whole packet stays true,
    /// unless the packet carries none.
    #[inline(always)]
    pub(super) fn rewrite_v4(&self, packet: &Packet, to: &Tuple, hops: u8) {
        let from = &packet.tuple;
        let src = changed(from.src.v4_word(), to.src.v4_word());
        let dst = changed(from.dst.v4_word(), to.dst.v4_word());
        self.sum_ports(packet, to);
        if from.src != to.src || from.dst != to.dst {
            self.sum_addrs(packet, src + dst);
        }
        // The parser has read these bytes.
        let Some([word]) = self.load::<1>(IPV4_HOPS) else {
            return;
        };
        let [old, protocol, sum @ ..] = word.to_ne_bytes();
        let pair = |hops| u16::from_ne_bytes([hops, protocol]).into();
        let changes = src + dst + changed(pair(old), pair(hops));
        let [high, low] = updated(u16::from_ne_bytes(sum), changes).to_ne_bytes();
        let words = [
            u32::from_ne_bytes([hops, protocol, high, low]),
            to.src.v4_word(),
            to.dst.v4_word(),
            to.port_word(),
        ];
        let at = Self::at(IPV4_HOPS as u32);
        if packet.transport == Ipv4Hdr::LEN as u16 {
            self.store(at, &words, recompute(packet.unsummed));
            return;
        }
        let [a, b, c, ports] = words;
        self.store(at, &[a, b, c], 0);
        self.store_ports(packet, ports);
    }

    /// IPv6 has no header checksum that balances what changes in the header, so
    /// the device's sum changes with it.
    #[inline(always)]
    pub(super) fn rewrite_v6(&self, packet: &Packet, to: &Tuple, hops: u8) {
        let from = &packet.tuple;
        self.sum_ports(packet, to);
        self.store_ports(packet, to.port_word());
        if from.src != to.src || from.dst != to.dst {
            let src = changed_addr(&from.src, &to.src);
            self.sum_addrs(packet, src + changed_addr(&from.dst, &to.dst));
            let addrs = [to.src, to.dst];
            self.store(Self::at(IPV6_ADDRS), &addrs, recompute(true));
        }
        if hops != packet.hops {
            self.store(Self::at(IPV6_HOP_LIMIT), &hops, recompute(true));
        }
    }

    #[inline(always)]
    pub(super) fn write_mss(&self, packet: &Packet, offset: u16, from: u16, to: u16) {
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

    /// Both ports change.
    #[inline(always)]
    fn sum_ports(&self, packet: &Packet, to: &Tuple) {
        let (from, to) = (packet.tuple.port_word(), to.port_word());
        if from == to {
            return;
        }
        let (at, flags) = Self::checksum(packet);
        // SAFETY: the context of a TC program; cannot fail, as above.
        unsafe { bpf_l4_csum_replace(self.skb(), at, from.into(), to.into(), flags | 4) };
    }

    /// Addresses change, which the transport checksum covers too, also where a
    /// device has yet to complete it.
    #[inline(always)]
    fn sum_addrs(&self, packet: &Packet, changes: u64) {
        let (at, flags) = Self::checksum(packet);
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | flags;
        let difference = folded(changes).into();
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb(), at, 0, difference, pseudo) };
    }

    #[inline(always)]
    fn store_ports(&self, packet: &Packet, ports: u32) {
        let at = Self::at(packet.transport.into());
        self.store(at, &ports, recompute(packet.unsummed));
    }

    /// Where the transport checksum is, and how a zero is to be read: to UDP it
    /// means none, stays so, and a computed 0 becomes 0xffff (RFC 768). To TCP
    /// it is a sum like any other.
    #[inline(always)]
    const fn checksum(packet: &Packet) -> (u32, u64) {
        let (offset, flags) = match packet.proto {
            Proto::Tcp => (TCP_CHECKSUM, 0),
            Proto::Udp | Proto::Sctp => (UDP_CHECKSUM, BPF_F_MARK_MANGLED_0 as u64),
        };
        (Self::at(packet.transport as u32 + offset), flags)
    }

    #[inline(always)]
    pub(super) fn store<V>(&self, offset: u32, value: &V, flags: u64) {
        let size = mem::size_of::<V>() as u32;
        // SAFETY: `value` is valid for its size. Cannot fail: the parser has
        // read these bytes.
        unsafe {
            bpf_skb_store_bytes(self.skb(), offset, ptr::from_ref(value).cast(), size, flags)
        };
    }
}

/// Whether the device's sum over the whole packet changes with what is stored.
#[inline(always)]
const fn recompute(changes: bool) -> u64 {
    if changes {
        BPF_F_RECOMPUTE_CSUM as u64
    } else {
        0
    }
}
