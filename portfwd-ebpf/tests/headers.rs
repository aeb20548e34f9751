//! Headers are read right or the packet is left as it is.

mod common;

use common::{
    CLIENT, CLIENT6, DIALLED, DIALLED6, Host, TARGET, TARGET6, assert_sums, first, tcp, tuple,
    tuple_of, udp, udp_with_options,
};
use portfwd_common::{Proto, Verdict};
use portfwd_ebpf::{
    host::Forward,
    packet::{ACK, SYN},
};

fn forwards() -> [Forward; 2] {
    [
        Forward::udp(80..=80, 5000),
        Forward::tcp(80..=80, 5000).rewriting(),
    ]
}

fn dialled() -> [(Proto, Vec<u8>); 4] {
    let (v4, v6) = (tuple(CLIENT, DIALLED), tuple(CLIENT6, DIALLED6));
    [
        (Proto::Udp, first(Proto::Udp, &v4)),
        (Proto::Tcp, first(Proto::Tcp, &v4)),
        (Proto::Udp, first(Proto::Udp, &v6)),
        (Proto::Tcp, first(Proto::Tcp, &v6)),
    ]
}

#[test]
fn a_packet_cut_at_any_byte_is_rewritten_whole_or_not_at_all() {
    for (proto, packet) in dialled() {
        for len in 0..=packet.len() {
            let host = Host::new(&forwards());
            let cut = &packet[..len];
            // TCP's payload may be cut: its sum covers the length, so only the
            // verdict and the bytes before it are of interest here.
            let mut buffer = host.buffer(cut);
            buffer.link.ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
            let outcome = portfwd_ebpf::host::arrive(&mut buffer, &host.memory);
            let headers = packet.len() - if proto == Proto::Udp { 5 } else { 0 };
            let whole = match proto {
                Proto::Udp => len == packet.len(),
                _ => len >= headers,
            };
            if whole {
                assert_eq!(outcome.verdict, Verdict::Rewritten, "{proto:?} {len}");
                assert_sums(&buffer.bytes, false);
            } else {
                assert_eq!(outcome.verdict, Verdict::Malformed, "{proto:?} {len}");
                assert_eq!(buffer.bytes, cut);
                assert!(host.memory.is_empty());
            }
        }
    }
}

#[test]
fn a_reply_cut_at_any_byte_is_restored_whole_or_not_at_all() {
    for (proto, packet) in dialled() {
        let host = Host::new(&forwards());
        let seen = host.forwarded(&packet);
        let reply = common::answer(proto, &seen.reversed());
        for len in 0..reply.len() {
            let mut buffer = host.buffer(&reply[..len]);
            buffer.link.ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
            let outcome = portfwd_ebpf::host::depart(&mut buffer, &host.memory);
            assert_eq!(outcome.verdict, Verdict::Malformed, "{proto:?} {len}");
            assert_eq!(buffer.bytes, reply[..len]);
        }
        assert_eq!(host.depart(&reply).0, Verdict::Restored);
    }
}

#[test]
fn ipv4_options_of_any_length_are_stepped_over() {
    for words in 0..=10 {
        let options = vec![1; words * 4];
        let host = Host::new(&forwards());
        let open = tuple(CLIENT, DIALLED);
        let datagram = udp_with_options(&open, &options, b"hello");
        assert_eq!(datagram[0] & 15, 5 + words as u8);
        assert_eq!(host.forwarded(&datagram), tuple(CLIENT, TARGET));
        let segment = common::tcp_with_options(&open, &options, SYN, [9, 0], b"");
        assert_eq!(host.forwarded(&segment), tuple(CLIENT, TARGET));
        let reply = udp_with_options(&tuple(TARGET, CLIENT), &options, b"world");
        let (verdict, bytes) = host.depart(&reply);
        assert_eq!(verdict, Verdict::Restored);
        assert_eq!(tuple_of(&bytes), tuple(DIALLED, CLIENT));
        // Options as they were.
        assert_eq!(bytes[20..20 + words * 4], options[..]);
    }
}

#[test]
fn an_ipv4_header_shorter_than_its_minimum_is_malformed() {
    for ihl in 0..5 {
        let mut packet = udp(&tuple(CLIENT, DIALLED), b"hello");
        packet[0] = 0x40 | ihl;
        assert_eq!(Host::new(&forwards()).arrive(&packet).0, Verdict::Malformed);
    }
}

#[test]
fn a_length_that_contradicts_the_packet_is_malformed() {
    let host = Host::new(&forwards());
    for length in [0_u16, 7, 14, 600, 0xffff] {
        let mut packet = udp(&tuple(CLIENT, DIALLED), b"hello");
        packet[24..26].copy_from_slice(&length.to_be_bytes());
        assert_eq!(host.arrive(&packet).0, Verdict::Malformed, "{length}");
    }
    for data_offset in [0, 1, 4, 6, 15] {
        let mut packet = tcp(&tuple(CLIENT, DIALLED), SYN, [1, 0], b"");
        packet[32] = data_offset << 4;
        assert_eq!(host.arrive(&packet).0, Verdict::Malformed, "{data_offset}");
    }
    assert!(host.memory.is_empty());
}

#[test]
fn tcp_options_are_stepped_over() {
    let host = Host::new(&forwards());
    let mut packet = tcp(&tuple(CLIENT, DIALLED), SYN, [1, 0], &[1; 40]);
    packet[32] = 15 << 4;
    let wrong = common::checksum(&packet);
    // The payload became options: only the offset's word is new in the sum.
    let sum = u32::from(!wrong) + u32::from(!0x5002_u16) + 0xf002;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    common::set_checksum(&mut packet, !(sum as u16));
    assert_sums(&packet, false);
    assert_eq!(host.forwarded(&packet), tuple(CLIENT, TARGET));
}

#[test]
fn fragments_pass_untouched() {
    for (bits, verdict) in [
        (0x2000_u16, Verdict::Fragment),
        (0x2001, Verdict::Fragment),
        (0x0001, Verdict::Fragment),
        (0x1fff, Verdict::Fragment),
        // Do not fragment, and the reserved bit.
        (0x4000, Verdict::Rewritten),
    ] {
        let host = Host::new(&forwards());
        let mut packet = udp(&tuple(CLIENT, DIALLED), b"hello");
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]]));
        let old = u32::from(u16::from_be_bytes([packet[6], packet[7]]));
        let sum = (!sum & 0xffff) + (!old & 0xffff) + u32::from(bits);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[6..8].copy_from_slice(&bits.to_be_bytes());
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        assert_eq!(host.arrive(&packet).0, verdict, "{bits:#06x}");
        assert_eq!(host.memory.is_empty(), verdict == Verdict::Fragment);
    }
    let mut packet = udp(&tuple(CLIENT6, DIALLED6), b"hello");
    packet[6] = 44;
    assert_eq!(Host::new(&forwards()).arrive(&packet).0, Verdict::Fragment);
    assert_eq!(Host::new(&forwards()).depart(&packet).0, Verdict::Fragment);
}

#[test]
fn extension_headers_pass_untouched() {
    for next in [0, 43, 51, 60, 135, 139, 140] {
        let mut packet = udp(&tuple(CLIENT6, DIALLED6), b"hello");
        packet[6] = next;
        assert_eq!(Host::new(&forwards()).arrive(&packet).0, Verdict::Extension);
        // Over IPv4 the same number is a protocol.
        let mut packet = udp(&tuple(CLIENT, DIALLED), b"hello");
        packet[9] = next;
        let verdict = Host::new(&forwards()).arrive(&packet).0;
        assert_eq!(verdict, Verdict::OtherProtocol);
    }
    for next in [1, 58, 59, 50, 132] {
        let mut packet = udp(&tuple(CLIENT6, DIALLED6), b"hello");
        packet[6] = next;
        let verdict = Host::new(&forwards()).arrive(&packet).0;
        assert_eq!(verdict, Verdict::OtherProtocol);
    }
}

#[test]
fn only_addresses_ports_and_checksums_change() {
    for (proto, packet) in dialled() {
        let host = Host::new(&forwards());
        let (_, bytes) = host.arrive(&packet);
        let v4 = packet[0] >> 4 == 4;
        let at = if v4 { 20 } else { 40 };
        let sum = common::checksum_at(&packet);
        for (index, (old, new)) in packet.iter().zip(&bytes).enumerate() {
            let may = (at..at + 4).contains(&index) || (sum..sum + 2).contains(&index);
            assert!(may || old == new, "{proto:?} byte {index}");
        }
        assert_eq!(packet.len(), bytes.len());
    }
}

#[test]
fn the_headers_are_found_outside_the_linear_part() {
    // A buffer shows nothing before it is pulled: every test here relies on it.
    let host = Host::new(&forwards());
    let buffer = host.buffer(&udp(&tuple(CLIENT6, DIALLED6), b""));
    assert!(portfwd_ebpf::hook::Readable::load::<1>(&buffer, 0).is_none());
    host.forwarded(&tcp(&tuple(CLIENT6, DIALLED6), SYN, [0, 0], b""));
    let segment = tcp(&tuple(CLIENT6, DIALLED6), ACK, [1, 1], &[7; 1_400]);
    assert_eq!(host.forwarded(&segment), tuple(CLIENT6, TARGET6));
}

#[test]
fn a_big_tcp_packet_of_the_kernel_is_rewritten_behind_its_own_header() {
    // Next header TCP, no more than 8 bytes, option 194 with four bytes.
    let jumbo = [6, 0, 0xc2, 4, 0, 1, 0x20, 0];
    let host = Host::new(&forwards());
    host.forwarded(&tcp(&tuple(CLIENT6, DIALLED6), SYN, [0, 0], b""));
    let mut packet = tcp(&tuple(CLIENT6, DIALLED6), ACK, [1, 1], &[7; 3_000]);
    let plain = packet.clone();
    packet[6] = 0;
    packet.splice(40..40, jumbo);
    let mut buffer = host.buffer(&packet);
    buffer.link.gso_size = 1_000;
    let outcome = portfwd_ebpf::host::arrive(&mut buffer, &host.memory);
    assert_eq!(outcome.verdict, Verdict::Rewritten);
    let counters = host.memory.counters(1);
    assert_eq!(
        (counters.packets, counters.bytes),
        (1 + 3, 60 + 3_000 + 3 * 60)
    );
    // Without the header it is the packet that segmentation makes.
    let mut bytes = buffer.bytes;
    assert_eq!(bytes.splice(40..48, []).collect::<Vec<_>>(), jumbo);
    bytes[6] = plain[6];
    assert_sums(&bytes, false);
    assert_eq!(tuple_of(&bytes), tuple(CLIENT6, TARGET6));
}
