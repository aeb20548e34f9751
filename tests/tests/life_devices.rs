//! A run serves the devices that its host has, whatever becomes of them, in
//! whichever namespace the host is.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::Command,
    time::Duration,
};

use etherparse::{IpSlice, TcpHeaderSlice, UdpHeaderSlice};
use portfwd_tests::{
    Dial, Family, Frame, Netns, Portfwd, Services, State, Tcp, UdpClient,
    bpf::{Side, programs},
    checksum::{self, Sums},
    deadline,
    frame::ETHERNET,
    portfwd::binary,
    services::RULES,
    state, tun, until,
};

/// One try of a client that tries again.
const TRY: Duration = Duration::from_millis(200);

/// A host without devices, and a client.
struct Pair {
    host: Netns,
    client: Netns,
    _services: Services,
}

impl Pair {
    fn new() -> Self {
        let host = Netns::new();
        Self {
            _services: Services::start(&host),
            client: Netns::new(),
            host,
        }
    }

    /// Joins both by a device of this name at the host, network `number`.
    #[track_caller]
    fn join(&self, device: &str, number: u8) {
        self.host.ip(&format!(
            "link add {device} type veth peer name {device} netns {}",
            self.client.name()
        ));
        for (ns, end) in [(&self.host, 1), (&self.client, 2)] {
            ns.ip(&format!("link set {device} up"));
            address(ns, device, number, end);
        }
        self.host.until_running(device);
        self.client.until_running(device);
    }

    /// The host's address in the network.
    fn at(&self, family: Family, number: u8, port: u16) -> SocketAddr {
        let address = match family {
            Family::V4 => format!("10.{number}.0.1"),
            Family::V6 => format!("fd00:{number}::1"),
        };
        SocketAddr::new(address.parse().expect("an address"), port)
    }

    /// Does the client reach both services through the rules?
    fn is_served(&self, number: u8) -> bool {
        Family::BOTH.into_iter().all(|family| {
            let tcp = self.at(family, number, 80);
            let udp = self.at(family, number, 53);
            let client = UdpClient::bound(&self.client, SocketAddr::new(family.any(), 0));
            let dial = Dial::new(&self.client, tcp).timeout(TRY).open();
            dial.is_ok_and(|talk| talk.server.name == "5000" && talk.client_is_kept())
                && client.timeout(TRY).ask(udp, b"hello").is_ok()
        })
    }

    #[track_caller]
    fn until_served(&self, number: u8) {
        until(&format!("network {number} to be served"), || {
            self.is_served(number)
        });
    }

    /// How many programs stand on the host's device, both sides.
    #[track_caller]
    fn programs(&self, device: &str) -> [usize; 2] {
        [Side::Ingress, Side::Egress].map(|side| programs(&self.host, device, side).len())
    }
}

#[track_caller]
fn address(ns: &Netns, device: &str, number: u8, end: u8) {
    ns.ip(&format!(
        "address add 10.{number}.0.{end}/24 dev {device}
         address add fd00:{number}::{end}/64 dev {device} nodad"
    ));
}

#[test]
fn any_takes_devices_that_come_later_and_come_back() {
    let pair = Pair::new();
    let portfwd = Portfwd::start(&pair.host, Tcp::Steered, RULES);
    pair.join("eth0", 1);
    pair.until_served(1);
    pair.join("eth1", 2);
    pair.until_served(2);
    for _ in 0..3 {
        pair.host.ip("link del eth0");
        pair.join("eth0", 1);
        pair.until_served(1);
    }
    assert!(pair.is_served(2));
    // An address that comes later, and another name.
    address(&pair.host, "eth1", 3, 1);
    address(&pair.client, "eth1", 3, 2);
    pair.until_served(3);
    pair.host
        .ip("link set eth1 down\nlink set eth1 name lan0\nlink set lan0 up");
    address(&pair.host, "lan0", 4, 1);
    address(&pair.client, "eth1", 4, 2);
    pair.until_served(4);
    let output = portfwd.stop();
    assert_eq!(output.stderr, "");
}

#[test]
fn a_named_device_is_followed_and_no_other_is_taken() {
    let pair = Pair::new();
    pair.join("eth0", 1);
    let portfwd = Portfwd::start(&pair.host, Tcp::Steered, &format!("-i eth0 {RULES}"));
    pair.until_served(1);
    pair.host.ip("link del eth0");
    pair.join("eth1", 2);
    pair.join("eth0", 1);
    pair.until_served(1);
    assert_eq!(pair.programs("eth0"), [1, 1]);
    assert_eq!(pair.programs("eth1"), [0, 1], "only what leaves by it");
    let refused = Dial::new(&pair.client, pair.at(Family::V4, 2, 80)).is_refused();
    assert!(refused, "eth1 was not named");
    assert_eq!(portfwd.stop().stderr, "");
    assert_eq!(pair.programs("eth0"), [0, 0]);
}

#[test]
fn a_device_that_becomes_a_port_is_let_go() {
    for interface in ["any", "eth0"] {
        let pair = Pair::new();
        pair.join("eth0", 1);
        let portfwd = Portfwd::start(&pair.host, Tcp::Steered, &format!("-i {interface} {RULES}"));
        pair.until_served(1);
        pair.host.ip("address flush dev eth0
             link add br0 type bridge
             link set eth0 master br0
             link set br0 up");
        address(&pair.host, "br0", 1, 1);
        until("the port to be let go", || pair.programs("eth0") == [0, 0]);
        if interface == "any" {
            pair.until_served(1);
        }
        pair.host.ip("link del br0");
        address(&pair.host, "eth0", 1, 1);
        pair.until_served(1);
        assert_eq!(portfwd.stop().stderr, "");
    }
}

#[test]
fn another_namespace_is_named_or_given_as_a_path() {
    let outside = Netns::new();
    let before = State::of(&outside);
    let pair = Pair::new();
    pair.join("eth0", 1);
    let path = pair.host.path().display().to_string();
    for namespace in [pair.host.name(), &path] {
        let args = format!("--netns {namespace} -i eth0 {RULES} 54:127.0.0.1:5353/udp");
        let portfwd = Portfwd::start(&outside, Tcp::Steered, &args);
        pair.until_served(1);
        assert_eq!(
            pair.host.read_sysctl("net.ipv4.conf.eth0.route_localnet"),
            "1"
        );
        before.assert_unchanged(&State::of(&outside), "outside, while it runs,");
        // Devices are followed there too.
        pair.host.ip("link del eth0");
        pair.join("eth0", 1);
        pair.until_served(1);
        portfwd.stop();
        assert_eq!(pair.programs("eth0"), [0, 0]);
        assert_eq!(
            pair.host.read_sysctl("net.ipv4.conf.eth0.route_localnet"),
            "0"
        );
        assert!(state::files(&pair.host).is_empty());
        before.assert_unchanged(&State::of(&outside), "outside, afterwards,");
    }
}

/// There /sys is a fresh one, without a bpffs.
#[test]
fn inside_ip_netns_exec_it_works_without_help() {
    let pair = Pair::new();
    pair.join("eth0", 1);
    let before = State::of(&pair.host);
    let start = || {
        let mut command = Command::new("ip");
        let binary = binary();
        command
            .args(["netns", "exec", pair.host.name()])
            .arg(binary);
        command.args(["-i", "eth0"]).args(RULES.split(' '));
        Portfwd::from_command(command).until_ready()
    };
    for _ in 0..2 {
        let dead = start();
        pair.until_served(1);
        dead.kill9();
        let next = start();
        pair.until_served(1);
        assert_eq!(next.stop().stderr, "");
        before.assert_unchanged(&State::of(&pair.host), "afterwards");
    }
}

#[test]
fn a_device_without_an_ethernet_header_is_served() {
    for (tcp, later) in [(Tcp::Steered, false), (Tcp::Rewritten, true)] {
        let pair = Pair::new();
        let number = 9;
        let early = (!later).then(|| Tun::new(&pair.host, number));
        let interface = if later { "any" } else { "tun0" };
        let portfwd = Portfwd::start(&pair.host, tcp, &format!("-i {interface} {RULES}"));
        let tun = early.unwrap_or_else(|| Tun::new(&pair.host, number));
        let mut port = 40_000;
        for family in Family::BOTH {
            let client = |port| {
                let mut address = pair.at(family, number, port);
                match &mut address {
                    SocketAddr::V4(v4) => v4.set_ip([10, number, 0, 2].into()),
                    SocketAddr::V6(v6) => {
                        v6.set_ip(format!("fd00:{number}::2").parse().expect("an address"))
                    }
                }
                address
            };
            until(&format!("{family:?} over TCP, {tcp:?}"), || {
                port += 1;
                let line = greet(&tun, client(port), pair.at(family, number, 80));
                line.is_some_and(|line| line.starts_with("5000"))
            });
            until(&format!("{family:?} over UDP"), || {
                port += 1;
                let line = ask(&tun, client(port), pair.at(family, number, 53));
                line.is_some_and(|line| line.starts_with("5353"))
            });
        }
        assert_eq!(pair.programs("tun0"), [1, 1]);
        drop(tun);
        assert_eq!(portfwd.stop().stderr, "");
    }
}

/// The far end of a device that carries bare IP packets.
struct Tun(File);

impl Tun {
    /// Makes `tun0` with the addresses of network `number`.
    #[track_caller]
    fn new(ns: &Netns, number: u8) -> Self {
        let tun = Self(
            ns.enter(|| tun::open("tun0"))
                .expect("root makes a tun device"),
        );
        ns.ip("link set tun0 addrgenmode none up");
        address(ns, "tun0", number, 1);
        tun
    }

    #[track_caller]
    fn send(&self, frame: &Frame) {
        let packet = &frame.to_vec()[ETHERNET..];
        let sent = (&self.0).write(packet).expect("the device is up");
        assert_eq!(sent, packet.len());
    }

    /// Waits for a packet between these two, whose checksums must be right.
    fn receive(&self, source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
        deadline(TRY, || {
            let mut buffer = [0; 2048];
            let length = (&self.0).read(&mut buffer).ok()?;
            let packet = &buffer[..length];
            (ends(packet)? == (source, destination)).then(|| {
                assert_eq!(checksum::check(packet, false), Sums::Right);
                packet.to_vec()
            })
        })
    }
}

/// Opens a TCP connection by hand and returns the first the server says.
fn greet(tun: &Tun, client: SocketAddr, host: SocketAddr) -> Option<String> {
    tun.send(&Frame::syn(client, host));
    let answer = segment(&tun.receive(host, client)?);
    let answer = TcpHeaderSlice::from_slice(&answer).expect("TCP");
    if !answer.syn() || !answer.ack() {
        return None;
    }
    let ours = answer.acknowledgment_number();
    let mut theirs = answer.sequence_number().wrapping_add(1);
    let frame = |theirs: u32| {
        Frame::tcp(client, host).with_tcp(|header| {
            header.ack = true;
            header.sequence_number = ours;
            header.acknowledgment_number = theirs;
        })
    };
    tun.send(&frame(theirs));
    let line = loop {
        let segment = segment(&tun.receive(host, client)?);
        let header = TcpHeaderSlice::from_slice(&segment).expect("TCP");
        let data = &segment[header.slice().len()..];
        if !data.is_empty() {
            theirs = header.sequence_number().wrapping_add(data.len() as u32);
            break String::from_utf8_lossy(data).into_owned();
        }
    };
    tun.send(&frame(theirs).with_tcp(|header| header.rst = true));
    Some(line)
}

/// Asks by UDP and returns the answer's payload.
fn ask(tun: &Tun, client: SocketAddr, host: SocketAddr) -> Option<String> {
    tun.send(&Frame::udp(client, host).payload(b"hello"));
    let segment = segment(&tun.receive(host, client)?);
    assert!(UdpHeaderSlice::from_slice(&segment).is_ok());
    Some(String::from_utf8_lossy(&segment[8..]).into_owned())
}

fn segment(packet: &[u8]) -> Vec<u8> {
    let ip = IpSlice::from_slice(packet).expect("it was parsed before");
    ip.payload().payload.to_vec()
}

/// Source and destination of a TCP or UDP packet.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let segment = ip.payload().payload;
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *segment.get(at)?,
            *segment.get(at + 1)?,
        ]))
    };
    let source = SocketAddr::new(ip.source_addr(), port(0)?);
    Some((source, SocketAddr::new(ip.destination_addr(), port(2)?)))
}
