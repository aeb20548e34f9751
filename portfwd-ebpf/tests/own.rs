//! What goes to a target on another host without its rule: connections of this
//! host, and packets that it routes.

mod common;

use common::{ENDS, ETH0, Ends, Host, LAN, LO, V4, answer, first, second, syn, tcp, tuple_of};
use portfwd_common::{Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::Forward,
    packet::{ACK, FIN, SYN, Tuple},
    tables::Table,
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];

/// This host sends a packet of its own by [`LAN`].
fn sends(host: &Host, bytes: &[u8]) -> (Verdict, Tuple) {
    let (outcome, bytes) = host.send(host.buffer(bytes).on(LAN));
    (outcome.verdict, tuple_of(&bytes))
}

/// A masqueraded flow, and a connection of this host with its very tuple: the
/// host, and the tuple that the connection got.
fn clash(ends: &Ends, proto: Proto) -> (Host, Tuple) {
    let host = ends.host(proto, 0);
    assert_eq!(host.relayed(&first(proto, &ends.open())), ends.masked());
    let (verdict, moved) = sends(&host, &first(proto, &ends.masked()));
    assert_eq!(verdict, Verdict::Moved);
    (host, moved)
}

#[test]
fn a_connection_of_this_host_gives_way_to_a_flow_with_its_tuple() {
    for ends in ENDS {
        for proto in PROTOS {
            let (host, moved) = clash(&ends, proto);
            let own = ends.masked();
            assert_ne!(moved.sport, own.sport);
            assert_eq!(
                moved,
                Tuple {
                    sport: moved.sport,
                    ..own
                }
            );
            for packet in [first, second, first] {
                assert_eq!(
                    sends(&host, &packet(proto, &own)),
                    (Verdict::Moved, moved),
                    "{proto:?}"
                );
                let reply = answer(proto, &moved.reversed());
                for back in [Host::pass, Host::pass_back] {
                    let passed = back(&host, &reply, LAN);
                    assert_eq!(passed.verdict(), Verdict::Restored);
                    assert_eq!(passed.tuple, own.reversed());
                }
            }
            // The flow has its own packets all the while.
            assert_eq!(
                host.returned(&answer(proto, &own.reversed())),
                ends.open().reversed()
            );
            assert_eq!(host.relayed(&second(proto, &ends.open())), own);
            let counters = host.memory.counters(0);
            assert_eq!((counters.packets, counters.packets_back), (2, 1));
        }
    }
}

#[test]
fn it_keeps_its_port_after_the_flow_ended() {
    for ends in ENDS {
        for proto in PROTOS {
            let (host, moved) = clash(&ends, proto);
            let own = ends.masked();
            for _ in 0..20 {
                host.memory.wait(100);
                assert_eq!(
                    sends(&host, &second(proto, &own)),
                    (Verdict::Moved, moved),
                    "{proto:?}"
                );
                let passed = host.pass_back(&second(proto, &moved.reversed()), LAN);
                assert_eq!(passed.verdict(), Verdict::Restored);
            }
            let reply = answer(proto, &own.reversed());
            let passed = host.pass_back(&reply, LAN);
            assert_eq!(passed.verdict(), Verdict::NoRule, "the flow is gone");
            // Nor does a new one get the port that it has now.
            let open = Tuple {
                sport: moved.sport,
                ..ends.open()
            };
            assert_ne!(host.relayed(&first(proto, &open)), moved);
        }
    }
}

#[test]
fn it_lives_as_long_as_any_connection() {
    for ends in ENDS {
        for (proto, lifetime) in [(Proto::Tcp, 7_440), (Proto::Udp, 300)] {
            let (host, moved) = clash(&ends, proto);
            let own = ends.masked();
            host.pass_back(&answer(proto, &moved.reversed()), LAN);
            assert_eq!(sends(&host, &second(proto, &own)), (Verdict::Moved, moved));
            host.memory.wait(lifetime);
            assert_eq!(
                sends(&host, &second(proto, &own)),
                (Verdict::Moved, moved),
                "{proto:?}"
            );
        }
    }
}

#[test]
fn a_flood_takes_its_port_from_nobody() {
    for proto in PROTOS {
        let (host, moved) = clash(&V4, proto);
        host.memory.set_capacity(Table::New, 64);
        let own = V4.masked();
        host.pass_back(&answer(proto, &moved.reversed()), LAN);
        assert_eq!(sends(&host, &second(proto, &own)), (Verdict::Moved, moved));
        for n in 0..1_000_u32 {
            let [.., a, b] = n.to_be_bytes();
            let forged = common::tuple(&format!("203.0.{a}.{b}:999"), V4.dialled);
            host.relayed(&first(proto, &forged));
        }
        assert_eq!(
            sends(&host, &second(proto, &own)),
            (Verdict::Moved, moved),
            "{proto:?}"
        );
    }
}

#[test]
fn it_is_moved_by_a_syn_and_by_nothing_else() {
    for ends in ENDS {
        let host = ends.host(Proto::Tcp, 0);
        host.relayed(&syn(&ends.open()));
        let before = host.entries();
        for flags in [0, ACK, SYN | ACK, FIN | ACK, 4, 4 | ACK] {
            let packet = tcp(&ends.masked(), flags, [1, 1], b"");
            assert_eq!(sends(&host, &packet).0, Verdict::NoRule, "{flags:#x}");
            host.assert_entries(&before);
        }
    }
}

#[test]
fn without_a_clash_it_is_left_alone() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            host.relayed(&first(proto, &ends.open()));
            let before = host.entries();
            let other_port = Tuple {
                sport: 4001,
                ..ends.masked()
            };
            let other_source = Tuple {
                src: ends.open().dst,
                ..ends.masked()
            };
            for own in [other_port, other_source] {
                assert_eq!(sends(&host, &first(proto, &own)), (Verdict::NoRule, own));
                let reply = answer(proto, &own.reversed());
                for back in [Host::pass, Host::pass_back] {
                    assert_eq!(back(&host, &reply, LAN).verdict(), Verdict::NoRule);
                }
            }
            let other_target = Tuple {
                dst: ends.open().src,
                ..ends.masked()
            };
            assert_eq!(
                sends(&host, &first(proto, &other_target)).0,
                Verdict::NoRule
            );
            host.assert_entries(&before);
        }
    }
}

#[test]
fn what_this_host_only_forwards_or_sends_to_itself_is_not_its_own() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            host.relayed(&first(proto, &ends.open()));
            let packet = first(proto, &ends.masked());
            let mut forwarded = host.buffer(&packet).on(LAN);
            forwarded.link.forwarded = true;
            assert_eq!(host.send(forwarded).0.verdict, Verdict::NoRule);
            let on_lo = host.buffer(&packet).on(LO);
            assert_eq!(host.send(on_lo).0.verdict, Verdict::NoRule);
        }
    }
}

#[test]
fn a_packet_to_the_target_itself_keeps_its_tuple_from_flows() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, TargetEntry::PRESERVE);
            let direct = ends.kept();
            let passed = host.pass(&first(proto, &direct), ETH0);
            assert_eq!(passed.verdict(), Verdict::Direct);
            let seen = host.relayed(&first(proto, &ends.open()));
            assert_ne!(seen.sport, direct.sport);
            assert_eq!(
                seen,
                Tuple {
                    sport: seen.sport,
                    ..direct
                }
            );
            for back in [Host::pass, Host::pass_back] {
                let passed = back(&host, &answer(proto, &direct.reversed()), LAN);
                assert_eq!(passed.verdict(), Verdict::Direct);
                let passed = back(&host, &answer(proto, &seen.reversed()), LAN);
                assert_eq!(passed.verdict(), Verdict::Returned);
                assert_eq!(passed.tuple, ends.open().reversed());
            }
            let passed = host.pass(&second(proto, &direct), ETH0);
            assert_eq!(passed.verdict(), Verdict::Direct);
            assert_eq!(host.relayed(&second(proto, &ends.open())), seen);
            assert_eq!(host.memory.counters(0).packets, 2);
        }
    }
}

#[test]
fn a_packet_to_the_target_itself_gives_way_to_a_flow_with_its_tuple() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, TargetEntry::PRESERVE);
            let direct = ends.kept();
            assert_eq!(host.relayed(&first(proto, &ends.open())), direct);
            let passed = host.pass(&first(proto, &direct), ETH0);
            assert_eq!(passed.verdict(), Verdict::Moved);
            let moved = passed.tuple;
            for back in [Host::pass, Host::pass_back] {
                let passed = back(&host, &answer(proto, &moved.reversed()), LAN);
                assert_eq!(passed.verdict(), Verdict::Restored);
                assert_eq!(passed.tuple, direct.reversed());
                let passed = back(&host, &answer(proto, &direct.reversed()), LAN);
                assert_eq!(passed.verdict(), Verdict::Returned);
            }
            for _ in 0..20 {
                host.memory.wait(100);
                let passed = host.pass(&second(proto, &direct), ETH0);
                assert_eq!(passed.verdict(), Verdict::Moved);
                assert_eq!(passed.tuple, moved);
                let passed = host.pass_back(&second(proto, &moved.reversed()), LAN);
                assert_eq!(passed.verdict(), Verdict::Restored);
            }
        }
    }
}

#[test]
fn it_gives_way_where_the_rule_keeps_the_port_too() {
    for ends in ENDS {
        for proto in PROTOS {
            let rule = ends.rule_on(proto, 8080, TargetEntry::PRESERVE);
            let host = Host::without_sockets(&[rule]);
            let open = Tuple {
                dport: 8080,
                ..ends.open()
            };
            let direct = ends.kept();
            assert_eq!(host.relayed(&first(proto, &open)), direct);
            let passed = host.pass(&first(proto, &direct), ETH0);
            assert_eq!(passed.verdict(), Verdict::Moved, "{proto:?}");
            let reply = answer(proto, &passed.tuple.reversed());
            let passed = host.pass_back(&reply, LAN);
            assert_eq!(passed.verdict(), Verdict::Restored);
            assert_eq!(passed.tuple, direct.reversed());
            let back = host.returned(&answer(proto, &direct.reversed()));
            assert_eq!(back, open.reversed());
        }
    }
}

#[test]
fn a_target_that_dials_this_host_from_the_target_port_is_answered() {
    for ends in ENDS {
        let to_this_host = Forward::udp(53..=53, 5000);
        let host = Host::new(&[to_this_host, ends.rule_on(Proto::Udp, 1053, 0)]);
        let asks = Tuple {
            src: ends.kept().dst,
            dst: ends.masked().src,
            sport: 8080,
            dport: 5000,
        };
        for packet in [first, second] {
            let passed = host.pass(&packet(Proto::Udp, &asks), LAN);
            assert_eq!(passed.verdict(), Verdict::Direct);
            let own = asks.reversed();
            let sent = sends(&host, &answer(Proto::Udp, &own));
            assert_eq!(sent, (Verdict::Direct, own));
        }
        let tables = [Table::New, Table::Flows].map(|table| host.memory.len(table));
        assert_eq!(tables, [0, 2], "it has proved that it receives");
    }
}

#[test]
fn a_full_table_drops_no_packet_to_the_target_itself() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        host.memory.set_capacity(Table::New, 0);
        let passed = host.pass(&first(proto, &V4.kept()), ETH0);
        assert_eq!(passed.verdict(), Verdict::Direct);
    }
}

#[test]
fn another_port_of_the_target_and_another_host_are_nobodys() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        for to in ["10.0.0.5:8081", "10.0.0.6:8080"] {
            let direct = common::tuple(V4.client, to);
            let passed = host.pass(&first(proto, &direct), ETH0);
            assert_eq!(passed.verdict(), Verdict::NoRule);
        }
        assert!(host.memory.is_empty());
    }
}
