//! Connections that no rule is meant for go on as without the forwarder: to
//! others, from ports inside a range, and those older than it.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use portfwd_tests::{
    Bystander, Capture, Family, Keep, Listen, Packet, Tcp, UdpListen, Way, World, bpf::Side, until,
};

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
            world.tcp(Way::Remote(family), 7000).assert_served();
            let asked = world.client.udp(family);
            asked
                .ask(world.host.at(family, 7000), b"udp")
                .expect("answered");
        }
        world.behind().ns.until_connections_end();
        world.host.ns.until_connections_end();

        let arrived = |port: u16| {
            let packets = capture.packets(|packet| packet.came_by("eth0"));
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
            world.tcp(Way::Remote(family), 80).assert_served_by("5000");
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

const WIDE: &str = "20000-50000:443";

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
        world.client.ns.until_connections_end();
        world.host.ns.until_connections_end();
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
