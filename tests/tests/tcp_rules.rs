//! What a TCP rule names is what it serves: ports, addresses, interfaces and
//! sources, and the narrow one goes before the wide one.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::{Capture, Family, Keep, Listen, Packet, Tcp, Way, World};

#[test]
fn a_wide_range_serves_its_first_its_middle_and_its_last_port() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _service = world.host.tcp_server(Listen::DualStack, 443);
        let portfwd = world.host.portfwd_with(tcp, "20000-50000:443/tcp");
        for way in Way::ALL {
            for port in [20_000, 35_000, 50_000] {
                world.tcp(way, port).assert_served_by("443");
            }
            world.tcp(way, 19_999).assert_refused();
            world.tcp(way, 50_001).assert_refused();
        }
        let output = portfwd.stop();
        assert_eq!(
            output.rule_counter("20000-50000:443", "connections"),
            Some(18),
            "{tcp:?}\n{output}"
        );
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
                world
                    .tcp(way, target - 10_000)
                    .assert_served_by(&target.to_string());
            }
            world.tcp(way, 8123).assert_refused();
        }
        let replies = capture.packets(|packet| packet.came_by("eth0"));
        let mut sources = replies
            .iter()
            .filter_map(Packet::view)
            .map(|view| view.source.port());
        assert!(sources.all(|port| (8000..=8999).contains(&port)), "{tcp:?}");
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
            world.tcp(way, 80).assert_served_by("5000");
            for (port, name) in [
                (8000, "5000"),
                (8450, "5001"),
                (8500, "5002"),
                (8999, "5000"),
            ] {
                world.tcp(way, port).assert_served_by(name);
                // The address counts for more than the range.
                second(port, if family == Family::V4 { "5003" } else { name });
            }
            second(80, if family == Family::V4 { "5001" } else { "5002" });
        }
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
                    Way::Remote(_) => world.tcp(way, 80).assert_served_by("5000"),
                    _ if local => world.tcp(way, 80).assert_served_by("5000"),
                    _ => world.tcp(way, 80).assert_refused(),
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
            world.tcp(way, 80).assert_refused();
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
