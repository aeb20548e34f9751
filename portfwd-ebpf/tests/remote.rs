//! Rules for other hosts: what the target sees, what the client gets back, and
//! by which interfaces.

mod common;

use common::{
    CLIENT, ENDS, ETH0, ETH1, Ends, Host, LAN, LO, V4, V6, addr, answer, first, hops, second, syn,
    tcp, tuple, udp,
};
use portfwd_common::{Addr, Proto, RuleCounters, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::{Forward, Machine},
    packet::{ACK, FIN, RST, Tuple},
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
const PRESERVE: u16 = TargetEntry::PRESERVE;
const ACROSS: u16 = TargetEntry::PRESERVE_ACROSS;

/// The client's packet as the target sees it, and the answer as the client
/// does, who came in by `ifindex`.
#[track_caller]
fn there_and_back(host: &Host, proto: Proto, open: &Tuple, ifindex: u32) -> Tuple {
    let passed = host.pass(&first(proto, open), ifindex);
    assert_eq!(passed.verdict(), Verdict::Forwarded);
    assert_eq!(passed.ifindex(), LAN);
    let seen = passed.tuple;
    for back in [Host::pass, Host::pass_back] {
        let passed = back(host, &answer(proto, &seen.reversed()), LAN);
        assert_eq!(passed.verdict(), Verdict::Returned);
        assert_eq!(passed.ifindex(), ifindex);
        assert_eq!(passed.tuple, open.reversed());
    }
    let passed = host.pass(&second(proto, open), ifindex);
    assert_eq!(passed.verdict(), Verdict::Forwarded);
    assert_eq!(passed.tuple, seen);
    seen
}

#[test]
fn the_clients_address_is_kept_where_the_rule_says_so() {
    for (flags, ifindex, kept) in [
        (0, ETH0, false),
        (0, LAN, false),
        (PRESERVE, ETH0, true),
        (PRESERVE, LAN, true),
        (ACROSS, ETH0, true),
        (ACROSS, LAN, false),
        (PRESERVE | ACROSS, LAN, true),
    ] {
        for (ends, proto) in ENDS.into_iter().flat_map(|ends| PROTOS.map(|p| (ends, p))) {
            let host = ends.host(proto, flags);
            let seen = there_and_back(&host, proto, &ends.open(), ifindex);
            let wanted = if kept { ends.kept() } else { ends.masked() };
            assert_eq!(seen, wanted, "{flags:#x} {ifindex} {proto:?}");
        }
    }
}

#[test]
fn a_target_that_dials_itself_is_masqueraded() {
    for ends in ENDS {
        for (flags, ifindex) in [(0, LAN), (PRESERVE, LAN), (PRESERVE, ETH0), (ACROSS, ETH0)] {
            for proto in PROTOS {
                let host = ends.host(proto, flags);
                let open = Tuple {
                    src: ends.kept().dst,
                    ..ends.open()
                };
                let seen = there_and_back(&host, proto, &open, ifindex);
                assert_eq!(seen, ends.masked(), "{flags:#x} {proto:?}");
            }
        }
    }
}

#[test]
fn a_link_local_client_is_masqueraded() {
    for (ends, client) in [(V4, "169.254.3.4:4000"), (V6, "[fe80::3]:4000")] {
        for flags in [0, PRESERVE, ACROSS] {
            for proto in PROTOS {
                let host = ends.host(proto, flags);
                let open = tuple(client, ends.dialled);
                let seen = there_and_back(&host, proto, &open, ETH0);
                assert_eq!(seen, ends.masked(), "{flags:#x} {proto:?}");
            }
        }
    }
}

#[test]
fn ports_go_to_the_target_as_the_rule_maps_them() {
    for ends in ENDS {
        let forwards = [
            Forward::udp(9000..=9099, 18000),
            Forward::udp(20_000..=20_100, 443).to_one(),
        ]
        .map(|forward| forward.to_host(ends.entry(0)));
        let host = Host::without_sockets(&forwards);
        for (dialled, port) in [
            (9000, 18000),
            (9042, 18042),
            (9099, 18099),
            (20_000, 443),
            (20_100, 443),
        ] {
            let open = Tuple {
                dport: dialled,
                sport: dialled,
                ..ends.open()
            };
            let seen = there_and_back(&host, Proto::Udp, &open, ETH0);
            assert_eq!((seen.sport, seen.dport), (dialled, port));
        }
    }
}

#[test]
fn answers_leave_by_the_interface_that_the_client_came_in_by_last() {
    for ends in ENDS {
        for proto in PROTOS {
            for proven in [false, true] {
                let host = ends.host(proto, 0);
                let open = ends.open();
                let seen = host.relayed(&first(proto, &open));
                host.returned(&answer(proto, &seen.reversed()));
                if proven {
                    host.relayed(&second(proto, &open));
                }
                // Within the same second, there and back again.
                for ifindex in [ETH1, ETH0, LAN, ETH1] {
                    let passed = host.pass(&second(proto, &open), ifindex);
                    assert_eq!(passed.verdict(), Verdict::Forwarded);
                    assert_eq!(passed.ifindex(), LAN);
                    for came_by in [LAN, ETH0, ETH1] {
                        let passed = host.pass_back(&second(proto, &seen.reversed()), came_by);
                        assert_eq!(passed.verdict(), Verdict::Returned);
                        assert_eq!(passed.ifindex(), ifindex, "came by {came_by}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_target_that_moves_takes_its_flows_along() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        let seen = host.relayed(&first(proto, &V4.open()));
        let moved = TargetEntry {
            ifindex: ETH1,
            source: addr("192.0.2.2"),
            flags: TargetEntry::PEER,
            link: [1, 2, 3],
            ..V4.entry(0)
        };
        host.memory.set_target(0, moved);
        let passed = host.pass(&second(proto, &V4.open()), ETH0);
        assert_eq!(passed.tuple, seen, "the flow keeps its source");
        let way = passed.sent.expect("it was sent");
        assert_eq!((way.ifindex, way.peer, way.link), (ETH1, true, [1, 2, 3]));
        let passed = host.pass_back(&second(proto, &seen.reversed()), ETH1);
        let way = passed.sent.expect("it was sent");
        assert_eq!((way.ifindex, way.peer), (ETH0, false));
    }
}

#[test]
fn a_packet_whose_hops_run_out_leaves_no_trace() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            let open = ends.open();
            for left in [0, 1] {
                let passed = host.pass(&hops(first(proto, &open), left), ETH0);
                assert_eq!(passed.verdict(), Verdict::HopLimit);
                assert!(host.memory.is_empty());
            }
            let passed = host.pass(&hops(first(proto, &open), 2), ETH0);
            assert_eq!(passed.verdict(), Verdict::Forwarded);
            let seen = passed.tuple;
            let reply = answer(proto, &seen.reversed());
            for left in [0, 1] {
                for back in [Host::pass, Host::pass_back] {
                    let passed = back(&host, &hops(reply.clone(), left), LAN);
                    assert_eq!(passed.verdict(), Verdict::HopLimit);
                }
            }
            let passed = host.pass_back(&hops(reply, 2), LAN);
            assert_eq!(passed.verdict(), Verdict::Returned);
            let counters = host.memory.counters(0);
            assert_eq!((counters.packets, counters.packets_back), (1, 1));
        }
    }
}

#[test]
fn a_packet_that_is_dropped_changes_no_flow() {
    for proto in PROTOS {
        let host = V4.host(proto, 0);
        let open = V4.open();
        let seen = host.relayed(&first(proto, &open));
        host.returned(&answer(proto, &seen.reversed()));
        host.memory.wait(1);
        let before = host.entries();
        let end = |tuple: &Tuple| match proto {
            Proto::Tcp => vec![
                tcp(tuple, ACK, [101, 701], b""),
                tcp(tuple, ACK | FIN, [101, 701], b""),
                tcp(tuple, RST, [101, 0], b""),
            ],
            _ => vec![udp(tuple, b"")],
        };
        for packet in end(&open) {
            let passed = host.pass(&hops(packet, 1), ETH1);
            assert_eq!(passed.verdict(), Verdict::HopLimit);
            host.assert_entries(&before);
        }
        for packet in end(&seen.reversed()) {
            let passed = host.pass_back(&hops(packet, 1), LAN);
            assert_eq!(passed.verdict(), Verdict::HopLimit);
            host.assert_entries(&before);
        }
    }
}

/// A host whose devices have these MTUs, and no other devices.
fn with_mtus(ends: &Ends, proto: Proto, mtus: &[(u32, u32)]) -> Host {
    let mut machine = Machine::new(&common::OWN.map(addr));
    for (ifindex, mtu) in mtus {
        machine = machine.mtu_of(*ifindex, *mtu);
    }
    Host::on(machine, &[ends.rule(proto, 0)])
}

fn large(proto: Proto, tuple: &Tuple, payload: usize) -> Vec<u8> {
    let payload = vec![7; payload];
    match proto {
        Proto::Tcp => tcp(tuple, ACK, [101, 701], &payload),
        _ => udp(tuple, &payload),
    }
}

#[test]
fn what_is_too_large_for_the_way_is_dropped_there_and_back() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = with_mtus(&ends, proto, &[(ETH0, 1400), (LAN, 1300)]);
            let open = ends.open();
            let headers = large(proto, &open, 0).len();
            let first_large = match proto {
                Proto::Tcp => syn(&open),
                _ => large(proto, &open, 1301 - headers),
            };
            if proto == Proto::Udp {
                let passed = host.pass(&first_large, ETH0);
                assert_eq!(passed.verdict(), Verdict::TooLarge);
                assert!(host.memory.is_empty());
            }
            let seen = host.relayed(&first(proto, &open));
            for (size, wanted) in [(1300, Verdict::Forwarded), (1301, Verdict::TooLarge)] {
                let packet = large(proto, &open, size - headers);
                assert_eq!(host.pass(&packet, ETH0).verdict(), wanted);
            }
            for (size, wanted) in [(1400, Verdict::Returned), (1401, Verdict::TooLarge)] {
                let packet = large(proto, &seen.reversed(), size - headers);
                assert_eq!(host.pass_back(&packet, LAN).verdict(), wanted);
            }
        }
    }
}

#[test]
fn the_segments_of_a_large_packet_are_what_must_fit() {
    for ends in ENDS {
        let host = with_mtus(&ends, Proto::Tcp, &[(ETH0, 1500), (LAN, 1300)]);
        let open = ends.open();
        host.relayed(&syn(&open));
        let packet = large(Proto::Tcp, &open, 8_000);
        let headers = large(Proto::Tcp, &open, 0).len() as u32;
        for (size, wanted) in [
            (1300 - headers, Verdict::Forwarded),
            (1301 - headers, Verdict::TooLarge),
        ] {
            let mut buffer = host.buffer(&packet);
            buffer.link.gso_size = size;
            assert_eq!(host.take(buffer).0.verdict, wanted);
        }
    }
}

#[test]
fn without_a_way_a_packet_is_dropped_and_nothing_remembered() {
    for ends in ENDS {
        for proto in PROTOS {
            let no_route = TargetEntry {
                ifindex: 0,
                ..ends.entry(PRESERVE)
            };
            let no_source = TargetEntry {
                source: Addr::UNSPECIFIED,
                ..ends.entry(0)
            };
            for target in [no_route, no_source] {
                let rule = ends.rule(proto, 0).to_host(target);
                let host = Host::new(&[rule]);
                let passed = host.pass(&first(proto, &ends.open()), ETH0);
                assert_eq!(passed.verdict(), Verdict::NoRoute);
                assert!(host.memory.is_empty());
                assert_eq!(host.memory.counters(0), RuleCounters::default());
            }
            // No source is needed where the client's address is kept.
            let kept = TargetEntry {
                flags: PRESERVE,
                ..no_source
            };
            let host = Host::new(&[ends.rule(proto, 0).to_host(kept)]);
            assert_eq!(host.relayed(&first(proto, &ends.open())), ends.kept());

            let host = with_mtus(&ends, proto, &[(ETH0, 1500)]);
            let passed = host.pass(&first(proto, &ends.open()), ETH0);
            assert_eq!(passed.verdict(), Verdict::NoRoute, "the device is gone");
            assert!(host.memory.is_empty());
        }
    }
}

#[test]
fn an_answer_to_a_device_that_is_gone_is_dropped() {
    let host = with_mtus(&V4, Proto::Udp, &[(ETH0, 1500), (LAN, 1500)]);
    let passed = host.pass(&first(Proto::Udp, &V4.open()), ETH1);
    let reply = udp(&passed.tuple.reversed(), b"");
    assert_eq!(host.pass_back(&reply, LAN).verdict(), Verdict::NoRoute);
    // The client comes back by another one.
    host.relayed(&udp(&V4.open(), b""));
    assert_eq!(host.returned(&reply), V4.open().reversed());
}

#[test]
fn packets_count_for_their_rule_both_ways() {
    for ends in ENDS {
        for proto in PROTOS {
            let local = Forward::udp(81..=81, 5000);
            let host = Host::new(&[local, ends.rule(proto, 0)]);
            let open = ends.open();
            let packets = [first(proto, &open), second(proto, &open)];
            let seen = host.relayed(&packets[0]);
            let replies = [
                answer(proto, &seen.reversed()),
                second(proto, &seen.reversed()),
            ];
            host.returned(&replies[0]);
            let connections = |proto| u64::from(proto == Proto::Udp);
            assert_eq!(host.memory.counters(1).connections, connections(proto));
            host.relayed(&packets[1]);
            host.returned(&replies[1]);
            let bytes = |packets: &[Vec<u8>]| packets.iter().map(|p| p.len() as u64).sum();
            let wanted = RuleCounters {
                packets: 2,
                bytes: bytes(&packets),
                packets_back: 2,
                bytes_back: bytes(&replies),
                connections: 1,
            };
            assert_eq!(host.memory.counters(1), wanted, "{proto:?}");
            assert_eq!(host.memory.counters(0), RuleCounters::default());
        }
    }
}

#[test]
fn only_what_a_rule_claims_from_listed_sources_is_sent_on() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            let stranger = tuple(ends.client, ends.target);
            let elsewhere = Tuple {
                dport: 80,
                ..stranger
            };
            let packet = first(proto, &elsewhere);
            assert_eq!(host.arrive(&packet).0, Verdict::NotLocal);
            let other_port = Tuple {
                dport: 81,
                ..ends.open()
            };
            assert_eq!(host.arrive(&first(proto, &other_port)).0, Verdict::NoRule);
            let own = Tuple {
                src: ends.open().dst,
                ..ends.open()
            };
            let passed = host.pass(&first(proto, &own), LO);
            assert_eq!(passed.verdict(), Verdict::Unhooked);
            assert!(host.memory.is_empty());
        }
    }
    let choosy = V4.rule(Proto::Udp, 0).from(addr("10.0.0.0"), 104);
    let host = Host::new(&[choosy]);
    let packet = udp(&V4.open(), b"");
    assert_eq!(host.arrive(&packet).0, Verdict::NotListed);
    assert!(host.memory.is_empty());
}

#[test]
fn tcp_that_opens_nothing_has_no_place() {
    for ends in ENDS {
        let host = ends.host(Proto::Tcp, 0);
        for flags in [0, ACK, FIN | ACK, RST, RST | ACK, 2 | ACK, 2 | RST] {
            let packet = tcp(&ends.open(), flags, [1, 1], b"");
            assert_eq!(host.arrive(&packet).0, Verdict::Stray, "{flags:#x}");
            // Not even if it could not be sent on.
            let packet = hops(packet, 1);
            assert_eq!(host.arrive(&packet).0, Verdict::Stray, "{flags:#x}");
        }
        assert!(host.memory.is_empty());
    }
}

#[test]
fn a_rule_for_another_host_stands_beside_one_for_this_host() {
    for proto in PROTOS {
        let local = match proto {
            Proto::Tcp => Forward::tcp(80..=80, 5000).rewriting(),
            _ => Forward::udp(80..=80, 5000),
        };
        let host = Host::new(&[local, V4.rule_on(proto, 8080, 0)]);
        assert_eq!(host.forwarded(&first(proto, &V4.open())).dport, 5000);
        let open = Tuple {
            dport: 8080,
            ..V4.open()
        };
        let seen = host.relayed(&first(proto, &open));
        assert_eq!(seen, V4.masked());
        assert_eq!(
            host.answered(proto, &tuple(CLIENT, "192.0.2.1:5000")).sport,
            80
        );
        assert_eq!(
            host.returned(&answer(proto, &seen.reversed())),
            open.reversed()
        );
    }
}

#[test]
fn where_no_client_is_served_only_answers_are_taken() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, PRESERVE);
            let open = ends.open();
            let passed = host.pass_back(&first(proto, &open), ETH0);
            assert_eq!(passed.verdict(), Verdict::NoRule);
            let direct = host.pass_back(&first(proto, &ends.kept()), ETH0);
            assert_eq!(direct.verdict(), Verdict::NoRule);
            assert!(host.memory.is_empty());

            let seen = host.relayed(&first(proto, &open));
            let before = host.entries();
            let passed = host.pass_back(&second(proto, &open), ETH1);
            assert_eq!(passed.verdict(), Verdict::NoRule, "a client's next packet");
            host.assert_entries(&before);
            // From the target's port, and from its address, and no answer.
            let other = Tuple {
                dport: 4001,
                ..seen.reversed()
            };
            let passed = host.pass_back(&answer(proto, &other), LAN);
            assert_eq!(passed.verdict(), Verdict::NoRule);
            let passed = host.pass_back(&answer(proto, &seen.reversed()), ETH1);
            assert_eq!(passed.verdict(), Verdict::Returned);
            assert_eq!(passed.tuple, open.reversed());
        }
    }
}

#[test]
fn what_is_sent_on_makes_no_foreign_flow_as_it_leaves() {
    for ends in ENDS {
        for flags in [0, PRESERVE] {
            for proto in PROTOS {
                let host = ends.host(proto, flags);
                // The client's port is one that a rule listens on.
                let open = Tuple {
                    sport: 80,
                    ..ends.open()
                };
                let seen = host.relayed(&first(proto, &open));
                let leaves = |bytes: &[u8], ifindex| {
                    let mut buffer = host.buffer(bytes).on(ifindex);
                    buffer.link.forwarded = true;
                    host.send(buffer).0.verdict
                };
                assert_eq!(leaves(&first(proto, &seen), LAN), Verdict::Passing);
                let reply = host.returned(&answer(proto, &seen.reversed()));
                assert_eq!(leaves(&answer(proto, &reply), ETH0), Verdict::Passing);
                assert!(host.memory.foreigners().is_empty());
                // Its next packets are met as before.
                assert_eq!(host.relayed(&second(proto, &open)), seen);
            }
        }
    }
}

#[test]
fn a_target_port_that_is_a_listen_port_too_is_sent_on_once() {
    for proto in PROTOS {
        let rules = [V4.rule_on(proto, 80, 0), V4.rule_on(proto, 8080, 0)];
        let host = Host::without_sockets(&rules);
        let seen = there_and_back(&host, proto, &V4.open(), ETH0);
        assert_eq!(seen, V4.masked());
        // Nor is the target as a client mixed up with its own answers.
        let open = tuple("10.0.0.5:8080", "192.0.2.1:80");
        let again = there_and_back(&host, proto, &open, LAN);
        assert_eq!(again, tuple("10.0.0.1:8080", V4.target));
    }
}

#[test]
fn a_rule_that_keeps_the_port_is_like_any_other() {
    for ends in ENDS {
        for flags in [0, PRESERVE] {
            for proto in PROTOS {
                let host = Host::without_sockets(&[ends.rule_on(proto, 8080, flags)]);
                for sport in [4000, 8080] {
                    let open = Tuple {
                        sport,
                        dport: 8080,
                        ..ends.open()
                    };
                    let seen = there_and_back(&host, proto, &open, ETH0);
                    let wanted = if flags == 0 {
                        ends.masked()
                    } else {
                        ends.kept()
                    };
                    assert_eq!(seen, Tuple { sport, ..wanted });
                }
                // The target as a client of its own service.
                let open = Tuple {
                    src: ends.kept().dst,
                    sport: 8080,
                    dport: 8080,
                    ..ends.open()
                };
                let passed = host.pass(&first(proto, &open), LAN);
                assert_eq!(passed.verdict(), Verdict::Forwarded);
                assert_eq!(passed.tuple.src, ends.masked().src);
                let reply = answer(proto, &passed.tuple.reversed());
                let passed = host.pass(&reply, LAN);
                assert_eq!(passed.verdict(), Verdict::Returned);
                assert_eq!((passed.tuple, passed.ifindex()), (open.reversed(), LAN));
            }
        }
    }
}

/// Bytes of the headers of a segment without options.
fn headers(packet: &[u8]) -> usize {
    20 + if packet[0] >> 4 == 4 { 20 } else { 40 }
}

#[test]
fn tags_fragments_and_other_frames_pass() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            let seen = host.relayed(&first(proto, &ends.open()));
            let before = host.entries();
            for packet in [first(proto, &ends.open()), answer(proto, &seen.reversed())] {
                let mut tagged = host.buffer(&packet);
                tagged.link.vlan = true;
                assert_eq!(host.take(tagged).0.verdict, Verdict::Vlan);
                let mut other = host.buffer(&packet);
                other.link.for_host = false;
                assert_eq!(host.take(other).0.verdict, Verdict::NotForHost);
                let mut fragment = packet.clone();
                if fragment[0] >> 4 == 4 {
                    fragment[6] = 0x20;
                } else {
                    fragment[6] = 44;
                }
                assert_eq!(host.arrive(&fragment).0, Verdict::Fragment);
                for length in 44..packet.len() {
                    let verdict = host.pass_back(&packet[..length], LAN).verdict();
                    let cut_off = proto == Proto::Udp || length < headers(&packet);
                    assert!(!cut_off || verdict == Verdict::Malformed, "{length}");
                }
            }
            host.assert_entries(&before);
        }
    }
}

#[test]
fn a_packet_from_an_address_of_this_host_or_of_none_is_left_to_the_stack() {
    for (ends, sources) in [
        (V4, ["192.0.2.2:40002", "10.255.255.255:9", "0.0.0.0:9"]),
        (V6, ["[2001:db8::2]:40002", "[ff02::1]:9", "[::]:9"]),
    ] {
        let [own, .., none] = sources;
        for source in [own, none] {
            for proto in [Proto::Udp, Proto::Tcp] {
                let host = ends.host(proto, TargetEntry::PRESERVE);
                let passed = host.pass(&first(proto, &tuple(source, ends.dialled)), ETH0);
                assert_eq!(passed.verdict(), Verdict::Martian, "{source}");
                assert!(host.entries().is_empty());
            }
        }
    }
}

#[test]
fn a_client_is_answered_where_its_network_is() {
    const ELSEWHERE: u32 = 9;
    for ends in ENDS {
        for proto in [Proto::Udp, Proto::Tcp] {
            let host = ends.host(proto, 0);
            let open = ends.open();
            host.memory.homes.borrow_mut().push((open.src, ETH0));
            // Its address, borrowed by one on another device.
            let seen = host.pass(&first(proto, &open), ELSEWHERE).tuple;
            let back = host.pass(&answer(proto, &seen.reversed()), LAN);
            assert_eq!(back.ifindex(), ETH0);
            let live = host.pass(&second(proto, &open), ETH0).tuple;
            assert_eq!(live, seen);
            host.pass(&second(proto, &open), ELSEWHERE);
            let back = host.pass(&second(proto, &seen.reversed()), LAN);
            assert_eq!(back.ifindex(), ETH0);
        }
    }
}

#[test]
fn a_client_whose_network_is_that_of_the_target_is_masqueraded_wherever_it_comes_in() {
    for ends in ENDS {
        let host = ends.host(Proto::Udp, TargetEntry::PRESERVE_ACROSS);
        host.memory.homes.borrow_mut().push((ends.open().src, LAN));
        let seen = host.relayed(&first(Proto::Udp, &ends.open()));
        assert_eq!(seen, ends.masked());
    }
}
