//! One client address and port to several listen ports and to the target port
//! itself, all at once: none disturbs another, and every reply comes from the
//! address and port that was dialled.

mod common;

use std::collections::HashSet;

use common::{Host, addr, answer, first, second, tuple, tuple_of, udp};
use portfwd_common::{Addr, Proto, Verdict};
use portfwd_ebpf::{host::Forward, packet::Tuple, tables::Table};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];

fn forwards(proto: Proto) -> [Forward; 2] {
    match proto {
        Proto::Tcp => [80, 8080].map(|port| Forward::tcp(port..=port, 5000).rewriting()),
        _ => [80, 8080].map(|port| Forward::udp(port..=port, 5000)),
    }
}

fn orders<T: Copy>(of: &[T]) -> Vec<Vec<T>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for index in 0..of.len() {
        let mut rest = of.to_vec();
        let head = rest.remove(index);
        for mut order in orders(&rest) {
            order.insert(0, head);
            all.push(order);
        }
    }
    all
}

/// A packet to `dialled` arrives and the target answers what it saw.
#[track_caller]
fn exchange(host: &Host, proto: Proto, bytes: &[u8]) -> Tuple {
    let dialled = tuple_of(bytes);
    let (verdict, bytes) = host.arrive(bytes);
    assert!(
        matches!(
            verdict,
            Verdict::Rewritten | Verdict::Direct | Verdict::Moved
        ),
        "{verdict:?}"
    );
    let seen = tuple_of(&bytes);
    assert_eq!(seen.dport, 5000);
    assert_eq!(seen.src, dialled.src, "the client's address stays");
    assert_eq!(host.answered(proto, &seen), dialled.reversed());
    seen
}

#[test]
fn two_rules_and_the_target_itself_in_every_order() {
    let ends = [
        ("198.51.100.7:4000", "192.0.2.1"),
        ("[2001:db8:1::7]:4000", "[2001:db8::1]"),
    ];
    for proto in PROTOS {
        for (client, own) in ends {
            for order in orders(&[80, 8080, 5000]) {
                let host = Host::new(&forwards(proto));
                let dial = |port: &u16| tuple(client, &format!("{own}:{port}"));
                let mut seen = Vec::new();
                for port in &order {
                    seen.push(exchange(&host, proto, &first(proto, &dial(port))));
                }
                let distinct: HashSet<u16> = seen.iter().map(|tuple| tuple.sport).collect();
                assert_eq!(distinct.len(), 3, "{order:?}");
                assert_eq!(seen[0].sport, 4000, "the first keeps its port");
                // And again on each, in every order, later.
                for (round, again) in orders(&[0, 1, 2]).into_iter().enumerate() {
                    host.memory.wait(round as u32 % 2);
                    for index in again {
                        let packet = second(proto, &dial(&order[index]));
                        assert_eq!(exchange(&host, proto, &packet), seen[index], "{order:?}");
                    }
                }
                assert_eq!(host.flows(Table::Flows), 3);
                assert_eq!(host.flows(Table::New), 0);
            }
        }
    }
}

#[test]
fn clients_of_other_ports_keep_theirs() {
    let host = Host::new(&forwards(Proto::Udp));
    for port in 4000..4100 {
        let open = tuple(&format!("198.51.100.7:{port}"), "192.0.2.1:80");
        assert_eq!(exchange(&host, Proto::Udp, &udp(&open, b"")).sport, port);
    }
}

#[test]
fn two_addresses_of_this_host_are_two_flows() {
    let host = Host::new(&forwards(Proto::Udp));
    let mut seen = HashSet::new();
    for own in ["192.0.2.1", "192.0.2.2"] {
        for port in [80, 8080] {
            let open = tuple("198.51.100.7:4000", &format!("{own}:{port}"));
            seen.insert(exchange(&host, Proto::Udp, &udp(&open, b"")).sport);
        }
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn an_answer_from_another_own_address_is_restored() {
    let host = Host::new(&forwards(Proto::Udp));
    let open = tuple("198.51.100.7:4000", "192.0.2.2:80");
    let seen = host.forwarded(&udp(&open, b"hello"));
    let mut reply = seen.reversed();
    reply.src = addr("192.0.2.1");
    let (verdict, bytes) = host.depart(&udp(&reply, b"world"));
    assert_eq!(verdict, Verdict::Restored);
    assert_eq!(tuple_of(&bytes), open.reversed());
}

#[test]
fn a_range_to_one_port_gives_each_dialled_port_a_flow() {
    let host = Host::new(&[Forward::udp(20_000..=21_999, 5000).to_one()]);
    let mut seen = HashSet::new();
    for port in 20_000..22_000 {
        let open = tuple("198.51.100.7:4000", &format!("192.0.2.1:{port}"));
        assert!(seen.insert(exchange(&host, Proto::Udp, &udp(&open, b"")).sport));
    }
}

#[test]
fn direct_packets_to_two_own_addresses_are_left_alone() {
    let host = Host::new(&forwards(Proto::Udp));
    for _ in 0..2 {
        for own in ["192.0.2.1:5000", "192.0.2.2:5000"] {
            let direct = tuple("198.51.100.7:4000", own);
            let (verdict, _) = host.arrive(&udp(&direct, b""));
            assert_eq!(verdict, Verdict::Direct);
            assert_eq!(host.answered(Proto::Udp, &direct), direct.reversed());
        }
    }
}

#[test]
fn direct_packets_to_two_own_addresses_are_told_apart_once_moved() {
    let host = Host::new(&forwards(Proto::Udp));
    let open = tuple("198.51.100.7:4000", "192.0.2.1:80");
    exchange(&host, Proto::Udp, &udp(&open, b""));
    for own in ["192.0.2.1:5000", "192.0.2.2:5000"] {
        let direct = tuple("198.51.100.7:4000", own);
        exchange(&host, Proto::Udp, &udp(&direct, b""));
    }
}

#[test]
fn a_client_whose_port_a_moved_flow_got_is_moved_itself() {
    for proto in PROTOS {
        let host = Host::new(&forwards(proto));
        let client = |port: u16, dialled| tuple(&format!("198.51.100.7:{port}"), dialled);
        exchange(&host, proto, &first(proto, &client(4000, "192.0.2.1:80")));
        let direct = client(4000, "192.0.2.1:5000");
        let moved = exchange(&host, proto, &first(proto, &direct));
        let later = client(moved.sport, "192.0.2.1:5000");
        let seen = exchange(&host, proto, &first(proto, &later));
        assert_ne!(seen.sport, moved.sport);
        assert_eq!(host.answered(proto, &moved), direct.reversed());
    }
}

#[test]
fn a_direct_flow_is_not_given_the_port_of_another_direct_flow() {
    for proto in PROTOS {
        let client = |port: u16, dialled| tuple(&format!("198.51.100.7:{port}"), dialled);
        let direct = client(4000, "192.0.2.1:5000");
        // Where it would be moved to.
        let host = Host::new(&forwards(proto));
        exchange(&host, proto, &first(proto, &client(4000, "192.0.2.1:80")));
        let port = exchange(&host, proto, &first(proto, &direct)).sport;
        // The same with that port in use by the same client.
        let host = Host::new(&forwards(proto));
        let neighbour = client(port, "192.0.2.1:5000");
        exchange(&host, proto, &first(proto, &neighbour));
        exchange(&host, proto, &first(proto, &client(4000, "192.0.2.1:80")));
        let seen = exchange(&host, proto, &first(proto, &direct));
        assert_ne!(seen.sport, port);
        assert_eq!(host.answered(proto, &neighbour), neighbour.reversed());
    }
}

#[test]
fn a_source_that_is_not_listed_does_not_disturb_one_that_is_translated() {
    let host = Host::new(&[
        Forward::udp(80..=80, 5000),
        Forward::udp(5000..=5000, 6000).from(addr("10.0.0.0"), 104),
    ]);
    let open = tuple("198.51.100.7:4000", "192.0.2.1:80");
    let seen = exchange(&host, Proto::Udp, &udp(&open, b""));
    let direct = tuple("198.51.100.7:4000", "192.0.2.1:5000");
    let (_, bytes) = host.arrive(&udp(&direct, b""));
    assert_ne!(tuple_of(&bytes), seen);
}

#[test]
fn a_packet_that_is_only_forwarded_is_no_reply() {
    let host = Host::new(&forwards(Proto::Udp));
    let open = tuple("198.51.100.7:4000", "192.0.2.1:80");
    host.forwarded(&udp(&open, b""));
    // A host behind this one answers the same client from the same port.
    let passing = tuple("203.0.113.9:5000", "198.51.100.7:4000");
    let mut buffer = host.buffer(&udp(&passing, b""));
    buffer.link.forwarded = true;
    let (outcome, bytes) = host.send(buffer);
    assert_eq!(tuple_of(&bytes), passing, "{:?}", outcome.verdict);
}

#[test]
fn a_connection_older_than_the_forwarder_keeps_its_tuple() {
    let open = tuple("198.51.100.7:4000", "192.0.2.1:80");
    let direct = tuple("198.51.100.7:4000", "192.0.2.1:5000");
    let machine = portfwd_ebpf::host::Machine::new(&common::OWN.map(addr))
        .listen(Addr::UNSPECIFIED, 5000)
        .connect(direct, 1);
    let host = Host::on(machine, &forwards(Proto::Tcp));
    let seen = host.forwarded(&first(Proto::Tcp, &open));
    assert_ne!(seen, direct);
    assert_eq!(host.answered(Proto::Tcp, &seen), open.reversed());
}

#[test]
fn tcp_answers_of_two_own_addresses_are_two_flows() {
    let host = Host::new(&forwards(Proto::Tcp));
    for own in ["192.0.2.1:80", "192.0.2.2:80"] {
        let open = tuple("198.51.100.7:4000", own);
        let seen = exchange(&host, Proto::Tcp, &first(Proto::Tcp, &open));
        assert_eq!(seen.sport, 4000);
    }
    let stray = tuple("192.0.2.9:5000", "198.51.100.7:4000");
    let (verdict, _) = host.depart(&answer(Proto::Tcp, &stray));
    assert_eq!(verdict, Verdict::NoRule);
}
