//! Many flows, a flood and bulk over UDP: all are served, and none that has
//! proved itself is lost.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use portfwd_tests::{
    Family, Frame, UdpListen, UdpManner, Watch, World,
    bpf::Pinned,
    long,
    udp::Tally,
    world::{SERVICE, stranger},
};

#[test]
fn many_short_flows_are_all_served() {
    let flows: u32 = if long() { 200_000 } else { 20_000 };
    let world = World::direct().watching(Watch::OneOf(100));
    // As many client ports as there are for each of them.
    let ports = 60_000;
    let _servers = [SERVICE, SERVICE + 1].map(|port| {
        let listen = UdpListen::DualStack;
        world.host.udp_server_with(listen, port, UdpManner::Echo)
    });
    let portfwd = world.host.portfwd("-i eth0 80-81:5000-5001/udp");
    for family in Family::BOTH {
        let short_flow = |number: u32| -> io::Result<()> {
            let port = 1_024 + (number % ports) as u16;
            let socket = UdpSocket::bind((family.any(), port))?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            let dialled = 80 + (number / ports) as u16;
            socket.connect(world.host.at(family, dialled))?;
            let mut buffer = [0; 16];
            socket.send(b"short")?;
            socket.recv(&mut buffer).map(|_| ())
        };
        world.client.ns.enter(|| {
            for number in 0..flows / 2 {
                short_flow(number).unwrap_or_else(|error| panic!("{family:?} {number}: {error}"));
            }
        });
    }
    let [new, lasting] = ["NEW", "FLOWS"].map(|name| Pinned::of_forwarder(&world.host.ns, name));
    assert!(new.entries() <= new.capacity());
    // None of them has proved that it receives.
    assert_eq!(lasting.entries(), 0);
    let output = portfwd.stop_without_loss();
    for column in ["connections", "packets", "packets back"] {
        let counted = output.rule_counter("80-81:5000-5001/udp", column);
        assert_eq!(counted, Some(flows.into()), "{output}");
    }
}

#[test]
fn a_flood_evicts_no_flow_that_has_proved_itself_and_keeps_no_client_out() {
    let flood: u32 = if long() { 1_000_000 } else { 150_000 };
    let world = World::direct().watching(Watch::OneOf(1_000));
    let service = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Identify);
    let sink = world
        .host
        .udp_server_with(UdpListen::DualStack, 5001, UdpManner::Count);
    let portfwd = world
        .host
        .portfwd("-i eth0 80:5000/udp 8080:5000/udp 81:5001/udp");
    let lasting = Family::BOTH.map(|family| {
        let client = world.client.udp(family);
        let seen = [80, 8080].map(|port| {
            let remote = world.host.at(family, port);
            client.identify(remote, "first");
            client.identify(remote, "second").peer
        });
        (family, client, seen)
    });
    let entries = |name| {
        let map = Pinned::of_forwarder(&world.host.ns, name);
        (map.entries(), map.capacity())
    };
    let proved = entries("FLOWS");
    assert_eq!(proved.0, 2 * 2 * 2, "two entries a flow");

    let wire = world.wire();
    for number in 0..flood {
        let family = Family::BOTH[(number % 2) as usize];
        let stranger = SocketAddr::new(stranger(family, number), 1024);
        wire.send(&Frame::udp(stranger, world.host.at(family, 81)));
        if number % 10_000 == 0 {
            world
                .client
                .udp(family)
                .identify(world.host.at(family, 80), "new");
        }
    }
    for (family, client, seen) in &lasting {
        let again = [80, 8080].map(|port| {
            client
                .identify(world.host.at(*family, port), "after the flood")
                .peer
        });
        assert_eq!(again, *seen);
    }
    let (count, capacity) = entries("NEW");
    assert!(count <= capacity, "{count} of {capacity}");
    assert!(count > capacity / 2, "the flood filled it: {count}");
    assert_eq!(entries("FLOWS"), proved);
    assert!(service.served().len() > 8);
    assert_eq!(sink.settled(flood.into()).count, u64::from(flood));
    portfwd.stop_without_loss();
}

#[test]
fn bulk_arrives_whole() {
    let count: u64 = if long() { 1_000_000 } else { 200_000 };
    let world = World::direct().watching(Watch::OneOf(500));
    let server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let mut sent = Tally::default();
    for family in Family::BOTH {
        let client = world.client.udp(family);
        let tally = client
            .blast(world.host.at(family, 80), count / 2, 50_000)
            .expect("sent");
        sent.count += tally.count;
        sent.hash = sent.hash.wrapping_add(tally.hash);
    }
    assert_eq!(server.settled(count), sent);
    let output = portfwd.stop_without_loss();
    let counted = output.rule_counter("80:5000/udp", "packets");
    assert_eq!(counted, Some(count), "{output}");
    assert_eq!(output.verdict("rewritten"), count, "{output}");
}
