//! The XDP hook: a frame as the driver received it. What is written here is
//! written at once, sums included: no device has yet to complete them.

use core::mem;

use aya_ebpf::{helpers::generated::bpf_redirect, programs::XdpContext};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use portfwd_common::{Addr, Family, Mac, Proto};

use crate::{
    checksum::{changed, changed_addr, updated},
    hook::{Express, Frame, Link, Readable},
    packet::{Packet, Tuple},
};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Where fields stand in their headers.
const IPV4_HOPS: usize = 8;
const IPV6_HOPS: usize = 7;
const IPV6_ADDRS: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// A packet at XDP, on a device with an Ethernet header.
pub struct Xdp<'a> {
    context: &'a XdpContext,
    /// The device's own address.
    mac: Mac,
}

impl<'a> Xdp<'a> {
    /// A packet on a device that has this address.
    pub const fn new(context: &'a XdpContext, mac: Mac) -> Self {
        Self { context, mac }
    }

    /// Sends the frame by a device, when the program ends with this action. Not
    /// by `XDP_TX` where that is the one it came in by: a veth would leave it in
    /// the other end's ring until something else wakes that, unless a program is
    /// there too (`veth_xdp_flush`).
    #[inline(always)]
    pub fn send(&self, ifindex: u32) -> u32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }

    /// A pointer to a `V` that lies `offset` bytes into the frame.
    #[inline(always)]
    fn at<V>(&self, offset: usize) -> Option<*mut V> {
        let start = self.context.data() + offset;
        if start + mem::size_of::<V>() > self.context.data_end() {
            return None;
        }
        Some(start as *mut V)
    }

    /// The ports and the sum behind an IP header of so many bytes.
    #[inline(always)]
    fn transport(&self, proto: Proto, header: usize) -> Option<Transport> {
        let start = ETHERNET + header;
        let checksum = match proto {
            Proto::Tcp => TCP_CHECKSUM,
            Proto::Udp | Proto::Sctp => UDP_CHECKSUM,
        };
        Some(Transport {
            ports: self.at(start)?,
            checksum: self.at(start + checksum)?,
        })
    }

    #[inline(always)]
    fn express_v4(&self, packet: &Packet, to: &Tuple, link: &Link) -> Option<()> {
        let macs: *mut [Mac; 2] = self.at(0)?;
        // Hops, protocol and sum in one word, then the addresses.
        let words: *mut [u32; 3] = self.at(ETHERNET + IPV4_HOPS)?;
        let transport = self.transport(packet.proto, Ipv4Hdr::LEN)?;
        let from = &packet.tuple;
        let addrs = changed(from.src.v4_word(), to.src.v4_word())
            + changed(from.dst.v4_word(), to.dst.v4_word());
        // SAFETY: in bounds, as asked above. The words need not be aligned: the
        // verifier knows whether the machine minds.
        unsafe {
            let [hops, protocol, sum @ ..] = (*words)[0].to_ne_bytes();
            let one_less = hops.wrapping_sub(1);
            let aged = changed(
                u16::from_ne_bytes([hops, protocol]).into(),
                u16::from_ne_bytes([one_less, protocol]).into(),
            );
            let [high, low] = updated(u16::from_ne_bytes(sum), addrs + aged).to_ne_bytes();
            *words = [
                u32::from_ne_bytes([one_less, protocol, high, low]),
                to.src.v4_word(),
                to.dst.v4_word(),
            ];
            transport.write(packet, to, addrs);
            *macs = [link.dst, link.src];
        }
        Some(())
    }

    #[inline(always)]
    fn express_v6(&self, packet: &Packet, to: &Tuple, link: &Link) -> Option<()> {
        let macs: *mut [Mac; 2] = self.at(0)?;
        let hops: *mut u8 = self.at(ETHERNET + IPV6_HOPS)?;
        let addrs: *mut [Addr; 2] = self.at(ETHERNET + IPV6_ADDRS)?;
        let transport = self.transport(packet.proto, Ipv6Hdr::LEN)?;
        let from = &packet.tuple;
        let changed = changed_addr(&from.src, &to.src) + changed_addr(&from.dst, &to.dst);
        // SAFETY: as above.
        unsafe {
            *hops = packet.hops.wrapping_sub(1);
            *addrs = [to.src, to.dst];
            transport.write(packet, to, changed);
            *macs = [link.dst, link.src];
        }
        Some(())
    }
}

impl Readable for Xdp<'_> {
    #[inline(always)]
    fn frame(&self) -> Frame {
        let len = self.context.data_end() - self.context.data();
        let (dst, ethertype) = match self.at::<[u16; 7]>(0) {
            // SAFETY: in bounds.
            Some(header) => unsafe { ([(*header)[0], (*header)[1], (*header)[2]], (*header)[6]) },
            None => ([0; 3], 0),
        };
        Frame {
            ethertype: u16::from_be(ethertype),
            ifindex: self.context.ingress_ifindex() as u32,
            len: len.saturating_sub(ETHERNET) as u32,
            gso_size: 0,
            for_host: dst == self.mac,
            // One that is still in the frame shows as its EtherType.
            vlan: false,
            forwarded: false,
        }
    }

    /// The driver has put the headers where a program can read them.
    #[inline(always)]
    fn pull(&mut self, _: usize) {}

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        // SAFETY: in bounds; need not be aligned, as above.
        self.at::<[u32; N]>(ETHERNET + offset)
            .map(|words| unsafe { *words })
    }
}

impl Express for Xdp<'_> {
    #[inline(always)]
    fn express(&mut self, packet: &Packet, to: &Tuple, link: &Link) -> bool {
        match packet.family {
            Family::V4 => self.express_v4(packet, to, link),
            Family::V6 => self.express_v6(packet, to, link),
        }
        .is_some()
    }
}

/// What is rewritten of a transport header.
struct Transport {
    ports: *mut u32,
    checksum: *mut u16,
}

impl Transport {
    /// Writes the ports of `to`, and the sum, which covers the addresses too.
    ///
    /// # Safety
    ///
    /// Both pointers are into the packet.
    #[inline(always)]
    unsafe fn write(&self, packet: &Packet, to: &Tuple, addrs: u64) {
        let ports = to.port_word();
        let change = addrs + changed(packet.tuple.port_word(), ports);
        let is_tcp = matches!(packet.proto, Proto::Tcp);
        // SAFETY: the caller's promise.
        unsafe {
            *self.ports = ports;
            let sum = *self.checksum;
            // To UDP a sum of 0 means none, and stays so (RFC 768).
            if is_tcp || sum != 0 {
                *self.checksum = match updated(sum, change) {
                    0 if !is_tcp => u16::MAX,
                    sum => sum,
                };
            }
        }
    }
}
