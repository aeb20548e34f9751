//! Which way targets on other hosts are reached: told at the start, followed
//! while it runs. Packets are not sent here: the maps say what they would do.

use std::{
    net::IpAddr,
    ptr,
    time::{Duration, Instant},
};

use portfwd_common::{Addr, TargetEntry, names, rule::HopKey};
use portfwd_tests::{
    Family, Listen, Netns, Output, Portfwd, Tcp, TunCable, Way, World, bpf::Pinned, deadline,
};

/// A change is followed within this time.
const SOON: Duration = Duration::from_secs(1);

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const BOX_MAC: [u8; 6] = [2, 0, 0, 0, 1, 5];

/// A host with `eth0` to a router, `br0` with a network of its own, and
/// `veth0` to a container.
struct Host {
    ns: Netns,
    _container: Netns,
}

impl Host {
    fn new() -> Self {
        let (ns, container) = (Netns::new(), Netns::new());
        ns.ip(&format!(
            "link add eth0 type veth peer name wire
             link add br0 type bridge
             link add veth0 address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:05 netns {}
             link set wire up
             link set eth0 up
             link set br0 up
             link set veth0 up
             address add 192.0.2.1/24 dev eth0
             address add 2001:db8::1/64 dev eth0 nodad
             address add 10.0.0.1/24 dev br0
             address add 10.1.0.1/24 dev veth0
             route add default via 192.0.2.254
             route add default via 2001:db8::fe",
            container.name()
        ));
        container.ip("link set eth0 up\naddress add 10.1.0.5/24 dev eth0");
        Self {
            ns,
            _container: container,
        }
    }

    #[track_caller]
    fn start(&self, args: &str) -> Portfwd {
        Portfwd::start(&self.ns, Tcp::Steered, args)
    }

    fn target(&self, index: u32) -> TargetEntry {
        let map = Pinned::of_forwarder(&self.ns, names::TARGETS);
        let value = map.value(&index.to_ne_bytes()).expect("an array has it");
        assert_eq!(value.len(), size_of::<TargetEntry>());
        // SAFETY: as many bytes as the type has, of which each pattern is one.
        unsafe { ptr::read_unaligned(value.as_ptr().cast()) }
    }

    /// What the datapath is told of the way back to a client by a device.
    fn next_hop(&self, device: &str, client: &str) -> Option<Addr> {
        let bits = HopKey::prefix_len(128).to_ne_bytes();
        let ifindex = self.ns.ifindex(device).to_be_bytes();
        let key = [&bits[..], &ifindex, &addr(client).octets()].concat();
        let hop = Pinned::of_forwarder(&self.ns, names::NEXT_HOPS).value(&key)?;
        let octets: [u8; 16] = hop.try_into().expect("an address");
        Some(IpAddr::from(octets).into())
    }

    /// Waits until the next hops of clients by their devices are these.
    #[track_caller]
    fn until_hops(&self, what: &str, hops: &[(&str, &str, Option<&str>)]) {
        for (device, client, hop) in hops {
            let wanted = hop.map(addr);
            let so = || (self.next_hop(device, client) == wanted).then_some(());
            let seen = deadline(SOON, so);
            let found = self.next_hop(device, client).map(IpAddr::from);
            assert!(seen.is_some(), "{what}: {client} by {device}: {found:?}");
        }
    }

    /// The device that leads to a client, or 0 where several do.
    fn home(&self, client: &str) -> Option<u32> {
        let key = [&128_u32.to_ne_bytes()[..], &addr(client).octets()].concat();
        let home = Pinned::of_forwarder(&self.ns, names::HOMES).value(&key)?;
        Some(u32::from_ne_bytes(home.try_into().expect("an index")))
    }

    /// Waits until these devices lead to clients.
    #[track_caller]
    fn until_homes(&self, what: &str, homes: &[(&str, Option<&str>)]) {
        for (client, device) in homes {
            let wanted = device.map(|device| self.ns.ifindex(device));
            let home = || self.home(client).filter(|home| *home != 0);
            let seen = deadline(SOON, || (home() == wanted).then_some(()));
            assert!(seen.is_some(), "{what}: {client}: {:?}", self.home(client));
        }
    }

    /// Waits until the first target is so.
    #[track_caller]
    fn until_target(&self, what: &str, so: impl Fn(&TargetEntry) -> bool) {
        let start = Instant::now();
        let seen = deadline(SOON, || so(&self.target(0)).then_some(()));
        let target = self.target(0);
        assert!(seen.is_some(), "{what}: {target:?}");
        println!("{what} after {:?}", start.elapsed());
    }
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

#[track_caller]
fn assert_lines(printed: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            printed.lines().any(|printed| printed.contains(line)),
            "{line:?} is missing:\n{printed}"
        );
    }
}

#[test]
fn the_way_and_what_becomes_of_the_address_are_told() {
    let host = Host::new();
    for (args, lines) in [
        (
            "80:10.0.0.5:8080",
            &[
                "80:10.0.0.5:8080  on tc ingress of ",
                ": tcp by redirect to 10.0.0.5 on br0",
                "  auto: preserve (on-link br0), masquerade for clients on br0",
            ][..],
        ),
        (
            "53:198.51.100.7/tcp+udp",
            &[
                ": tcp and udp by redirect to 198.51.100.7 via 192.0.2.254 on eth0",
                "  auto: masquerade as 192.0.2.1 (behind the gateway 192.0.2.254)",
            ],
        ),
        (
            "80:192.0.2.9",
            &["  auto: masquerade as 192.0.2.1 (eth0 is the way of the default route)"],
        ),
        (
            "80:[2001:db8::9]",
            &["  auto: masquerade as 2001:db8::1 (eth0 is the way of the default route)"],
        ),
        (
            "80:10.1.0.5",
            &[": tcp by redirect-peer to 10.1.0.5 on veth0"],
        ),
        ("--nat preserve 80:192.0.2.9", &["  preserve (--nat)"]),
        (
            "--nat masquerade 80:10.0.0.5",
            &["  masquerade as 10.0.0.1 (--nat)"],
        ),
        ("80:10.0.0.1", &[": tcp by steer"]),
        (
            "--nat masquerade 80:5000",
            &["  the client's address is kept: --nat masquerade"],
        ),
    ] {
        let portfwd = host.start(args);
        assert_lines(&portfwd.stdout(), lines);
        portfwd.stop();
    }
    host.ns.ip("route del default");
    let portfwd = host.start("80:198.51.100.7");
    let line = "to 198.51.100.7, to which no route leads yet (dropped as no-route)";
    assert_lines(&portfwd.stdout(), &[line]);
    assert_eq!(host.target(0).ifindex, 0);
}

#[test]
fn a_target_follows_its_route() {
    let host = Host::new();
    let [eth0, br0] = ["eth0", "br0"].map(|device| host.ns.ifindex(device));
    let portfwd = host.start("80:198.51.100.7:8080");
    let at_first = host.target(0);
    assert_eq!(at_first.addr, addr("198.51.100.7"));
    assert_eq!((at_first.ifindex, at_first.flags), (eth0, 0));
    assert_eq!(at_first.source, addr("192.0.2.1"));

    host.ns.ip("route add 198.51.100.0/24 dev br0");
    host.until_target("another device", |target| {
        target.ifindex == br0
            && target.source == addr("10.0.0.1")
            && target.flags == TargetEntry::PRESERVE_ACROSS
    });
    host.ns.ip("route add default dev br0 metric 9");
    host.until_target("a default route there", |target| target.flags == 0);
    host.ns
        .ip("route del default dev br0 metric 9\nroute del 198.51.100.0/24");
    host.until_target("the first way", |target| *target == at_first);
    host.ns
        .ip("route replace default via 192.0.2.254 src 10.1.0.1");
    host.until_target("another source", |target| target.source == addr("10.1.0.1"));
    host.ns
        .ip("route add 198.51.100.7 dev br0 table 7\nrule add to 198.51.100.7 table 7");
    host.until_target("a rule", |target| target.ifindex == br0);
    host.ns.ip("rule del to 198.51.100.7 table 7");
    host.until_target("no rule", |target| target.ifindex == eth0);
    host.ns.ip("route del default");
    host.until_target("no route", |target| {
        target.ifindex == 0 && !target.is_local()
    });
    host.ns.ip("route add default via 192.0.2.254");
    host.until_target("a route again", |target| *target == at_first);
    let Output { stderr, .. } = portfwd.stop();
    assert!(
        stderr.contains("no route leads to 198.51.100.7 any more"),
        "{stderr}"
    );
    assert!(
        stderr.contains("a route leads to 198.51.100.7 again"),
        "{stderr}"
    );
}

#[test]
fn two_ways_to_one_network_are_told_apart_by_their_devices() {
    const CLIENT: &str = "2001:db8:f::7";
    let host = Host::new();
    let none = [("eth0", CLIENT, None), ("br0", CLIENT, None)];
    let both = [
        ("eth0", CLIENT, Some("2001:db8::fe")),
        ("eth0", "2001:db8::7", Some("::")),
        ("eth0", "fe80::7", Some("::")),
        ("br0", CLIENT, Some("2001:db8:b::fe")),
        ("br0", "2001:db8:b::7", Some("::")),
        ("veth0", "fe80::7", None),
    ];
    host.ns.ip(
        "address add 2001:db8:b::1/64 dev br0 nodad\nroute add default via 10.0.0.254 metric 9",
    );
    let portfwd = host.start("80:[2001:db8::9]:8080");
    host.until_hops("one default route", &none);
    host.ns
        .ip("route add default via 2001:db8:b::fe metric 4096");
    host.until_hops("two of them", &both);
    host.ns
        .ip("route add 2001:db8:f::/48 via 2001:db8:b::fd dev br0");
    let nearer = [("eth0", both[0].2), ("br0", Some("2001:db8:b::fd"))];
    host.until_hops(
        "a network behind one",
        &nearer.map(|(device, hop)| (device, CLIENT, hop)),
    );
    portfwd.stop();

    let portfwd = host.start("80:[2001:db8::9]:8080");
    host.until_hops("from the start", &both[4..]);
    host.ns
        .ip("route del 2001:db8:f::/48\nroute del default via 2001:db8:b::fe metric 4096");
    host.until_hops("one again", &none);
    host.ns
        .ip("route add 2001:db8:f::/48 nexthop via 2001:db8:b::fd nexthop via 2001:db8::fd");
    host.until_hops(
        "a route with two hops",
        &[
            ("eth0", CLIENT, Some("2001:db8::fd")),
            ("br0", CLIENT, Some("2001:db8:b::fd")),
        ],
    );
    portfwd.stop();

    let portfwd = host.start("80:10.0.0.5 81:[::1]");
    host.until_hops("no IPv6 client is sent on", &none);
    portfwd.stop();
}

#[test]
fn clients_are_at_home_where_one_interface_leads_to_their_network() {
    let host = Host::new();
    let v4 = "80:10.0.0.5:8080";
    let portfwd = host.start(&format!("{v4} 81:[2001:db8::9]"));
    host.until_homes(
        "from the start",
        &[
            ("192.0.2.7", Some("eth0")),
            ("10.0.0.7", Some("br0")),
            ("10.1.0.7", Some("veth0")),
            ("2001:db8::7", Some("eth0")),
            ("198.51.100.7", None),
            ("2001:db8:f::7", None),
            ("fe80::7", None),
        ],
    );
    host.ns
        .ip("route add 198.51.100.0/24 via 10.0.0.9\nroute add 10.0.0.128/25 dev veth0");
    host.until_homes(
        "routes of networks",
        &[("198.51.100.7", Some("br0")), ("10.0.0.200", Some("veth0"))],
    );
    host.ns
        .ip("route add 198.51.100.0/24 via 192.0.2.254 metric 9\nroute add 10.0.0.128/25 dev eth0 metric 9");
    host.until_homes(
        "two interfaces",
        &[
            ("198.51.100.7", None),
            ("10.0.0.200", None),
            ("10.0.0.7", Some("br0")),
        ],
    );
    host.ns
        .ip("route del 198.51.100.0/24 metric 9\nroute del 10.0.0.128/25 metric 9");
    host.until_homes(
        "one again",
        &[("198.51.100.7", Some("br0")), ("10.0.0.200", Some("veth0"))],
    );
    host.ns.ip("link set veth0 down");
    host.until_homes(
        "none by it",
        &[("10.1.0.7", None), ("10.0.0.200", Some("br0"))],
    );
    portfwd.stop();

    let portfwd = host.start("80:5000");
    host.until_homes("no target is another host", &[("10.0.0.7", None)]);
    portfwd.stop();

    let portfwd = host.start(v4);
    let homes = [("10.0.0.7", Some("br0")), ("2001:db8::7", None)];
    host.until_homes("no IPv6 client is sent on", &homes);
    portfwd.stop();
}

#[test]
fn a_tunnel_is_entered_with_an_address_of_this_host() {
    let host = Host::new();
    let other = Netns::new();
    let _cable = TunCable::join(&host.ns, &other, "tun0");
    host.ns.ip("address add 10.2.0.1/24 dev tun0");
    let portfwd = host.start("80:10.2.0.5:8080");
    let line = "  auto: masquerade as 10.2.0.1 \
                (tun0 is a tunnel, whose other end may take no other source)";
    assert_lines(&portfwd.stdout(), &[line]);
    assert_eq!(host.target(0).flags, 0);
    portfwd.stop();
}

#[test]
fn a_pair_is_crossed_while_the_neighbour_is_known() {
    let host = Host::new();
    let portfwd = host.start("80:10.1.0.5:8080");
    let peers = |target: &TargetEntry| target.flags & TargetEntry::PEER != 0;
    assert!(!peers(&host.target(0)), "nobody has asked for it yet");
    let neighbour = "10.1.0.5 dev veth0 lladdr 02:00:00:00:01:05";
    host.ns
        .ip(&format!("neigh replace {neighbour} nud reachable"));
    host.until_target("the neighbour", peers);
    let frame: Vec<u8> = host
        .target(0)
        .link
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    assert_eq!(frame, [BOX_MAC, HOST_MAC].concat());
    host.ns
        .ip("neigh replace 10.1.0.5 dev veth0 lladdr 02:00:00:00:01:07 nud reachable");
    host.until_target("another address", |target| {
        target.link[1].to_ne_bytes()[..2] == [1, 7]
    });
    host.ns.ip("neigh flush dev veth0");
    host.until_target("no neighbour", |target| {
        !peers(target) && target.link == [0; 3]
    });
    host.ns.ip("neigh flush dev veth0 nud all");
    host.ns.ip(&format!("neigh replace {neighbour} nud stale"));
    host.until_target("a stale one", |target| !peers(target));
    host.ns.ip("link set veth0 address 02:00:00:00:01:02");
    host.ns
        .ip(&format!("neigh replace {neighbour} nud permanent"));
    host.until_target("one by hand, from the device's new address", |target| {
        peers(target) && target.link[2].to_ne_bytes() == [0, 0, 1, 2]
    });
    portfwd.stop();
}

#[test]
fn what_the_flows_cost_is_what_the_kernel_says() {
    let world = World::direct();
    let host = &world.host;
    for (option, flows) in [
        ("", 131_072),
        ("--max-flows 1", 1),
        ("--max-flows 3000", 3000),
        ("--max-flows 300000", 300_000),
    ] {
        let portfwd = host.portfwd(&format!("{option} 80:5000"));
        let printed = portfwd.stdout();
        let start = format!("room for {flows} flows: ");
        let told = printed.lines().find_map(|line| line.strip_prefix(&start));
        let told: f64 = told
            .and_then(|told| told.strip_suffix(" MiB")?.parse().ok())
            .unwrap_or_else(|| panic!("no `{start}`:\n{printed}"));
        let taken: usize = [names::FLOWS, names::NEW, names::FOREIGN]
            .iter()
            .map(|name| Pinned::of_forwarder(&host.ns, name).memory())
            .sum();
        let taken = taken as f64 / f64::from(1 << 20);
        let apart = (told - taken).abs();
        assert!(apart < 0.03 * taken + 0.1, "{told} MiB of {taken}");
        portfwd.stop();
    }
}

#[test]
fn room_for_one_flow_is_enough_for_one() {
    let world = World::direct();
    let _web = world.host.tcp_server(Listen::DualStack, 5000);
    let _portfwd = world
        .host
        .portfwd_with(Tcp::Rewritten, "--max-flows 1 80:5000");
    for family in Family::BOTH {
        world.tcp(Way::Remote(family), 80).open().expect("served");
    }
}

#[test]
fn a_link_local_address_of_another_host_is_refused() {
    let ns = Netns::new();
    let refusal = Portfwd::refused(&ns, &["80:[fe80::5]:8080"]);
    assert_eq!(refusal.code, Some(1), "{refusal:?}");
    for part in ["`80:[fe80::5]:8080`", "link-local", "interface"] {
        assert!(refusal.stderr.contains(part), "{refusal:?}");
    }
    assert_eq!(refusal.stderr.lines().count(), 1, "{refusal:?}");
}
