//! Datagrams that no rule is meant for pass as without the forwarder: those of
//! the host itself and of who is behind it, to others, and to many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd_tests::{
    Bystander, Family, Frame, Node, UdpListen, UdpManner, Way, World, bpf::Side, udp::DNS_ANSWER,
    until, world::SERVICE,
};

#[test]
fn a_range_takes_no_answer_from_the_host_or_from_who_is_behind_it() {
    let world = World::masquerade();
    let _service = world.host.udp_server(UdpListen::DualStack, 443);
    let _resolver = world
        .client
        .udp_server_with(UdpListen::DualStack, 53, UdpManner::Dns);
    // One that answers from a port outside of the range, one from inside.
    let _peers = [7_000, 25_000].map(|port| world.client.udp_server(UdpListen::DualStack, port));
    let portfwd = world.host.portfwd("20000-50000:443/udp");
    let ports = [20_000, 30_000, 45_000, 50_000];
    // NAT keeps a port that the host has not at the same server.
    let others = [20_001, 30_001, 45_001, 49_999];
    for family in Family::BOTH {
        for (node, own) in [(&world.host, ports), (world.behind(), others)] {
            // From the same ports, so that NAT has to choose.
            resolves(node, world.client.address(family), ports);
            for port in own {
                let client = node.udp_from(family, port);
                for peer in [7_000, 25_000] {
                    for count in 0..10 {
                        let remote = world.client.at(family, peer);
                        let server = client.identify(remote, &format!("{count}"));
                        let expected = SocketAddr::new(world.host.address(family), port);
                        assert_eq!(server.peer, expected);
                    }
                }
            }
        }
        // Meanwhile the rule holds at the same ports for everyone else.
        for port in ports {
            for way in [Way::Remote(family), Way::Loopback(family), Way::Own(family)] {
                world
                    .udp(way)
                    .assert_served(world.source(way), world.remote(way, port), 443);
            }
            let inside = SocketAddr::new(world.inside_address(family), port);
            let behind = world.behind();
            behind
                .udp(family)
                .assert_served(behind.address(family), inside, 443);
        }
    }
    let output = portfwd.stop_without_loss();
    // Out and back: the host's questions, then all that was exchanged.
    let datagrams = 2 * 4 + 2 * 2 * (4 * 2 * 10);
    assert!(output.verdict("foreign") >= 2 * datagrams, "{output}");
}

/// A resolver on the host itself, such as systemd's.
#[test]
fn a_range_takes_no_answer_of_a_resolver_on_the_host() {
    let world = World::direct();
    let _resolver = world
        .host
        .udp_server_with(UdpListen::DualStack, 53, UdpManner::Dns);
    let _service = world.host.udp_server(UdpListen::DualStack, 443);
    let _portfwd = world.host.portfwd("20000-50000:443/udp");
    for family in Family::BOTH {
        for address in [family.loopback(), world.host.address(family)] {
            resolves(&world.host, address, [20_000, 30_000, 45_000, 50_000]);
        }
    }
}

/// Resolves a name at the server, from each of the ports.
#[track_caller]
fn resolves(node: &Node, server: IpAddr, ports: [u16; 4]) {
    let any = Family::of(server).any();
    for port in ports {
        let line = format!("dig +short +tries=1 +time=3 -b {any}#{port} @{server} example.com");
        assert_eq!(
            node.ns.sh(&line).trim(),
            DNS_ANSWER.to_string(),
            "{line} in {}",
            node.ns.name()
        );
    }
}

#[test]
fn multicast_and_broadcast_are_left_alone() {
    let world = World::direct();
    let service = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let behind = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
    let (wire, unicast) = (world.wire(), world.host.mac);
    let (everyone, group) = ([0xff; 6], [1, 0, 0x5e, 0, 0, 1]);
    let group6 = [0x33, 0x33, 0, 0, 0, 1];
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let cases: [(IpAddr, [u8; 6]); 7] = [
        (Ipv4Addr::BROADCAST.into(), everyone),
        (Ipv4Addr::new(192, 0, 2, 255).into(), everyone),
        (Ipv4Addr::new(224, 0, 0, 1).into(), group),
        (all_nodes.into(), group6),
        // Sent to this host alone, against the rules of the link.
        (Ipv4Addr::BROADCAST.into(), unicast),
        (Ipv4Addr::new(224, 0, 0, 1).into(), unicast),
        (all_nodes.into(), unicast),
    ];
    for (count, (address, mac)) in (1..).zip(cases) {
        for port in [80, SERVICE] {
            let source = world.client.at(Family::of(address), 1000);
            let frame = Frame::udp(source, SocketAddr::new(address, port));
            wire.send_bytes(&frame.macs(world.client.mac, mac).to_vec());
            until("the datagram to pass", || behind.seen(port) == count);
        }
    }
    // Those to the service's own port are not asked for a clash either.
    drop(service);
    let output = portfwd.stop_without_loss();
    assert_eq!(output.verdict("rewritten"), 0, "{output}");
    assert!(output.verdict("not-for-host") >= 14, "{output}");
}

#[test]
fn a_router_leaves_packets_to_others_alone() {
    let world = World::router();
    let portfwd = world.host.portfwd("80:5000/udp");
    let _own = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let _others = [80, SERVICE].map(|port| world.behind().udp_server(UdpListen::DualStack, port));
    let _outside = [80, SERVICE].map(|port| world.client.udp_server(UdpListen::DualStack, port));
    let seen = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
    for family in Family::BOTH {
        for port in [80, SERVICE] {
            for (from, to) in [
                (&world.client, world.behind()),
                (world.behind(), &world.client),
            ] {
                let client = from.udp(family);
                for _ in 0..3 {
                    client.assert_served(from.address(family), to.at(family, port), port);
                }
            }
        }
        // From either side the host's own addresses are served.
        for address in [world.host.address(family), world.inside_address(family)] {
            for node in [&world.client, world.behind()] {
                let remote = SocketAddr::new(address, 80);
                node.udp(family)
                    .assert_served(node.address(family), remote, SERVICE);
            }
        }
    }
    assert_eq!(seen.seen(80), 6, "programs behind see what is not ours");
    let output = portfwd.stop_without_loss();
    assert_eq!(output.verdict("not-local"), 12, "{output}");
    let packets = output.rule_counter("80:5000/udp", "packets");
    assert_eq!(packets, Some(8), "{output}");
}
