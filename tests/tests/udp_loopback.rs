//! UDP services of 127.0.0.1 and ::1: who reaches them, what the host's
//! `route_localnet` lets in and what is dropped in spite of it, and that it is
//! restored.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use portfwd_tests::{
    Bystander, Family, Frame, Node, Portfwd, UdpListen, Way, World,
    bpf::Side,
    frame::{ETHERNET, summed_v4},
    state::cookie,
    world::SERVICE,
};

/// Where the host keeps whether 127.0.0.0/8 may cross `eth0`.
const LOCALNET: &str = "net.ipv4.conf.eth0.route_localnet";

/// Where it keeps it for all devices.
const LOCALNET_OF_ALL: &str = "net.ipv4.conf.all.route_localnet";

/// A rule that needs it.
const TO_LOOPBACK: &str = "-i eth0 80:127.0.0.1:5000/udp";

fn journal(node: &Node) -> PathBuf {
    Path::new("/run/portfwd").join(format!("{}.journal", cookie(&node.ns)))
}

#[test]
fn a_service_of_loopback_only_is_served_to_clients_of_loopback_only() {
    let world = World::direct();
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let server = world.host.udp_server(UdpListen::Loopback, SERVICE);
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        if matches!(way, Way::Loopback(_)) {
            world
                .udp(way)
                .assert_served(world.source(way), remote, SERVICE);
            continue;
        }
        let client = world.udp(way).connected(remote);
        let error = client.ask(remote, b"hello").expect_err("not served");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{way:?}");
    }
    assert_eq!(server.served().len(), 2);
    assert_eq!(portfwd.stop_without_loss().verdict("no-listener"), 4);
}

#[test]
fn a_loopback_service_is_reached_by_its_rule_and_the_host_is_restored() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::Loopback, SERVICE);
    let localnet = || world.host.ns.read_sysctl(LOCALNET);
    let (way, file) = (Way::Remote(Family::V4), journal(&world.host));
    assert_eq!(localnet(), "0");

    let portfwd = world.host.portfwd(TO_LOOPBACK);
    assert_eq!(localnet(), "1");
    let text = fs::read_to_string(&file).expect("the change is written down");
    assert!(text.contains("route_localnet"), "{text}");
    assert!(portfwd.stdout().contains("route_localnet"), "it is told");
    for way in [way, Way::Loopback(Family::V4), Way::Own(Family::V4)] {
        let remote = world.remote(way, 80);
        world
            .udp(way)
            .assert_served(world.source(way), remote, SERVICE);
        let connected = world.udp(way).connected(remote);
        connected.assert_served(world.source(way), remote, SERVICE);
    }
    let output = portfwd.stop_without_loss();
    assert_eq!(output.verdict("guarded"), 0, "{output}");
    assert_eq!(localnet(), "0");
    assert!(!file.exists());
}

#[test]
fn one_client_port_at_two_rules_to_loopback_is_answered_from_each() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::Loopback, SERVICE);
    let _portfwd = world
        .host
        .portfwd("-i eth0 80:127.0.0.1:5000/udp 8080:127.0.0.1:5000/udp");
    for way in [
        Way::Remote(Family::V4),
        Way::Own(Family::V4),
        Way::Loopback(Family::V4),
    ] {
        let client = world.udp(way);
        let seen = [80, 8080, 80, 8080].map(|port| client.identify(world.remote(way, port), "hi"));
        assert_eq!(seen[0], seen[2]);
        assert_eq!(seen[1], seen[3]);
        assert_ne!(seen[0], seen[1]);
    }
}

#[test]
fn whatever_else_goes_to_or_from_loopback_across_the_network_is_dropped() {
    let world = World::direct();
    let server = world.host.udp_server(UdpListen::Loopback, SERVICE);
    let direct = world.host.udp_server(UdpListen::V4Only, 5001);
    let portfwd = world.host.portfwd(TO_LOOPBACK);
    let behind = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);

    let (wire, client) = (world.wire(), world.client.at(Family::V4, 1000));
    let local = |last, port| SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), port);
    let host = |port| world.host.at(Family::V4, port);
    let forged = [
        // Past the rule, at the service and at one on every address.
        Frame::udp(client, local(1, SERVICE)),
        Frame::udp(client, local(1, 5001)),
        // The rule is not for this address.
        Frame::udp(client, local(1, 80)),
        Frame::udp(client, local(2, 80)),
        Frame::syn(client, local(1, SERVICE)),
        // As if from this host.
        Frame::udp(local(1, 1000), host(80)),
        Frame::udp(local(1, 1000), host(5001)),
        Frame::udp(local(9, 1000), local(1, SERVICE)),
    ];
    for frame in &forged {
        wire.send(frame);
    }
    let mut count = forged.len() as u64;

    let to = |mac, port| {
        Frame::udp(client, local(1, port))
            .macs(world.client.mac, mac)
            .to_vec()
    };
    // A fragment, and another protocol.
    let mut fragment = to(world.host.mac, SERVICE);
    fragment[ETHERNET + 6] |= 0x20;
    let mut other = to(world.host.mac, SERVICE);
    other[ETHERNET + 9] = 47;
    // Sent to everyone on the link: the stack delivers such a packet too.
    let (everyone, many) = (to([0xff; 6], SERVICE), to([1, 0, 0x5e, 0, 0, 1], 5001));
    for bytes in [fragment, other, everyone, many] {
        wire.send_bytes(&summed_v4(bytes));
        count += 1;
    }

    // The wire keeps the order: when this one is served, all have arrived.
    let way = Way::Remote(Family::V4);
    world
        .udp(way)
        .assert_served(world.source(way), host(80), SERVICE);
    assert_eq!(server.served().len(), 1, "{:?}", server.served());
    assert_eq!(direct.served(), []);
    // Only what the rule made of the one that was served.
    assert_eq!((behind.seen(SERVICE), behind.seen(5001)), (1, 0));
    let output = portfwd.stop_without_loss();
    assert_eq!(output.verdict("guarded"), count, "{output}");
}

#[test]
fn a_killed_run_leaves_a_change_that_the_next_start_undoes() {
    let world = World::direct();
    let localnet = || world.host.ns.read_sysctl(LOCALNET);
    let file = journal(&world.host);
    world.host.portfwd(TO_LOOPBACK).kill9();
    assert_eq!(localnet(), "1");
    assert!(file.exists());
    let next = world.host.portfwd("-i eth0 80:5000/udp");
    assert_eq!(localnet(), "0");
    assert!(!file.exists());
    drop(next);

    // The same rule again: the host's own value is still known.
    world.host.portfwd(TO_LOOPBACK).kill9();
    let next = world.host.portfwd(TO_LOOPBACK);
    assert_eq!(localnet(), "1");
    next.stop();
    assert_eq!(localnet(), "0");
    assert!(!file.exists());
}

#[test]
fn a_value_that_another_wrote_in_between_survives() {
    let world = World::direct();
    let localnet = || world.host.ns.read_sysctl(LOCALNET);
    let portfwd = world.host.portfwd(TO_LOOPBACK);
    world.host.ns.sysctl(LOCALNET, 2);
    portfwd.stop();
    assert_eq!(localnet(), "2");

    world.host.ns.sysctl(LOCALNET, 0);
    world.host.portfwd(TO_LOOPBACK).kill9();
    world.host.ns.sysctl(LOCALNET, 2);
    world.host.portfwd("-i eth0 80:5000/udp").stop();
    assert_eq!(localnet(), "2");
    assert!(!journal(&world.host).exists());
}

#[test]
fn a_host_that_has_loopback_open_already_is_left_alone() {
    for (sysctl, other) in [(LOCALNET, LOCALNET_OF_ALL), (LOCALNET_OF_ALL, LOCALNET)] {
        let world = World::direct();
        world.host.ns.sysctl(sysctl, 1);
        let _service = world.host.udp_server(UdpListen::Loopback, SERVICE);
        let server = world.host.udp_server(UdpListen::V4Only, 5001);
        let portfwd = world.host.portfwd(TO_LOOPBACK);
        assert_eq!(world.host.ns.read_sysctl(other), "0", "{sysctl}=1");
        assert!(!journal(&world.host).exists(), "{sysctl}=1");
        let way = Way::Remote(Family::V4);
        let remote = world.remote(way, 80);
        world
            .udp(way)
            .assert_served(world.source(way), remote, SERVICE);
        // What the host let in before still comes in.
        let open = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 5001);
        let client = world.client.at(Family::V4, 1000);
        world.wire().send(&Frame::udp(client, open));
        server.until_served(1);
        let output = portfwd.stop();
        assert_eq!(output.verdict("guarded"), 0, "{output}");
        assert_eq!(world.host.ns.read_sysctl(sysctl), "1");
    }
}

#[test]
fn udp_from_the_network_to_the_v6_loopback_is_refused() {
    let world = World::direct();
    let refusal = Portfwd::refused(&world.host.ns, &["80:[::1]:5000/udp"]);
    assert_eq!(refusal.code, Some(2), "{refusal:?}");
    assert!(refusal.stderr.contains("[::1]"), "{refusal:?}");
    assert_eq!(refusal.stderr.trim().lines().count(), 1, "{refusal:?}");

    // From this host it is reached.
    let _server = world.host.udp_server(UdpListen::Loopback, SERVICE);
    let _portfwd = world.host.portfwd("[::1]:80:[::1]:5000/udp");
    let way = Way::Loopback(Family::V6);
    let remote = world.remote(way, 80);
    world
        .udp(way)
        .assert_served(world.source(way), remote, SERVICE);
}
