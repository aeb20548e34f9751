//! Traffic that this host, or NAT behind it, started itself is never taken by
//! a rule, whatever its range.

mod common;

use common::{
    CLIENT, DIALLED, ENDS, Host, LAN, LO, addr, answer, first, syn, tcp, tuple, tuple_of, udp,
};
use portfwd_common::{Proto, Verdict};
use portfwd_ebpf::{
    host::Forward,
    packet::{ACK, SYN, Tuple},
};

const RESOLVER: &str = "203.0.113.53:53";

fn wide() -> Host {
    Host::new(&[
        Forward::udp(20_000..=20_099, 443).to_one(),
        Forward::tcp(20_000..=20_099, 5000).to_one(),
    ])
}

fn leave(host: &Host, bytes: &[u8], forwarded: bool) -> Verdict {
    let mut buffer = host.buffer(bytes);
    buffer.link.forwarded = forwarded;
    host.send(buffer).0.verdict
}

#[test]
fn answers_to_questions_of_this_host_pass() {
    for (own, resolver) in [
        ("192.0.2.1:20050", RESOLVER),
        ("[2001:db8::1]:20050", "[2001:db8:5::53]:53"),
    ] {
        let host = wide();
        let question = tuple(own, resolver);
        assert_eq!(leave(&host, &udp(&question, b"?"), false), Verdict::Foreign);
        let (verdict, _) = host.arrive(&udp(&question.reversed(), b"!"));
        assert_eq!(verdict, Verdict::Foreign);
        // From another port of the same server it is no answer.
        let mut other = question.reversed();
        other.sport = 54;
        assert_eq!(host.forwarded(&udp(&other, b"")).dport, 443);
    }
}

#[test]
fn answers_to_a_client_behind_this_host_pass_where_it_masquerades() {
    let host = wide();
    let question = tuple("192.0.2.1:20050", RESOLVER);
    assert_eq!(leave(&host, &udp(&question, b"?"), true), Verdict::Foreign);
    let (verdict, _) = host.arrive(&udp(&question.reversed(), b"!"));
    assert_eq!(verdict, Verdict::Foreign);
}

#[test]
fn what_is_only_routed_is_not_remembered() {
    let host = wide();
    let passing = tuple("203.0.113.9:20050", RESOLVER);
    assert_eq!(leave(&host, &udp(&passing, b"?"), true), Verdict::NoRule);
    assert!(host.memory.foreigners().is_empty());
}

#[test]
fn a_masqueraded_connection_is_known_by_any_packet() {
    for flags in [SYN, ACK] {
        let host = wide();
        let out = tuple("192.0.2.1:20050", "203.0.113.80:443");
        let packet = tcp(&out, flags, [1, 1], b"");
        assert_eq!(leave(&host, &packet, true), Verdict::Foreign);
        let back = tcp(&out.reversed(), SYN | ACK, [5, 2], b"");
        assert_eq!(host.arrive(&back).0, Verdict::Foreign);
    }
}

#[test]
fn a_connection_of_this_host_is_known_by_its_syn() {
    let host = wide();
    let out = tuple("192.0.2.1:20050", "203.0.113.80:443");
    assert_eq!(leave(&host, &syn(&out), false), Verdict::Foreign);
    let back = tcp(&out.reversed(), SYN | ACK, [5, 2], b"");
    assert_eq!(host.arrive(&back).0, Verdict::Foreign);
    // Someone who dials the port from the same tuple is a client all the same.
    assert_eq!(host.arrive(&syn(&out.reversed())).0, Verdict::Steered);
}

#[test]
fn an_answer_of_a_listener_on_a_listen_port_is_not_foreign() {
    let host = wide();
    let reply = tuple("192.0.2.1:20050", CLIENT);
    let packet = tcp(&reply, SYN | ACK, [5, 2], b"");
    assert_eq!(leave(&host, &packet, false), Verdict::NoRule);
    assert!(host.memory.foreigners().is_empty());
}

#[test]
fn a_foreign_flow_ends_when_nothing_was_seen_of_it() {
    let host = wide();
    let question = tuple("192.0.2.1:20050", RESOLVER);
    let answer = udp(&question.reversed(), b"!");
    assert_eq!(leave(&host, &udp(&question, b"?"), false), Verdict::Foreign);
    for _ in 0..3 {
        host.memory.wait(300);
        assert_eq!(host.arrive(&answer).0, Verdict::Foreign);
    }
    host.memory.wait(301);
    assert_eq!(host.forwarded(&answer).dport, 443);
}

#[test]
fn a_client_on_this_host_whose_port_lies_in_the_range_is_served() {
    let host = wide();
    let open = tuple("127.0.0.1:20060", "127.0.0.1:20010");
    let on_lo = |tuple: &Tuple, payload: &[u8]| host.buffer(&udp(tuple, payload)).on(LO);

    assert_eq!(host.send(on_lo(&open, b"?")).0.verdict, Verdict::Foreign);
    let (outcome, bytes) = host.take(on_lo(&open, b"?"));
    assert_eq!(outcome.verdict, Verdict::Rewritten);
    let reply = tuple_of(&bytes).reversed();
    let (outcome, bytes) = host.send(on_lo(&reply, b"!"));
    assert_eq!(outcome.verdict, Verdict::Restored);
    let (outcome, bytes) = host.take(on_lo(&tuple_of(&bytes), b"!"));
    assert_eq!(outcome.verdict, Verdict::Foreign);
    assert_eq!(tuple_of(&bytes), open.reversed());
}

#[test]
fn a_restored_reply_that_leaves_by_a_second_device_is_not_foreign() {
    // A VLAN or macvlan device and the one below it: both run the program.
    let host = Host::new(&[Forward::udp(80..=80, 5000)]);
    let open = tuple(CLIENT, DIALLED);
    let seen = host.forwarded(&udp(&open, b"?"));
    let (verdict, restored) = host.depart(&udp(&seen.reversed(), b"!"));
    assert_eq!(verdict, Verdict::Restored);
    host.forwarded(&udp(&open, b"?"));
    let mut below = host.buffer(&restored).on(9);
    below.link.vlan = true;
    let (_, bytes) = host.send(below);
    assert_eq!(bytes, restored);
    assert!(host.memory.foreigners().is_empty());
    // The flow is over, the client comes again.
    host.memory.wait(299);
    let _late = host.send(host.buffer(&restored).on(9));
    host.memory.wait(2);
    assert_eq!(host.forwarded(&udp(&open, b"?")).dport, 5000);
}

#[test]
fn a_port_of_no_claimed_address_is_nobodys() {
    let host = Host::new(&[Forward::udp(80..=80, 5000).on(addr("192.0.2.1"))]);
    let out = tuple("192.0.2.2:80", RESOLVER);
    assert_eq!(leave(&host, &udp(&out, b"?"), false), Verdict::NoRule);
    assert!(host.memory.foreigners().is_empty());
    let out = tuple("192.0.2.1:80", RESOLVER);
    assert_eq!(leave(&host, &udp(&out, b"?"), false), Verdict::Foreign);
    assert_eq!(host.memory.foreigners().len(), 1);
}

#[test]
fn a_port_that_nat_on_this_host_uses_towards_the_target_is_not_taken() {
    for ends in ENDS {
        for proto in [Proto::Udp, Proto::Tcp] {
            let host = ends.host(proto, 0);
            let mut natted = host.buffer(&first(proto, &ends.masked()));
            natted.link.forwarded = true;
            natted.link.ifindex = LAN;
            let (_, bytes) = host.send(natted);
            assert_eq!(tuple_of(&bytes), ends.masked());
            let seen = host.relayed(&first(proto, &ends.open()));
            assert_ne!(seen, ends.masked());
            // Its answers are not ours.
            let answer = host.pass(&answer(proto, &ends.masked().reversed()), LAN);
            assert_eq!(answer.tuple, ends.masked().reversed());
        }
    }
}
