//! Every verdict is reached, and each by the packet that it is named after.

mod common;

use std::collections::BTreeSet;

use common::{
    CLIENT, DIALLED, ETH0, Ends, Host, LAN, LO, TARGET, TARGET6, V4, addr, first, hops, syn, tcp,
    tuple, tuple_of, udp,
};
use portfwd_common::{Addr, Peer, Proto, Verdict};
use portfwd_ebpf::{
    dial::{self, Socket},
    hook::{SYN_SENT, TIME_WAIT},
    host::{Forward, Machine, WhenFull},
    packet::{ETH_P_IP, ETH_P_IPV6, RST, Tuple},
    tables::Table,
};

fn udp_host() -> Host {
    Host::new(&[Forward::udp(80..=80, 5000)])
}

fn dialled() -> Vec<u8> {
    udp(&tuple(CLIENT, DIALLED), b"hello")
}

/// One scene for each verdict.
fn scenes() -> Vec<(Verdict, Verdict)> {
    let mut seen = Vec::new();
    let mut see = |wanted, verdict| seen.push((wanted, verdict));
    let host = udp_host();

    let mut arp = host.buffer(&dialled());
    arp.link.ethertype = 0x0806;
    see(Verdict::NotIp, host.take(arp).0.verdict);

    let mut other_mac = host.buffer(&dialled());
    other_mac.link.for_host = false;
    see(Verdict::NotForHost, host.take(other_mac).0.verdict);
    for group in ["224.0.0.251:80", "255.255.255.255:80", "0.0.0.0:80"] {
        let packet = udp(&tuple(CLIENT, group), b"");
        see(Verdict::NotForHost, host.arrive(&packet).0);
    }
    let packet = udp(&tuple("[fe80::1]:9", "[ff02::1]:80"), b"");
    see(Verdict::NotForHost, host.arrive(&packet).0);

    let mut tagged = host.buffer(&dialled());
    tagged.link.vlan = true;
    see(Verdict::Vlan, host.take(tagged).0.verdict);

    see(Verdict::Malformed, host.arrive(&dialled()[..27]).0);
    let mut wrong = host.buffer(&dialled());
    wrong.link.ethertype = ETH_P_IPV6;
    see(Verdict::Malformed, host.take(wrong).0.verdict);
    let mut wrong = host.buffer(&udp(&tuple("[::1]:9", TARGET6), b""));
    wrong.link.ethertype = ETH_P_IP;
    see(Verdict::Malformed, host.take(wrong).0.verdict);

    let mut icmp = dialled();
    icmp[9] = 1;
    see(Verdict::OtherProtocol, host.arrive(&icmp).0);

    let mut fragment = dialled();
    fragment[6] = 0x20;
    see(Verdict::Fragment, host.arrive(&fragment).0);

    let mut extension = udp(&tuple("[2001:db8::9]:9", "[2001:db8::1]:80"), b"");
    extension[6] = 0;
    see(Verdict::Extension, host.arrive(&extension).0);

    let elsewhere = udp(&tuple(CLIENT, "192.0.2.1:81"), b"");
    see(Verdict::NoRule, host.arrive(&elsewhere).0);

    let started = udp(&tuple(DIALLED, "203.0.113.53:53"), b"?");
    see(Verdict::Foreign, host.depart(&started).0);
    let reply = udp(&tuple("203.0.113.53:53", DIALLED), b"!");
    see(Verdict::Foreign, host.arrive(&reply).0);

    let passing = udp(&tuple(CLIENT, "203.0.113.1:80"), b"");
    see(Verdict::NotLocal, host.arrive(&passing).0);
    let martian = udp(&tuple(CLIENT, "127.0.0.1:80"), b"");
    see(Verdict::NotLocal, host.arrive(&martian).0);

    let choosy = Host::new(&[Forward::udp(80..=80, 5000).from(addr("10.0.0.0"), 104)]);
    see(Verdict::NotListed, choosy.arrive(&dialled()).0);

    let steering = Host::new(&[Forward::tcp(80..=80, 5000)]);
    let open = tuple(CLIENT, DIALLED);
    see(Verdict::Steered, steering.arrive(&syn(&open)).0);

    let machine = Machine::new(&[addr("192.0.2.1")]).connect(open, TIME_WAIT);
    let busy = Host::on(machine, &[Forward::tcp(80..=80, 5000)]);
    see(Verdict::Connected, busy.arrive(&syn(&open)).0);

    let machine = Machine::new(&[addr("192.0.2.1")]).connect(open, SYN_SENT);
    let opening = Host::on(machine, &[Forward::tcp(80..=80, 5000)]);
    see(Verdict::Foreign, opening.arrive(&syn(&open)).0);

    for forward in [
        Forward::udp(80..=80, 5999),
        Forward::tcp(80..=80, 5999),
        Forward::tcp(80..=80, 5999).rewriting(),
    ] {
        let proto = forward.proto;
        let deaf = Host::new(&[forward]);
        see(Verdict::NoListener, deaf.arrive(&first(proto, &open)).0);
    }

    let reset = tcp(&open, RST, [1, 0], b"");
    see(Verdict::Stray, steering.arrive(&reset).0);
    let rewriting = Host::new(&[Forward::tcp(80..=80, 5000).rewriting()]);
    see(Verdict::Stray, rewriting.arrive(&reset).0);

    see(Verdict::Rewritten, host.arrive(&dialled()).0);
    let reply = udp(&tuple(TARGET, CLIENT), b"world");
    see(Verdict::Restored, host.depart(&reply).0);
    let moved = udp(&tuple(CLIENT, TARGET), b"");
    see(Verdict::Moved, host.arrive(&moved).0);
    let direct = udp(&tuple("198.51.100.8:9", TARGET), b"");
    see(Verdict::Direct, host.arrive(&direct).0);

    see(Verdict::NoPort, no_port());

    let full = udp_host();
    full.memory.when_full.set(WhenFull::Refuse);
    full.memory.set_capacity(Table::New, 0);
    see(Verdict::TableFull, full.arrive(&dialled()).0);

    let guarded = udp_host();
    guarded.memory.guarded.borrow_mut().push(ETH0);
    see(Verdict::Guarded, guarded.arrive(&martian).0);

    let machine = Machine::new(&[addr("192.0.2.1")]).listen_unsteerable(addr("127.0.0.1"), 5000);
    let stubborn = Host::on(
        machine,
        &[Forward::tcp(80..=80, 5000).at(addr("127.0.0.1"))],
    );
    see(Verdict::CannotSteer, stubborn.arrive(&syn(&open)).0);
    seen
}

/// The scenes of rules for another host.
fn scenes_across() -> Vec<(Verdict, Verdict)> {
    let mut seen = Vec::new();
    let mut see = |wanted, verdict| seen.push((wanted, verdict));
    let host = V4.host(Proto::Udp, 0);

    see(Verdict::HopLimit, host.arrive(&hops(dialled(), 1)).0);
    let on_lo = host.pass(&udp(&tuple("192.0.2.1:9", DIALLED), b""), LO);
    see(Verdict::Unhooked, on_lo.verdict());
    see(Verdict::Forwarded, host.arrive(&dialled()).0);
    let reply = udp(&V4.masked().reversed(), b"world");
    see(Verdict::Returned, host.pass(&reply, LAN).verdict());
    let mut leaving = host.buffer(&udp(&V4.open().reversed(), b"world"));
    leaving.link.forwarded = true;
    see(Verdict::Passing, host.send(leaving).0.verdict);

    let mut nowhere = V4.entry(0);
    nowhere.ifindex = 0;
    let lost = Host::new(&[Forward::udp(80..=80, 8080).to_host(nowhere)]);
    see(Verdict::NoRoute, lost.arrive(&dialled()).0);

    let machine = Machine::new(&[addr("192.0.2.1")]).mtu_of(LAN, 30);
    let narrow = Host::on(machine, &[V4.rule(Proto::Udp, 0)]);
    see(Verdict::TooLarge, narrow.arrive(&dialled()).0);

    let own = udp(&tuple("192.0.2.2:9", DIALLED), b"");
    see(Verdict::Martian, host.arrive(&own).0);

    see(Verdict::Dialled, called(&V4));
    see(Verdict::Deferred, deferred());
    seen
}

/// The verdict that is counted where XDP leaves a packet to TC.
fn deferred() -> Verdict {
    let host = V4.host(Proto::Udp, 0);
    let mut buffer = host.buffer(&dialled());
    assert!(portfwd_ebpf::host::accelerate(&mut buffer, &host.memory).is_none());
    let counted = |verdict: &&Verdict| host.memory.verdicts(**verdict) == 1;
    *Verdict::ALL.iter().find(counted).expect("one was counted")
}

/// The verdict that is counted when a program of this host dials the rule.
fn called(ends: &Ends) -> Verdict {
    let host = ends.host(Proto::Tcp, 0);
    let socket = Socket {
        cookie: 7,
        proto: Proto::Tcp,
        source: Addr::V4_UNSPECIFIED,
        connected: Addr::V4_UNSPECIFIED,
    };
    let open = ends.open();
    let target = dial::dial(&host.memory, &socket, &Peer::new(open.dst, open.dport));
    assert_eq!(target, Ok(Peer::new(ends.kept().dst, 8080)));
    let counted = |verdict: &&Verdict| host.memory.calls_with(**verdict) == 1;
    *Verdict::ALL.iter().find(counted).expect("one was counted")
}

/// The client's port, and every port that would be tried instead, are in use
/// by direct packets of the same client.
fn no_port() -> Verdict {
    let mut taken = Vec::new();
    loop {
        let host = udp_host();
        for port in &taken {
            let direct = udp(
                &Tuple {
                    sport: *port,
                    ..tuple(CLIENT, TARGET)
                },
                b"",
            );
            assert_eq!(host.arrive(&direct).0, Verdict::Direct);
        }
        let (verdict, bytes) = host.arrive(&dialled());
        if verdict != Verdict::Rewritten {
            return verdict;
        }
        taken.push(tuple_of(&bytes).sport);
        assert!(taken.len() < 100);
    }
}

#[test]
fn no_verdict_is_out_of_reach() {
    let scenes = scenes().into_iter().chain(scenes_across());
    let reached: BTreeSet<Verdict> = scenes.map(|(_, verdict)| verdict).collect();
    let every: BTreeSet<Verdict> = Verdict::ALL.iter().copied().collect();
    assert_eq!(reached, every);
}

#[test]
fn every_packet_is_counted_under_its_verdict() {
    let host = udp_host();
    for _ in 0..3 {
        let _rewritten = host.arrive(&dialled());
    }
    let _malformed = host.arrive(&dialled()[..10]);
    assert_eq!(host.memory.verdicts(Verdict::Rewritten), 3);
    assert_eq!(host.memory.verdicts(Verdict::Malformed), 1);
}

#[test]
fn each_packet_gets_the_verdict_that_is_named_after_it() {
    let scenes = scenes().into_iter().chain(scenes_across());
    for (index, (wanted, verdict)) in scenes.enumerate() {
        assert_eq!(verdict, wanted, "scene {index}");
    }
}
