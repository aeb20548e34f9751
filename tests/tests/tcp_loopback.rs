//! TCP services and rules of 127.0.0.1 and ::1: who reaches them.

use portfwd_tests::{Family, Frame, Listen, Tcp, Way, World};

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
                world.tcp(way, 80).assert_refused();
            } else {
                world.tcp(way, 80).assert_served_by("5000");
            }
            if matches!(way, Way::Loopback(_)) {
                world.tcp(way, 81).assert_served_by("5000");
            } else {
                world.tcp(way, 81).assert_refused();
            }
        }
        portfwd.stop();
        assert_eq!(opened(), "0", "{tcp:?}");
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
                Way::Loopback(_) => world.tcp(way, 80).assert_served_by("5000"),
                _ => world.tcp(way, 80).assert_refused(),
            }
        }
        // Nor by one who claims to dial it over the wire.
        for way in [Way::Loopback(Family::V4), Way::Loopback(Family::V6)] {
            let client = world.client.at(way.family(), 45_000);
            world
                .wire()
                .send(&Frame::syn(client, world.remote(way, 80)));
        }
        world.tcp(Way::Loopback(Family::V4), 80).assert_served();
        let output = portfwd.stop();
        assert_eq!(output.verdict("not-local"), 2, "{tcp:?}\n{output}");
        let counted = ["127.0.0.1:80:5000", "[::1]:80:5000"]
            .map(|rule| output.rule_counter(rule, "connections"));
        assert_eq!(counted, [Some(2), Some(1)], "{tcp:?}\n{output}");
    }
}
