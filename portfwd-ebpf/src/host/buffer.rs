//! A packet in a byte buffer.

use portfwd_common::{Addr, Family, Proto};

use super::Machine;
use crate::{
    hook::{Express, Frame, Hook, Link, Readable, Room, SocketState, Steering, UdpSocket, Way},
    packet::{ETH_P_IP, ETH_P_IPV6, Packet, Tuple},
    relay,
    remember::{self, Reserved},
    tables::{Draft, Tables},
};

const IPV4_TTL: usize = 8;
const IPV4_CHECKSUM: usize = 10;
const IPV4_SRC: usize = 12;
const IPV4_DST: usize = 16;
const IPV6_HOP_LIMIT: usize = 7;
const IPV6_SRC: usize = 8;
const IPV6_DST: usize = 24;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// An IP packet on a hook of a machine.
#[derive(Clone, Debug)]
pub struct Buffer<'a> {
    /// The packet from its IP header on.
    pub bytes: Vec<u8>,
    /// What the link layer says; its length is ignored, the packet has one.
    pub link: Frame,
    /// `CHECKSUM_PARTIAL`: the transport checksum holds the sum of the
    /// pseudo-header only, and a device will complete it.
    pub partial: bool,
    /// How often it was rewritten.
    pub rewrites: u32,
    /// The way that it was sent to another host.
    pub sent: Option<Way>,
    /// The Ethernet addresses that it leaves with.
    pub addresses: Option<Link>,
    machine: &'a Machine,
    /// Bytes that are readable so far.
    linear: usize,
}

impl<'a> Buffer<'a> {
    /// A packet for this host on a device that is not `lo`. Not one byte is
    /// readable before it is pulled.
    pub fn new(machine: &'a Machine, bytes: Vec<u8>) -> Self {
        let ethertype = match bytes.first() {
            Some(first) if first >> 4 == 6 => ETH_P_IPV6,
            _ => ETH_P_IP,
        };
        Self {
            bytes,
            link: Frame {
                ethertype,
                ifindex: 2,
                len: 0,
                gso_size: 0,
                for_host: true,
                vlan: false,
                forwarded: false,
            },
            partial: false,
            rewrites: 0,
            sent: None,
            addresses: None,
            machine,
            linear: 0,
        }
    }

    /// The same packet on another device.
    pub fn on(mut self, ifindex: u32) -> Self {
        self.link.ifindex = ifindex;
        self
    }

    /// Updates a transport checksum as `bpf_l4_csum_replace` does, for UDP
    /// with `BPF_F_MARK_MANGLED_0`, for addresses with `BPF_F_PSEUDO_HDR`.
    fn replace_l4(&mut self, packet: &Packet, from: &[u8], to: &[u8], pseudo: bool) {
        let (field, zero_is_none) = match packet.proto {
            Proto::Tcp => (TCP_CHECKSUM, false),
            Proto::Udp | Proto::Sctp => (UDP_CHECKSUM, true),
        };
        let at = usize::from(packet.transport) + field;
        let old = self.word(at);
        if zero_is_none && old == 0 {
            return;
        }
        let new = match (self.partial, pseudo) {
            (false, _) => updated(old, from, to),
            // The field is a sum here and not its complement.
            (true, true) => !updated(!old, from, to),
            (true, false) => old,
        };
        self.set_word(
            at,
            if zero_is_none && new == 0 {
                0xffff
            } else {
                new
            },
        );
    }

    fn replace_address(&mut self, packet: &Packet, at: usize, from: &Addr, to: &Addr) {
        if from == to {
            return;
        }
        let (from, to) = (from.octets(), to.octets());
        let (from, to) = match packet.family {
            Family::V4 => (&from[12..], &to[12..]),
            Family::V6 => (&from[..], &to[..]),
        };
        self.replace_l4(packet, from, to, true);
        if packet.family == Family::V4 {
            let header = updated(self.word(IPV4_CHECKSUM), from, to);
            self.set_word(IPV4_CHECKSUM, header);
        }
        self.bytes[at..at + to.len()].copy_from_slice(to);
    }

    /// Writes a tuple and hops, with the sums that cover them.
    fn replace(&mut self, packet: &Packet, to: &Tuple, hops: u8) {
        self.rewrites += 1;
        let from = &packet.tuple;
        let (old, new) = (from.port_word().to_ne_bytes(), to.port_word().to_ne_bytes());
        if old != new {
            self.replace_l4(packet, &old, &new, false);
            let at = usize::from(packet.transport);
            self.bytes[at..at + 4].copy_from_slice(&new);
        }
        let (src, dst) = match packet.family {
            Family::V4 => (IPV4_SRC, IPV4_DST),
            Family::V6 => (IPV6_SRC, IPV6_DST),
        };
        self.replace_address(packet, src, &from.src, &to.src);
        self.replace_address(packet, dst, &from.dst, &to.dst);
        self.set_hops(packet, hops);
    }

    /// The calls that a rewrite takes at TC.
    fn tally_rewrite(&self, packet: &Packet, to: &Tuple, hops: u8) {
        let from = &packet.tuple;
        let ports_change = from.port_word() != to.port_word();
        let addrs_change = (from.src, from.dst) != (to.src, to.dst);
        let stores = match packet.family {
            Family::V4 if packet.transport == 20 => 1,
            Family::V4 => 2,
            Family::V6 => 1 + u32::from(addrs_change) + u32::from(hops != packet.hops),
        };
        let tally = &self.machine.tally;
        for _ in 0..u32::from(ports_change) + u32::from(addrs_change) {
            tally.helper("l4_csum_replace");
        }
        for _ in 0..stores {
            tally.helper("skb_store_bytes");
        }
    }

    fn set_hops(&mut self, packet: &Packet, hops: u8) {
        match packet.family {
            Family::V4 => {
                let [ttl, protocol] = [self.bytes[IPV4_TTL], self.bytes[IPV4_TTL + 1]];
                let (from, to) = ([ttl, protocol], [hops, protocol]);
                let checksum = updated(self.word(IPV4_CHECKSUM), &from, &to);
                self.set_word(IPV4_CHECKSUM, checksum);
                self.bytes[IPV4_TTL] = hops;
            }
            Family::V6 => self.bytes[IPV6_HOP_LIMIT] = hops,
        }
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn set_word(&mut self, at: usize, word: u16) {
        self.bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }
}

impl Readable for Buffer<'_> {
    fn frame(&self) -> Frame {
        Frame {
            len: self.bytes.len() as u32,
            ..self.link
        }
    }

    fn pull(&mut self, len: usize) {
        self.linear = self.linear.max(len.min(self.bytes.len()));
    }

    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let bytes = self.bytes[..self.linear].get(offset..offset + 4 * N)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Some(words)
    }
}

impl Express for Buffer<'_> {
    fn express(&mut self, packet: &Packet, to: &Tuple, link: &Link) -> bool {
        self.replace(packet, to, packet.hops - 1);
        self.addresses = Some(*link);
        true
    }
}

impl Hook for Buffer<'_> {
    fn link(&self) -> Option<Link> {
        self.addresses
    }

    fn copy(&self, offset: u16, to: &mut [u8; 64], len: u32) -> bool {
        self.machine.tally.helper("skb_load_bytes");
        let (from, len) = (usize::from(offset), len as usize);
        let Some(bytes) = self.bytes.get(from..from + len) else {
            return false;
        };
        to[..len].copy_from_slice(bytes);
        true
    }

    fn may_be_local(&self, packet: &Packet) -> bool {
        self.machine.may_be_local(packet)
    }

    fn tcp_socket(&self, family: Family, tuple: &Tuple) -> SocketState {
        self.machine.tcp_socket(family, tuple)
    }

    fn udp_socket(&self, family: Family, tuple: &Tuple) -> UdpSocket {
        self.machine.udp_socket(family, tuple)
    }

    fn sent_by_socket(&self, packet: &Packet) -> bool {
        self.machine.sent_by_socket(packet)
    }

    fn steer(&self, packet: &Packet, addr: &Addr, port: u16) -> Steering {
        self.machine.steer(packet, addr, port)
    }

    fn rewrite(&mut self, packet: &Packet, to: &Tuple, hops: u8) {
        self.tally_rewrite(packet, to, hops);
        self.replace(packet, to, hops);
    }

    fn room(&self, packet: &Packet, ifindex: u32) -> Room {
        self.machine.tally.helper("check_mtu");
        let mtu = self.machine.mtu(ifindex);
        let len = match self.link.gso_size {
            0 => packet.len,
            size => u32::from(packet.headers) + size,
        };
        Room {
            exists: self.machine.mtus.is_empty() || mtu != 0,
            fits: mtu == 0 || len <= mtu,
            mtu,
        }
    }

    fn reserve_next<T: Tables>(&self, tables: &T, draft: &mut Draft) -> Reserved {
        self.machine.tally.lookup("DRAFT");
        remember::reserve_next(self, tables, draft)
    }

    fn set_mss(&mut self, packet: &Packet, offset: u16, from: u16, to: u16) {
        let (mut old, mut new) = (from.to_be_bytes(), to.to_be_bytes());
        let at = usize::from(offset);
        self.bytes[at..at + 2].copy_from_slice(&new);
        self.machine.tally.helper("skb_store_bytes");
        self.machine.tally.helper("l4_csum_replace");
        if (offset - packet.transport) % 2 == 1 {
            old.reverse();
            new.reverse();
        }
        self.replace_l4(packet, &old, &new, false);
    }

    fn send(&mut self, way: &Way) {
        if way.peer {
            self.machine.tally.helper("skb_store_bytes");
            self.machine.tally.helper("redirect_peer");
        } else {
            self.machine.tally.helper("redirect_neigh");
        }
        self.sent = Some(*way);
    }

    fn relay(&mut self, draft: &mut Draft) {
        self.machine.tally.lookup("DRAFT");
        relay::send(self, draft);
    }
}

/// A checksum after `from` became `to` in what it covers (RFC 1624, equation
/// 3): `!(!checksum + !from + to)`.
fn updated(checksum: u16, from: &[u8], to: &[u8]) -> u16 {
    let mut sum = u32::from(!checksum);
    for (from, to) in from.chunks_exact(2).zip(to.chunks_exact(2)) {
        sum += u32::from(!u16::from_be_bytes([from[0], from[1]]));
        sum += u32::from(u16::from_be_bytes([to[0], to[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
