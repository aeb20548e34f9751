//! The life of a flow to another host: proof, end, expiry, eviction.

mod common;

use common::{ENDS, ETH0, ETH1, Ends, Host, LAN, V4, answer, first, second, syn, tcp, tuple, udp};
use portfwd_common::{Flow, FlowKey, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::WhenFull,
    known::{reply_key, rewritten},
    packet::{ACK, FIN, RST, SYN, Tuple},
    tables::{Table, Tables as _},
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
const FLAGS: [u16; 2] = [0, TargetEntry::PRESERVE];
const HALF_OPEN: u32 = 240;
const ESTABLISHED: u32 = 7_440;

/// Both keys of the flow of `open`, which the target sees as `seen`.
fn keys(proto: Proto, open: &Tuple, seen: &Tuple) -> [FlowKey; 2] {
    [
        open.key(proto, FlowKey::INGRESS),
        reply_key(seen, proto, FlowKey::INGRESS),
    ]
}

fn tables(host: &Host) -> [usize; 2] {
    [Table::New, Table::Flows].map(|table| host.memory.len(table))
}

/// Both entries of a flow are in one table and agree.
#[track_caller]
fn assert_twins(host: &Host, table: Table, proto: Proto, open: &Tuple, seen: &Tuple) -> u16 {
    let [forward, reply] = keys(proto, open, seen).map(|key| {
        *host
            .memory
            .flow(table, &key)
            .expect("both entries are there")
    });
    assert_eq!(rewritten(&forward), *seen);
    assert_eq!(rewritten(&reply), open.reversed());
    assert_eq!(forward.flags ^ reply.flags, Flow::REPLY);
    assert_eq!(forward.flags & (Flow::REPLY | Flow::TWIN_LEAVES), 0);
    for (one, other) in [
        (forward.target.into(), reply.target.into()),
        (forward.rule.into(), reply.rule.into()),
        (forward.generation.into(), reply.generation.into()),
        (forward.ifindex, reply.ifindex),
        (forward.seen, reply.seen),
    ] {
        assert_eq!(one, other);
    }
    assert_eq!((forward.target, forward.rule), (0, 0));
    forward.flags
}

/// A segment of the client's, and of the target's.
fn segment(host: &Host, tuple: &Tuple, flags: u8, numbers: [u32; 2]) -> Verdict {
    let bytes = tcp(tuple, flags, numbers, b"");
    let ifindex = if tuple.sport == 8080 { LAN } else { ETH0 };
    host.pass(&bytes, ifindex).verdict()
}

/// Lives the flow for so long without a packet?
fn lives(host: &Host, open: &Tuple, seconds: u32) -> bool {
    host.memory.wait(seconds);
    let sees = tcp(open, ACK, [102, 702], b"");
    host.pass(&sees, ETH0).verdict() == Verdict::Forwarded
}

#[test]
fn a_flow_moves_on_proof_and_not_before() {
    for ends in ENDS {
        for (proto, flags) in PROTOS.into_iter().flat_map(|p| FLAGS.map(|f| (p, f))) {
            let host = ends.host(proto, flags);
            let open = ends.open();
            let seen = host.relayed(&first(proto, &open));
            host.relayed(&first(proto, &open));
            assert_eq!(tables(&host), [2, 0], "no answer yet");
            assert_twins(&host, Table::New, proto, &open, &seen);
            host.returned(&answer(proto, &seen.reversed()));
            assert_eq!(tables(&host), [2, 0], "an answer is no proof");
            host.relayed(&second(proto, &open));
            assert_eq!(tables(&host), [0, 2]);
            let flags = assert_twins(&host, Table::Flows, proto, &open, &seen);
            assert_eq!(flags & (Flow::PROVEN | Flow::ANSWERED), Flow::PROVEN);
            assert_eq!(host.memory.counters(0).connections, 1);
        }
    }
}

#[test]
fn only_the_acknowledgement_of_the_targets_syn_is_proof() {
    let host = V4.host(Proto::Tcp, 0);
    let open = V4.open();
    host.relayed(&syn(&open));
    host.relayed(&tcp(&open, ACK, [101, 1], b""));
    host.returned(&answer(Proto::Tcp, &V4.masked().reversed()));
    for wrong in [0, 699, 700, 702] {
        host.relayed(&tcp(&open, ACK, [101, wrong], b""));
        host.relayed(&tcp(&open, ACK | SYN, [101, 701], b""));
        host.relayed(&tcp(&open, ACK | RST, [101, 701], b""));
        host.relayed(&tcp(&open, 0, [101, 701], b""));
        host.relayed(&syn(&open));
        assert_eq!(tables(&host), [2, 0], "{wrong}");
    }
    host.relayed(&tcp(&open, ACK, [101, 701], b""));
    assert_eq!(tables(&host), [0, 2]);
}

#[test]
fn a_flood_of_first_packets_reaches_no_proven_flow() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        host.memory.set_capacity(Table::New, 64);
        host.memory.set_capacity(Table::Flows, 64);
        let clients: Vec<(Tuple, Tuple)> = (0..20)
            .map(|n| tuple(&format!("198.51.100.{n}:4000"), V4.dialled))
            .map(|open| (open, host.prove(proto, &open)))
            .collect();
        for n in 0..2_000_u32 {
            let [.., a, b] = n.to_be_bytes();
            let forged = tuple(&format!("203.0.{a}.{b}:999"), V4.dialled);
            host.relayed(&first(proto, &forged));
        }
        assert!(host.memory.len(Table::New) <= 64);
        assert_eq!(host.memory.len(Table::Flows), 40);
        for (open, seen) in &clients {
            let reply = second(proto, &seen.reversed());
            assert_eq!(host.returned(&reply), open.reversed());
            assert_eq!(host.relayed(&second(proto, open)), *seen);
        }
    }
}

#[test]
fn a_full_table_drops_and_leaves_nothing_behind() {
    for proto in PROTOS {
        for room in 0..2 {
            let host = V4.host(proto, 0);
            host.memory.when_full.set(WhenFull::Refuse);
            host.memory.set_capacity(Table::New, room);
            let passed = host.pass(&first(proto, &V4.open()), ETH0);
            assert_eq!(passed.verdict(), Verdict::TableFull);
            assert!(host.memory.is_empty());
        }
    }
}

#[test]
fn a_flow_is_gone_when_its_time_is_over() {
    for (proto, proven, lifetime) in [
        (Proto::Udp, false, 120),
        (Proto::Udp, true, 300),
        (Proto::Tcp, false, HALF_OPEN),
        (Proto::Tcp, true, ESTABLISHED),
    ] {
        let host = V4.host(proto, 0);
        let open = V4.open();
        let seen = host.relayed(&first(proto, &open));
        if proven {
            host.returned(&answer(proto, &seen.reversed()));
            host.relayed(&second(proto, &open));
        }
        let reply = second(proto, &seen.reversed());
        for _ in 0..2 {
            host.memory.wait(lifetime);
            assert_eq!(host.returned(&reply), open.reversed());
        }
        host.memory.wait(lifetime + 1);
        assert_eq!(host.pass_back(&reply, LAN).verdict(), Verdict::NoRule);
        assert_eq!(host.relayed(&first(proto, &open)), seen);
        assert_eq!(tables(&host)[0], 2);
    }
}

#[test]
fn packets_in_one_direction_keep_both_entries() {
    for (ends, flags) in ENDS.into_iter().flat_map(|e| FLAGS.map(|f| (e, f))) {
        for (proto, replies) in PROTOS.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            let host = ends.host(proto, flags);
            let open = ends.open();
            let seen = host.relayed(&first(proto, &open));
            for _ in 0..10 {
                host.memory.wait(100);
                if replies {
                    host.returned(&answer(proto, &seen.reversed()));
                } else {
                    host.relayed(&first(proto, &open));
                }
                assert_twins(&host, Table::New, proto, &open, &seen);
            }
            let now = host.memory.now();
            for (_, flow) in host.memory.entries(Table::New) {
                assert_eq!(flow.seen, now);
            }
        }
    }
}

#[test]
fn an_entry_that_was_evicted_comes_back_from_its_twin() {
    for (ends, flags) in ENDS.into_iter().flat_map(|e| FLAGS.map(|f| (e, f))) {
        for proto in PROTOS {
            for (proven, lost) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
                let host = ends.host(proto, flags);
                let open = ends.open();
                let seen = host.relayed(&first(proto, &open));
                host.returned(&answer(proto, &seen.reversed()));
                // It is behind another device by now.
                let passed = host.pass(&first(proto, &open), ETH1);
                assert_eq!(passed.verdict(), Verdict::Forwarded);
                let table = if proven { Table::Flows } else { Table::New };
                if proven || proto == Proto::Udp {
                    host.pass(&second(proto, &open), ETH1);
                }
                let table = if proto == Proto::Udp {
                    Table::Flows
                } else {
                    table
                };
                let keys = keys(proto, &open, &seen);
                let before = *host.memory.flow(table, &keys[lost]).expect("an entry");
                host.memory.remove(table, &keys[lost]);
                host.memory.wait(1);
                // The direction that still has its entry.
                if lost == 0 {
                    let passed = host.pass_back(&second(proto, &seen.reversed()), LAN);
                    assert_eq!(passed.verdict(), Verdict::Returned);
                    assert_eq!(passed.ifindex(), ETH1);
                } else {
                    let passed = host.pass(&first(proto, &open), ETH1);
                    assert_eq!(passed.verdict(), Verdict::Forwarded);
                }
                let mut after = *host.memory.flow(table, &keys[lost]).expect("it is back");
                after.seen = before.seen;
                assert_eq!(after, before, "{proto:?} proven {proven} lost {lost}");
                assert_twins(&host, table, proto, &open, &seen);
            }
        }
    }
}

#[test]
fn a_client_whose_entry_was_evicted_gets_its_flow_back_at_once() {
    for proto in PROTOS {
        for (flags, proven) in FLAGS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let host = V4.host(proto, flags);
            let open = V4.open();
            let seen = host.relayed(&first(proto, &open));
            let mut table = Table::New;
            if proven {
                host.returned(&answer(proto, &seen.reversed()));
                host.relayed(&second(proto, &open));
                table = Table::Flows;
            }
            let connections = host.memory.counters(0).connections;
            host.memory.remove(table, &keys(proto, &open, &seen)[0]);
            assert_eq!(host.relayed(&first(proto, &open)), seen);
            assert_twins(&host, table, proto, &open, &seen);
            assert_eq!(host.memory.counters(0).connections, connections);
        }
    }
}

#[test]
fn a_tuple_that_went_to_another_flow_is_not_taken_back() {
    for proven in [false, true] {
        let rules = [80, 81].map(|port| V4.rule_on(Proto::Udp, port, 0));
        let host = Host::without_sockets(&rules);
        let a = V4.open();
        let b = Tuple { dport: 81, ..a };
        let seen = host.relayed(&udp(&a, b""));
        let mut table = Table::New;
        if proven {
            host.prove(Proto::Udp, &a);
            table = Table::Flows;
        }
        // The LRU takes the reply's entry, and the second flow its tuple.
        host.memory.remove(table, &keys(Proto::Udp, &a, &seen)[1]);
        assert_eq!(host.relayed(&udp(&b, b"")), seen);
        host.memory.wait(1);
        let later = host.relayed(&udp(&a, b""));
        assert_ne!(later, seen, "two flows cannot look the same");
        assert_eq!(host.returned(&udp(&seen.reversed(), b"")), b.reversed());
        assert_eq!(host.returned(&udp(&later.reversed(), b"")), a.reversed());
    }
}

#[test]
fn another_rule_in_the_slot_ends_a_udp_flow_and_not_a_tcp_flow() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        let open = V4.open();
        let seen = host.prove(proto, &open);
        let mut forward = V4.rule(proto, 0);
        forward.generation = 2;
        host.memory.add(0, &forward);
        let reply = second(proto, &seen.reversed());
        let verdict = match proto {
            Proto::Udp => Verdict::NoRule,
            _ => Verdict::Returned,
        };
        for _ in 0..2 {
            assert_eq!(host.pass_back(&reply, LAN).verdict(), verdict);
        }
        assert_eq!(host.relayed(&second(proto, &open)), seen);
        assert_eq!(host.returned(&reply), open.reversed());
    }
}

#[test]
fn a_flow_outlives_the_claim_of_its_rule() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        let seen = host.prove(proto, &V4.open());
        host.memory.withdraw(0);
        assert_eq!(host.relayed(&second(proto, &V4.open())), seen);
        host.returned(&second(proto, &seen.reversed()));
        let other = Tuple {
            sport: 4001,
            ..V4.open()
        };
        let passed = host.pass(&first(proto, &other), ETH0);
        assert_eq!(passed.verdict(), Verdict::NoRule);
    }
}

/// An established connection: the tuple that the target sees.
fn established(ends: &Ends) -> (Host, Tuple, Tuple) {
    let host = ends.host(Proto::Tcp, 0);
    let seen = host.prove(Proto::Tcp, &ends.open());
    (host, ends.open(), seen.reversed())
}

#[test]
fn a_connection_that_both_ends_closed_is_soon_forgotten() {
    for ends in ENDS {
        for client_first in [true, false] {
            let (host, open, reply) = established(&ends);
            let (one, other) = if client_first {
                (&open, &reply)
            } else {
                (&reply, &open)
            };
            let _sent = segment(&host, one, ACK | FIN, [101, 701]);
            assert!(lives(&host, &open, ESTABLISHED), "half-closed");
            let _sent = segment(&host, other, ACK | FIN, [701, 102]);
            assert_twins(&host, Table::Flows, Proto::Tcp, &open, &reply.reversed());
            assert!(lives(&host, &open, HALF_OPEN), "the last acknowledgement");
            assert!(!lives(&host, &open, HALF_OPEN + 1));
            assert_eq!(segment(&host, &reply, ACK, [1, 1]), Verdict::NoRule);
            assert!(host.memory.is_empty());
        }
    }
}

#[test]
fn a_reset_shortens_a_connection_unless_it_goes_on() {
    for ends in ENDS {
        for by_client in [true, false] {
            for goes_on in [true, false] {
                let (host, open, reply) = established(&ends);
                let by = if by_client { &open } else { &reply };
                let _sent = segment(&host, by, RST, [101, 0]);
                let flags = assert_twins(&host, Table::Flows, Proto::Tcp, &open, &reply.reversed());
                assert_ne!(flags & Flow::RESET, 0);
                if goes_on {
                    let _sent = segment(&host, &open, ACK, [101, 701]);
                    let seen = reply.reversed();
                    let flags = assert_twins(&host, Table::Flows, Proto::Tcp, &open, &seen);
                    assert_eq!(flags & Flow::RESET, 0);
                }
                assert_eq!(lives(&host, &open, HALF_OPEN + 1), goes_on);
            }
        }
    }
}

#[test]
fn a_new_connection_from_the_same_port_begins_anew() {
    for ends in ENDS {
        for end in [FIN, RST] {
            let (host, open, reply) = established(&ends);
            for round in 1..4_u32 {
                let isn = 700 + round * 10_000;
                let _sent = segment(&host, &open, ACK | end, [101, 701]);
                let _sent = segment(&host, &reply, ACK | end, [701, 102]);
                host.memory.wait(1);
                assert_eq!(segment(&host, &open, SYN, [5_000, 0]), Verdict::Forwarded);
                let seen = reply.reversed();
                let flags = assert_twins(&host, Table::Flows, Proto::Tcp, &open, &seen);
                assert_eq!(
                    flags & (Flow::FIN_CLIENT | Flow::FIN_TARGET | Flow::RESET),
                    0
                );
                let _sent = segment(&host, &reply, SYN | ACK, [isn, 5_001]);
                let _sent = segment(&host, &open, ACK, [5_001, isn + 1]);
                let connections = host.memory.counters(0).connections;
                assert_eq!(connections, u64::from(round) + 1);
            }
            assert!(lives(&host, &open, ESTABLISHED));
        }
    }
}

#[test]
fn a_connection_counts_once_whoever_closes_it_first() {
    for ends in ENDS {
        let (host, open, reply) = established(&ends);
        // Again from the same port, and both ends close at the same moment.
        for round in 1..4_u32 {
            let isn = 700 + round * 10_000;
            host.memory.wait(1);
            let _sent = segment(&host, &open, SYN, [5_000, 0]);
            let _sent = segment(&host, &reply, SYN | ACK, [isn, 5_001]);
            let _sent = segment(&host, &open, ACK, [5_001, isn + 1]);
            let _sent = segment(&host, &reply, ACK | FIN, [isn + 1, 5_001]);
            let _sent = segment(&host, &open, ACK | FIN, [5_001, isn + 1]);
            let connections = host.memory.counters(0).connections;
            assert_eq!(connections, u64::from(round) + 1);
        }
    }
}

#[test]
fn a_first_acknowledgement_that_closes_is_not_forgotten() {
    for ends in ENDS {
        let host = ends.host(Proto::Tcp, 0);
        let open = ends.open();
        let seen = host.relayed(&syn(&open));
        host.returned(&answer(Proto::Tcp, &seen.reversed()));
        let _sent = segment(&host, &open, ACK | FIN, [101, 701]);
        let flags = assert_twins(&host, Table::Flows, Proto::Tcp, &open, &seen);
        assert_eq!(flags & Flow::FIN_CLIENT, Flow::FIN_CLIENT);
        let _sent = segment(&host, &seen.reversed(), ACK | FIN, [701, 102]);
        assert!(!lives(&host, &open, HALF_OPEN + 1));
    }
}

#[test]
fn a_reset_that_was_forged_before_the_answer_hinders_no_proof() {
    for ends in ENDS {
        let host = ends.host(Proto::Tcp, 0);
        let open = ends.open();
        let seen = host.relayed(&syn(&open));
        let _sent = segment(&host, &seen.reversed(), RST, [1, 0]);
        let _sent = segment(&host, &seen.reversed(), SYN | ACK, [700, 101]);
        let _sent = segment(&host, &open, ACK, [101, 701]);
        assert_eq!(tables(&host), [0, 2]);
        assert_eq!(host.memory.counters(0).connections, 1);
        assert!(lives(&host, &open, ESTABLISHED));
    }
}

#[test]
fn an_answer_whose_client_was_evicted_is_remembered() {
    for ends in ENDS {
        let host = ends.host(Proto::Tcp, 0);
        let open = ends.open();
        let seen = host.relayed(&syn(&open));
        let forward = open.key(Proto::Tcp, FlowKey::INGRESS);
        host.memory.remove(Table::New, &forward);
        host.memory.wait(1);
        host.returned(&answer(Proto::Tcp, &seen.reversed()));
        host.relayed(&second(Proto::Tcp, &open));
        assert_eq!(tables(&host), [0, 2]);
        assert_eq!(host.memory.counters(0).connections, 1);
    }
}
