//! What is written to a packet, with the sums that cover it.

use core::{mem, ptr};

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes,
    },
};
use portfwd_common::{Addr, Family, Proto};

use super::{Tc, port_word};
use crate::packet::{Packet, Tuple};

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

impl<const L2: usize> Tc<'_, L2> {
    #[inline(always)]
    pub(super) fn write_tuple(&self, packet: &Packet, to: &Tuple) {
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
    pub(super) fn write_hops(&self, packet: &Packet, hops: u8) {
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

/// The transport checksum: where it is, and how a zero is to be read.
#[derive(Clone, Copy)]
struct Checksum {
    offset: u32,
    flags: u64,
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
