//! Targets on other hosts: every client is served from wherever it dials, and
//! the target sees the address it should.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::{
    Call, Family, Nat, Node, Place, Site, Who, World,
    relay::{DIALLED, SERVICE, rules},
};

#[track_caller]
fn all_are_served(place: Place) {
    for nat in Nat::ALL {
        let site = Site::new(place);
        let portfwd = site.portfwd(nat);
        for family in Family::BOTH {
            for who in Who::OTHERS {
                for remote in site.dialled(family) {
                    let cell = format!("{place:?} {nat:?} {who:?} to {remote}");
                    let peer = site.seen(nat, who, family);
                    is_served(site.node(who), remote, peer, &cell);
                }
            }
            host_is_served(&site, family, &format!("{place:?} {nat:?} the host itself"));
        }
        portfwd.stop_without_loss();
    }
}

/// Over TCP, and over UDP with an unconnected and a connected socket.
#[track_caller]
fn is_served(node: &Node, remote: SocketAddr, seen: IpAddr, cell: &str) {
    let mut talk = node
        .tcp(remote)
        .open()
        .unwrap_or_else(|error| panic!("{cell} over TCP: {error}"));
    assert!(talk.echoes("hello"), "{cell} over TCP");
    assert_eq!(talk.server.peer.ip(), seen, "{cell} over TCP: {talk:?}");

    let family = Family::of(remote.ip());
    for client in [node.udp(family), node.udp(family).connected(remote)] {
        for text in ["first", "second"] {
            // An answer from elsewhere is an error.
            let reply = client.ask(remote, text.as_bytes());
            let reply = reply.unwrap_or_else(|error| panic!("{cell} over UDP: {error}"));
            let server = reply.server.expect("the server says whom it sees");
            assert_eq!(server.peer.ip(), seen, "{cell} over UDP");
        }
    }
}

/// By each of its addresses, with each kind of call.
#[track_caller]
fn host_is_served(site: &Site, family: Family, cell: &str) {
    let calls: Vec<_> = Call::ALL
        .into_iter()
        .flat_map(|call| {
            site.dialled(family)
                .into_iter()
                .map(move |remote| (call, remote))
        })
        .collect();
    let answers = site.cgroup.call(&site.host.ns, &calls);
    for ((call, remote), answer) in calls.into_iter().zip(answers) {
        let called = answer.unwrap_or_else(|error| panic!("{cell} {call:?} to {remote}: {error}"));
        assert_eq!(called.peer, remote, "{cell} {call:?}: the dialled address");
        let (name, seen) = (called.server.name, called.server.peer.ip());
        assert_eq!(name, SERVICE.to_string(), "{cell} {call:?}");
        assert_eq!(
            seen,
            site.towards_target(family),
            "{cell} {call:?} to {remote}"
        );
    }
}

#[test]
fn a_target_on_another_interface_serves_all() {
    all_are_served(Place::AnotherInterface);
}

#[test]
fn a_target_behind_a_gateway_serves_all() {
    all_are_served(Place::BehindGateway);
}

#[test]
fn a_target_on_the_same_interface_serves_all() {
    all_are_served(Place::SameInterface);
}

#[test]
fn a_container_on_a_bridge_serves_all() {
    all_are_served(Place::Container);
}

/// The device is the host's end of the pair, without a bridge between.
#[test]
fn a_target_at_the_other_end_of_a_pair_serves_all() {
    for nat in Nat::ALL {
        let world = World::forwarder();
        let target = world.behind();
        let _services = target.services(SERVICE);
        let _portfwd = world.relay(nat);
        for family in Family::BOTH {
            let own = world.inside_address(family);
            for (node, kept) in [(&world.client, nat != Nat::Masquerade), (target, false)] {
                for address in [world.host.address(family), own] {
                    let remote = SocketAddr::new(address, DIALLED);
                    let seen = if kept { node.address(family) } else { own };
                    is_served(node, remote, seen, &format!("{nat:?} {remote}"));
                }
            }
        }
    }
}

#[test]
fn a_range_keeps_its_offset_its_port_or_goes_to_one() {
    for nat in Nat::FORCED {
        let site = Site::new(Place::AnotherInterface);
        let _services = [18_000, 18_050, 18_099, 81, 443].map(|port| site.target.services(port));
        let rules = rules(|family| {
            // A port would follow the address; this one is kept.
            let target = bracketed(site.target.address(family));
            format!(
                "8000-8099:{target}:18000-18099/tcp+udp 81:{target}/tcp+udp \
                 20000-50000:{target}:443/tcp+udp"
            )
        });
        let portfwd = site.portfwd_with(nat, &rules);
        let ports = [
            (8000, 18_000),
            (8050, 18_050),
            (8099, 18_099),
            (81, 81),
            (20_000, 443),
            (35_000, 443),
            (50_000, 443),
        ];
        for family in Family::BOTH {
            for who in [Who::Remote, Who::Host] {
                for (dialled, service) in ports {
                    let remote = site.host.at(family, dialled);
                    port_is_served(&site, who, remote, service, &format!("{nat:?} {who:?}"));
                }
            }
            for dialled in [7999, 8100, 80, 19_999, 50_001] {
                let remote = site.host.at(family, dialled);
                assert!(site.remote.tcp(remote).is_refused(), "{nat:?} {remote}");
            }
        }
        portfwd.stop();
    }
}

/// As a rule's text names it before a port.
fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[track_caller]
fn port_is_served(site: &Site, who: Who, remote: SocketAddr, service: u16, cell: &str) {
    let family = Family::of(remote.ip());
    let names = if who == Who::Host {
        let calls = [Call::Tcp, Call::Udp].map(|call| (call, remote));
        let answers = site.cgroup.call(&site.host.ns, &calls);
        let name = |answer: Result<_, String>| {
            let called: portfwd_tests::Called =
                answer.unwrap_or_else(|error| panic!("{cell} {remote}: {error}"));
            assert_eq!(called.peer, remote, "{cell}");
            called.server.name
        };
        answers.into_iter().map(name).collect::<Vec<_>>()
    } else {
        let node = site.node(who);
        let talk = node.tcp(remote).open();
        let talk = talk.unwrap_or_else(|error| panic!("{cell} {remote}: {error}"));
        let reply = node.udp(family).ask(remote, b"hello");
        let reply = reply.unwrap_or_else(|error| panic!("{cell} {remote}: {error}"));
        vec![talk.server.name, reply.server.expect("a name").name]
    };
    let service = service.to_string();
    assert_eq!(names, [service.clone(), service], "{cell} {remote}");
}
