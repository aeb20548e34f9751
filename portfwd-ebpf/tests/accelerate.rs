//! The short walk: what it forwards is what TC would have made of it, and what
//! it does not is left as it came. Each packet here is judged by a second host
//! that has no accelerator (`common/pair.rs`).

mod common;

use common::{
    CLIENT, DIALLED, ENDS, ETH0, ETH1, Host, LAN, answer, checksum, first, hops,
    pair::{
        FLAGS, Pair,
        Road::{self, Tc, Xdp},
        Scene, each, each_warm, neighbour, packet_of,
    },
    second, set_checksum, syn, tcp, tuple, udp,
};
use portfwd_common::{Flow, Proto, RuleCounters, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::Forward,
    packet::{ACK, FIN, RST, SYN, Tuple},
    tables::Table,
};

#[test]
fn a_known_flow_is_forwarded_there_and_back() {
    each_warm(|scene| {
        for len in [0, 1, 2, 33, 1_000] {
            let payload = vec![0xa5; len];
            let there = packet_of(scene.proto, &scene.open, &payload);
            let went = scene.there(&there);
            assert_eq!(went.road, Xdp);
            assert_eq!(went.passed.verdict(), Verdict::Forwarded);
            assert_eq!(went.passed.tuple, scene.seen);
            assert_eq!(went.link.expect("a frame").dst, neighbour(LAN));
            let back = packet_of(scene.proto, &scene.seen.reversed(), &payload);
            let went = scene.back(&back);
            assert_eq!(went.road, Xdp);
            assert_eq!(went.passed.verdict(), Verdict::Returned);
            assert_eq!(went.passed.tuple, scene.open.reversed());
            assert_eq!(went.link.expect("a frame").dst, neighbour(ETH0));
        }
    });
}

#[test]
fn what_is_forwarded_counts_for_the_rule() {
    each_warm(|scene| {
        let count = |host: &Host| host.memory.counters(0);
        let before = count(&scene.pair.with);
        let (there, back) = (scene.packet(), scene.reply());
        for _ in 0..5 {
            assert_eq!(scene.there(&there).road, Xdp);
        }
        for _ in 0..3 {
            assert_eq!(scene.back(&back).road, Xdp);
        }
        let added = RuleCounters {
            packets: 5,
            bytes: 5 * there.len() as u64,
            packets_back: 3,
            bytes_back: 3 * back.len() as u64,
            connections: 0,
        };
        assert_eq!(count(&scene.pair.with), before + added);
    });
}

#[test]
fn datagrams_go_on_before_the_flow_is_proved() {
    for ends in ENDS {
        for flags in FLAGS {
            let scene = Scene::open(ends, Proto::Udp, flags);
            for _ in 0..3 {
                assert_eq!(scene.there(&scene.packet()).road, Xdp);
            }
            // The first answer is remembered, those behind it change nothing.
            let reply = answer(Proto::Udp, &scene.seen.reversed());
            for road in [Tc, Xdp, Xdp] {
                assert_eq!(scene.back(&reply).road, road);
            }
            // The client's next proves it, and takes the hop of the reply along.
            for road in [Tc, Xdp, Xdp] {
                assert_eq!(scene.there(&scene.packet()).road, road);
            }
            for road in [Tc, Xdp] {
                assert_eq!(scene.back(&reply).road, road);
            }
        }
    }
}

#[test]
fn a_flow_that_is_not_proved_is_written_down_each_second() {
    for ends in ENDS {
        let scene = Scene::open(ends, Proto::Udp, 0);
        let other = Tuple {
            sport: 4001,
            ..scene.open
        };
        for _ in 0..3 {
            scene.pair.wait(1);
            // The next hop is confirmed by another flow.
            assert_eq!(scene.there(&udp(&other, b"hello")).road, Tc);
            for road in [Tc, Xdp] {
                assert_eq!(scene.there(&scene.packet()).road, road);
            }
        }
    }
}

#[test]
fn a_handshake_goes_by_tc_to_its_end() {
    each(|ends, proto| {
        if proto != Proto::Tcp {
            return;
        }
        let scene = Scene::open(ends, proto, 0);
        let (there, back) = (scene.open, scene.seen.reversed());
        for bytes in [syn(&there), tcp(&there, ACK, [101, 9], b"early")] {
            assert_eq!(scene.there(&bytes).road, Tc);
        }
        for bytes in [answer(proto, &back), tcp(&back, ACK, [701, 101], b"early")] {
            assert_eq!(scene.back(&bytes).road, Tc);
        }
        // An acknowledgement of something else proves nothing.
        let wrong = tcp(&there, ACK, [101, 702], b"");
        assert_eq!(scene.there(&wrong).road, Tc);
        assert_eq!(scene.pair.with.memory.len(Table::Flows), 0);
        for road in [Tc, Xdp] {
            assert_eq!(scene.there(&scene.packet()).road, road);
        }
        assert_eq!(scene.pair.with.memory.len(Table::Flows), 2);
    });
}

#[test]
fn the_next_handshake_from_the_same_port_goes_by_tc_to_its_end() {
    for ends in ENDS {
        let scene = Scene::warm(ends, Proto::Tcp, 0);
        let again = tcp(&scene.seen.reversed(), SYN | ACK, [9_700, 101], b"");
        assert_eq!(scene.there(&syn(&scene.open)).road, Tc);
        assert_eq!(scene.back(&again).road, Tc);
        for (ack, road) in [(701, Tc), (9_701, Tc), (9_701, Xdp)] {
            let packet = tcp(&scene.open, ACK, [101, ack], b"data");
            assert_eq!(scene.there(&packet).road, road, "{ack}");
        }
    }
}

#[test]
fn tcp_that_turns_goes_by_tc() {
    for ends in ENDS {
        for flags in 0..=u8::MAX {
            let goes_on = flags & (SYN | FIN | RST | ACK) == ACK;
            let road = if goes_on { Xdp } else { Tc };
            let flagged = |tuple: &Tuple| {
                let mut bytes = tcp(tuple, flags & 0x17, [101, 701], b"data");
                let at = bytes.len() - 4 - 20 + 13;
                let sum = u32::from(!checksum(&bytes)) + u32::from(flags - bytes[at]);
                bytes[at] = flags;
                set_checksum(&mut bytes, !((sum >> 16) + (sum & 0xffff)) as u16);
                bytes
            };
            let scene = Scene::warm(ends, Proto::Tcp, 0);
            assert_eq!(scene.there(&flagged(&scene.open)).road, road, "{flags:#x}");
            let scene = Scene::warm(ends, Proto::Tcp, 0);
            let back = flagged(&scene.seen.reversed());
            assert_eq!(scene.back(&back).road, road, "{flags:#x}");
        }
    }
}

#[test]
fn a_connection_that_one_end_has_closed_goes_on_until_the_other_does() {
    for ends in ENDS {
        let scene = Scene::warm(ends, Proto::Tcp, 0);
        let fin = |tuple: &Tuple| tcp(tuple, FIN | ACK, [101, 701], b"");
        assert_eq!(scene.there(&fin(&scene.open)).road, Tc);
        assert_eq!(scene.roads(), [Xdp, Xdp]);
        assert_eq!(scene.back(&fin(&scene.seen.reversed())).road, Tc);
        // Its tuple may soon be another's: each packet is written down.
        for _ in 0..3 {
            assert_eq!(scene.roads(), [Tc, Tc]);
            scene.pair.wait(1);
        }
    }
}

#[test]
fn what_follows_a_reset_goes_by_tc_until_one_takes_it_back() {
    for ends in ENDS {
        let scene = Scene::warm(ends, Proto::Tcp, 0);
        let reset = tcp(&scene.open, RST, [101, 0], b"");
        assert_eq!(scene.there(&reset).road, Tc);
        assert_eq!(scene.roads(), [Tc, Xdp]);
        let reset = tcp(&scene.seen.reversed(), RST, [701, 0], b"");
        assert_eq!(scene.back(&reset).road, Tc);
        assert_eq!(scene.back(&scene.reply()).road, Tc);
        assert_eq!(scene.roads(), [Xdp, Xdp]);
    }
}

#[test]
fn without_a_flow_nothing_is_forwarded() {
    each(|ends, proto| {
        let pair = Pair::new(|| ends.host(proto, 0));
        let reply = second(proto, &ends.masked().reversed());
        let to_nobody = Tuple {
            dport: 99,
            ..ends.open()
        };
        for (bytes, ifindex) in [
            (second(proto, &to_nobody), ETH0),
            (reply, LAN),
            (first(proto, &ends.open()), ETH0),
        ] {
            assert_eq!(pair.pass(&bytes, ifindex).road, Tc);
        }
    });
}

#[test]
fn another_protocol_or_tuple_is_another_flow() {
    each_warm(|scene| {
        let Tuple { sport, .. } = scene.open;
        let others = [
            Tuple {
                sport: sport + 1,
                ..scene.open
            },
            Tuple {
                dport: 8080,
                ..scene.open
            },
            scene.open.reversed(),
        ];
        for other in others {
            assert_eq!(scene.there(&second(scene.proto, &other)).road, Tc);
        }
        let other = match scene.proto {
            Proto::Tcp => Proto::Udp,
            _ => Proto::Tcp,
        };
        assert_eq!(scene.there(&second(other, &scene.open)).road, Tc);
        assert_eq!(scene.back(&second(other, &scene.seen.reversed())).road, Tc);
    });
}

#[test]
fn by_a_device_without_an_mtu_nothing_is_sent() {
    each_warm(|scene| {
        scene.pair.set_device(LAN, |device| device.mtu = 0);
        assert_eq!(scene.roads(), [Tc, Xdp]);
        scene.pair.set_device(ETH0, |device| device.mtu = 0);
        assert_eq!(scene.roads(), [Tc, Tc]);
        // Not even what says of itself that it has no length.
        if scene.open.src.family() == portfwd_common::Family::V4 {
            let mut packet = scene.packet();
            packet[2..4].fill(0);
            assert_eq!(scene.there(&hops(packet, 61)).road, Tc);
        }
    });
}

#[test]
fn a_flow_whose_last_packet_is_not_written_down_for_8_s_goes_by_tc() {
    each_warm(|scene| {
        let other = Tuple {
            sport: 4001,
            ..scene.open
        };
        for (seconds, road) in [(8, Xdp), (9, Tc), (8, Xdp), (1, Tc), (20, Tc)] {
            scene.pair.wait(seconds);
            // Another flow confirms both next hops in this second.
            let seen = scene.there(&first(scene.proto, &other)).passed.tuple;
            scene.back(&answer(scene.proto, &seen.reversed()));
            assert_eq!(scene.roads(), [road, Xdp], "{seconds}");
            assert_eq!(scene.roads(), [Xdp, Xdp], "{seconds}");
        }
    });
}

#[test]
fn a_flow_of_another_rule_in_the_slot_goes_by_tc() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let mut rule = ends.rule(proto, 0);
        rule.generation = 2;
        scene.pair.each(|host| host.memory.add(0, &rule));
        // As after each change of rules.
        scene.pair.with.memory.epoch.set(2);
        assert_eq!(scene.roads(), [Tc, Tc]);
        // TCP goes on, UDP begins anew.
        let road = if proto == Proto::Tcp { Xdp } else { Tc };
        assert_eq!(scene.there(&scene.packet()).road, road);
    });
}

#[test]
fn a_client_that_comes_in_by_another_interface_goes_by_tc() {
    each_warm(|scene| {
        let pair = &scene.pair;
        for ifindex in [ETH1, ETH0, LAN, ETH1] {
            let roads = [Tc, Xdp].map(|road| (road, ifindex));
            for (road, ifindex) in roads {
                let went = pair.pass(&scene.packet(), ifindex);
                assert_eq!((went.road, went.passed.ifindex()), (road, LAN));
            }
            for road in [Tc, Xdp] {
                let went = scene.back(&scene.reply());
                assert_eq!((went.road, went.passed.ifindex()), (road, ifindex));
                assert_eq!(went.link.expect("a frame").dst, neighbour(ifindex));
            }
        }
    });
}

#[test]
fn replies_may_come_by_any_interface() {
    each_warm(|scene| {
        for ifindex in [ETH0, ETH1, LAN] {
            let went = scene.pair.pass(&scene.reply(), ifindex);
            assert_eq!((went.road, went.passed.ifindex()), (Xdp, ETH0));
        }
    });
}

#[test]
fn a_target_that_moves_takes_its_flows_along() {
    each_warm(|scene| {
        let moved = TargetEntry {
            ifindex: ETH1,
            ..scene.ends.entry(0)
        };
        scene.pair.each(|host| host.memory.set_target(0, moved));
        for road in [Tc, Xdp] {
            let went = scene.there(&scene.packet());
            assert_eq!((went.road, went.passed.ifindex()), (road, ETH1));
        }
        let gone = TargetEntry {
            ifindex: 0,
            ..moved
        };
        scene.pair.each(|host| host.memory.set_target(0, gone));
        let went = scene.there(&scene.packet());
        assert_eq!(went.passed.verdict(), Verdict::NoRoute);
        assert_eq!(went.road, Tc);
    });
}

#[test]
fn flows_to_this_host_go_by_tc() {
    for rule in [
        Forward::udp(80..=80, 5000),
        Forward::tcp(80..=80, 5000).rewriting(),
    ] {
        let proto = rule.proto;
        let pair = Pair::new(|| Host::new(std::slice::from_ref(&rule)));
        let open = tuple(CLIENT, DIALLED);
        assert_eq!(pair.pass(&first(proto, &open), ETH0).road, Tc);
        pair.each(|host| {
            let seen = tuple(CLIENT, common::TARGET);
            let (verdict, _) = host.depart(&answer(proto, &seen.reversed()));
            assert_eq!(verdict, Verdict::Restored);
        });
        for _ in 0..3 {
            let went = pair.pass(&second(proto, &open), ETH0);
            assert_eq!(went.passed.verdict(), Verdict::Rewritten);
            assert_eq!(went.road, Tc);
        }
        assert_eq!(pair.with.memory.len(Table::Flows), 2);
    }
}

#[test]
fn direct_flows_go_by_tc() {
    each(|ends, proto| {
        let pair = Pair::new(|| ends.host(proto, TargetEntry::PRESERVE));
        let direct = ends.kept();
        for bytes in [first, second, second] {
            let went = pair.pass(&bytes(proto, &direct), ETH0);
            assert_eq!((went.road, went.passed.verdict()), (Tc, Verdict::Direct));
        }
        let replies = [answer, second, second];
        for bytes in replies {
            let went = pair.pass(&bytes(proto, &direct.reversed()), LAN);
            assert_eq!((went.road, went.passed.verdict()), (Tc, Verdict::Direct));
        }
        for (_, flow) in pair.with.memory.entries(Table::New) {
            assert_ne!(flow.flags & Flow::DIRECT, 0);
        }
    });
}

#[test]
fn where_clients_are_not_served_replies_are_forwarded_all_the_same() {
    each(|ends, proto| {
        let mut pair = Pair::new(|| ends.host(proto, 0));
        pair.back.push(LAN);
        let scene = Scene::on(pair, ends, proto);
        scene.back(&answer(proto, &scene.seen.reversed()));
        let roads: [[Road; 2]; 3] = std::array::from_fn(|_| scene.roads());
        assert_eq!(roads[2], [Xdp, Xdp]);
    });
}

/// The way to the client's network leads by a device where none is served: what
/// comes in there is no client's, whatever its tuple.
#[test]
fn a_client_is_served_where_it_is_and_not_where_it_is_answered() {
    each(|ends, proto| {
        let mut pair = Pair::new(|| {
            let host = ends.host(proto, 0);
            host.memory.homes.borrow_mut().push((ends.open().src, ETH1));
            host
        });
        pair.back.extend([ETH1, LAN]);
        let scene = Scene::on(pair, ends, proto);
        scene.back(&answer(proto, &scene.seen.reversed()));
        for _ in 0..3 {
            let went = scene.there(&scene.packet());
            assert_eq!((went.road, went.passed.ifindex()), (Tc, LAN));
            let went = scene.pair.pass(&scene.packet(), ETH1);
            assert_eq!((went.road, went.passed.verdict()), (Tc, Verdict::NoRule));
        }
        scene.back(&scene.reply());
        let went = scene.back(&scene.reply());
        assert_eq!((went.road, went.passed.ifindex()), (Xdp, ETH1));
    });
}
