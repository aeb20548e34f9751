//! Targets on other hosts with XDP beside TC: every client is served from
//! wherever it dials, the target sees the address it should, and XDP carries
//! each flow both ways.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::{Call, Family, Nat, Node, Place, Site, Stack, Who, World, relay::SERVICE};

/// The devices that clients come in by and that lead to the target.
fn devices(place: Place) -> &'static str {
    match place {
        Place::SameInterface => "-i eth0",
        _ => "-i eth0 -i eth1",
    }
}

#[track_caller]
fn all_go_by_xdp(place: Place) {
    for nat in Nat::ALL {
        let site = Site::new(place).wired();
        let args = format!("--mode xdp {} {}", devices(place), site.target.rules());
        let portfwd = site.portfwd_with(nat, &args);
        let stack = Stack::of(&site.host);
        for family in Family::BOTH {
            for who in Who::OTHERS {
                for remote in site.dialled(family) {
                    let cell = format!("{place:?} {nat:?} {who:?} to {remote}");
                    let seen = site.seen(nat, who, family);
                    goes_by_xdp(&stack, site.node(who), remote, seen, &cell);
                }
            }
            host_is_served(&site, family, &format!("{place:?} {nat:?}"));
        }
        let output = portfwd.stop_without_loss();
        assert!(output.express() > 0, "{output}");
    }
}

/// Over TCP, and over UDP with an unconnected and a connected socket.
#[track_caller]
fn goes_by_xdp(stack: &Stack, node: &Node, remote: SocketAddr, seen: IpAddr, cell: &str) {
    let mut talk = node
        .tcp(remote)
        .open()
        .unwrap_or_else(|error| panic!("{cell} over TCP: {error}"));
    assert_eq!(talk.server.peer.ip(), seen, "{cell} over TCP: {talk:?}");
    stack.is_passed_by(node, remote, &format!("{cell} over TCP"), |text| {
        assert!(talk.echoes(text), "{cell} over TCP");
    });

    let family = Family::of(remote.ip());
    for client in [node.udp(family), node.udp(family).connected(remote)] {
        stack.is_passed_by(node, remote, &format!("{cell} over UDP"), |text| {
            // An answer from elsewhere is an error.
            let reply = client.ask(remote, text.as_bytes());
            let reply = reply.unwrap_or_else(|error| panic!("{cell} over UDP: {error}"));
            let server = reply.server.expect("the server says whom it sees");
            assert_eq!(server.peer.ip(), seen, "{cell} over UDP");
        });
    }
}

/// The host's own calls lead to the target, whose answers XDP leaves to it.
#[track_caller]
fn host_is_served(site: &Site, family: Family, cell: &str) {
    let remote = site.dialled(family)[0];
    let calls = [Call::Tcp, Call::Udp].map(|call| (call, remote));
    for answer in site.cgroup.call(&site.host.ns, &calls) {
        let called = answer.unwrap_or_else(|error| panic!("{cell} from the host: {error}"));
        assert_eq!(called.peer, remote, "{cell} from the host");
        assert_eq!(called.server.name, SERVICE.to_string(), "{cell}");
    }
}

#[test]
fn flows_to_a_target_on_another_interface_go_by_xdp() {
    all_go_by_xdp(Place::AnotherInterface);
}

#[test]
fn flows_to_a_target_behind_a_gateway_go_by_xdp() {
    all_go_by_xdp(Place::BehindGateway);
}

/// What came in by a device leaves by it.
#[test]
fn flows_to_a_target_on_the_same_interface_go_by_xdp() {
    all_go_by_xdp(Place::SameInterface);
}

/// Without a switch between.
#[test]
fn flows_to_a_target_at_the_other_end_of_a_pair_go_by_xdp() {
    for nat in Nat::ALL {
        let world = World::forwarder().wired();
        let target = world.behind();
        let _services = target.services(SERVICE);
        let portfwd = world.express(nat);
        let stack = Stack::of(&world.host);
        for family in Family::BOTH {
            let own = world.inside_address(family);
            for (node, kept) in [(&world.client, nat != Nat::Masquerade), (target, false)] {
                let remote = world.host.at(family, portfwd_tests::relay::DIALLED);
                let seen = if kept { node.address(family) } else { own };
                goes_by_xdp(&stack, node, remote, seen, &format!("{nat:?} {remote}"));
            }
        }
        portfwd.stop_without_loss();
    }
}

/// A bridge has no XDP, and none can send by it.
#[test]
fn flows_to_a_container_stay_on_tc_and_a_forced_mode_says_so() {
    let site = Site::new(Place::Container).wired();
    let rules = site.target.rules();
    let words = format!("--mode xdp -i eth0 {rules}");
    let words: Vec<&str> = words.split(' ').collect();
    let refusal = portfwd_tests::Portfwd::refused(&site.host.ns, &words);
    assert_eq!(refusal.code, Some(1), "{}", refusal.stderr);
    assert!(refusal.stderr.contains("--mode xdp"), "{}", refusal.stderr);

    let portfwd = site.portfwd_with(Nat::Auto, &rules);
    for family in Family::BOTH {
        let remote = site.dialled(family)[0];
        let talk = site.remote.tcp(remote).open();
        assert!(talk.expect("served").echoes("hello"));
    }
    assert_eq!(portfwd.stop_without_loss().verdict("deferred"), 0);
}
