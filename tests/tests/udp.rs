//! UDP to sockets of this host: who is served, what each end sees of the
//! other, and what is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Barrier,
    thread,
    time::Duration,
};

use portfwd_tests::{
    Bystander, Capture, Family, Frame, Identity, Keep, Node, Packet, Portfwd, UdpClient, UdpListen,
    UdpManner, Watch, Way, World,
    bpf::{Pinned, Side},
    state::cookie,
    udp::{DNS_ANSWER, Tally, dns_answer},
    until, until_some,
};

/// The port that the service listens on.
const SERVICE: u16 = 5000;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Loads that take minutes are for those who ask for them.
fn long() -> bool {
    env::var_os("PORTFWD_TEST_LONG").is_some()
}

/// Asks, and tells whom the server saw; the answer came from where the client
/// dialled.
#[track_caller]
fn identity(client: &UdpClient, remote: SocketAddr, payload: &str) -> Identity {
    let reply = client.ask(remote, payload.as_bytes());
    let reply = reply.unwrap_or_else(|error| panic!("{remote} {payload}: {error}"));
    reply.server.expect("the server says whom it sees")
}

/// Asks, and the server sees the client's own address and port.
#[track_caller]
fn is_served(client: &UdpClient, source: IpAddr, remote: SocketAddr, service: u16) {
    let server = identity(client, remote, "hello");
    assert_eq!(server.name, service.to_string(), "{remote}");
    let own = SocketAddr::new(source, client.local().port());
    assert_eq!(server.peer, own, "{remote}: the client is kept");
}

/// The address that one who goes this way has.
fn source(world: &World, way: Way) -> IpAddr {
    match way {
        Way::Loopback(family) => family.loopback(),
        Way::Remote(family) | Way::Own(family) => world.dialler(way).address(family),
    }
}

/// No packet was lost by the forwarder's own verdicts.
#[track_caller]
fn stops_without_loss(portfwd: Portfwd) -> portfwd_tests::Output {
    let output = portfwd.stop();
    for verdict in ["table-full", "no-port"] {
        assert_eq!(output.verdict(verdict), 0, "{verdict}\n{output}");
    }
    output
}

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
            let (from, remote) = (source(&world, way), world.remote(way, 80));
            is_served(&world.udp(way), from, remote, SERVICE);
            let connected = world.udp(way).connected(remote);
            for _ in 0..3 {
                is_served(&connected, from, remote, SERVICE);
            }
        }
    }
}

#[test]
fn a_service_of_loopback_only_is_served_to_clients_of_loopback_only() {
    let world = World::direct();
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let server = world.host.udp_server(UdpListen::Loopback, SERVICE);
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        if matches!(way, Way::Loopback(_)) {
            is_served(&world.udp(way), source(&world, way), remote, SERVICE);
            continue;
        }
        let client = world.udp(way).connected(remote);
        let error = client.ask(remote, b"hello").expect_err("not served");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{way:?}");
    }
    assert_eq!(server.served().len(), 2);
    assert_eq!(stops_without_loss(portfwd).verdict("no-listener"), 4);
}

#[test]
fn without_local_clients_the_network_is_still_served() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let _portfwd = world.host.portfwd("-i eth0 --no-local 80:5000/udp");
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        if matches!(way, Way::Remote(_)) {
            is_served(&world.udp(way), source(&world, way), remote, SERVICE);
            continue;
        }
        let client = world.udp(way).connected(remote);
        let error = client.ask(remote, b"hello").expect_err("not served");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{way:?}");
    }
}

#[test]
fn a_range_keeps_the_offset_or_goes_to_one_port() {
    let world = World::direct();
    let shifted = [18_000, 18_123, 18_999].map(|port| (port - 10_000, port));
    let gathered = [20_000, 30_000, 50_000].map(|port| (port, 443));
    let _servers: Vec<_> = [18_000, 18_123, 18_999, 443]
        .map(|port| world.host.udp_server(UdpListen::DualStack, port))
        .into();
    let rules = "8000-8999:18000-18999/udp 20000-50000:443/udp";
    let portfwd = world.host.portfwd(&format!("-i eth0 {rules}"));
    for way in Way::ALL {
        for (dialled, served) in shifted.into_iter().chain(gathered) {
            let remote = world.remote(way, dialled);
            is_served(&world.udp(way), source(&world, way), remote, served);
        }
        // The neighbours of a range are not of it.
        for dialled in [7_999, 9_000, 19_999, 50_001] {
            let remote = world.remote(way, dialled);
            let client = world.udp(way).connected(remote);
            let error = client.ask(remote, b"hello").expect_err("no rule");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{dialled}");
        }
    }
    let output = stops_without_loss(portfwd);
    for rule in rules.split(' ') {
        let count = |column| output.rule_counter(rule, column);
        assert_eq!(count("connections"), Some(18), "{output}");
        assert_eq!(count("packets"), Some(18));
        assert_eq!(count("packets back"), Some(18));
    }
}

/// The target cannot tell one client port at several dialled ports apart.
#[test]
fn one_client_port_at_several_ports_of_a_many_to_one_rule_is_answered_from_each() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, 443);
    let portfwd = world.host.portfwd("-i eth0 20000-50000:443/udp");
    for way in Way::ALL {
        let client = world.udp(way);
        let ports = [20_000, 20_001, 35_000, 50_000];
        let ask = |port| identity(&client, world.remote(way, port), "hello").peer;
        let seen = ports.map(ask);
        assert_eq!(seen[0].port(), client.local().port());
        assert_eq!(BTreeSet::from(seen).len(), ports.len(), "{seen:?}");
        assert!(
            seen.iter().all(|peer| peer.ip() == seen[0].ip()),
            "{seen:?}"
        );
        assert_eq!(ports.map(ask), seen);
    }
    stops_without_loss(portfwd);
}

#[test]
fn a_rule_of_both_protocols_serves_a_resolver_over_both() {
    let world = World::direct();
    let udp = world
        .host
        .udp_server_with(UdpListen::DualStack, 5353, UdpManner::Dns);
    let tcp = DnsOverTcp::start(&world.host, 5353, Way::ALL.len());
    let portfwd = world.host.portfwd("-i eth0 53:5353/tcp+udp");
    for way in Way::ALL {
        let address = world.remote(way, 53).ip();
        for transport in ["+notcp", "+tcp"] {
            let line = format!("dig +short +tries=1 +time=3 {transport} @{address} example.com");
            let answer = world.dialler(way).ns.sh(&line);
            assert_eq!(answer.trim(), DNS_ANSWER.to_string(), "{line}");
        }
    }
    assert_eq!(udp.served().len(), 6);
    tcp.finish();
    let output = stops_without_loss(portfwd);
    let connections = output.rule_counter("53:5353/tcp+udp", "connections");
    assert_eq!(connections, Some(12), "{output}");
}

/// A DNS server over TCP: two bytes of length before question and answer.
struct DnsOverTcp(thread::JoinHandle<io::Result<()>>);

impl DnsOverTcp {
    /// Serves so many questions, a connection each.
    #[track_caller]
    fn start(node: &Node, port: u16, questions: usize) -> Self {
        let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
        let listener = node.ns.enter(bind).expect("a free port");
        Self(thread::spawn(move || {
            listener
                .incoming()
                .take(questions)
                .try_for_each(|stream| Self::serve(stream?))
        }))
    }

    fn serve(mut stream: TcpStream) -> io::Result<()> {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question)?;
        let answer = dns_answer(&question).expect("a question");
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)
    }

    /// Every question was served.
    #[track_caller]
    fn finish(self) {
        let served = self.0.join().expect("the server does not panic");
        served.expect("every question is served");
    }
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
                identity(&client, world.remote(way, port), payload).peer
            });
        }
    }
    let output = stops_without_loss(portfwd);
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
                identity(&clients[&port], world.remote(way, port), payload).peer
            });
        }
    }
    stops_without_loss(portfwd);
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
    let source = source(world, way);
    assert!(first.iter().all(|peer| peer.ip() == source), "{first:?}");
    assert_eq!(order.map(|port| ask(port, "again")), first, "{order:?}");
    let mut backwards = order;
    backwards.reverse();
    let mut last = backwards.map(|port| ask(port, "backwards"));
    last.reverse();
    assert_eq!(last, first, "{way:?} {order:?}");
}

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
                        let server = identity(&client, remote, &format!("{count}"));
                        let expected = SocketAddr::new(world.host.address(family), port);
                        assert_eq!(server.peer, expected);
                    }
                }
            }
        }
        // Meanwhile the rule holds at the same ports for everyone else.
        for port in ports {
            for way in [Way::Remote(family), Way::Loopback(family), Way::Own(family)] {
                is_served(
                    &world.udp(way),
                    source(&world, way),
                    world.remote(way, port),
                    443,
                );
            }
            let inside = SocketAddr::new(world.inside_address(family), port);
            let behind = world.behind();
            is_served(&behind.udp(family), behind.address(family), inside, 443);
        }
    }
    let output = stops_without_loss(portfwd);
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
                let server = identity(&client, remote, "hello");
                assert_eq!(server.peer.port(), client.local().port());
                identity(&node.udp(family).connected(remote), remote, "hello");
            }
            // Both from one port: the server's answer would look the same.
            let client = node.udp(family);
            let seen = [second, first].map(|remote| identity(&client, remote, "both").peer);
            assert_ne!(seen[0], seen[1], "{way:?}");
            let again = [second, first].map(|remote| identity(&client, remote, "again").peer);
            assert_eq!(again, seen);
        }
    }
    stops_without_loss(portfwd);
}

#[test]
fn a_rule_for_one_address_leaves_the_other_alone() {
    let world = World::direct().with_second_address();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let rules = Family::BOTH.map(|family| {
        format!(
            "{}:5000/udp",
            SocketAddr::new(world.second_address(family), 80)
        )
    });
    let _portfwd = world.host.portfwd(&rules.join(" "));
    for family in Family::BOTH {
        let second = SocketAddr::new(world.second_address(family), 80);
        for way in [Way::Remote(family), Way::Own(family)] {
            identity(&world.udp(way), second, "hello");
            let remote = world.remote(way, 80);
            let client = world.udp(way).connected(remote);
            let error = client.ask(remote, b"hello").expect_err("no rule");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}

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
        is_served(&world.udp(way), source(&world, way), remote, SERVICE);
        let connected = world.udp(way).connected(remote);
        is_served(&connected, source(&world, way), remote, SERVICE);
    }
    let output = stops_without_loss(portfwd);
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
        let seen =
            [80, 8080, 80, 8080].map(|port| identity(&client, world.remote(way, port), "hi"));
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
    for mut bytes in [fragment, other, everyone, many] {
        mend_ipv4(&mut bytes);
        wire.send_bytes(&bytes);
        count += 1;
    }

    // The wire keeps the order: when this one is served, all have arrived.
    let way = Way::Remote(Family::V4);
    is_served(&world.udp(way), source(&world, way), host(80), SERVICE);
    assert_eq!(server.served().len(), 1, "{:?}", server.served());
    assert_eq!(direct.served(), []);
    // Only what the rule made of the one that was served.
    assert_eq!((behind.seen(SERVICE), behind.seen(5001)), (1, 0));
    let output = stops_without_loss(portfwd);
    assert_eq!(output.verdict("guarded"), count, "{output}");
}

/// Gives an IPv4 header its checksum.
fn mend_ipv4(frame: &mut [u8]) {
    let header = &mut frame[ETHERNET..ETHERNET + 20];
    header[10..12].fill(0);
    let words = header
        .chunks(2)
        .map(|two| u16::from_be_bytes([two[0], two[1]]));
    let sum: u32 = words.map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
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
        is_served(&world.udp(way), source(&world, way), remote, SERVICE);
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
    is_served(&world.udp(way), source(&world, way), remote, SERVICE);
}

/// Where a frame's UDP checksum stands.
fn checksum_at(family: Family) -> usize {
    let ip = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ETHERNET + ip + 6
}

/// The UDP checksum of a captured packet.
fn udp_checksum(packet: &Packet) -> u16 {
    let at = checksum_at(Family::of(packet.view().expect("UDP").source.ip())) - ETHERNET;
    u16::from_be_bytes([packet.bytes[at], packet.bytes[at + 1]])
}

/// The stack's view of a datagram to the service, as the harness copies it
/// behind all programs.
#[track_caller]
fn delivered(capture: &Capture, service: SocketAddr, payload: &[u8]) -> Packet {
    capture.wait_for("the rewritten datagram", |packet| {
        packet.device == portfwd_tests::world::MIRROR
            && packet.goes_to(service)
            && packet.view().is_some_and(|view| view.payload == payload)
    })
}

#[test]
fn no_checksum_stays_none() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    let service = world.host.at(Family::V4, SERVICE);
    let _portfwd = world
        .host
        .portfwd("-i eth0 80:5000/udp 81:127.0.0.1:5000/udp");
    for (dialled, served) in [(80, service.ip()), (81, Ipv4Addr::LOCALHOST.into())] {
        let bound = SocketAddr::new(served, SERVICE);
        let socket = world
            .host
            .ns
            .enter(|| UdpSocket::bind(bound))
            .expect("free");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a timeout");
        without_checksum(&socket);

        let client = world.client.udp(Family::V4);
        let remote = world.host.at(Family::V4, dialled);
        let source = SocketAddr::new(world.client.v4.into(), client.local().port());
        let frame = Frame::udp(source, remote).payload(b"unsummed");
        let mut bytes = frame.macs(world.client.mac, world.host.mac).to_vec();
        let at = checksum_at(Family::V4);
        bytes[at..at + 2].fill(0);
        world.wire().send_bytes(&bytes);
        assert_eq!(udp_checksum(&delivered(&capture, bound, b"unsummed")), 0);

        let mut buffer = [0; 64];
        let (length, peer) = socket.recv_from(&mut buffer).expect("delivered");
        assert_eq!((&buffer[..length], peer), (&b"unsummed"[..], source));
        socket.send_to(b"back", peer).expect("sent");
        let reply = capture.wait_for("the restored answer", |packet| {
            packet.outgoing && packet.device == "eth0" && packet.comes_from(remote)
        });
        assert_eq!(udp_checksum(&reply), 0);
        let reply = until_some("the answer", || client.receive().ok());
        assert_eq!((reply.from, reply.payload), (remote, b"back".to_vec()));
    }
}

/// What is sent by the socket has no UDP checksum.
fn without_checksum(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the value is a local of the length that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    let server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let _portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for (count, family) in (1..).zip(Family::BOTH) {
        let source = world.client.at(family, 1000);
        let (dialled, service) = (world.host.at(family, 80), world.host.at(family, SERVICE));
        let at = checksum_at(family);
        // The builder writes ones only where the sum comes out as zero.
        let payload = (0..=u16::MAX)
            .map(u16::to_be_bytes)
            .find(|payload| {
                Frame::udp(source, service).payload(payload).to_vec()[at..at + 2] == [0xff, 0xff]
            })
            .expect("one payload makes the sum zero");
        world
            .wire()
            .send(&Frame::udp(source, dialled).payload(&payload));
        assert_eq!(
            udp_checksum(&delivered(&capture, service, &payload)),
            0xffff
        );
        server.until_served(count);
    }
}

#[test]
fn datagrams_of_all_sizes_pass_whole_in_both_directions() {
    let world = World::direct();
    for node in [&world.host, &world.client] {
        node.ns.ip("link set eth0 mtu 9000");
    }
    let _server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Echo);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let mut bytes = 0;
    for way in Way::ALL {
        let headers = if way.family() == Family::V4 { 28 } else { 48 };
        let largest = match way {
            Way::Remote(_) => 9_000 - headers,
            // As large as an IPv4 datagram gets, and as the MTU of lo is.
            Way::Loopback(_) | Way::Own(_) => {
                if headers == 28 {
                    65_507
                } else {
                    65_536 - headers
                }
            }
        };
        let client = world.udp(way);
        for size in [0, 1, 2, 1_471, 1_472, largest] {
            let payload: Vec<u8> = (0..size).map(|byte| (byte % 251) as u8).collect();
            let reply = client.ask(world.remote(way, 80), &payload);
            let reply = reply.unwrap_or_else(|error| panic!("{way:?} {size}: {error}"));
            assert!(reply.payload == payload, "{way:?} {size}");
            bytes += size as u64 + headers as u64;
        }
    }
    let output = stops_without_loss(portfwd);
    for column in ["bytes", "bytes back"] {
        let counted = output.rule_counter("80:5000/udp", column);
        assert_eq!(counted, Some(bytes), "{output}");
    }
}

/// `UDP_SEGMENT`: the stack hands the device one large packet that is many
/// datagrams on the wire.
#[test]
fn datagrams_that_are_sent_as_one_arrive_each_and_count_each() {
    let world = World::direct();
    let server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let (mut sent, mut bytes) = (0, 0);
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        let (node, any) = (world.dialler(way), way.family().any());
        let socket = node.ns.enter(|| UdpSocket::bind((any, 0))).expect("free");
        socket.connect(remote).expect("there is a route");
        in_segments(&socket, 1_000);
        // Nine whole ones and a rest.
        socket.send(&[7; 9_500]).expect("sent");
        sent += 10;
        let headers = if remote.is_ipv4() { 28 } else { 48 };
        bytes += 9_500 + 10 * headers;
        assert_eq!(server.settled(sent).count, sent, "{way:?}");
    }
    let output = stops_without_loss(portfwd);
    let count = |column| output.rule_counter("80:5000/udp", column);
    assert_eq!(count("packets"), Some(sent), "{output}");
    assert_eq!(count("bytes"), Some(bytes), "{output}");
}

/// Cuts what the socket sends into datagrams of so many bytes.
fn in_segments(socket: &UdpSocket, size: libc::c_int) {
    // SAFETY: the value is a local of the length that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
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
    let output = stops_without_loss(portfwd);
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
        is_served(&client, source(&world, way), remote, SERVICE);
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
            is_served(&client, source(&world, way), remote, SERVICE);
            is_served(&client, source(&world, way), remote, SERVICE);
        }
        let error = client.ask(remote, b"anyone?").expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{way:?}");
    }
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
    let output = stops_without_loss(portfwd);
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
    let output = stops_without_loss(portfwd);
    for rule in ["80:5000/udp", "8080:5000/udp"] {
        let connections = output.rule_counter(rule, "connections");
        assert_eq!(connections, Some(count / 2), "{output}");
    }
}

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
    let output = stops_without_loss(portfwd);
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
            identity(&client, remote, "first");
            identity(&client, remote, "second").peer
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
            identity(&world.client.udp(family), world.host.at(family, 80), "new");
        }
    }
    for (family, client, seen) in &lasting {
        let again = [80, 8080]
            .map(|port| identity(client, world.host.at(*family, port), "after the flood").peer);
        assert_eq!(again, *seen);
    }
    let (count, capacity) = entries("NEW");
    assert!(count <= capacity, "{count} of {capacity}");
    assert!(count > capacity / 2, "the flood filled it: {count}");
    assert_eq!(entries("FLOWS"), proved);
    assert!(service.served().len() > 8);
    assert_eq!(sink.settled(flood.into()).count, u64::from(flood));
    stops_without_loss(portfwd);
}

/// One of many addresses beyond the client.
fn stranger(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x6440_0001 + number).into(),
        Family::V6 => Ipv6Addr::from_bits((0x2001_0db8_000f << 80) + u128::from(number)).into(),
    }
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
    let output = stops_without_loss(portfwd);
    let counted = output.rule_counter("80:5000/udp", "packets");
    assert_eq!(counted, Some(count), "{output}");
    assert_eq!(output.verdict("rewritten"), count, "{output}");
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
    let output = stops_without_loss(portfwd);
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
                    is_served(&client, from.address(family), to.at(family, port), port);
                }
            }
        }
        // From either side the host's own addresses are served.
        for address in [world.host.address(family), world.inside_address(family)] {
            for node in [&world.client, world.behind()] {
                let remote = SocketAddr::new(address, 80);
                is_served(&node.udp(family), node.address(family), remote, SERVICE);
            }
        }
    }
    assert_eq!(seen.seen(80), 6, "programs behind see what is not ours");
    let output = stops_without_loss(portfwd);
    assert_eq!(output.verdict("not-local"), 12, "{output}");
    let packets = output.rule_counter("80:5000/udp", "packets");
    assert_eq!(packets, Some(8), "{output}");
}

#[test]
fn only_listed_sources_are_served() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let dialled = world.host.udp_server(UdpListen::DualStack, 81);
    world
        .client
        .ns
        .ip("address add 192.0.2.130/24 dev eth0\naddress add 2001:db8:a::130/64 dev eth0 nodad");
    let portfwd = world
        .host
        .portfwd("-i eth0 --from 192.0.2.0/25,2001:db8:a::/121 81:5000/udp");
    for (family, unlisted) in [
        (Family::V4, IpAddr::from([192, 0, 2, 130])),
        (
            Family::V6,
            Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x130).into(),
        ),
    ] {
        let remote = world.host.at(family, 81);
        // The datagrams of others pass untouched, to whoever is there.
        for (source, service) in [(world.client.address(family), SERVICE), (unlisted, 81)] {
            let client = UdpClient::bound(&world.client.ns, SocketAddr::new(source, 0));
            is_served(&client, source, remote, service);
        }
        let local = Way::Loopback(family);
        is_served(
            &world.udp(local),
            family.loopback(),
            world.remote(local, 81),
            81,
        );
    }
    assert_eq!(dialled.served().len(), 4);
    let output = stops_without_loss(portfwd);
    assert_eq!(output.verdict("not-listed"), 4, "{output}");
}

/// A limit: later fragments carry no ports, so none is forwarded.
#[test]
fn fragments_pass_untouched() {
    let world = World::direct();
    let service = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Echo);
    let dialled = world
        .host
        .udp_server_with(UdpListen::DualStack, 80, UdpManner::Echo);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let large = vec![7; 4_000];
    for (count, family) in (1..).zip(Family::BOTH) {
        let remote = world.host.at(family, 80);
        let client = world.client.udp(family);
        client.ask(remote, b"small").expect("forwarded");
        client.ask(remote, &large).expect("left alone");
        assert_eq!(
            (service.served().len(), dialled.served().len()),
            (count, count)
        );
    }
    // On lo nothing is cut.
    for way in [Way::Loopback(Family::V4), Way::Own(Family::V6)] {
        world
            .udp(way)
            .ask(world.remote(way, 80), &large)
            .expect("forwarded");
    }
    assert_eq!((service.served().len(), dialled.served().len()), (4, 2));
    let output = stops_without_loss(portfwd);
    // Three each, there and back, of both families.
    assert_eq!(output.verdict("fragment"), 12, "{output}");
}

/// The same limit on the way back.
#[test]
fn an_answer_in_fragments_comes_from_the_target_port() {
    let world = World::direct();
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for family in Family::BOTH {
        let service = world.host.at(family, SERVICE);
        let socket = world
            .host
            .ns
            .enter(|| UdpSocket::bind(service))
            .expect("free");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a timeout");
        let client = world.client.udp(family);
        client
            .send(world.host.at(family, 80), b"more")
            .expect("sent");
        let (_, peer) = socket.recv_from(&mut [0; 64]).expect("forwarded");
        socket.send_to(&[7; 4_000], peer).expect("sent");
        let reply = until_some("the answer", || client.receive().ok());
        assert_eq!((reply.from, reply.payload.len()), (service, 4_000));
    }
    assert_eq!(portfwd.stop().verdict("fragment"), 6);
}
