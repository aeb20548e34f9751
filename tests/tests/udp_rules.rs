//! What a UDP rule names is what it serves: ports, protocols, addresses,
//! interfaces and sources.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use portfwd_tests::{
    Family, Node, UdpClient, UdpListen, UdpManner, Way, World,
    udp::{DNS_ANSWER, dns_answer},
    world::SERVICE,
};

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
            world
                .udp(way)
                .assert_served(world.source(way), remote, served);
        }
        // The neighbours of a range are not of it.
        for dialled in [7_999, 9_000, 19_999, 50_001] {
            let remote = world.remote(way, dialled);
            let client = world.udp(way).connected(remote);
            let error = client.ask(remote, b"hello").expect_err("no rule");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{dialled}");
        }
    }
    let output = portfwd.stop_without_loss();
    for rule in rules.split(' ') {
        let count = |column| output.rule_counter(rule, column);
        assert_eq!(count("connections"), Some(18), "{output}");
        assert_eq!(count("packets"), Some(18));
        assert_eq!(count("packets back"), Some(18));
    }
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
            world.udp(way).identify(second, "hello");
            let remote = world.remote(way, 80);
            let client = world.udp(way).connected(remote);
            let error = client.ask(remote, b"hello").expect_err("no rule");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}

#[test]
fn without_local_clients_the_network_is_still_served() {
    let world = World::direct();
    let _server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let _portfwd = world.host.portfwd("-i eth0 --no-local 80:5000/udp");
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        if matches!(way, Way::Remote(_)) {
            world
                .udp(way)
                .assert_served(world.source(way), remote, SERVICE);
            continue;
        }
        let client = world.udp(way).connected(remote);
        let error = client.ask(remote, b"hello").expect_err("not served");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{way:?}");
    }
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
            client.assert_served(source, remote, service);
        }
        let local = Way::Loopback(family);
        world
            .udp(local)
            .assert_served(family.loopback(), world.remote(local, 81), 81);
    }
    assert_eq!(dialled.served().len(), 4);
    let output = portfwd.stop_without_loss();
    assert_eq!(output.verdict("not-listed"), 4, "{output}");
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
    let output = portfwd.stop_without_loss();
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
