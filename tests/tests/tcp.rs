//! TCP to sockets of this host: who is served, what is left alone, and what is
//! counted; steered and rewritten.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use etherparse::{LaxIpSlice, TcpHeaderSlice};
use portfwd_tests::{
    Bystander, Capture, Conversation, Family, Frame, Identity, Keep, Listen, Manner, Netns, Packet,
    Portfwd, Tcp, UdpListen, Watch, Way, World, bpf::Side, until,
};

/// Makes the loads as long as the promises, instead of quick.
const LONG: &str = "PORTFWD_TEST_LONG";

/// The largest packet of the worlds' devices.
const MTU: usize = 1500;

/// How long a client waits for an answer that may not come.
const IMPATIENT: Duration = Duration::from_millis(400);

const REMOTE: [Way; 2] = [Way::Remote(Family::V4), Way::Remote(Family::V6)];

/// Opens a connection to the host and proves it in both directions.
#[track_caller]
fn served(world: &World, way: Way, port: u16) -> Conversation {
    let mut talk = world
        .tcp(way, port)
        .open()
        .unwrap_or_else(|error| panic!("{way:?} to port {port}: {error}"));
    assert!(talk.echoes("hello"), "{way:?} to port {port}: {talk:?}");
    talk
}

/// The same, to the server of this name, which sees the client itself.
#[track_caller]
fn served_by(world: &World, way: Way, port: u16, name: &str) {
    let talk = served(world, way, port);
    assert_eq!(talk.server.name, name, "{way:?} to port {port}");
    assert!(talk.client_is_kept(), "{way:?} to port {port}: {talk:?}");
}

#[track_caller]
fn refused(world: &World, way: Way, port: u16) {
    let dial = world.tcp(way, port);
    assert!(dial.is_refused(), "{way:?} to port {port} is not refused");
}

/// Waits until every connection of the namespace is over on its side.
#[track_caller]
fn until_over(ns: &Netns) {
    until("the connections to be over", || {
        let open = "state syn-recv state established state close-wait state last-ack";
        ns.sh(&format!("ss -Htan {open}")).is_empty()
    });
}

#[test]
fn every_way_to_every_kind_of_listener_is_served_or_refused_as_designed() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let listeners: Vec<_> = (0..)
            .zip(Listen::ALL)
            .map(|(n, listen)| (listen, 80 + n, 5000 + n))
            .map(|(listen, port, target)| {
                (listen, port, target, world.host.tcp_server(listen, target))
            })
            .collect();
        let _portfwd = world
            .host
            .portfwd_with(tcp, "80:5000 81:5001 82:5002 83:5003 84:5004");
        let mut refusals = [0, 0];
        for syncookies in 0..=2 {
            let sysctl = "net.ipv4.tcp_syncookies";
            world.host.ns.sysctl(sysctl, syncookies);
            for forwarding in [false, true] {
                world.host.forwarding(forwarding);
                for way in Way::ALL {
                    for &(listen, port, target, _) in &listeners {
                        let cell = format!("{tcp:?} {syncookies} {forwarding} {way:?} {listen:?}");
                        if !is_served(listen, way) {
                            assert!(world.tcp(way, port).is_refused(), "{cell}");
                            refusals[usize::from(way.family() == Family::V6)] += 1;
                            continue;
                        }
                        let dial = world.tcp(way, port);
                        let mut talk = dial.open().unwrap_or_else(|e| panic!("{cell}: {e}"));
                        assert!(talk.echoes("hello"), "{cell}");
                        assert!(talk.client_is_kept(), "{cell}: {talk:?}");
                        let accepted = world.remote(way, tcp.accepted_port(port, target));
                        assert_eq!(talk.server.local, accepted, "{cell}");
                    }
                }
            }
        }
        let counts = Family::BOTH.map(|family| {
            let counts = listeners
                .iter()
                .map(|(.., server)| server.served_over(family));
            counts.sum::<usize>()
        });
        println!(
            "{tcp:?}: v4 {} served, {} refused; v6 {} served, {} refused",
            counts[0], refusals[0], counts[1], refusals[1],
        );
        // Six settings; of 3 ways a loopback-only service has 1, and a
        // v4-only one has none over v6.
        assert_eq!(counts, [6 * (3 * 4 + 1), 6 * (3 * 3 + 1)], "{tcp:?}");
    }
}

/// A loopback-only service is nobody's but those who dial a loopback address.
fn is_served(listen: Listen, way: Way) -> bool {
    let loopback = matches!(way, Way::Loopback(_));
    listen.serves(way.family()) && (listen != Listen::Loopback || loopback)
}

#[test]
fn a_loopback_only_service_is_reached_from_the_network_where_the_rule_says_so() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _service = world.host.tcp_server(Listen::Loopback, 5000);
        let opened = || {
            world
                .host
                .ns
                .read_sysctl("net.ipv4.conf.eth0.route_localnet")
        };
        assert_eq!(opened(), "0");
        // Across a device ::1 is reached by steering alone.
        let rules = match tcp {
            Tcp::Steered => "80:127.0.0.1:5000 80:[::1]:5000 81:5000",
            Tcp::Rewritten => "80:127.0.0.1:5000 81:5000",
        };
        let portfwd = world.host.portfwd_with(tcp, rules);
        for way in Way::ALL {
            if tcp == Tcp::Rewritten && way.family() == Family::V6 {
                refused(&world, way, 80);
            } else {
                served_by(&world, way, 80, "5000");
            }
            if matches!(way, Way::Loopback(_)) {
                served_by(&world, way, 81, "5000");
            } else {
                refused(&world, way, 81);
            }
        }
        portfwd.stop();
        assert_eq!(opened(), "0", "{tcp:?}");
    }
}

#[test]
fn clients_are_served_while_forged_syns_fill_a_short_queue_as_a_direct_connection_is() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _portfwd = world.host.portfwd_with(tcp, "80:5000");
        // Behind ours: sees the target port where the packet was rewritten.
        let arrived = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
        let forged = tcp.accepted_port(80, 5000);
        for syncookies in 0..=2 {
            world.host.ns.sysctl("net.ipv4.tcp_syncookies", syncookies);
            for family in Family::BOTH {
                let _servers = [5000, 5001].map(|port| {
                    let server = world.host.tcp_server_builder(Listen::DualStack, port);
                    server.backlog(8).start()
                });
                let before = arrived.seen(forged) + arrived.seen(5001);
                world.forge_syns(family, 80, 60);
                world.forge_syns(family, 5001, 60);
                until("the SYNs to arrive", || {
                    arrived.seen(forged) + arrived.seen(5001) >= before + 120
                });
                let clients = if syncookies == 0 { 1 } else { 10 };
                for _ in 0..clients {
                    let [forwarded, direct] = [80, 5001].map(|port| {
                        let dial = world.tcp(Way::Remote(family), port);
                        dial.timeout(IMPATIENT).open().is_ok()
                    });
                    assert_eq!(forwarded, direct, "{tcp:?} {family:?} {syncookies}");
                    assert!(
                        forwarded || syncookies == 0,
                        "{tcp:?} {family:?} {syncookies}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_port_is_used_again_at_once_after_the_server_closed_first() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let server = world
            .host
            .tcp_server_builder(Listen::DualStack, 5000)
            .manner(Manner::CloseFirst)
            .start();
        let _portfwd = world.host.portfwd_with(tcp, "80:5000");
        for (way, first_port) in Way::ALL.into_iter().zip((40_000..).step_by(10)) {
            let mut slowest = Duration::ZERO;
            for port in (first_port..first_port + 5).cycle().take(50) {
                let start = Instant::now();
                let talk = world.tcp(way, 80).from_port(port).open();
                let talk = talk.unwrap_or_else(|e| panic!("{tcp:?} {way:?} from {port}: {e}"));
                slowest = slowest.max(start.elapsed());
                talk.until_closed().expect("closed in order");
            }
            assert!(
                slowest < Duration::from_millis(200),
                "{tcp:?} {way:?}: {slowest:?}"
            );
        }
        assert_eq!(server.served().len(), 50 * Way::ALL.len());
    }
}

#[test]
fn one_client_port_talks_to_two_rules_and_their_target_at_once_and_again() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let _portfwd = world.host.portfwd_with(tcp, "80:5000 8080:5000");
        let mut port = 41_000;
        for way in Way::ALL {
            for order in [[80, 8080, 5000], [5000, 8080, 80], [80, 5000, 8080]] {
                port += 1;
                talk_at_once(&world, tcp, way, port, order);
            }
        }
    }
}

/// Three connections from one port, each of them opened twice.
fn talk_at_once(world: &World, tcp: Tcp, way: Way, port: u16, order: [u16; 3]) {
    let case = format!("{tcp:?} {way:?} from {port} to {order:?}");
    let open = |dialled| {
        let dial = world.tcp(way, dialled).from_port(port).ending_with_reset();
        let talk = dial.open();
        let talk = talk.unwrap_or_else(|error| panic!("{case}, {dialled}: {error}"));
        assert_eq!(talk.local.port(), port);
        assert_eq!(talk.server.local.port(), tcp.accepted_port(dialled, 5000));
        // The address is the client's own; the port too, where the server can
        // tell the connections apart.
        assert_eq!(talk.server.peer.ip(), talk.local.ip(), "{case}, {dialled}");
        assert!(
            tcp == Tcp::Rewritten || talk.client_is_kept(),
            "{case}, {dialled}"
        );
        talk
    };
    let mut talks = order.map(|dialled| Some(open(dialled)));
    let first = talks[0].as_ref().expect("just opened");
    assert!(first.client_is_kept(), "{case}: it came alone");
    let all_echo = |talks: &mut [Option<Conversation>; 3]| {
        for (talk, dialled) in talks.iter_mut().zip(order) {
            let talk = talk.as_mut().expect("open");
            assert!(talk.echoes(&format!("to {dialled}")), "{case}, {dialled}");
        }
    };
    all_echo(&mut talks);
    for (index, dialled) in order.into_iter().enumerate() {
        let old = talks[index].take().expect("open").server;
        until("the server to see the end", || !is_open(world, &old));
        talks[index] = Some(open(dialled));
        all_echo(&mut talks);
    }
}

/// Does the server's end of the connection still stand?
fn is_open(world: &World, end: &Identity) -> bool {
    let ports = [end.local, end.peer].map(|end| format!(":{}", end.port()));
    let sockets = world.host.ns.sh("ss -Htan state established");
    sockets.lines().any(|line| {
        let mut ends = line.split_whitespace().skip(2).zip(&ports);
        ends.all(|(end, port)| end.ends_with(port))
    })
}

#[test]
fn a_router_passes_what_goes_to_foreign_addresses_and_others_see_all_that_is_not_ours() {
    for tcp in Tcp::BOTH {
        let world = World::router();
        let _own = world.host.tcp_server(Listen::DualStack, 5000);
        let _other = world.host.tcp_server(Listen::DualStack, 7000);
        let _udp = world.host.udp_server(UdpListen::DualStack, 7000);
        let behind = world.behind().tcp_server(Listen::DualStack, 80);
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        let bystander = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
        let capture = Capture::start(&world.host.ns, Keep::Everything);
        for family in Family::BOTH {
            let foreign = world.behind().at(family, 80);
            let mut talk = world.client.tcp(foreign).open().expect("behind answers");
            assert_eq!(talk.server.local, foreign);
            assert!(talk.client_is_kept());
            assert!(talk.echoes("through"));
            served(&world, Way::Remote(family), 7000);
            let asked = world.client.udp(family);
            asked
                .ask(world.host.at(family, 7000), b"udp")
                .expect("answered");
        }
        until_over(&world.behind().ns);
        until_over(&world.host.ns);

        let arrived = |port: u16| {
            let packets = capture.packets(|packet| came_by(packet, "eth0"));
            let ports = packets.iter().filter_map(Packet::view);
            ports.filter(|view| view.destination.port() == port).count() as u64
        };
        for port in [80, 7000] {
            until("the capture to have all", || {
                arrived(port) >= bystander.seen(port)
            });
            assert_eq!(arrived(port), bystander.seen(port), "{tcp:?} port {port}");
            assert!(bystander.seen(port) >= 10, "{tcp:?} port {port}");
        }
        assert_eq!(behind.served().len(), 2);

        for family in Family::BOTH {
            served_by(&world, Way::Remote(family), 80, "5000");
            let inside = SocketAddr::new(world.inside_address(family), 80);
            let from_inside = world.behind().tcp(inside).open().expect("served as well");
            assert_eq!(from_inside.server.name, "5000", "{tcp:?}");
        }
        let output = portfwd.stop();
        assert!(output.verdict("not-local") >= 10, "{tcp:?}\n{output}");
        assert_eq!(
            output.rule_counter("80:5000", "connections"),
            Some(4),
            "{output}"
        );
    }
}

fn came_by(packet: &Packet, device: &str) -> bool {
    !packet.outgoing && packet.device == device
}

#[test]
fn the_address_on_a_bridge_is_served_and_its_port_is_refused_as_interface() {
    for tcp in Tcp::BOTH {
        let world = World::bridge();
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        for interfaces in ["-i br0", "-i eth0 -i br0", "-i any"] {
            let _portfwd = world
                .host
                .portfwd_with(tcp, &format!("{interfaces} 80:5000"));
            for family in Family::BOTH {
                let bridge = SocketAddr::new(world.inside_address(family), 80);
                let mut talk = world
                    .behind()
                    .tcp(bridge)
                    .open()
                    .expect("the container is served");
                assert!(talk.client_is_kept());
                assert!(talk.echoes("from the container"));
                let remote = world.tcp(Way::Remote(family), 80);
                assert_eq!(remote.is_refused(), interfaces == "-i br0", "{interfaces}");
            }
        }
    }
    let world = World::bridge();
    let refusal = Portfwd::refused(&world.host.ns, &["-i", "veth0", "80:5000"]);
    assert_eq!(refusal.code, Some(1), "{refusal:?}");
    assert!(refusal.stderr.contains("veth0"), "{refusal:?}");
    assert!(refusal.stderr.contains("br0"), "{refusal:?}");
}

const WIDE: &str = "20000-50000:443";

#[test]
fn a_wide_range_serves_its_first_its_middle_and_its_last_port() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _service = world.host.tcp_server(Listen::DualStack, 443);
        let portfwd = world.host.portfwd_with(tcp, "20000-50000:443/tcp");
        for way in Way::ALL {
            for port in [20_000, 35_000, 50_000] {
                served_by(&world, way, port, "443");
            }
            refused(&world, way, 19_999);
            refused(&world, way, 50_001);
        }
        let output = portfwd.stop();
        assert_eq!(
            output.rule_counter(WIDE, "connections"),
            Some(18),
            "{tcp:?}\n{output}"
        );
    }
}

#[test]
fn connections_from_ports_inside_a_range_are_left_alone_and_not_counted() {
    for tcp in Tcp::BOTH {
        let world = World::masquerade();
        let _service = world.host.tcp_server(Listen::DualStack, 443);
        let outside = world.client.tcp_server(Listen::DualStack, 7000);
        let portfwd = world.host.portfwd_with(tcp, WIDE);
        let mut talks = Vec::new();
        for family in Family::BOTH {
            let there = world.client.at(family, 7000);
            for (port, inside) in [(20_000, 20_001), (35_000, 35_001), (50_000, 49_999)] {
                let own = world.host.tcp(there).from_port(port).open();
                let own = own.expect("the host's own");
                assert!(own.client_is_kept());
                let masqueraded = world.behind().tcp(there).from_port(inside).open();
                let masqueraded = masqueraded.expect("the masqueraded client's");
                let outer = SocketAddr::new(world.host.address(family), inside);
                assert_eq!(masqueraded.server.peer, outer);
                talks.extend([own, masqueraded]);
            }
            // The host to itself, both ends of it in view.
            let _local = world.host.tcp_server(Listen::DualStack, 7001);
            let own = world
                .host
                .tcp(world.host.at(family, 7001))
                .from_port(31_000);
            assert!(own.open().expect("to itself").echoes("hello"));
        }
        for talk in &mut talks {
            let text = "x".repeat(200_000);
            assert!(talk.echoes(&text), "{tcp:?} {talk:?}");
        }
        assert_eq!(outside.served().len(), 12);
        talks.clear();
        until_over(&world.client.ns);
        until_over(&world.host.ns);
        let output = portfwd.stop();
        for column in ["connections", "packets", "packets back"] {
            assert_eq!(
                output.rule_counter(WIDE, column),
                Some(0),
                "{tcp:?}\n{output}"
            );
        }
    }
}

#[test]
fn connections_that_are_older_than_the_forwarder_go_on() {
    for tcp in Tcp::BOTH {
        let world = World::masquerade();
        let _service = world.host.tcp_server(Listen::DualStack, 443);
        let _outside = world.client.tcp_server(Listen::DualStack, 7000);
        let mut talks = Vec::new();
        for family in Family::BOTH {
            let there = world.client.at(family, 7000);
            let dials = [
                world.host.tcp(there).from_port(30_000),
                world.behind().tcp(there).from_port(30_001),
                world
                    .client
                    .tcp(world.host.at(family, 443))
                    .from_port(30_002),
            ];
            talks.extend(dials.map(|dial| dial.open().expect("served")));
        }
        let _portfwd = world.host.portfwd_with(tcp, WIDE);
        for talk in &mut talks {
            assert!(talk.echoes("still here"), "{tcp:?} {talk:?}");
        }
    }
}

#[test]
fn a_packet_from_outside_comes_first_on_a_masqueraded_connection_older_than_the_forwarder() {
    for tcp in Tcp::BOTH {
        let world = World::masquerade();
        let _service = world.host.tcp_server(Listen::DualStack, 443);
        let listener = world
            .client
            .ns
            .enter(|| std::net::TcpListener::bind("[::]:7000"));
        let listener = listener.expect("the port is free");
        for family in Family::BOTH {
            let dial = world
                .behind()
                .tcp(world.client.at(family, 7000))
                .from_port(30_000);
            let mut inside = dial.connect().expect("masqueraded");
            let (mut outside, peer) = listener.accept().expect("a connection");
            assert_eq!(peer.port(), 30_000);
            let _portfwd = world.host.portfwd_with(tcp, WIDE);
            outside.write_all(b"news").expect("sent");
            let mut news = [0; 4];
            let got = inside.read_exact(&mut news);
            assert!(
                got.is_ok() && &news == b"news",
                "{tcp:?} {family:?}: {got:?}"
            );
        }
    }
}

#[test]
fn the_offset_in_a_range_is_kept() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let targets = [18_000, 18_499, 18_999];
        let _servers = targets.map(|port| world.host.tcp_server(Listen::DualStack, port));
        let _portfwd = world.host.portfwd_with(tcp, "8000-8999:18000-18999");
        let capture = Capture::start(&world.client.ns, Keep::Everything);
        for way in Way::ALL {
            for target in targets {
                served_by(&world, way, target - 10_000, &target.to_string());
            }
            refused(&world, way, 8123);
        }
        let replies = capture.packets(|packet| came_by(packet, "eth0"));
        let mut sources = replies
            .iter()
            .filter_map(Packet::view)
            .map(|view| view.source.port());
        assert!(sources.all(|port| (8000..=8999).contains(&port)), "{tcp:?}");
    }
}

#[test]
fn only_listed_sources_are_served() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let client = &world.client.ns;
        client
            .ip("address add 192.0.2.3/24 dev eth0\naddress add 2001:db8:a::3/64 dev eth0 nodad\n");
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let from = "--from 192.0.2.2,2001:db8:a::2/127";
        let portfwd = world.host.portfwd_with(tcp, &format!("{from} 80:5000"));
        let sources: [(&str, bool); 4] = [
            ("192.0.2.2", true),
            ("192.0.2.3", false),
            ("2001:db8:a::2", true),
            // In the /127.
            ("2001:db8:a::3", true),
        ];
        client.ip("address add 2001:db8:a::4/64 dev eth0 nodad\n");
        for (source, listed) in sources.into_iter().chain([("2001:db8:a::4", false)]) {
            let source: IpAddr = source.parse().expect("an address");
            let dial = world
                .client
                .tcp(world.host.at(Family::of(source), 80))
                .from(source);
            if listed {
                assert!(
                    dial.open().expect("listed").client_is_kept(),
                    "{tcp:?} {source}"
                );
            } else {
                assert!(dial.is_refused(), "{tcp:?} {source}");
            }
        }
        for way in [Way::Loopback(Family::V4), Way::Own(Family::V6)] {
            refused(&world, way, 80);
        }
        let output = portfwd.stop();
        assert!(output.verdict("not-listed") >= 4, "{tcp:?}\n{output}");
        assert_eq!(
            output.rule_counter("80:5000", "connections"),
            Some(3),
            "{output}"
        );
    }
}

#[test]
fn an_address_goes_before_every_address_and_a_narrow_range_before_a_wide_one() {
    for tcp in Tcp::BOTH {
        let world = World::direct().with_second_address();
        let _servers =
            [5000, 5001, 5002, 5003].map(|port| world.host.tcp_server(Listen::DualStack, port));
        let rules = "80:5000 192.0.2.11:80:5001 [2001:db8:a::b]:80:5002 \
                     8000-8999:5000 8400-8600:5001 8500:5002 192.0.2.11:8000-8999:5003";
        let _portfwd = world.host.portfwd_with(tcp, rules);
        for family in Family::BOTH {
            let second = |port, name: &str| {
                let end = SocketAddr::new(world.second_address(family), port);
                for node in [&world.client, &world.host] {
                    let talk = node
                        .tcp(end)
                        .open()
                        .unwrap_or_else(|e| panic!("{end}: {e}"));
                    assert_eq!(talk.server.name, name, "{tcp:?} {end}");
                }
            };
            let way = Way::Remote(family);
            served_by(&world, way, 80, "5000");
            for (port, name) in [
                (8000, "5000"),
                (8450, "5001"),
                (8500, "5002"),
                (8999, "5000"),
            ] {
                served_by(&world, way, port, name);
                // The address counts for more than the range.
                second(port, if family == Family::V4 { "5003" } else { name });
            }
            second(80, if family == Family::V4 { "5001" } else { "5002" });
        }
    }
}

#[test]
fn a_rule_on_a_loopback_address_is_for_this_host_alone() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let portfwd = world
            .host
            .portfwd_with(tcp, "127.0.0.1:80:5000 [::1]:80:5000");
        for way in Way::ALL {
            match way {
                Way::Loopback(_) => served_by(&world, way, 80, "5000"),
                _ => refused(&world, way, 80),
            }
        }
        // Nor by one who claims to dial it over the wire.
        for way in [Way::Loopback(Family::V4), Way::Loopback(Family::V6)] {
            let client = world.client.at(way.family(), 45_000);
            world
                .wire()
                .send(&Frame::syn(client, world.remote(way, 80)));
        }
        served(&world, Way::Loopback(Family::V4), 80);
        let output = portfwd.stop();
        assert_eq!(output.verdict("not-local"), 2, "{tcp:?}\n{output}");
        let counted = ["127.0.0.1:80:5000", "[::1]:80:5000"]
            .map(|rule| output.rule_counter(rule, "connections"));
        assert_eq!(counted, [Some(2), Some(1)], "{tcp:?}\n{output}");
    }
}

#[test]
fn local_clients_are_served_whatever_the_interfaces_unless_told_not_to() {
    for tcp in Tcp::BOTH {
        let world = World::router();
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let from_inside = |family| {
            let inside = SocketAddr::new(world.inside_address(family), 80);
            world.behind().tcp(inside)
        };
        for (options, local, any) in [
            ("-i eth0", true, false),
            ("-i eth0 --no-local", false, false),
            ("--no-local", false, true),
            ("-i any", true, true),
            ("", true, true),
        ] {
            let _portfwd = world.host.portfwd_with(tcp, &format!("{options} 80:5000"));
            for way in Way::ALL {
                match way {
                    Way::Remote(_) => served_by(&world, way, 80, "5000"),
                    _ if local => served_by(&world, way, 80, "5000"),
                    _ => refused(&world, way, 80),
                }
            }
            for family in Family::BOTH {
                assert_eq!(
                    from_inside(family).open().is_ok(),
                    any,
                    "{tcp:?} {options:?}"
                );
                assert_eq!(
                    from_inside(family).is_refused(),
                    !any,
                    "{tcp:?} {options:?}"
                );
            }
        }
    }
}

#[test]
fn connections_are_counted_exactly_and_a_flood_of_syns_is_none() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let server = world.host.tcp_server_builder(Listen::DualStack, 5000);
        let _service = server.backlog(8).start();
        for syncookies in 1..=2 {
            world.host.ns.sysctl("net.ipv4.tcp_syncookies", syncookies);
            let portfwd = world.host.portfwd_with(tcp, "80:5000");
            let mut talks = Vec::new();
            for _ in 0..2 {
                for way in Way::ALL {
                    talks.extend((0..5).map(|_| served(&world, way, 80)));
                }
                // The second round meets a full queue.
                for family in Family::BOTH {
                    world.forge_syns(family, 80, 200);
                }
            }
            drop(talks);
            for way in Way::ALL {
                served(&world, way, 80);
            }
            let output = portfwd.stop();
            let connections = output.rule_counter("80:5000", "connections");
            assert_eq!(connections, Some(66), "{tcp:?} {syncookies}\n{output}");
        }
    }
}

#[test]
fn packets_and_bytes_are_counted_as_on_the_wire() {
    for tcp in Tcp::BOTH {
        for family in Family::BOTH {
            let world = World::direct();
            let server = world.host.tcp_server_builder(Listen::DualStack, 5000);
            let _service = server.manner(Manner::Echo).start();
            let portfwd = world.host.portfwd_with(tcp, "80:5000");
            let capture = Capture::start(&world.client.ns, Keep::Everything);
            let talk = world.tcp(Way::Remote(family), 80).open().expect("served");
            talk.exchange(4 << 20).expect("echoed");
            until_over(&world.host.ns);
            let output = portfwd.stop();
            let report = capture.finish();
            assert_eq!(report.dropped, 0, "the capture has to be complete");
            let port_80 = |packet: &&Packet| {
                packet
                    .view()
                    .is_some_and(|view| view.source.port() == 80 || view.destination.port() == 80)
            };
            let mut expected = [Wired::default(); 2];
            for packet in report.packets.iter().filter(port_80) {
                expected[usize::from(!packet.outgoing)].add(packet);
            }
            assert!(expected[0].merged && expected[1].merged, "nothing was GSO");
            let count = |column| output.rule_counter("80:5000", column).expect("a counter");
            let counted = ["packets", "bytes", "packets back", "bytes back"].map(count);
            let expected = expected.map(|wired| [wired.packets, wired.bytes]);
            assert_eq!(
                counted.as_slice(),
                expected.as_flattened(),
                "{tcp:?} {family:?}\n{output}"
            );
        }
    }
}

/// What packets are on the wire, after a device has cut them.
#[derive(Clone, Copy, Default)]
struct Wired {
    packets: u64,
    bytes: u64,
    merged: bool,
}

impl Wired {
    fn add(&mut self, packet: &Packet) {
        let (ip, _) = LaxIpSlice::from_slice(&packet.bytes).expect("an IP packet");
        let segment = ip.payload().payload;
        let tcp = TcpHeaderSlice::from_slice(segment).expect("a TCP segment");
        let payload = segment.len() - tcp.slice().len();
        let headers = packet.bytes.len() - payload;
        let segments = payload.div_ceil(MTU - headers).max(1);
        self.packets += segments as u64;
        self.bytes += (payload + segments * headers) as u64;
        self.merged |= segments > 1;
    }
}

#[test]
fn a_service_that_comes_and_goes_needs_no_restart() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        let all_refused = || {
            Way::ALL
                .into_iter()
                .for_each(|way| refused(&world, way, 80))
        };
        all_refused();
        for listen in [Listen::DualStack, Listen::Mptcp] {
            let service = world.host.tcp_server(listen, 5000);
            for way in Way::ALL {
                served_by(&world, way, 80, "5000");
            }
            drop(service);
            all_refused();
        }
        let output = portfwd.stop();
        assert!(output.verdict("no-listener") >= 18, "{tcp:?}\n{output}");
        assert_eq!(
            output.rule_counter("80:5000", "connections"),
            Some(12),
            "{output}"
        );
    }
}

#[test]
fn bulk_arrives_whole_in_both_directions() {
    let length = if env::var_os(LONG).is_some() {
        1 << 30
    } else {
        64 << 20
    };
    for tcp in Tcp::BOTH {
        let world = World::direct().watching(Watch::OneOf(64));
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        for way in REMOTE.into_iter().chain([Way::Loopback(Family::V4)]) {
            let start = Instant::now();
            let talk = world.tcp(way, 80).open().expect("served");
            let (sent, received) = talk.exchange(length).expect("echoed to the end");
            assert_eq!(sent, received, "{tcp:?} {way:?}");
            let rate = (length >> 20) as f64 / start.elapsed().as_secs_f64();
            println!("{tcp:?} {way:?}: {rate:.0} MiB/s each way at once");
        }
        let output = portfwd.stop();
        for label in ["no-port", "table-full", "guarded", "cannot-steer"] {
            assert_eq!(output.verdict(label), 0, "{tcp:?}\n{output}");
        }
    }
}

#[test]
fn fifty_clients_are_served_in_parallel() {
    for tcp in Tcp::BOTH {
        let world = World::direct().watching(Watch::OneOf(4));
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        thread::scope(|scope| {
            for way in Way::ALL.into_iter().cycle().take(50) {
                let world = &world;
                scope.spawn(move || {
                    let dial = world.tcp(way, 80).timeout(Duration::from_secs(10));
                    let talk = dial
                        .open()
                        .unwrap_or_else(|e| panic!("{tcp:?} {way:?}: {e}"));
                    assert!(talk.client_is_kept(), "{tcp:?} {way:?}");
                    let bulk = talk.exchange(1 << 20);
                    let (sent, received) = bulk.unwrap_or_else(|e| panic!("{tcp:?} {way:?}: {e}"));
                    assert_eq!(sent, received, "{tcp:?} {way:?}");
                });
            }
        });
        let output = portfwd.stop();
        assert_eq!(
            output.rule_counter("80:5000", "connections"),
            Some(50),
            "{output}"
        );
    }
}

/// Python's web server over a folder, killed on drop.
struct Web(Child);

impl Web {
    #[track_caller]
    fn start(world: &World, folder: &Path, port: u16) -> Self {
        let mut command = world.host.ns.command("python3");
        let port_text = port.to_string();
        command.args([
            "-m",
            "http.server",
            &port_text,
            "--bind",
            "::",
            "--directory",
        ]);
        command
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let web = Self(command.spawn().expect("python3 is installed"));
        until("the web server to listen", || {
            world.tcp(Way::Loopback(Family::V4), port).connect().is_ok()
        });
        web
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.0.kill().expect("a child that was not waited for");
        self.0.wait().expect("a child is waited for");
    }
}

#[test]
fn curl_fetches_a_page_from_a_web_server() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(folder.join("Cargo.toml")).expect("the manifest");
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _web = Web::start(&world, folder, 5000);
        let _portfwd = world.host.portfwd_with(tcp, "-i eth0 80:5000");
        for way in Way::ALL {
            let url = format!("http://{}/Cargo.toml", world.remote(way, 80));
            let client = &world.dialler(way).ns;
            let fetched = client.sh(&format!("curl -gsS --noproxy '*' --max-time 5 '{url}'"));
            assert_eq!(fetched, page, "{tcp:?} {url}");
        }
    }
}
