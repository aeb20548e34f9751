//! Checksums recomputed from scratch over the bytes of a packet: the judge
//! shares no code and no shortcut with what it judges.

use std::net::IpAddr;

use etherparse::{IpNumber, IpSlice};

/// What the bytes of a packet say about its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sums {
    /// Every checksum is right.
    Right,
    /// There is none that these bytes alone could prove; the reason.
    Unproved(&'static str),
    /// A checksum is wrong; which one and what it should be.
    Wrong(String),
}

/// Checks an IP packet, starting at its IP header.
///
/// `partial` tells that the layer-4 field holds only the sum of the
/// pseudo-header, because a device will complete it (`CHECKSUM_PARTIAL`).
pub fn check(packet: &[u8], partial: bool) -> Sums {
    let Ok(ip) = IpSlice::from_slice(packet) else {
        return Sums::Unproved("not a whole IP packet");
    };
    if let Some(v4) = ip.ipv4() {
        let header = v4.header().slice();
        if fold(sum(header)) != 0xffff {
            return Sums::Wrong(format!(
                "IPv4 header checksum {:#06x}",
                v4.header().header_checksum()
            ));
        }
    }
    if ip.is_fragmenting_payload() {
        return Sums::Unproved("a fragment");
    }
    layer4(&ip, partial)
}

fn layer4(ip: &IpSlice<'_>, partial: bool) -> Sums {
    let payload = ip.payload();
    let segment = payload.payload;
    let v6 = ip.ipv6().is_some();
    let pseudo = pseudo_header(ip, payload.ip_number, segment.len());
    let (name, field, pseudo) = match payload.ip_number {
        IpNumber::TCP => ("TCP", 16, pseudo),
        IpNumber::UDP => ("UDP", 6, pseudo),
        IpNumber::ICMP => ("ICMP", 2, 0),
        IpNumber::IPV6_ICMP => ("ICMPv6", 2, pseudo),
        _ => return Sums::Unproved("another protocol"),
    };
    let Some(&[high, low]) = segment.get(field..field + 2) else {
        return Sums::Unproved("a short layer-4 header");
    };
    let found = u16::from_be_bytes([high, low]);

    if partial {
        let wanted = fold(pseudo);
        return verdict(name, "partial", found, wanted, same(found, wanted));
    }
    if payload.ip_number == IpNumber::UDP && found == 0 {
        return match v6 {
            true => Sums::Wrong("UDP checksum 0 over IPv6".to_owned()),
            false => Sums::Unproved("UDP without checksum"),
        };
    }
    let rest = sum(&segment[..field]) + sum(&segment[field + 2..]);
    let wanted = match !fold(pseudo + rest) {
        0 if payload.ip_number == IpNumber::UDP => 0xffff,
        wanted => wanted,
    };
    // Only UDP has a rule which of the two zeros is sent.
    let right = match payload.ip_number {
        IpNumber::UDP => found == wanted,
        _ => same(found, wanted),
    };
    verdict(name, "full", found, wanted, right)
}

fn verdict(name: &str, kind: &str, found: u16, wanted: u16, right: bool) -> Sums {
    if right {
        return Sums::Right;
    }
    Sums::Wrong(format!(
        "{kind} {name} checksum {found:#06x}, right is {wanted:#06x}"
    ))
}

fn pseudo_header(ip: &IpSlice<'_>, protocol: IpNumber, length: usize) -> u64 {
    let addresses = match (ip.source_addr(), ip.destination_addr()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        _ => unreachable!("one header has addresses of one family"),
    };
    addresses + u64::from(protocol.0) + length as u64
}

/// The sum of the 16-bit words, an odd last byte padded with zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2);
    let last = words
        .remainder()
        .first()
        .map_or(0, |&byte| u64::from(byte) << 8);
    last + words
        .map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u64>()
}

/// A sum as 16 bits with the carries added back.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Equal in one's complement, where 0 and 0xffff are one number.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{Sums, check};
    use crate::{Frame, frame::ETHERNET};

    /// A packet without its Ethernet header, and where its checksum stands.
    fn packets() -> [(Vec<u8>, usize); 4] {
        frames().map(|(frame, at)| (packet(&frame), at))
    }

    fn frames() -> [(Frame, usize); 4] {
        let end = |text: &str| text.parse::<SocketAddr>().expect("an address and a port");
        let (a4, b4) = (end("192.0.2.1:1"), end("192.0.2.2:2"));
        let (a6, b6) = (end("[2001:db8::1]:1"), end("[2001:db8::2]:2"));
        [
            (Frame::tcp(a4, b4).payload(b"odd"), 20 + 16),
            (Frame::tcp(a6, b6).payload(b"odd"), 40 + 16),
            (Frame::udp(a4, b4).payload(b"odd"), 20 + 6),
            (Frame::udp(a6, b6).payload(b"odd"), 40 + 6),
        ]
    }

    fn packet(frame: &Frame) -> Vec<u8> {
        frame.to_vec()[ETHERNET..].to_vec()
    }

    #[test]
    fn what_etherparse_builds_is_right() {
        for (packet, _) in packets() {
            assert_eq!(check(&packet, false), Sums::Right);
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        for (packet, at) in packets() {
            // From the addresses on: before them a bit may change the framing.
            for byte in (if packet[0] >> 4 == 4 { 12 } else { 8 })..packet.len() {
                let mut broken = packet.clone();
                broken[byte] ^= 0x10;
                // A UDP length that contradicts is the parser's to judge.
                if broken[at - 2..at] == packet[at - 2..at] {
                    assert!(
                        matches!(check(&broken, false), Sums::Wrong(_)),
                        "byte {byte}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_full_sum_is_no_partial_one() {
        for (packet, _) in packets() {
            assert!(matches!(check(&packet, true), Sums::Wrong(_)));
        }
    }

    #[test]
    fn udp_without_checksum_is_legal_over_ipv4_only() {
        let [_, _, (v4, at4), (v6, at6)] = frames();
        let (v4, v6) = (packet(&v4.unsummed()), packet(&v6.unsummed()));
        assert_eq!(
            (&v4[at4..at4 + 2], &v6[at6..at6 + 2]),
            (&[0; 2][..], &[0; 2][..])
        );
        assert!(matches!(check(&v4, false), Sums::Unproved(_)));
        assert!(matches!(check(&v6, false), Sums::Wrong(_)));
    }
}
