//! Which packets a rule claims, where they go, and what is counted.

mod common;

use common::{
    CLIENT, CLIENT6, DIALLED, DIALLED6, ETH0, Host, LO, OWN, TARGET, addr, first, syn, tcp, tuple,
    tuple_of, udp,
};
use portfwd_common::{Addr, Flow, Proto, RuleCounters, Verdict};
use portfwd_ebpf::{
    host::{Forward, Machine, WhenFull},
    packet::SYN,
    tables::Table,
};

fn dial(port: u16) -> Vec<u8> {
    udp(&tuple(CLIENT, &format!("192.0.2.1:{port}")), b"hello")
}

#[test]
fn a_range_keeps_its_offset() {
    let host = Host::new(&[Forward::udp(8_000..=8_999, 18_000)]);
    for (dialled, target) in [(8_000, 18_000), (8_123, 18_123), (8_999, 18_999)] {
        let seen = host.forwarded(&dial(dialled));
        assert_eq!(seen.dport, target);
        let restored = host.answered(Proto::Udp, &seen);
        assert_eq!(restored.sport, dialled);
    }
    for outside in [7_999, 9_000] {
        assert_eq!(host.arrive(&dial(outside)).0, Verdict::NoRule);
    }
}

#[test]
fn a_rule_on_an_address_comes_before_one_on_every_address() {
    for swapped in [false, true] {
        let mut forwards = vec![
            Forward::udp(80..=80, 5000),
            Forward::udp(80..=80, 6000).on(addr("192.0.2.2")),
        ];
        if swapped {
            forwards.reverse();
        }
        let host = Host::new(&forwards);
        assert_eq!(host.forwarded(&dial(80)).dport, 5000);
        let other = udp(&tuple(CLIENT, "192.0.2.2:80"), b"");
        assert_eq!(host.forwarded(&other).dport, 6000);
    }
}

#[test]
fn a_rule_with_an_address_is_of_its_family() {
    let host = Host::new(&[Forward::udp(80..=80, 5000).on(addr("192.0.2.1"))]);
    assert_eq!(host.forwarded(&dial(80)).dport, 5000);
    let other = udp(&tuple(CLIENT6, DIALLED6), b"");
    assert_eq!(host.arrive(&other).0, Verdict::NoRule);
    let elsewhere = udp(&tuple(CLIENT, "192.0.2.2:80"), b"");
    assert_eq!(host.arrive(&elsewhere).0, Verdict::NoRule);
}

#[test]
fn only_listed_sources_are_served() {
    let host = Host::new(&[
        Forward::udp(80..=80, 5000)
            .from(addr("198.51.100.0"), 96 + 24)
            .from(addr("2001:db8:1::"), 48),
        Forward::tcp(80..=80, 5000).from(addr("198.51.100.7"), 128),
    ]);
    for (source, listed) in [
        ("198.51.100.0:1", true),
        ("198.51.100.255:1", true),
        ("198.51.101.0:1", false),
        ("198.51.99.255:1", false),
    ] {
        let wanted = match listed {
            true => Verdict::Rewritten,
            false => Verdict::NotListed,
        };
        let packet = udp(&tuple(source, DIALLED), b"");
        assert_eq!(host.arrive(&packet).0, wanted, "{source}");
    }
    let v6 = |source| udp(&tuple(source, DIALLED6), b"");
    assert_eq!(host.arrive(&v6("[2001:db8:1::9]:1")).0, Verdict::Rewritten);
    assert_eq!(host.arrive(&v6("[2001:db8:2::9]:1")).0, Verdict::NotListed);
    assert_eq!(
        host.arrive(&syn(&tuple(CLIENT, DIALLED))).0,
        Verdict::Steered
    );
    let other = tuple("198.51.100.8:4000", DIALLED);
    assert_eq!(host.arrive(&syn(&other)).0, Verdict::NotListed);
}

#[test]
fn packets_to_no_single_host_are_not_ours() {
    for forwards in [false, true] {
        let mut machine = Machine::new(&OWN.map(addr)).bind(Addr::UNSPECIFIED, 5000);
        machine.forwards = forwards;
        let host = Host::on(machine, &[Forward::udp(80..=80, 5000)]);
        for group in ["224.0.0.251:80", "239.1.1.1:80", "255.255.255.255:80"] {
            let packet = udp(&tuple(CLIENT, group), b"");
            assert_eq!(host.arrive(&packet).0, Verdict::NotForHost);
        }
    }
}

#[test]
fn a_target_on_another_address_needs_a_dialled_address_of_this_host() {
    // Without forwarding the kernel does not say whose an address is; a port
    // alone may be rewritten, since the stack drops what is not local.
    for target in ["127.0.0.1", "192.0.2.2"] {
        let mut machine = Machine::new(&OWN.map(addr)).bind(Addr::UNSPECIFIED, 5000);
        machine.forwards = false;
        let host = Host::on(machine, &[Forward::udp(80..=80, 5000).at(addr(target))]);
        let passing = udp(&tuple(CLIENT, "203.0.113.80:80"), b"");
        assert_eq!(host.arrive(&passing).0, Verdict::NotLocal);
        assert_eq!(host.arrive(&dial(80)).0, Verdict::Rewritten);
    }
}

/// `80:127.0.0.1:5000/udp` with `eth0` opened for it.
fn opened() -> Host {
    let host = Host::new(&[Forward::udp(80..=80, 5000).at(addr("127.0.0.1"))]);
    host.memory.guarded.borrow_mut().push(ETH0);
    host
}

#[test]
fn a_loopback_target_is_reached_through_the_rule_and_answers_as_dialled() {
    let host = opened();
    let seen = host.forwarded(&dial(80));
    assert_eq!(seen, tuple(CLIENT, "127.0.0.1:5000"));
    assert_eq!(host.answered(Proto::Udp, &seen), tuple(DIALLED, CLIENT));
}

#[test]
fn nothing_else_crosses_an_opened_device_to_or_from_loopback() {
    let host = opened();
    for (from, to) in [
        (CLIENT, "127.0.0.1:80"),
        (CLIENT, "127.0.0.1:5000"),
        (CLIENT, "127.9.9.9:22"),
        ("127.0.0.1:9", DIALLED),
    ] {
        for proto in [Proto::Udp, Proto::Tcp] {
            let packet = first(proto, &tuple(from, to));
            assert_eq!(host.arrive(&packet).0, Verdict::Guarded, "{from} {to}");
        }
    }
    let mut icmp = udp(&tuple(CLIENT, "127.0.0.1:80"), b"");
    icmp[9] = 1;
    assert_eq!(host.arrive(&icmp).0, Verdict::Guarded);
    let mut fragment = udp(&tuple(CLIENT, "127.0.0.1:80"), b"");
    fragment[6] = 0x20;
    assert_eq!(host.arrive(&fragment).0, Verdict::Guarded);
    // What leaves with such a source and is no reply.
    for port in [5000, 80, 22] {
        let leak = udp(&tuple(&format!("127.0.0.1:{port}"), CLIENT), b"");
        assert_eq!(host.depart(&leak).0, Verdict::Guarded);
    }
    icmp[12..16].copy_from_slice(&[127, 0, 0, 1]);
    assert_eq!(host.depart(&icmp).0, Verdict::Guarded);
    // On `lo` it is at home.
    let local = udp(&tuple("127.0.0.1:9", "127.0.0.1:80"), b"");
    let (outcome, _) = host.take(host.buffer(&local).on(LO));
    assert_eq!(outcome.verdict, Verdict::Rewritten);
    let (outcome, _) = host.send(host.buffer(&local).on(LO));
    assert_eq!(outcome.verdict, Verdict::NoRule);
}

#[test]
fn a_device_that_was_not_opened_leaves_the_dropping_to_the_stack() {
    let host = Host::new(&[Forward::udp(80..=80, 5000)]);
    let martian = udp(&tuple(CLIENT, "127.0.0.1:80"), b"");
    assert_eq!(host.arrive(&martian).0, Verdict::NotLocal);
    let packet = udp(&tuple("[2001:db8::9]:1", "[::1]:80"), b"");
    assert_eq!(host.arrive(&packet).0, Verdict::NotLocal);
}

#[test]
fn a_direct_packet_is_not_dropped_for_want_of_room() {
    let host = Host::new(&[Forward::udp(80..=80, 5000)]);
    host.memory.when_full.set(WhenFull::Refuse);
    host.memory.set_capacity(Table::New, 0);
    let direct = udp(&tuple(CLIENT, TARGET), b"");
    assert_eq!(host.arrive(&direct).0, Verdict::Direct);
}

#[test]
fn a_mapped_address_in_an_ipv6_header_is_no_ipv4_client() {
    let host = Host::new(&[Forward::udp(80..=80, 5000)]);
    host.forwarded(&dial(80));
    let mut forged = udp(&tuple(CLIENT6, DIALLED6), b"");
    let v4 = tuple(CLIENT, DIALLED);
    forged[8..24].copy_from_slice(&v4.src.octets());
    forged[24..40].copy_from_slice(&v4.dst.octets());
    let mut buffer = host.buffer(&forged);
    let outcome = portfwd_ebpf::host::arrive(&mut buffer, &host.memory);
    assert_ne!(outcome.verdict, Verdict::Rewritten);
    assert_eq!(buffer.bytes, forged);
}

#[test]
fn a_rule_counts_packets_bytes_and_flows_both_ways() {
    let host = Host::new(&[Forward::udp(80..=80, 5000), Forward::udp(8080..=8080, 5000)]);
    let open = tuple(CLIENT, DIALLED);
    let seen = host.forwarded(&udp(&open, b"hello"));
    host.forwarded(&udp(&open, b"hello"));
    host.answered(Proto::Udp, &seen);
    let other = tuple(CLIENT, "192.0.2.1:8080");
    host.forwarded(&udp(&other, b""));
    assert_eq!(
        host.memory.counters(0),
        RuleCounters {
            packets: 2,
            bytes: 2 * 33,
            packets_back: 1,
            bytes_back: 34,
            connections: 1,
        }
    );
    assert_eq!(host.memory.counters(1).connections, 1);
    assert_eq!(host.memory.counters(1).bytes, 28);
    // A direct packet is of no rule.
    assert_eq!(
        host.arrive(&udp(&tuple(CLIENT, TARGET), b"")).0,
        Verdict::Moved
    );
    assert_eq!(host.memory.counters(Flow::NO_RULE), RuleCounters::default());
}

#[test]
fn a_gso_packet_counts_as_its_segments() {
    let open = tuple(CLIENT, DIALLED);
    for (payload, gso_size, segments) in [
        (0, 1_000, 1),
        (1, 1_000, 1),
        (1_000, 0, 1),
        (1_000, 1_000, 1),
        (1_001, 1_000, 2),
        (3_000, 1_000, 3),
        (3_001, 1_000, 4),
    ] {
        let host = Host::new(&[Forward::tcp(80..=80, 5000).rewriting()]);
        let mut buffer = host.buffer(&tcp(&open, SYN, [1, 0], &vec![7; payload]));
        buffer.link.gso_size = gso_size;
        let (outcome, _) = host.take(buffer);
        assert_eq!(outcome.verdict, Verdict::Rewritten);
        let counters = host.memory.counters(0);
        assert_eq!(counters.packets, segments, "{payload} {gso_size}");
        assert_eq!(counters.bytes, payload as u64 + 40 * segments);
    }
}

#[test]
fn padding_of_the_link_is_not_counted() {
    let host = Host::new(&[Forward::udp(80..=80, 5000)]);
    let mut packet = dial(80);
    let len = packet.len() as u64;
    packet.resize(46, 0);
    // The padding is behind the packet: no sum covers it.
    let mut buffer = host.buffer(&packet);
    let outcome = portfwd_ebpf::host::arrive(&mut buffer, &host.memory);
    assert_eq!(outcome.verdict, Verdict::Rewritten);
    assert_eq!(tuple_of(&buffer.bytes), tuple(CLIENT, TARGET));
    assert_eq!(host.memory.counters(0).bytes, len);
}
