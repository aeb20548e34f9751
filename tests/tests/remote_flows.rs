//! Flows to another host: by which device they go, which may share a port,
//! how they begin and end, and what is counted of them.

use std::{collections::BTreeSet, io, net::SocketAddr, time::Duration};

use portfwd_tests::{
    Capture, Conversation, Dial, Family, Keep, Listen, Manner, Nat, Place, Site, State, UdpClient,
    Who, World,
    bpf::{Side, programs},
    relay::{DIALLED, SERVICE, rules},
    world::{OUTSIDE, stranger},
};

#[test]
fn a_host_with_two_providers_answers_by_the_one_that_the_client_came_by_over_ipv4() {
    answers_by_the_same_provider(Family::V4);
}

/// Here the kernel prefers the route of the lower metric to the one by the
/// interface that is asked for.
#[test]
fn a_host_with_two_providers_answers_by_the_one_that_the_client_came_by_over_ipv6() {
    answers_by_the_same_provider(Family::V6);
}

#[track_caller]
fn answers_by_the_same_provider(family: Family) {
    const BY_FIRST: u32 = 1;
    const BY_SECOND: u32 = 2;
    const BY_BOTH: u32 = 3;
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let target = world.join_third();
        let _services = target.services(SERVICE);
        let second = world.behind();
        world.host.ns.ip(&format!(
            "route add default via {} metric 4096\nroute add default via {} metric 4096",
            second.v4, second.v6,
        ));
        let providers = [(&world.client, BY_FIRST), (second, BY_SECOND)];
        for (provider, number) in providers {
            for number in [number, BY_BOTH] {
                provider.add_address(stranger(family, number));
            }
        }
        let _portfwd = world.host.relay(nat, &target.rules());
        let captures = providers.map(|(node, _)| Capture::start(&node.ns, Keep::Everything));
        let own = [world.host.address(family), world.inside_address(family)];
        let mut talks = Vec::new();
        for ((provider, number), own) in providers.into_iter().zip(own) {
            let remote = SocketAddr::new(own, DIALLED);
            for number in [number, BY_BOTH] {
                let from = stranger(family, number);
                let case = format!("{nat:?} {from} to {remote}");
                // The two that are one client use one port as well.
                let talk = provider.tcp(remote).from(from).from_port(41_000).open();
                talks.push(talk.unwrap_or_else(|error| panic!("{case}: {error}")));
                let local = SocketAddr::new(from, 41_000);
                let client = UdpClient::bound(&provider.ns, local);
                let reply = client.ask(remote, b"hello");
                reply.unwrap_or_else(|error| panic!("{case}: {error}"));
            }
        }
        for talk in &mut talks {
            assert!(talk.echoes("by the same way"), "{nat:?} {talk:?}");
        }
        for (capture, other) in captures.iter().zip(own.into_iter().rev()) {
            let other = SocketAddr::new(other, DIALLED);
            let strays = capture.packets(|packet| packet.comes_from(other));
            assert!(
                strays.is_empty(),
                "{nat:?}: by the wrong provider: {strays:?}"
            );
        }
    }
}

#[test]
fn a_borrowed_address_of_a_listed_network_gets_no_answer_elsewhere() {
    for nat in Nat::ALL {
        let world = World::forwarder();
        let target = world.join_third();
        let _services = target.services(SERVICE);
        let listed = "--from 192.0.2.0/24,2001:db8:a::/64";
        let _portfwd = world
            .host
            .relay(nat, &format!("{listed} {}", target.rules()));
        let patience = Duration::from_millis(700);
        for family in Family::BOTH {
            let case = format!("{nat:?} {family:?}");
            let served = world.client.tcp(world.host.at(family, DIALLED)).open();
            assert!(served.is_ok(), "{case}: who is listed: {served:?}");

            let borrowed = OUTSIDE.address(family, 77);
            let guest = world.behind();
            guest.add_address(borrowed);
            let remote = SocketAddr::new(world.inside_address(family), DIALLED);
            let tcp = guest.tcp(remote).from(borrowed).timeout(patience).open();
            assert!(tcp.is_err(), "{case}: {tcp:?}");
            let client = UdpClient::bound(&guest.ns, SocketAddr::new(borrowed, 0));
            let reply = client.timeout(patience).ask(remote, b"hello");
            assert!(reply.is_err(), "{case}: {reply:?}");
        }
    }
}

#[test]
fn a_named_interface_serves_its_clients_alone_and_the_answer_comes_by_any() {
    for nat in Nat::ALL {
        let world = World::forwarder();
        let _services = world.behind().services(SERVICE);
        let rules = world.behind().rules();
        let _portfwd = world.host.relay(nat, &format!("-i eth0 {rules}"));
        for family in Family::BOTH {
            let remote = world.host.at(family, DIALLED);
            let mut talk = world.client.tcp(remote).open().expect("served over TCP");
            assert!(talk.echoes("hello"), "{nat:?} {remote}");
            let client = world.client.udp(family);
            client.ask(remote, b"hello").expect("served over UDP");

            let inside = SocketAddr::new(world.inside_address(family), DIALLED);
            assert!(world.behind().tcp(inside).is_refused(), "{nat:?} {inside}");
            let client = world.behind().udp(family).connected(inside);
            let error = client.ask(inside, b"hello").expect_err("not named");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{nat:?}");
        }
    }
}

#[test]
fn a_port_is_used_again_at_once_after_either_end_closed() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let server = world
            .behind()
            .tcp_server_builder(Listen::DualStack, SERVICE);
        let _service = server.manner(Manner::CloseFirst).start();
        let echo = world.behind().tcp_server(Listen::DualStack, 81);
        let other = rules(|family| format!("8081:{}", world.behind().at(family, 81)));
        let args = format!("{} {other}", world.behind().rules());
        let portfwd = world.host.relay(nat, &args);
        for family in Family::BOTH {
            let mut slowest = Duration::ZERO;
            for port in (42_000..42_005).cycle().take(50) {
                let case = format!("{nat:?} {family:?} from {port}");
                let start = std::time::Instant::now();
                let dial = world.client.tcp(world.host.at(family, DIALLED));
                let talk = dial.from_port(port).open();
                let talk = talk.unwrap_or_else(|error| panic!("{case}: {error}"));
                slowest = slowest.max(start.elapsed());
                talk.until_closed().expect("closed in order");

                let dial = world.client.tcp(world.host.at(family, 8081));
                let talk = dial.from_port(port).ending_with_reset().open();
                let mut talk = talk.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert!(talk.echoes("hello"), "{case}");
            }
            assert!(
                slowest < Duration::from_millis(200),
                "{nat:?} {family:?}: {slowest:?}"
            );
        }
        assert_eq!(echo.served().len(), 100);
        portfwd.stop();
    }
}

/// Two rules lead to the target's port, and the host routes to it as well.
const TARGET: u16 = 8080;

#[test]
fn one_client_port_talks_to_two_rules_of_a_target_at_once() {
    for nat in Nat::FORCED {
        from_one_port(nat, false, talk_at_once);
        from_one_port(nat, false, datagrams_at_once);
    }
}

#[test]
fn one_client_port_talks_to_two_rules_and_past_them_to_the_target_at_once() {
    from_one_port(Nat::Preserve, true, talk_at_once);
}

#[test]
fn one_client_port_asks_two_rules_and_past_them_the_target_at_once() {
    from_one_port(Nat::Preserve, true, datagrams_at_once);
}

type AtOnce = fn(&World, Family, u16, &[SocketAddr]);

/// To both rules, and if the host is a router also to the target's own
/// address, in several orders.
#[track_caller]
fn from_one_port(nat: Nat, router: bool, at_once: AtOnce) {
    let world = World::router();
    world.host.forwarding(router);
    let _services = world.behind().services(TARGET);
    let rules = rules(|family| {
        let target = world.behind().at(family, TARGET);
        format!("80:{target}/tcp+udp 8080:{target}/tcp+udp")
    });
    let _portfwd = world.host.relay(nat, &rules);
    let mut port = 43_000;
    for family in Family::BOTH {
        let [one, other] = [80, 8080].map(|port| world.host.at(family, port));
        let direct = world.behind().at(family, TARGET);
        let orders = if router {
            vec![
                vec![one, other, direct],
                vec![direct, other, one],
                vec![one, direct, other],
            ]
        } else {
            vec![vec![one, other], vec![other, one]]
        };
        for order in orders {
            port += 1;
            at_once(&world, family, port, &order);
        }
    }
}

/// Connections from one port, each of them opened twice.
#[track_caller]
fn talk_at_once(world: &World, _: Family, port: u16, order: &[SocketAddr]) {
    let open = |remote: SocketAddr| {
        let dial = world.client.tcp(remote).from_port(port);
        let talk = dial.ending_with_reset().open();
        talk.unwrap_or_else(|error| panic!("from {port} to {remote} of {order:?}: {error}"))
    };
    let mut talks: Vec<_> = order.iter().copied().map(open).collect();
    let all_echo = |talks: &mut [Conversation]| {
        for (talk, remote) in talks.iter_mut().zip(order) {
            let echoes = talk.echoes(&format!("to {remote}"));
            assert!(echoes, "from {port} to {remote} of {order:?}");
        }
    };
    all_echo(&mut talks);
    for (index, remote) in order.iter().enumerate() {
        talks.remove(index).abort();
        talks.insert(index, open(*remote));
        all_echo(&mut talks);
    }
}

#[track_caller]
fn datagrams_at_once(world: &World, family: Family, port: u16, order: &[SocketAddr]) {
    let connect = |remote: &SocketAddr| world.client.udp_from(family, port).connected(*remote);
    let clients: Vec<_> = order.iter().map(connect).collect();
    let mut seen = Vec::new();
    for _ in 0..3 {
        for (client, remote) in clients.iter().zip(order) {
            let text = format!("to {remote}");
            let reply = client.ask(*remote, text.as_bytes());
            let reply =
                reply.unwrap_or_else(|error| panic!("from {port} {text} of {order:?}: {error}"));
            seen.push(reply.server.expect("a name").peer);
        }
    }
    let (first, later) = seen.split_at(order.len());
    assert!(
        later.chunks(order.len()).all(|round| round == first),
        "{seen:?}"
    );
    let distinct: BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), order.len(), "{order:?}: {first:?}");
}

#[test]
fn after_kill_9_the_next_start_works_at_once_and_nothing_is_left() {
    let site = Site::new(Place::AnotherInterface);
    let ns = &site.host.ns;
    let standing = || {
        let sides = [Side::Ingress, Side::Egress];
        let of = |device| sides.map(|side| programs(ns, device, side).len());
        ["eth0", "eth1", "lo"].map(of)
    };
    let served = |who: Who| {
        let remote = site.host.at(Family::V4, DIALLED);
        match who {
            Who::Host => {
                let calls = [(portfwd_tests::Call::Tcp, remote)];
                site.cgroup.call(ns, &calls).remove(0).is_ok()
            }
            _ => site.node(who).tcp(remote).open().is_ok(),
        }
    };
    let before = State::of(ns);
    for nat in Nat::ALL {
        let dead = site.portfwd(nat);
        let during = standing();
        assert!(served(Who::Remote) && served(Who::Host));
        dead.kill9();
        assert!(!served(Who::Host), "no hook outlives its owner");
        let next = site.portfwd(nat);
        assert_eq!(standing(), during, "none of the dead run's");
        assert!(served(Who::Remote) && served(Who::Host));
        assert_eq!(next.stop().stderr, "");
        before.assert_unchanged(&State::of(ns), "afterwards");
        assert!(!served(Who::Remote) && !served(Who::Host));
    }
}

#[test]
fn packets_bytes_and_connections_are_counted_as_on_the_wire() {
    for nat in Nat::FORCED {
        for family in Family::BOTH {
            let world = World::forwarder();
            for node in [&world.client, world.behind()] {
                node.without_offloads();
            }
            let _services = world.behind().services(SERVICE);
            let portfwd = world.relay(nat);
            let capture = Capture::start(&world.client.ns, Keep::Everything);
            let remote = world.host.at(family, DIALLED);
            for length in [100, 1 << 20, 3 << 20] {
                let talk = world.client.tcp(remote).open().expect("served over TCP");
                let (sent, received) = talk.exchange(length).expect("echoed");
                assert_eq!(sent, received);
            }
            for length in [0, 1, 1000] {
                let client = world.client.udp(family);
                for _ in 0..3 {
                    let reply = client.ask(remote, &vec![b'x'; length]);
                    reply.expect("served over UDP");
                }
            }
            for node in [&world.client, world.behind()] {
                node.ns.until_connections_end();
            }
            let output = portfwd.stop();
            let report = capture.finish();
            assert_eq!(report.dropped, 0, "the capture has to be complete");
            let mut expected = [[0, 0]; 2];
            for packet in &report.packets {
                if packet.goes_to(remote) || packet.comes_from(remote) {
                    let [packets, bytes] = &mut expected[usize::from(!packet.outgoing)];
                    (*packets, *bytes) = (*packets + 1, *bytes + packet.bytes.len() as u64);
                }
            }
            let counter = |column| {
                let count = output.rule_counter(&world.behind().rule(family), column);
                count.unwrap_or_else(|| panic!("no {column}\n{output}"))
            };
            let counted = ["packets", "bytes", "packets back", "bytes back"].map(counter);
            let case = format!("{nat:?} {family:?}\n{output}");
            assert_eq!(counted.as_slice(), expected.as_flattened(), "{case}");
            assert_eq!(counter("connections"), 6, "{case}");
            assert_eq!(output.stderr, "");
        }
    }
}

#[test]
fn the_host_itself_uses_the_port_of_a_masqueraded_flow() {
    let world = World::forwarder();
    let _services = world.behind().services(SERVICE);
    let portfwd = world.relay(Nat::Masquerade);
    for family in Family::BOTH {
        let (remote, target) = (
            world.host.at(family, DIALLED),
            world.behind().at(family, SERVICE),
        );
        // The flow comes first.
        let mut flow = world
            .client
            .tcp(remote)
            .from_port(44_001)
            .open()
            .expect("served");
        let port = flow.server.peer.port();
        let own = Dial::new(&world.host.ns, target).from_port(port).open();
        let mut own = own.unwrap_or_else(|error| panic!("{family:?} from {port}: {error}"));
        alive(&mut flow, &mut own);
        // The host's own connection comes first.
        let own = Dial::new(&world.host.ns, target).from_port(44_002).open();
        let flow = world.client.tcp(remote).from_port(44_002).open();
        alive(
            &mut flow.expect("served"),
            &mut own.expect("the host's own"),
        );

        let client = world.client.udp_from(family, 44_003);
        let seen = |client: &UdpClient, remote, text: &str| {
            let reply = client.ask(remote, text.as_bytes());
            let reply = reply.unwrap_or_else(|error| panic!("{remote} {text}: {error}"));
            reply.server.expect("a name").peer
        };
        let flow = seen(&client, remote, "the flow first");
        let own = world.host.udp_from(family, flow.port()).connected(target);
        let direct = seen(&own, target, "then the host");
        assert_ne!(flow, direct, "the target tells them apart");
        for _ in 0..3 {
            assert_eq!(seen(&client, remote, "the flow again"), flow);
            assert_eq!(seen(&own, target, "the host again"), direct);
        }
        let own = world.host.udp_from(family, 44_004).connected(target);
        let client = world.client.udp_from(family, 44_004);
        let direct = seen(&own, target, "the host first");
        let flow = seen(&client, remote, "then the flow");
        assert_ne!(flow, direct, "the target tells them apart");
        for _ in 0..3 {
            assert_eq!(seen(&own, target, "the host again"), direct);
            assert_eq!(seen(&client, remote, "the flow again"), flow);
        }
    }
    let output = portfwd.stop();
    assert_eq!(output.verdict("no-port"), 0, "{output}");
}

#[track_caller]
fn alive(flow: &mut Conversation, own: &mut Conversation) {
    assert_ne!(
        flow.server.peer, own.server.peer,
        "the target tells them apart"
    );
    for _ in 0..3 {
        assert!(flow.echoes("the flow"), "{flow:?} beside {own:?}");
        assert!(own.echoes("the host's own"), "{own:?} beside {flow:?}");
    }
}

#[test]
fn it_says_which_clients_are_kept_and_why() {
    for (place, words) in [
        (
            Place::AnotherInterface,
            ["preserve", "on-link eth1", "masquerade for clients on eth1"],
        ),
        (
            Place::Container,
            ["preserve", "on-link br0", "masquerade for clients on br0"],
        ),
        (
            Place::BehindGateway,
            ["auto", "masquerade", "198.51.100.254"],
        ),
        (Place::SameInterface, ["auto", "masquerade", "eth0"]),
    ] {
        let site = Site::new(place);
        let printed = site.portfwd(Nat::Auto).stop().stdout;
        for word in words {
            assert!(
                printed.contains(word),
                "{place:?} without {word}:\n{printed}"
            );
        }
    }
}
