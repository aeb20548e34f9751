//! Source ports of flows to one target: the client's own, then those that this
//! host does not give its own connections, then the others; never one in use.

mod common;

use std::collections::HashSet;

use common::{ENDS, ETH0, Ends, Host, OWN, V4, V6, addr, answer, first, second, tcp, tuple};
use portfwd_common::{Addr, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    hook::{ESTABLISHED, NEW_SYN_RECV, SYN_SENT, TIME_WAIT},
    host::{Forward, Machine},
    packet::{ACK, RST, Tuple},
    tables::Table,
};
use proptest::prelude::*;

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
/// What [`portfwd_ebpf::host::Memory`] says.
const LOCAL: (u16, u16) = (32_768, 60_999);

fn machine() -> Machine {
    Machine::new(&OWN.map(addr))
}

fn rule(ends: &Ends, proto: Proto) -> [Forward; 1] {
    [ends.rule(proto, 0)]
}

/// Client `number` of many, all of the same source port.
fn client(ends: &Ends, number: u32) -> Tuple {
    let [.., a, b] = number.to_be_bytes();
    let text = match ends.client.contains('[') {
        true => format!("[2001:db8:77::{number:x}]:4000"),
        false => format!("203.0.{a}.{b}:4000"),
    };
    tuple(&text, ends.dialled)
}

#[test]
fn the_clients_own_port_comes_first() {
    for ends in ENDS {
        for proto in PROTOS {
            for sport in [1, 80, 1023, 1024, 4000, 32_768, 45_000, 60_999, 65_535] {
                let host = ends.host(proto, 0);
                let open = Tuple {
                    sport,
                    ..ends.open()
                };
                assert_eq!(host.relayed(&first(proto, &open)).sport, sport);
            }
        }
    }
}

#[test]
fn then_a_port_that_this_host_does_not_give_its_own_connections() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            let mut ports = HashSet::new();
            for number in 0..2_000 {
                let open = client(&ends, number);
                let seen = host.relayed(&first(proto, &open));
                assert_eq!((seen.src, seen.dst), (ends.masked().src, ends.masked().dst));
                assert!(ports.insert(seen.sport), "{} twice", seen.sport);
                if number == 0 {
                    assert_eq!(seen.sport, 4000);
                    continue;
                }
                let (low, high) = LOCAL;
                assert!(seen.sport >= 1024, "{}", seen.sport);
                assert!(seen.sport < low || seen.sport > high, "{}", seen.sport);
                let back = host.returned(&answer(proto, &seen.reversed()));
                assert_eq!(back, open.reversed());
            }
        }
    }
}

#[test]
fn then_one_that_it_does() {
    // All but 1024 is this host's own, so what is outside is soon taken.
    for range in [(1_025, 65_535), (1_024, 65_534), (1_024, 65_535)] {
        let host = V4.host(Proto::Udp, 0);
        host.memory.local_ports.set(range);
        let mut ports = HashSet::new();
        for number in 0..200 {
            let seen = host.relayed(&first(Proto::Udp, &client(&V4, number)));
            assert!(seen.sport >= 1024);
            assert!(ports.insert(seen.sport));
        }
        let (low, high) = range;
        let inside = |port: &&u16| (low..=high).contains(*port);
        assert!(ports.iter().filter(inside).count() > 190);
    }
}

#[test]
fn a_range_of_one_port_is_not_left() {
    // The fewest ports that there can be outside, and inside.
    for range in [(1_024, 1_024), (65_535, 65_535), (40_000, 40_000)] {
        let host = V4.host(Proto::Udp, 0);
        host.memory.local_ports.set(range);
        for number in 1..500 {
            let seen = host.relayed(&first(Proto::Udp, &client(&V4, number)));
            assert!(number == 1 || seen.sport != range.0);
        }
    }
}

#[test]
fn privileged_ports_below_the_range_are_left_out_of_it() {
    // The range may begin where no port is handed out (ip_local_port_range
    // takes 1).
    let host = V4.host(Proto::Udp, 0);
    host.memory.local_ports.set((1, 65_535));
    for number in 0..200 {
        let passed = host.pass(&first(Proto::Udp, &client(&V4, number)), ETH0);
        assert_eq!(passed.verdict(), Verdict::Forwarded);
        assert_ne!(passed.tuple.sport, 0);
    }
    let host = V4.host(Proto::Udp, 0);
    host.memory.local_ports.set((500, 2_000));
    for number in 0..200 {
        let passed = host.pass(&first(Proto::Udp, &client(&V4, number)), ETH0);
        assert_eq!(passed.verdict(), Verdict::Forwarded);
        assert!(passed.tuple.sport >= 1024, "{}", passed.tuple.sport);
    }
}

#[test]
fn a_port_of_a_socket_is_not_taken() {
    for ends in ENDS {
        let replies = ends.masked().reversed();
        let any = match ends.client.contains('[') {
            true => Addr::UNSPECIFIED,
            false => Addr::V4_UNSPECIFIED,
        };
        let tcp = [
            machine().listen(replies.dst, 4000),
            machine().listen(any, 4000),
            machine().listen(Addr::UNSPECIFIED, 4000),
            machine().connect(replies, TIME_WAIT),
            machine().connect(replies, ESTABLISHED),
            machine().connect(replies, SYN_SENT),
            machine().connect(replies, NEW_SYN_RECV),
        ];
        let udp = [
            machine().bind(replies.dst, 4000),
            machine().bind(any, 4000),
            machine().bind(Addr::UNSPECIFIED, 4000),
        ];
        for (proto, machines) in [(Proto::Tcp, &tcp[..]), (Proto::Udp, &udp[..])] {
            for machine in machines {
                let host = Host::on(machine.clone(), &rule(&ends, proto));
                let seen = host.relayed(&first(proto, &ends.open()));
                assert_ne!(seen.sport, 4000, "{machine:?}");
                let back = host.returned(&answer(proto, &seen.reversed()));
                assert_eq!(back, ends.open().reversed());
            }
        }
    }
}

#[test]
fn a_socket_with_another_tuple_keeps_no_port() {
    for ends in ENDS {
        let replies = ends.masked().reversed();
        let others = [
            machine().listen(ends.open().dst, 4000),
            machine().bind(replies.dst, 4000),
            machine().connect(
                Tuple {
                    sport: 443,
                    ..replies
                },
                ESTABLISHED,
            ),
        ];
        for machine in others {
            let host = Host::on(machine, &rule(&ends, Proto::Tcp));
            let seen = host.relayed(&first(Proto::Tcp, &ends.open()));
            assert_eq!(seen.sport, 4000);
        }
        // The client's address is kept: none of this host's ports is shared.
        let machine = machine().listen(Addr::UNSPECIFIED, 4000);
        let rule = ends.rule(Proto::Tcp, TargetEntry::PRESERVE);
        let host = Host::on(machine, &[rule]);
        assert_eq!(host.relayed(&first(Proto::Tcp, &ends.open())), ends.kept());
    }
}

#[test]
fn no_socket_is_in_the_way_of_any_port_that_is_tried() {
    // Every other port is a listener's.
    let mut machine = machine();
    for port in (1_024..=65_534).step_by(2) {
        machine.udp.push((Addr::UNSPECIFIED, port));
    }
    let host = Host::on(machine, &rule(&V4, Proto::Udp));
    let mut ports = HashSet::new();
    for number in 0..100 {
        let seen = host.relayed(&first(Proto::Udp, &client(&V4, number)));
        assert_eq!(seen.sport % 2, 1);
        assert!(ports.insert(seen.sport));
    }
}

#[test]
fn where_addresses_are_kept_clients_share_every_port() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, TargetEntry::PRESERVE);
            for number in 0..100 {
                let open = client(&ends, number);
                let seen = host.relayed(&first(proto, &open));
                assert_eq!((seen.src, seen.sport), (open.src, 4000));
            }
        }
    }
}

#[test]
fn one_client_of_many_rules_for_one_target_is_told_apart() {
    for ends in ENDS {
        for flags in [0, TargetEntry::PRESERVE] {
            for proto in PROTOS {
                let rules: Vec<Forward> = (80..120)
                    .map(|port| ends.rule_on(proto, port, flags))
                    .collect();
                let host = Host::without_sockets(&rules);
                let mut seen = HashSet::new();
                for dport in 80..120 {
                    let open = Tuple {
                        dport,
                        ..ends.open()
                    };
                    let tuple = host.relayed(&first(proto, &open));
                    assert!(seen.insert(tuple.sport));
                    let back = host.returned(&answer(proto, &tuple.reversed()));
                    assert_eq!(back, open.reversed());
                }
            }
        }
    }
}

#[test]
fn when_no_port_is_left_live_flows_go_on() {
    for ends in ENDS {
        for proto in PROTOS {
            let mut machine = machine();
            // Nothing is free but the clients' own port.
            for port in (1..=u16::MAX).filter(|port| *port != 4000) {
                machine.udp.push((Addr::UNSPECIFIED, port));
                machine = machine.listen(Addr::UNSPECIFIED, port);
            }
            let host = Host::on(machine, &rule(&ends, proto));
            let seen = host.prove(proto, &ends.open());
            let before = host.entries();
            for number in 0..20 {
                let passed = host.pass(&first(proto, &client(&ends, number)), ETH0);
                assert_eq!(passed.verdict(), Verdict::NoPort);
            }
            host.assert_entries(&before);
            assert_eq!(host.relayed(&second(proto, &ends.open())), seen);
            let back = host.returned(&second(proto, &seen.reversed()));
            assert_eq!(back, ends.open().reversed());
            assert_eq!(host.memory.verdicts(Verdict::NoPort), 20);
        }
    }
}

/// Flows of as many clients to one target, each with a port of its own choice;
/// how many had been refused when so many were there.
fn occupy(ends: &Ends, clients: u32, sport: impl Fn(u32) -> u16) -> Vec<(usize, u32)> {
    let host = ends.host(Proto::Udp, 0);
    host.memory.set_capacity(Table::New, 1 << 20);
    let mut ports = HashSet::new();
    let (mut refused, mut steps) = (0, Vec::new());
    for number in 0..clients {
        let open = Tuple {
            sport: sport(number),
            ..client(ends, number)
        };
        let passed = host.pass(&first(Proto::Udp, &open), ETH0);
        match passed.verdict() {
            Verdict::Forwarded => assert!(ports.insert(passed.tuple.sport)),
            Verdict::NoPort => {
                refused += 1;
                if refused == 1 || refused % 100 == 0 {
                    steps.push((ports.len(), refused));
                }
            }
            verdict => panic!("{verdict:?}"),
        }
    }
    assert_eq!(host.memory.len(Table::New), 2 * ports.len());
    steps.push((ports.len(), refused));
    steps
}

#[test]
fn thirty_thousand_flows_to_one_target_all_find_a_port() {
    // Clients as they are: each takes a port from its own range.
    for ends in [V4, V6] {
        let ephemeral = |number: u32| 32_768 + (number.wrapping_mul(40_503) % 28_232) as u16;
        let steps = occupy(&ends, 30_000, ephemeral);
        assert_eq!(steps, [(30_000, 0)]);
    }
}

#[test]
fn one_client_port_is_enough_for_most_ports() {
    // Each has the same port: everything but the first is a matter of luck.
    let steps = occupy(&V4, 60_000, |_| 4_000);
    println!("one port of all clients: {steps:?}");
    let (first_refused, _) = steps[0];
    assert!(first_refused > 30_000, "{steps:?}");
}

#[test]
fn sixty_thousand_flows_of_clients_with_every_port_are_told_apart() {
    let steps = occupy(&V4, 60_000, |number| {
        1_024 + (number.wrapping_mul(25_171) % 64_512) as u16
    });
    println!("every port once: {steps:?}");
    assert_eq!(steps, [(60_000, 0)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_two_flows_ever_look_the_same_to_the_target(
        clients in prop::collection::vec((0..40_u32, 4_000..4_020_u16, 80..84_u16), 1..300),
        flags in prop::sample::select(vec![0, TargetEntry::PRESERVE]),
        v6 in any::<bool>(),
    ) {
        let ends = ENDS[usize::from(v6)];
        let rules: Vec<Forward> = (80..84)
            .map(|port| ends.rule_on(Proto::Udp, port, flags))
            .collect();
        let host = Host::without_sockets(&rules);
        let mut flows: Vec<(Tuple, Tuple)> = Vec::new();
        for (number, sport, dport) in clients {
            let open = Tuple { sport, dport, ..client(&ends, number) };
            let seen = host.relayed(&first(Proto::Udp, &open));
            match flows.iter().find(|(other, _)| *other == open) {
                Some((_, before)) => prop_assert_eq!(*before, seen),
                None => {
                    prop_assert!(flows.iter().all(|(_, other)| *other != seen));
                    flows.push((open, seen));
                }
            }
        }
        for (open, seen) in flows {
            prop_assert_eq!(host.returned(&answer(Proto::Udp, &seen.reversed())), open.reversed());
        }
    }
}

#[test]
fn where_no_port_is_left_those_of_closed_connections_are_had_again() {
    let host = V4.host(Proto::Tcp, 0);
    host.memory.set_capacity(Table::New, 1 << 20);
    // More than there are ports, within the time that a closed one is kept.
    for number in 0..90_000 {
        if number % 6_000 == 0 {
            host.memory.clock.set(host.memory.clock.get() + 2);
        }
        let open = client(&V4, number);
        let passed = host.pass(&first(Proto::Tcp, &open), ETH0);
        assert_eq!(passed.verdict(), Verdict::Forwarded, "{number}");
        let reset = tcp(&open, RST | ACK, [101, 701], b"");
        assert_eq!(host.pass(&reset, ETH0).verdict(), Verdict::Forwarded);
        assert_eq!(host.pass(&reset, ETH0).tuple, passed.tuple);
    }
    // Both entries of each went together.
    assert!(host.memory.len(Table::New) <= 2 * 64_512);
}

#[test]
fn a_closed_connection_keeps_its_port_while_another_is_free() {
    let host = V4.host(Proto::Tcp, 0);
    let mut ports = HashSet::new();
    for number in 0..2_000 {
        let open = client(&V4, number);
        let seen = host.relayed(&first(Proto::Tcp, &open));
        assert!(ports.insert(seen.sport), "{} twice", seen.sport);
        host.relayed(&tcp(&open, RST | ACK, [101, 701], b""));
        if number % 50 == 0 {
            host.memory.clock.set(host.memory.clock.get() + 2);
        }
    }
}

#[test]
fn a_flood_that_took_every_port_keeps_none_from_those_who_come_after_it() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        host.memory.set_capacity(Table::New, 1 << 20);
        let mut full = 0;
        for number in 0..80_000 {
            let passed = host.pass(&first(proto, &client(&V4, number)), ETH0);
            full += u32::from(passed.verdict() == Verdict::NoPort);
        }
        assert!(full > 1_000, "there are too many ports: {full}");
        host.memory.clock.set(host.memory.clock.get() + 2);
        for number in 100_000..101_000 {
            let seen = host.relayed(&first(proto, &client(&V4, number)));
            let back = host.returned(&answer(proto, &seen.reversed()));
            assert_eq!(back, client(&V4, number).reversed());
        }
    }
}
