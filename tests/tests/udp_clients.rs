//! UDP to sockets of this host: who is answered, that the server sees the
//! client itself, and what a client is told when nobody listens.

use std::{io, net::SocketAddr, time::Duration};

use portfwd_tests::{Family, UdpListen, Way, World, world::SERVICE};

#[test]
fn every_client_is_answered_from_where_it_dialled_and_kept_at_the_server() {
    let world = World::direct();
    let _portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for listen in [
        UdpListen::DualStack,
        UdpListen::V4Only,
        UdpListen::Address(world.host.address(Family::V6)),
    ] {
        let _server = world.host.udp_server(listen, SERVICE);
        for way in Way::ALL {
            let serves = match listen {
                UdpListen::V4Only => way.family() == Family::V4,
                UdpListen::Address(address) => world.remote(way, 80).ip() == address,
                _ => true,
            };
            if !serves {
                continue;
            }
            let (from, remote) = (world.source(way), world.remote(way, 80));
            world.udp(way).assert_served(from, remote, SERVICE);
            let connected = world.udp(way).connected(remote);
            for _ in 0..3 {
                connected.assert_served(from, remote, SERVICE);
            }
        }
    }
}

#[test]
fn a_secondary_address_answers_who_dialled_it() {
    let world = World::direct().with_second_address();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for family in Family::BOTH {
        let (first, second) = (
            world.host.at(family, 80),
            SocketAddr::new(world.second_address(family), 80),
        );
        for way in [Way::Remote(family), Way::Own(family)] {
            let node = world.dialler(way);
            for remote in [second, first] {
                let client = node.udp(family);
                let server = client.identify(remote, "hello");
                assert_eq!(server.peer.port(), client.local().port());
                node.udp(family).connected(remote).identify(remote, "hello");
            }
            // Both from one port: the server's answer would look the same.
            let client = node.udp(family);
            let seen = [second, first].map(|remote| client.identify(remote, "both").peer);
            assert_ne!(seen[0], seen[1], "{way:?}");
            let again = [second, first].map(|remote| client.identify(remote, "again").peer);
            assert_eq!(again, seen);
        }
    }
    portfwd.stop_without_loss();
}

#[test]
fn where_nothing_listens_the_client_is_refused_as_without_the_rule() {
    let world = World::direct();
    let portfwd = world
        .host
        .portfwd("-i eth0 80:5000/udp 81:127.0.0.1:5000/udp");
    let mut asked = 0;
    for way in Way::ALL {
        for port in [80, 81] {
            let remote = world.remote(way, port);
            // A connected socket hears only of the port that it dialled.
            let client = world.udp(way).connected(remote);
            let error = client.ask(remote, b"hello").expect_err("nobody listens");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{way:?}");
            asked += u64::from(port == 80 || way.family() == Family::V4);
        }
    }
    let output = portfwd.stop_without_loss();
    assert_eq!(output.verdict("no-listener"), asked, "{output}");
}

#[test]
fn a_service_that_starts_later_is_found() {
    let world = World::direct();
    let _portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        let client = world.udp(way).connected(remote);
        assert!(client.ask(remote, b"early").is_err(), "{way:?}");
        let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
        client.assert_served(world.source(way), remote, SERVICE);
    }
}

/// A limit: the kernel's ICMP error names the target's port, which the client
/// has not dialled.
#[test]
fn a_client_is_not_told_that_its_service_ended_but_served_by_the_next() {
    let world = World::direct();
    let _portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        let patience = Duration::from_millis(100);
        let client = world.udp(way).connected(remote).timeout(patience);
        for _ in 0..2 {
            let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
            client.assert_served(world.source(way), remote, SERVICE);
            client.assert_served(world.source(way), remote, SERVICE);
        }
        let error = client.ask(remote, b"anyone?").expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{way:?}");
    }
}
