//! Clients on this host to rules for other hosts: they are sent to the target
//! by the hooks of a cgroup, and are told of the peer that they dialled.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::{
    Cgroup, Family, Listen, Node, Portfwd, TcpServer, UdpListen, UdpServer, World,
};

/// The port that the service behind the host listens on.
const SERVICE: u16 = 8080;

const RULES: &str = "80:198.51.100.2:8080/tcp+udp 80:[2001:db8:b::2]:8080/tcp+udp";

/// Connects or sends, and prints the peer that it is told of and the name of
/// the server, or the error's.
const CLIENT: &str = r#"
import errno, socket, sys
how, address, port, source = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
kind = socket.SOCK_STREAM if how in ("tcp", "mptcp") else socket.SOCK_DGRAM
client = socket.socket(family, kind, 262 if how == "mptcp" else 0)
client.settimeout(3)
try:
    if source:
        client.bind((source[0], 0))
    if how == "sendto":
        client.sendto(b"hello", (address, port))
        answer, peer = client.recvfrom(4096)
    else:
        client.connect((address, port))
        client.send(b"hello")
        answer, sender = client.recvfrom(4096)
        peer = client.getpeername()
        assert how != "udp" or sender == peer, (sender, peer)
    print(peer[0], peer[1], answer.split()[0].decode())
except TimeoutError:
    print("timeout")
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

/// Each way of an exchange.
const HOWS: [&str; 3] = ["tcp", "udp", "sendto"];

/// Addresses of the host as programs on it dial them, and as they are told.
const DIALLED: [(&str, &str); 11] = [
    ("127.0.0.1", "127.0.0.1"),
    ("127.1.2.3", "127.1.2.3"),
    ("192.0.2.1", "192.0.2.1"),
    ("198.51.100.1", "198.51.100.1"),
    ("0.0.0.0", "127.0.0.1"),
    ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ("::1", "::1"),
    ("2001:db8:a::1", "2001:db8:a::1"),
    ("2001:db8:b::1", "2001:db8:b::1"),
    ("::", "::1"),
];

/// A host whose programs dial, and services behind it.
struct Dialler {
    tcp: TcpServer,
    udp: UdpServer,
    cgroup: Cgroup,
    world: World,
}

impl Dialler {
    #[track_caller]
    fn new() -> Self {
        let world = World::router();
        let (tcp, udp) = world.behind().services(SERVICE);
        Self {
            tcp,
            udp,
            cgroup: Cgroup::new(),
            world,
        }
    }

    #[track_caller]
    fn portfwd(&self, args: &str) -> Portfwd {
        let path = self.cgroup.path().display();
        self.world.host.portfwd(&format!("--cgroup {path} {args}"))
    }

    /// What a program on the host prints.
    #[track_caller]
    fn dial(&self, words: &str) -> String {
        self.dial_on(&self.world.host, words)
    }

    /// What a program of the cgroup prints on this machine.
    #[track_caller]
    fn dial_on(&self, node: &Node, words: &str) -> String {
        let mut command = self.cgroup.command(&node.ns, "python3");
        let client = command.args(["-c", CLIENT]).args(words.split_whitespace());
        let output = client.output().expect("python3 is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The client that was served last, by the way of the exchange.
    #[track_caller]
    fn last_served(&self, how: &str) -> IpAddr {
        let tcp = || self.tcp.served().last().map(|served| served.peer);
        let udp = || self.udp.served().last().copied();
        let peer: Option<SocketAddr> = if how == "tcp" { tcp() } else { udp() };
        peer.expect("it served somebody").ip()
    }
}

#[test]
fn every_call_reaches_the_target_and_is_told_what_was_dialled() {
    let dialler = Dialler::new();
    let portfwd = dialler.portfwd(RULES);
    for (dialled, told) in DIALLED {
        let family = Family::of(dialled.parse().expect("an address"));
        for how in HOWS {
            let seen = dialler.dial(&format!("{how} {dialled} 80"));
            assert_eq!(seen, format!("{told} 80 8080"), "{how} {dialled}");
            assert_eq!(
                dialler.last_served(how),
                dialler.world.inside_address(family),
                "{how} {dialled}"
            );
        }
    }
    let calls = (DIALLED.len() * HOWS.len()) as u64;
    let output = portfwd.stop();
    assert_eq!(output.verdict("dialled"), calls, "{output}");
    assert_eq!(output.verdict("unhooked"), 0, "{output}");
}

#[test]
fn the_address_that_a_socket_is_bound_to_is_kept() {
    let dialler = Dialler::new();
    let _portfwd = dialler.portfwd(RULES);
    for (dialled, source) in [
        ("127.0.0.1", "192.0.2.1"),
        ("::ffff:127.0.0.1", "::ffff:192.0.2.1"),
        ("::1", "2001:db8:a::1"),
    ] {
        for how in HOWS {
            let words = format!("{how} {dialled} 80 {source}");
            let seen = dialler.dial(&words);
            assert_eq!(seen, format!("{dialled} 80 8080"), "{words}");
            let source: IpAddr = source.parse().expect("an address");
            assert_eq!(dialler.last_served(how), source.to_canonical(), "{words}");
        }
    }
}

#[test]
fn a_socket_of_loopback_is_refused_as_without_the_rule() {
    let dialler = Dialler::new();
    let _portfwd = dialler.portfwd(RULES);
    for (dialled, source) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let words = format!("tcp {dialled} 80 {source}");
        assert_eq!(dialler.dial(&words), "ECONNREFUSED");
    }
}

#[test]
fn mptcp_is_dialled_too() {
    let dialler = Dialler::new();
    let _portfwd = dialler.portfwd(RULES);
    for dialled in ["127.0.0.1", "2001:db8:a::1"] {
        let seen = dialler.dial(&format!("mptcp {dialled} 80"));
        assert!(seen.ends_with(" 8080"), "{seen}");
    }
    assert_eq!(dialler.tcp.served().len(), 2);
}

#[test]
fn the_target_itself_is_dialled_as_ever() {
    let dialler = Dialler::new();
    let portfwd = dialler.portfwd(RULES);
    for target in ["198.51.100.2", "::ffff:198.51.100.2", "2001:db8:b::2"] {
        for how in HOWS {
            let seen = dialler.dial(&format!("{how} {target} 8080"));
            assert_eq!(seen, format!("{target} 8080 8080"), "{how}");
        }
    }
    assert_eq!(portfwd.stop().verdict("dialled"), 0);
}

#[test]
fn other_namespaces_and_other_cgroups_are_left_alone() {
    let (dialler, other) = (Dialler::new(), Cgroup::new());
    let client = &dialler.world.client;
    let own = client.tcp_server_builder(Listen::DualStack, 80);
    let _own = own.name("own").start();
    let _own_udp = client.udp_server(UdpListen::DualStack, 80);
    let portfwd = dialler.portfwd(RULES);
    for dialled in ["127.0.0.1", "192.0.2.2", "::1", "2001:db8:a::2"] {
        for (how, name) in [("tcp", "own"), ("udp", "80"), ("sendto", "80")] {
            let seen = dialler.dial_on(client, &format!("{how} {dialled} 80"));
            assert_eq!(seen, format!("{dialled} 80 {name}"), "{how}");
        }
    }
    assert_eq!(other.programs(), 0);
    assert_eq!(portfwd.stop().verdict("dialled"), 0);
}

#[test]
fn a_rule_for_this_host_beside_it_is_served_as_ever() {
    let dialler = Dialler::new();
    let _services = dialler.world.host.services(5000);
    let portfwd = dialler.portfwd(&format!("{RULES} 81:5000/tcp+udp"));
    for dialled in ["127.0.0.1", "192.0.2.1", "::1", "2001:db8:a::1"] {
        for how in HOWS {
            let seen = dialler.dial(&format!("{how} {dialled} 81"));
            assert_eq!(seen, format!("{dialled} 81 5000"), "{how}");
        }
    }
    assert_eq!(portfwd.stop().verdict("dialled"), 0);
}

#[test]
fn only_listed_sources_are_sent_to_the_target() {
    let dialler = Dialler::new();
    let _portfwd = dialler.portfwd(&format!("--from 192.0.2.1,::1 {RULES}"));
    for (words, told) in [
        ("tcp 192.0.2.1 80", "192.0.2.1 80 8080"),
        ("tcp 127.0.0.1 80 192.0.2.1", "127.0.0.1 80 8080"),
        ("sendto ::1 80", "::1 80 8080"),
    ] {
        assert_eq!(dialler.dial(words), told, "{words}");
    }
    for words in [
        "tcp 127.0.0.1 80",
        "tcp 198.51.100.1 80",
        "tcp 192.0.2.1 80 198.51.100.1",
        "udp 2001:db8:a::1 80",
    ] {
        let seen = dialler.dial(words);
        assert_eq!(seen, "ECONNREFUSED", "{words}");
    }
}

#[test]
fn nothing_stays_attached() {
    let dialler = Dialler::new();
    for killed in [false, true] {
        let portfwd = dialler.portfwd(RULES);
        assert_eq!(dialler.cgroup.programs(), 8);
        let _output = if killed {
            portfwd.kill9()
        } else {
            portfwd.stop()
        };
        assert_eq!(dialler.cgroup.programs(), 0, "killed: {killed}");
        let seen = dialler.dial("tcp 127.0.0.1 80");
        assert_eq!(seen, "ECONNREFUSED", "killed: {killed}");
    }
}

#[test]
fn hooks_are_attached_only_where_they_are_needed() {
    let dialler = Dialler::new();
    let to_this_host = dialler.portfwd("80:5000");
    assert_eq!(dialler.cgroup.programs(), 0);
    to_this_host.stop();

    let before = Cgroup::programs_of_all();
    let host = &dialler.world.host;
    let _not_for_this_host = host.portfwd(&format!("--no-local -i eth0 {RULES}"));
    assert_eq!(Cgroup::programs_of_all(), before);
}

#[test]
fn a_path_that_is_no_cgroup_is_refused_by_name() {
    let world = World::router();
    for path in ["/no/such/cgroup", "/proc", "/etc/passwd"] {
        let rule = "80:198.51.100.2:8080";
        let refusal = Portfwd::refused(&world.host.ns, &["--cgroup", path, rule]);
        assert_eq!(refusal.code, Some(1), "{refusal:?}");
        let named = format!("`--cgroup {path}`");
        assert!(refusal.stderr.contains(&named), "{refusal:?}");
        assert_eq!(refusal.stderr.lines().count(), 1, "{refusal:?}");
    }
}
