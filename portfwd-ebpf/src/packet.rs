//! Parsing: every position in a packet is found here, once.

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};
use portfwd_common::{Addr, Family, FlowKey, Proto, Verdict};

use crate::hook::{Frame, Readable};

/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

/// Longest IPv4 header and longest TCP header.
const LONGEST_HEADERS: usize = 60 + 60;

/// Protocol numbers.
const HOP_BY_HOP: u8 = 0;
const IPPROTO_TCP: u8 = 6;

/// Length of the hop-by-hop header of a BIG TCP packet.
const JUMBO: u16 = 8;

/// Addresses and ports of a packet; ports in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl Tuple {
    /// The tuple of an answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
        }
    }

    /// Source and destination port as they lie in the header.
    #[inline(always)]
    pub const fn port_word(&self) -> u32 {
        ((self.sport as u32) << 16 | self.dport as u32).to_be()
    }

    /// The key of an entry for packets with this tuple.
    #[inline(always)]
    pub const fn key(&self, proto: Proto, side: u8) -> FlowKey {
        FlowKey {
            src: self.src,
            dst: self.dst,
            sport: self.sport,
            dport: self.dport,
            proto: proto.number(),
            side,
            reserved: 0,
        }
    }
}

/// The network layer of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// Family of the header.
    pub family: Family,
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Where the transport header starts.
    pub transport: u16,
    /// Protocol (IPv4) or next header (IPv6).
    pub protocol: u8,
    /// TTL (IPv4) or hop limit (IPv6).
    pub hops: u8,
    /// A fragment, first or later.
    pub fragment: bool,
    /// Has the kernel's own header of a BIG TCP packet.
    pub jumbo: bool,
    /// Bytes of the packet as its header says; 0 in some GSO packets.
    pub len: u32,
}

/// A packet that the corridor understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Family of its addresses.
    pub family: Family,
    /// Addresses and ports.
    pub tuple: Tuple,
    /// Transport protocol.
    pub proto: Proto,
    /// The device that it is on.
    pub ifindex: u32,
    /// Where the transport header starts.
    pub transport: u16,
    /// Bytes of network and transport header together.
    pub headers: u16,
    /// Bytes of the packet as its header says; 0 in some GSO packets.
    pub len: u32,
    /// TCP: sequence number.
    pub seq: u32,
    /// TCP: acknowledgement number.
    pub ack: u32,
    /// TCP: flags. 0 for UDP.
    pub flags: u8,
    /// TTL (IPv4) or hop limit (IPv6).
    pub hops: u8,
    /// UDP over IPv4 without a checksum.
    pub unsummed: bool,
    /// Bytes of `headers` that are never on the wire.
    pub unwired: u8,
}

/// TCP flag FIN and those that follow (RFC 9293, section 3.1).
pub const FIN: u8 = 1;
/// Opens a connection.
pub const SYN: u8 = 2;
/// Ends it at once.
pub const RST: u8 = 4;
/// The acknowledgement number counts.
pub const ACK: u8 = 16;

impl Packet {
    /// A SYN that is no SYN-ACK.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// An acknowledgement that is neither SYN-ACK nor reset.
    #[inline(always)]
    pub const fn is_ack(&self) -> bool {
        self.flags & (SYN | ACK | RST) == ACK
    }

    /// Says which segments its sender takes: a SYN or its answer.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (SYN | RST) == SYN
    }

    /// The answer to a SYN.
    #[inline(always)]
    pub const fn is_syn_ack(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN | ACK
    }

    /// True on `lo`.
    #[inline(always)]
    pub const fn on_loopback(&self) -> bool {
        self.ifindex == crate::hook::LOOPBACK_IFINDEX
    }
}

/// Reads the network header.
#[inline(always)]
pub fn network<H: Readable>(hook: &mut H, frame: &Frame) -> Result<Network, Verdict> {
    match frame.ethertype {
        ETH_P_IP => {
            hook.pull(LONGEST_HEADERS);
            ipv4(hook)
        }
        ETH_P_IPV6 => {
            hook.pull(LONGEST_HEADERS);
            ipv6(hook)
        }
        _ => Err(Verdict::NotIp),
    }
}

#[inline(always)]
fn ipv4<H: Readable>(hook: &H) -> Result<Network, Verdict> {
    const WORDS: usize = Ipv4Hdr::LEN / 4;
    let [first, second, third, src, dst] = hook.load::<WORDS>(0).ok_or(Verdict::Malformed)?;
    let [version_and_length, _, total @ ..] = first.to_ne_bytes();
    let [_, _, frags @ ..] = second.to_ne_bytes();
    let [hops, protocol, ..] = third.to_ne_bytes();
    let length = u16::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || length < Ipv4Hdr::LEN as u16 {
        return Err(Verdict::Malformed);
    }
    const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
    Ok(Network {
        family: Family::V4,
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        transport: length,
        protocol,
        hops,
        fragment: u16::from_be_bytes(frags) & MORE_FRAGMENTS_OR_OFFSET != 0,
        len: u16::from_be_bytes(total).into(),
        jumbo: false,
    })
}

#[inline(always)]
fn ipv6<H: Readable>(hook: &H) -> Result<Network, Verdict> {
    const WORDS: usize = Ipv6Hdr::LEN / 4;
    let [first, second, a, b, c, d, e, f, g, h] =
        hook.load::<WORDS>(0).ok_or(Verdict::Malformed)?;
    let [version, ..] = first.to_ne_bytes();
    let [p0, p1, next, hops] = second.to_ne_bytes();
    let (src, dst) = (Addr([a, b, c, d]), Addr([e, f, g, h]));
    // A mapped address is no address on a wire (RFC 4291, section 2.5.5.2), and
    // here it would pass for IPv4.
    if version >> 4 != 6 || src.family() == Family::V4 || dst.family() == Family::V4 {
        return Err(Verdict::Malformed);
    }
    const FRAGMENT_HEADER: u8 = 44;
    let jumbo = next == HOP_BY_HOP && is_big_tcp(hook);
    Ok(Network {
        family: Family::V6,
        src,
        dst,
        transport: Ipv6Hdr::LEN as u16 + if jumbo { JUMBO } else { 0 },
        protocol: if jumbo { IPPROTO_TCP } else { next },
        hops,
        fragment: next == FRAGMENT_HEADER,
        len: Ipv6Hdr::LEN as u32 + u32::from(u16::from_be_bytes([p0, p1])),
        jumbo,
    })
}

/// Between the IPv6 and the TCP header of a GSO packet of more than 64 KiB
/// (BIG TCP; `lo` makes them by default) the kernel keeps the length in a
/// header of its own, which segmentation takes out.
#[inline(always)]
fn is_big_tcp<H: Readable>(hook: &H) -> bool {
    /// `struct hop_jumbo_hdr`: next header, length, option, option's length.
    const HEAD: [u8; 4] = [IPPROTO_TCP, 0, 0xc2, 4];
    hook.load::<2>(Ipv6Hdr::LEN)
        .is_some_and(|[head, _]| head.to_ne_bytes() == HEAD)
}

/// Reads the transport header behind `network`.
#[inline(always)]
pub fn transport<H: Readable>(
    hook: &H,
    frame: &Frame,
    network: &Network,
) -> Result<Packet, Verdict> {
    if network.fragment {
        return Err(Verdict::Fragment);
    }
    match network.protocol {
        6 => tcp(hook, frame, network),
        17 => udp(hook, frame, network),
        // Hop-by-hop, routing, AH, destination, mobility, HIP, shim6
        // (RFC 8200, section 4; the IANA registry of extension headers).
        0 | 43 | 51 | 60 | 135 | 139 | 140 if network.family == Family::V6 => {
            Err(Verdict::Extension)
        }
        _ => Err(Verdict::OtherProtocol),
    }
}

#[inline(always)]
fn tcp<H: Readable>(hook: &H, frame: &Frame, network: &Network) -> Result<Packet, Verdict> {
    let at = usize::from(network.transport);
    const WORDS: usize = TcpHdr::LEN / 4;
    let [ports, seq, ack, fourth, _] = hook.load::<WORDS>(at).ok_or(Verdict::Malformed)?;
    let [data_offset, flags, ..] = fourth.to_ne_bytes();
    let length = u16::from(data_offset >> 4) * 4;
    let headers = network.transport + length;
    if length < 20 || u32::from(headers) > frame.len {
        return Err(Verdict::Malformed);
    }
    Ok(Packet {
        family: network.family,
        tuple: tuple(network, ports),
        proto: Proto::Tcp,
        ifindex: frame.ifindex,
        transport: network.transport,
        headers,
        len: network.len,
        seq: u32::from_be(seq),
        ack: u32::from_be(ack),
        flags,
        hops: network.hops,
        unsummed: false,
        unwired: if network.jumbo { JUMBO as u8 } else { 0 },
    })
}

#[inline(always)]
fn udp<H: Readable>(hook: &H, frame: &Frame, network: &Network) -> Result<Packet, Verdict> {
    let at = usize::from(network.transport);
    const WORDS: usize = UdpHdr::LEN / 4;
    let [ports, second] = hook.load::<WORDS>(at).ok_or(Verdict::Malformed)?;
    let second = u32::from_be(second);
    let (length, checksum) = ((second >> 16) as u16, second as u16);
    let end = u32::from(network.transport) + u32::from(length);
    if length < UdpHdr::LEN as u16 || end > frame.len {
        return Err(Verdict::Malformed);
    }
    Ok(Packet {
        family: network.family,
        tuple: tuple(network, ports),
        proto: Proto::Udp,
        ifindex: frame.ifindex,
        transport: network.transport,
        headers: network.transport + UdpHdr::LEN as u16,
        len: network.len,
        seq: 0,
        ack: 0,
        flags: 0,
        hops: network.hops,
        unsummed: checksum == 0,
        unwired: 0,
    })
}

#[inline(always)]
const fn tuple(network: &Network, ports: u32) -> Tuple {
    let ports = u32::from_be(ports);
    Tuple {
        src: network.src,
        dst: network.dst,
        sport: (ports >> 16) as u16,
        dport: ports as u16,
    }
}
