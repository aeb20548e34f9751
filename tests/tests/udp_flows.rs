//! One client port may dial several ports of the host: each is a flow, answered
//! from where it was dialled, and one flow only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Barrier,
    thread,
};

use portfwd_tests::{
    Family, Frame, UdpClient, UdpListen, UdpManner, Watch, Way, World, long, world::SERVICE,
};

/// The target cannot tell one client port at several dialled ports apart.
#[test]
fn one_client_port_at_several_ports_of_a_many_to_one_rule_is_answered_from_each() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, 443);
    let portfwd = world.host.portfwd("-i eth0 20000-50000:443/udp");
    for way in Way::ALL {
        let client = world.udp(way);
        let ports = [20_000, 20_001, 35_000, 50_000];
        let ask = |port| client.identify(world.remote(way, port), "hello").peer;
        let seen = ports.map(ask);
        assert_eq!(seen[0].port(), client.local().port());
        assert_eq!(BTreeSet::from(seen).len(), ports.len(), "{seen:?}");
        assert!(
            seen.iter().all(|peer| peer.ip() == seen[0].ip()),
            "{seen:?}"
        );
        assert_eq!(ports.map(ask), seen);
    }
    portfwd.stop_without_loss();
}

#[test]
fn one_client_port_at_two_rules_and_the_target_is_answered_from_each() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp 8080:5000/udp");
    let mut moved = 0;
    for way in Way::ALL {
        for order in ORDERS {
            let client = world.udp(way);
            moved += u64::from(order[0] != SERVICE);
            talks_to_each(&world, way, order, |port, payload| {
                client.identify(world.remote(way, port), payload).peer
            });
        }
    }
    let output = portfwd.stop_without_loss();
    // The first datagram and two more on each of the ways.
    assert_eq!(output.verdict("moved"), moved * 3, "{output}");
    for rule in ["80:5000/udp", "8080:5000/udp"] {
        let count = |column| output.rule_counter(rule, column);
        assert_eq!(count("connections"), Some(36), "{output}");
        assert_eq!(count("packets"), Some(36 * 3));
        assert_eq!(count("packets back"), Some(36 * 3));
    }
}

#[test]
fn three_connected_sockets_of_one_client_port_do_not_disturb_each_other() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp 8080:5000/udp");
    for way in Way::ALL {
        for (number, order) in (1..).zip(ORDERS) {
            let node = world.dialler(way);
            let clients: BTreeMap<u16, UdpClient> = order
                .map(|port| {
                    let client = node.udp_from(way.family(), 40_000 + number);
                    (port, client.connected(world.remote(way, port)))
                })
                .into();
            talks_to_each(&world, way, order, |port, payload| {
                clients[&port]
                    .identify(world.remote(way, port), payload)
                    .peer
            });
        }
    }
    portfwd.stop_without_loss();
}

/// Every order in which a client may dial two rules and their target.
const ORDERS: [[u16; 3]; 6] = [
    [80, 8080, SERVICE],
    [80, SERVICE, 8080],
    [8080, 80, SERVICE],
    [8080, SERVICE, 80],
    [SERVICE, 80, 8080],
    [SERVICE, 8080, 80],
];

/// Talks to each port in order, then to each again, twice, and back to front:
/// the first keeps its port, the others get one each, and keep that.
#[track_caller]
fn talks_to_each(
    world: &World,
    way: Way,
    order: [u16; 3],
    mut ask: impl FnMut(u16, &str) -> SocketAddr,
) {
    let first = order.map(|port| ask(port, "first"));
    let distinct: BTreeSet<u16> = first.iter().map(SocketAddr::port).collect();
    assert_eq!(distinct.len(), 3, "{way:?} {order:?}: {first:?}");
    let source = world.source(way);
    assert!(first.iter().all(|peer| peer.ip() == source), "{first:?}");
    assert_eq!(order.map(|port| ask(port, "again")), first, "{order:?}");
    let mut backwards = order;
    backwards.reverse();
    let mut last = backwards.map(|port| ask(port, "backwards"));
    last.reverse();
    assert_eq!(last, first, "{way:?} {order:?}");
}

#[test]
fn first_datagrams_that_race_become_one_flow() {
    let rounds: u16 = if long() { 5_000 } else { 500 };
    let threads = 4;
    let world = World::direct().watching(Watch::OneOf(20));
    let server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Echo);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp 8080:5000/udp");
    for family in Family::BOTH {
        let way = Way::Remote(family);
        for round in 0..rounds {
            let client = world.client.udp_from(family, 2_000 + round);
            // Its own port is taken, so that the racers have to find another.
            client
                .ask(world.remote(way, 8080), b"first")
                .expect("answered");
            let start = Barrier::new(threads);
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        start.wait();
                        client.send(world.remote(way, 80), b"race").expect("sent");
                    });
                }
            });
        }
    }
    let flows = 2 * usize::from(rounds);
    server.until_served(flows * (1 + threads));
    let mut sources: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for peer in server.served() {
        *sources.entry(peer).or_default() += 1;
    }
    let with = |count| sources.values().filter(|&&seen| seen == count).count();
    assert_eq!((with(1), with(threads)), (flows, flows), "one source each");
    let output = portfwd.stop_without_loss();
    for rule in ["80:5000/udp", "8080:5000/udp"] {
        let connections = output.rule_counter(rule, "connections");
        assert_eq!(connections, Some(flows as u64), "{output}");
    }
}

/// The ports that are handed out where one is taken are spread over all.
#[test]
fn thousands_of_flows_of_one_client_get_another_port_each() {
    let world = World::direct().watching(Watch::OneOf(100));
    let server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp 8080:5000/udp");
    let wire = world.wire();
    let clients = 10_000..15_000;
    for family in Family::BOTH {
        for dialled in [8080, 80] {
            for port in clients.clone() {
                let source = world.client.at(family, port);
                wire.send(&Frame::udp(source, world.host.at(family, dialled)));
            }
        }
    }
    let count = 4 * clients.len() as u64;
    assert_eq!(server.settled(count).count, count);
    let output = portfwd.stop_without_loss();
    for rule in ["80:5000/udp", "8080:5000/udp"] {
        let connections = output.rule_counter(rule, "connections");
        assert_eq!(connections, Some(count / 2), "{output}");
    }
}
