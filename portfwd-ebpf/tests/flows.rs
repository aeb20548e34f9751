//! The life of a flow: proof, expiry, eviction, and the end of its rule.

mod common;

use common::{
    CLIENT, CLIENT6, DIALLED, DIALLED6, Host, TARGET, first, second, syn, tcp, tuple, udp,
};
use portfwd_common::{Flow, FlowKey, Proto, Verdict};
use portfwd_ebpf::{
    host::{Forward, WhenFull},
    packet::{ACK, Tuple},
    tables::{Table, Tables as _},
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];

fn host(proto: Proto) -> Host {
    Host::new(&[match proto {
        Proto::Tcp => Forward::tcp(80..=80, 5000).rewriting(),
        _ => Forward::udp(80..=80, 5000),
    }])
}

/// Both keys of the flow that `open` made.
fn keys(proto: Proto, open: &Tuple, seen: &Tuple) -> [FlowKey; 2] {
    let forward = open.key(proto, FlowKey::INGRESS);
    [
        forward,
        portfwd_ebpf::known::reply_key(seen, proto, FlowKey::EGRESS),
    ]
}

fn tables(host: &Host) -> [usize; 2] {
    [Table::New, Table::Flows].map(|table| host.memory.len(table))
}

#[test]
fn a_flow_moves_on_proof_and_not_before() {
    for proto in PROTOS {
        for (client, dialled) in [(CLIENT, DIALLED), (CLIENT6, DIALLED6)] {
            let host = host(proto);
            let open = tuple(client, dialled);
            let seen = host.forwarded(&first(proto, &open));
            host.forwarded(&first(proto, &open));
            assert_eq!(tables(&host), [2, 0], "no answer yet");
            host.answered(proto, &seen);
            assert_eq!(tables(&host), [2, 0], "an answer is no proof");
            assert_eq!(host.forwarded(&second(proto, &open)), seen);
            assert_eq!(tables(&host), [0, 2]);
            for (key, flow) in host.memory.entries(Table::Flows) {
                assert_eq!(flow.flags & Flow::PROVEN, Flow::PROVEN);
                let is_reply = flow.flags & Flow::REPLY != 0;
                assert_eq!(is_reply, key.side == FlowKey::EGRESS);
            }
            assert_eq!(host.answered(proto, &seen), open.reversed());
            assert_eq!(host.memory.counters(0).connections, 1, "{proto:?}");
        }
    }
}

#[test]
fn only_the_acknowledgement_of_the_servers_syn_is_proof() {
    let host = host(Proto::Tcp);
    let open = tuple(CLIENT, DIALLED);
    let early = tcp(&open, ACK, [101, 1], b"");
    host.forwarded(&syn(&open));
    host.forwarded(&early);
    host.answered(Proto::Tcp, &tuple(CLIENT, TARGET));
    for wrong in [0, 699, 700, 702] {
        host.forwarded(&tcp(&open, ACK, [101, wrong], b""));
        host.forwarded(&tcp(&open, ACK | 2, [101, 701], b""));
        host.forwarded(&tcp(&open, ACK | 4, [101, 701], b""));
        host.forwarded(&syn(&open));
        assert_eq!(tables(&host), [2, 0], "{wrong}");
    }
    host.forwarded(&tcp(&open, ACK, [101, 701], b""));
    assert_eq!(tables(&host), [0, 2]);
}

#[test]
fn a_sequence_number_at_the_end_of_its_range_is_proved_by_zero() {
    let host = host(Proto::Tcp);
    let open = tuple(CLIENT, DIALLED);
    host.forwarded(&syn(&open));
    let reply = tcp(&tuple(TARGET, CLIENT), ACK | 2, [u32::MAX, 101], b"");
    assert_eq!(host.depart(&reply).0, Verdict::Restored);
    host.forwarded(&tcp(&open, ACK, [101, 0], b""));
    assert_eq!(tables(&host), [0, 2]);
}

#[test]
fn a_flood_of_first_packets_reaches_no_proven_flow() {
    for proto in PROTOS {
        let host = host(proto);
        host.memory.set_capacity(Table::New, 64);
        host.memory.set_capacity(Table::Flows, 64);
        let clients: Vec<Tuple> = (0..20)
            .map(|n| tuple(&format!("198.51.100.{n}:4000"), DIALLED))
            .collect();
        let mut all = Vec::new();
        for open in &clients {
            let seen = host.forwarded(&first(proto, open));
            host.answered(proto, &seen);
            host.forwarded(&second(proto, open));
            all.push(seen);
        }
        for n in 0..2_000_u32 {
            let [.., a, b] = n.to_be_bytes();
            let forged = tuple(&format!("203.0.{a}.{b}:999"), DIALLED);
            host.forwarded(&first(proto, &forged));
        }
        assert!(host.memory.len(Table::New) <= 64);
        assert_eq!(host.flows(Table::Flows), 20);
        for (open, seen) in clients.iter().zip(&all) {
            assert_eq!(host.answered(proto, seen), open.reversed());
            assert_eq!(host.forwarded(&second(proto, open)), *seen);
        }
    }
}

#[test]
fn a_new_flow_is_admitted_whatever_the_table_holds() {
    let host = host(Proto::Udp);
    host.memory.set_capacity(Table::New, 8);
    for n in 0..100 {
        let open = tuple(&format!("198.51.100.{n}:4000"), DIALLED);
        let seen = host.forwarded(&first(Proto::Udp, &open));
        assert_eq!(host.answered(Proto::Udp, &seen), open.reversed());
    }
}

#[test]
fn a_full_table_drops_and_leaves_nothing_behind() {
    for room in 0..2 {
        let host = host(Proto::Udp);
        host.memory.when_full.set(WhenFull::Refuse);
        host.memory.set_capacity(Table::New, room);
        let (verdict, _) = host.arrive(&udp(&tuple(CLIENT, DIALLED), b""));
        assert_eq!(verdict, Verdict::TableFull);
        assert!(host.memory.is_empty());
    }
}

#[test]
fn a_flow_that_cannot_be_promoted_stays_where_it_is() {
    for room in 0..2 {
        let host = host(Proto::Udp);
        host.memory.when_full.set(WhenFull::Refuse);
        host.memory.set_capacity(Table::Flows, room);
        let open = tuple(CLIENT, DIALLED);
        let seen = host.forwarded(&udp(&open, b""));
        for _ in 0..3 {
            assert_eq!(host.answered(Proto::Udp, &seen), open.reversed());
            assert_eq!(host.forwarded(&udp(&open, b"")), seen);
            assert_eq!(tables(&host), [2, 0]);
        }
    }
}

#[test]
fn an_entry_is_gone_when_its_time_is_over() {
    for (proto, proven, lifetime) in [
        (Proto::Udp, false, 120),
        (Proto::Udp, true, 300),
        (Proto::Tcp, false, 240),
        (Proto::Tcp, true, 7_440),
    ] {
        let host = host(proto);
        let open = tuple(CLIENT, DIALLED);
        let seen = host.forwarded(&first(proto, &open));
        if proven {
            host.answered(proto, &seen);
            host.forwarded(&second(proto, &open));
        }
        let reply = second(proto, &seen.reversed());
        host.memory.wait(lifetime);
        assert_eq!(host.depart(&reply).0, Verdict::Restored, "{proto:?}");
        host.memory.wait(lifetime);
        assert_eq!(host.depart(&reply).0, Verdict::Restored);
        host.memory.wait(lifetime + 1);
        assert_eq!(host.depart(&reply).0, Verdict::NoRule);
        assert_eq!(host.forwarded(&first(proto, &open)), seen);
        let opened = match (proto, proven) {
            (Proto::Udp, _) => 2,
            (_, proven) => u64::from(proven),
        };
        assert_eq!(host.memory.counters(0).connections, opened);
        assert_eq!(tables(&host)[0], 2);
    }
}

#[test]
fn packets_in_one_direction_keep_both_entries() {
    for proto in PROTOS {
        for replies in [false, true] {
            let host = host(proto);
            let open = tuple(CLIENT, DIALLED);
            let seen = host.forwarded(&first(proto, &open));
            for _ in 0..10 {
                host.memory.wait(100);
                if replies {
                    host.answered(proto, &seen);
                } else {
                    host.forwarded(&first(proto, &open));
                }
            }
            let now = host.memory.now();
            for (_, flow) in host.memory.entries(Table::New) {
                assert_eq!(flow.seen, now);
            }
            assert_eq!(host.answered(proto, &seen), open.reversed());
            assert_eq!(host.forwarded(&second(proto, &open)), seen);
        }
    }
}

#[test]
fn an_entry_that_was_evicted_comes_back_from_its_twin() {
    for proto in PROTOS {
        for proven in [false, true] {
            for lost in 0..2 {
                let host = host(proto);
                let open = tuple(CLIENT, DIALLED);
                let seen = host.forwarded(&first(proto, &open));
                host.answered(proto, &seen);
                if proven {
                    host.forwarded(&second(proto, &open));
                }
                let table = if proven { Table::Flows } else { Table::New };
                let keys = keys(proto, &open, &seen);
                let before = host.memory.flow(table, &keys[lost]).copied();
                host.memory.remove(table, &keys[lost]);
                host.memory.wait(1);
                // The direction that still has its entry.
                if lost == 0 {
                    host.answered(proto, &seen);
                } else {
                    host.forwarded(&first(proto, &open));
                }
                let lost_in = [Table::New, Table::Flows]
                    .into_iter()
                    .find_map(|table| host.memory.flow(table, &keys[lost]).copied());
                let (before, after) = (before.expect("an entry"), lost_in.expect("it is back"));
                assert_eq!(
                    portfwd_ebpf::known::rewritten(&before),
                    portfwd_ebpf::known::rewritten(&after)
                );
                assert_eq!(before.flags & Flow::REPLY, after.flags & Flow::REPLY);
                assert_eq!(host.answered(proto, &seen), open.reversed());
                assert_eq!(host.forwarded(&second(proto, &open)), seen);
            }
        }
    }
}

#[test]
fn a_client_whose_entry_was_evicted_gets_its_flow_back_at_once() {
    for proto in PROTOS {
        let host = host(proto);
        let open = tuple(CLIENT, DIALLED);
        let seen = host.forwarded(&first(proto, &open));
        host.memory
            .remove(Table::New, &keys(proto, &open, &seen)[0]);
        assert_eq!(host.forwarded(&first(proto, &open)), seen);
        assert_eq!(tables(&host), [2, 0]);
        let connections = host.memory.counters(0).connections;
        assert_eq!(connections, u64::from(proto == Proto::Udp), "not twice");
    }
}

#[test]
fn a_tuple_that_went_to_another_flow_is_not_taken_back() {
    for proven in [false, true] {
        let forwards = [80, 8080].map(|port| Forward::udp(port..=port, 5000));
        let host = Host::new(&forwards);
        let (a, b) = (tuple(CLIENT, DIALLED), tuple(CLIENT, "192.0.2.1:8080"));
        let seen = host.forwarded(&udp(&a, b""));
        if proven {
            host.answered(Proto::Udp, &seen);
            host.forwarded(&udp(&a, b""));
        }
        // The LRU takes the reply's entry, and the second flow its tuple.
        let table = if proven { Table::Flows } else { Table::New };
        host.memory.remove(table, &keys(Proto::Udp, &a, &seen)[1]);
        assert_eq!(host.forwarded(&udp(&b, b"")), seen);
        host.memory.wait(1);
        let later = host.forwarded(&udp(&a, b""));
        assert_ne!(later, seen, "two flows cannot look the same");
        assert_eq!(host.answered(Proto::Udp, &seen), b.reversed());
        assert_eq!(host.answered(Proto::Udp, &later), a.reversed());
    }
}

#[test]
fn another_rule_in_the_slot_ends_a_udp_flow_and_not_a_tcp_flow() {
    for proto in PROTOS {
        let host = host(proto);
        let open = tuple(CLIENT, DIALLED);
        let seen = host.forwarded(&first(proto, &open));
        host.answered(proto, &seen);
        host.forwarded(&second(proto, &open));
        let mut forward = match proto {
            Proto::Tcp => Forward::tcp(80..=80, 6000).rewriting(),
            _ => Forward::udp(80..=80, 6000),
        };
        forward.generation = 2;
        host.memory.add(0, &forward);
        let reply = second(proto, &seen.reversed());
        let (port, verdict) = match proto {
            Proto::Udp => (6000, Verdict::NoRule),
            _ => (5000, Verdict::Restored),
        };
        assert_eq!(host.depart(&reply).0, verdict);
        assert_eq!(host.forwarded(&second(proto, &open)).dport, port);
        assert_eq!(host.depart(&reply).0, verdict, "for good");
    }
}

#[test]
fn a_rule_that_was_taken_away_opens_nothing_more() {
    let host = host(Proto::Udp);
    host.memory.withdraw(0);
    let (verdict, _) = host.arrive(&udp(&tuple(CLIENT, DIALLED), b""));
    assert_eq!(verdict, Verdict::NoRule);
    assert!(host.memory.is_empty());
}

#[test]
fn the_bank_in_use_decides() {
    let host = host(Proto::Udp);
    let open = udp(&tuple(CLIENT, DIALLED), b"");
    host.memory.bank.set(1);
    assert_eq!(host.arrive(&open).0, Verdict::NoRule);
    host.memory.add(1, &Forward::udp(80..=80, 6000));
    assert_eq!(host.forwarded(&open).dport, 6000);
}

#[test]
fn a_connection_from_a_port_used_before_is_counted_again() {
    let host = host(Proto::Tcp);
    let open = tuple(CLIENT, DIALLED);
    for round in 0..3_u32 {
        let isn = 700 + round * 10_000;
        host.forwarded(&tcp(&open, 2, [100, 0], b""));
        let reply = tcp(&tuple(TARGET, CLIENT), ACK | 2, [isn, 101], b"");
        assert_eq!(host.depart(&reply).0, Verdict::Restored);
        host.forwarded(&tcp(&open, ACK, [101, isn + 1], b""));
        host.forwarded(&tcp(&open, ACK | 1, [101, isn + 1], b""));
        let end = tcp(&tuple(TARGET, CLIENT), ACK | 1, [isn + 1, 102], b"");
        assert_eq!(host.depart(&end).0, Verdict::Restored);
        host.memory.wait(1);
    }
    assert_eq!(host.memory.counters(0).connections, 3);
}
