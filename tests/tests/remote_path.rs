//! The way to another host and back: what a packet keeps, what it loses, and
//! what the host need not know or change for it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{TcpHeaderSlice, TcpOptionElement};
use portfwd_tests::{
    Capture, Dial, Family, Frame, Keep, Listen, Nat, Netns, Node, Packet, Place, Portfwd, Site,
    State, TunCable, UdpClient, UdpListen, UdpManner, Watch, Who, World, checksum,
    site::{DIALLED, SERVICE},
    until,
};

/// Until a retransmission would hide a lost first packet.
const AT_ONCE: Duration = Duration::from_millis(500);

/// The port that handmade clients have.
const CLIENT: u16 = 40_000;

/// A rule for each family, to the machine behind the host.
#[track_caller]
fn portfwd(world: &World, nat: Nat) -> Portfwd {
    let rule = |family| format!("{DIALLED}:{}/tcp+udp", world.behind().at(family, SERVICE));
    let rules = Family::BOTH.map(rule).join(" ");
    world
        .host
        .portfwd(&format!("--no-local --nat {} {rules}", nat.word()))
}

/// The address by which the machine behind the host sees the client.
fn seen(world: &World, nat: Nat, family: Family) -> IpAddr {
    match nat {
        Nat::Masquerade => world.inside_address(family),
        _ => world.client.address(family),
    }
}

#[test]
fn without_a_neighbour_entry_the_first_packet_is_not_lost() {
    for place in Place::ALL {
        for nat in Nat::FORCED {
            let site = Site::new(place);
            let _services = site.services();
            let _portfwd = site.portfwd(nat);
            for family in Family::BOTH {
                for who in [Who::Remote, Who::Neighbour] {
                    let cell = format!("{place:?} {nat:?} {who:?} {family:?}");
                    let flush = || forget_neighbours(&site.host.ns);
                    first_packets_arrive(
                        site.node(who),
                        site.host.at(family, DIALLED),
                        flush,
                        &cell,
                    );
                }
            }
        }
    }
}

/// The device is the host's end of the pair, without a bridge between.
#[test]
fn without_a_neighbour_entry_at_the_other_end_of_a_pair_the_first_packet_is_not_lost() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let _tcp = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let _udp = world.behind().udp_server(UdpListen::DualStack, SERVICE);
        let _portfwd = portfwd(&world, nat);
        for family in Family::BOTH {
            let flush = || forget_neighbours(&world.host.ns);
            let cell = format!("{nat:?} {family:?}");
            first_packets_arrive(&world.client, world.host.at(family, DIALLED), flush, &cell);
        }
    }
}

/// What ends an earlier connection may still be on its way.
#[track_caller]
fn forget_neighbours(ns: &Netns) {
    until("no neighbour to be known", || {
        ns.ip("neigh flush all");
        !ns.sh("ip neigh").contains("lladdr")
    });
}

#[track_caller]
fn first_packets_arrive(client: &Node, remote: SocketAddr, flush: impl Fn(), cell: &str) {
    flush();
    let start = Instant::now();
    let talk = client.tcp(remote).ending_with_reset().open();
    let took = start.elapsed();
    assert!(talk.is_ok() && took < AT_ONCE, "{cell}: {talk:?} {took:?}");
    drop(talk);
    flush();
    // It is sent once.
    let reply = client.udp(Family::of(remote.ip())).ask(remote, b"first");
    assert!(reply.is_ok(), "{cell}: {reply:?}");
}

#[test]
fn no_sysctl_of_a_host_that_forwards_nothing_is_changed() {
    for place in [Place::AnotherInterface, Place::Container] {
        let site = Site::new(place);
        let _services = site.services();
        let ns = &site.host.ns;
        for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            assert_eq!(ns.read_sysctl(sysctl), "0");
        }
        let before = (State::of_sysctls(ns), all_sysctls(ns));
        for nat in Nat::ALL {
            let portfwd = site.portfwd(nat);
            for family in Family::BOTH {
                let remote = site.host.at(family, DIALLED);
                let mut talk = site.remote.tcp(remote).open().expect("served over TCP");
                assert!(talk.echoes("hello"));
                site.remote
                    .udp(family)
                    .ask(remote, b"hello")
                    .expect("served over UDP");
            }
            unchanged(&before, ns, "while it runs");
            portfwd.stop();
            unchanged(&before, ns, "afterwards");
        }
    }
}

#[track_caller]
fn unchanged((net, all): &(State, Vec<String>), ns: &Netns, when: &str) {
    net.assert_unchanged(&State::of_sysctls(ns), when);
    let now = all_sysctls(ns);
    let differing = now.iter().filter(|line| !all.contains(line));
    assert_eq!(
        differing.collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "{when}"
    );
    assert_eq!(now.len(), all.len(), "{when}");
}

/// `sysctl -a`, less what counts what goes on in the whole machine.
fn all_sysctls(ns: &Netns) -> Vec<String> {
    const COUNTERS: [&str; 8] = [
        "fs.dentry-state",
        "fs.file-nr",
        "fs.inode-nr",
        "fs.inode-state",
        "kernel.ns_last_pid",
        "kernel.pty.nr",
        "kernel.random.",
        "net.netfilter.nf_conntrack_count",
    ];
    // Some may not be read, and it says so.
    let text = ns.sh("sysctl -a 2>/dev/null || true");
    let settings = text
        .lines()
        .filter(|line| !COUNTERS.iter().any(|counter| line.starts_with(counter)));
    settings.map(str::to_owned).collect()
}

/// Handmade datagrams between the client and the machine behind the host, and
/// what arrives of them.
struct Datagrams<'a> {
    world: &'a World,
    family: Family,
    at_client: Capture,
    at_target: Capture,
    // The two stacks have somewhere to put what arrives, and say nothing.
    _client: UdpClient,
}

impl<'a> Datagrams<'a> {
    #[track_caller]
    fn new(world: &'a World, family: Family) -> Self {
        Self {
            world,
            family,
            at_client: Capture::start(&world.client.ns, Keep::Everything),
            at_target: Capture::start(&world.behind().ns, Keep::Everything),
            _client: world.client.udp_from(family, CLIENT),
        }
    }

    fn host(&self) -> SocketAddr {
        self.world.host.at(self.family, DIALLED)
    }

    fn target(&self) -> SocketAddr {
        self.world.behind().at(self.family, SERVICE)
    }

    /// From the client to the rule.
    fn there(&self, payload: &[u8]) -> Frame {
        Frame::udp(self.world.client.at(self.family, CLIENT), self.host()).payload(payload)
    }

    /// From the target to whom it saw.
    fn back(&self, peer: SocketAddr, payload: &[u8]) -> Frame {
        Frame::udp(self.target(), peer).payload(payload)
    }

    #[track_caller]
    fn send_there(&self, frame: &Frame) -> Packet {
        self.world.wire().send(frame);
        let sent = Sent::of(frame);
        self.at_target
            .wait_for("the datagram at the target", |packet| {
                !packet.outgoing && packet.goes_to(self.target()) && sent.is(packet)
            })
    }

    #[track_caller]
    fn send_back(&self, frame: &Frame) -> Packet {
        self.world.wire_behind().send(frame);
        let sent = Sent::of(frame);
        self.at_client
            .wait_for("the datagram at the client", |packet| {
                !packet.outgoing && packet.comes_from(self.host()) && sent.is(packet)
            })
    }

    /// Opens the flow, and tells whom the target sees.
    #[track_caller]
    fn peer(&self) -> SocketAddr {
        let first = self.send_there(&self.there(b"whom do you see?"));
        first.view().expect("UDP").source
    }
}

/// What tells a datagram from others.
struct Sent(Vec<u8>);

impl Sent {
    fn of(frame: &Frame) -> Self {
        let bytes = frame.to_vec()[ETHERNET..].to_vec();
        let payload = packet(bytes).view().expect("UDP").payload;
        Self(payload)
    }

    fn is(&self, packet: &Packet) -> bool {
        packet.view().is_some_and(|view| view.payload == self.0)
    }
}

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

fn packet(bytes: Vec<u8>) -> Packet {
    Packet {
        device: String::new(),
        outgoing: true,
        partial: false,
        protocol: 0,
        bytes,
    }
}

/// A header's bytes without hop limit, header checksum and addresses.
fn kept_of(family: Family, bytes: &[u8]) -> Vec<u8> {
    match family {
        // Up to the TTL, the protocol, options.
        Family::V4 => {
            let end = usize::from(bytes[0] & 0xf) * 4;
            [&bytes[..8], &bytes[9..10], &bytes[20..end]].concat()
        }
        Family::V6 => bytes[..7].to_vec(),
    }
}

#[test]
fn the_hop_limit_falls_by_one_and_the_rest_of_the_header_is_kept() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let target = world.behind();
        let _silent = target.udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
        let portfwd = portfwd(&world, nat);
        for family in Family::BOTH {
            let datagrams = Datagrams::new(&world, family);
            let peer = datagrams.peer();
            assert_eq!(peer.ip(), seen(&world, nat, family));
            for (hop_limit, traffic_class, identification, options) in [
                (64, 0, 0, [].as_slice()),
                // Expedited, congestion experienced.
                (255, 0xbb, 0xbeef, &[]),
                (2, 0x22, 1, &[]),
                // A stream identifier, which routers copy.
                (33, 0x01, 0xffff, &[0x88, 4, 1, 2]),
            ] {
                let payload = format!("with hop limit {hop_limit}");
                let shaped = |frame: Frame| {
                    frame
                        .hop_limit(hop_limit)
                        .traffic_class(traffic_class)
                        .identification(identification)
                        .options(options)
                };
                let there = shaped(datagrams.there(payload.as_bytes()));
                let back = shaped(datagrams.back(peer, payload.as_bytes()));
                let arrived = [datagrams.send_there(&there), datagrams.send_back(&back)];
                for (sent, arrived) in [there, back].iter().zip(arrived) {
                    let case = format!("{nat:?} {family:?} {payload}");
                    let sent = &sent.to_vec()[ETHERNET..];
                    let view = arrived.view().expect("UDP");
                    assert_eq!(view.hop_limit, hop_limit - 1, "{case}");
                    let kept = [sent, &arrived.bytes].map(|bytes| kept_of(family, bytes));
                    assert_eq!(kept[0], kept[1], "{case}");
                    assert_eq!(
                        checksum::check(&arrived.bytes, false),
                        checksum::Sums::Right
                    );
                }
            }
        }
        let output = portfwd.stop();
        assert_eq!(output.verdict("hop-limit"), 0, "{output}");
    }
}

#[test]
fn a_packet_at_the_end_of_its_hop_limit_is_dropped() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let target = world.behind();
        let _silent = target.udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
        let portfwd = portfwd(&world, nat);
        for family in Family::BOTH {
            let datagrams = Datagrams::new(&world, family);
            let peer = datagrams.peer();
            world.wire().send(&datagrams.there(b"tired").hop_limit(1));
            world
                .wire_behind()
                .send(&datagrams.back(peer, b"tired").hop_limit(1));
            // The wires keep the order.
            datagrams.send_there(&datagrams.there(b"fresh"));
            datagrams.send_back(&datagrams.back(peer, b"fresh"));
            for capture in [&datagrams.at_target, &datagrams.at_client] {
                let tired = |packet: &Packet| {
                    let view = packet.view();
                    !packet.outgoing && view.is_some_and(|view| view.payload == b"tired")
                };
                assert_eq!(capture.packets(tired).len(), 0, "{nat:?} {family:?}");
            }
        }
        assert_eq!(portfwd.stop().verdict("hop-limit"), 4, "{nat:?}");
    }
}

#[test]
fn a_datagram_larger_than_the_way_out_is_dropped_and_counted() {
    const MTU: usize = 1400;
    for nat in Nat::FORCED {
        for narrow in ["eth1", "eth0"] {
            let world = World::forwarder();
            let target = world.behind();
            let _silent = target.udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
            world.host.ns.ip(&format!("link set {narrow} mtu {MTU}"));
            let portfwd = portfwd(&world, nat);
            for family in Family::BOTH {
                let datagrams = Datagrams::new(&world, family);
                let peer = datagrams.peer();
                let headers = if family == Family::V4 { 28 } else { 48 };
                let (fits, larger) = (vec![1; MTU - headers], vec![2; MTU - headers + 1]);
                if narrow == "eth1" {
                    world.wire().send(&datagrams.there(&larger));
                    datagrams.send_there(&datagrams.there(&fits));
                } else {
                    world.wire_behind().send(&datagrams.back(peer, &larger));
                    datagrams.send_back(&datagrams.back(peer, &fits));
                }
                for capture in [&datagrams.at_target, &datagrams.at_client] {
                    let arrived = |packet: &Packet| {
                        let view = packet.view();
                        !packet.outgoing && view.is_some_and(|view| view.payload == larger)
                    };
                    assert_eq!(capture.packets(arrived).len(), 0, "{nat:?} {family:?}");
                }
            }
            assert_eq!(portfwd.stop().verdict("too-large"), 2, "{nat:?} {narrow}");
        }
    }
}

/// Neither end cuts for the other, nor hears of the narrow link.
#[track_caller]
fn ends_that_never_learn(world: &World) {
    for node in [&world.client, world.behind()] {
        node.ns.sysctl("net.ipv4.ip_no_pmtu_disc", 1);
        node.ns
            .sh("ethtool -K eth0 tso off gso off gro off >/dev/null");
    }
}

/// What a PPPoE line carries.
const PPPOE: u16 = 1492;

#[test]
fn bulk_crosses_a_narrow_link_that_the_ends_do_not_know() {
    for nat in Nat::FORCED {
        for narrow in ["eth1", "eth0"] {
            let world = World::forwarder().watching(Watch::OneOf(16));
            ends_that_never_learn(&world);
            world.host.ns.ip(&format!("link set {narrow} mtu {PPPOE}"));
            let _service = world.behind().tcp_server(Listen::DualStack, SERVICE);
            let portfwd = portfwd(&world, nat);
            for family in Family::BOTH {
                let case = format!("{nat:?} {family:?}, {narrow} is narrow");
                let talk = world.client.tcp(world.host.at(family, DIALLED)).open();
                let talk = talk.unwrap_or_else(|error| panic!("{case}: {error}"));
                let bulk = talk.exchange(8 << 20);
                let (sent, received) = bulk.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(sent, received, "{case}");
            }
            assert_eq!(portfwd.stop().verdict("too-large"), 0, "{nat:?} {narrow}");
        }
    }
}

#[test]
fn the_segment_size_of_both_ends_is_cut_to_the_narrow_link_and_never_raised() {
    for nat in Nat::FORCED {
        for narrow in ["eth1", "eth0"] {
            let world = World::forwarder();
            world.host.ns.ip(&format!("link set {narrow} mtu {PPPOE}"));
            let _service = world.behind().tcp_server(Listen::DualStack, SERVICE);
            let _portfwd = portfwd(&world, nat);
            for family in Family::BOTH {
                let case = format!("{nat:?} {family:?}, {narrow} is narrow");
                let largest = if family == Family::V4 {
                    PPPOE - 40
                } else {
                    PPPOE - 60
                };
                let at_client = Capture::start(&world.client.ns, Keep::Everything);
                let at_target = Capture::start(&world.behind().ns, Keep::Everything);
                let service = world.behind().at(family, SERVICE);
                let remote = world.host.at(family, DIALLED);
                for (source, offered, expected) in [
                    (CLIENT, Some(1460), Some(largest)),
                    (CLIENT + 1, Some(536), Some(536)),
                    (CLIENT + 2, None, None),
                ] {
                    let source = world.client.at(family, source);
                    world.wire().send(&opening(source, remote, offered));
                    let number =
                        |packet: &Packet| syn_sequence(packet) == Some(source.port().into());
                    let syn = at_target.wait_for("the SYN", |packet| {
                        !packet.outgoing && packet.goes_to(service) && number(packet)
                    });
                    assert_eq!(segment_size(&syn), expected, "{case}");
                    let answer = at_client.wait_for("the answer", |packet| {
                        let to_source = packet.goes_to(source) && packet.comes_from(remote);
                        !packet.outgoing && to_source && segment_size(packet).is_some()
                    });
                    assert_eq!(segment_size(&answer), Some(largest), "{case}: the answer");
                }
            }
        }
    }
}

/// A SYN whose sequence number is the source port.
fn opening(source: SocketAddr, remote: SocketAddr, segment_size: Option<u16>) -> Frame {
    Frame::syn(source, remote).with_tcp(|header| {
        header.sequence_number = source.port().into();
        let mut options = vec![TcpOptionElement::SelectiveAcknowledgementPermitted];
        options.extend(segment_size.map(TcpOptionElement::MaximumSegmentSize));
        options.push(TcpOptionElement::WindowScale(7));
        header.set_options(&options).expect("they fit");
    })
}

fn with_tcp_header<T>(
    packet: &Packet,
    read: impl FnOnce(TcpHeaderSlice<'_>) -> Option<T>,
) -> Option<T> {
    let (ip, _) = etherparse::LaxIpSlice::from_slice(&packet.bytes).ok()?;
    (ip.payload().ip_number == etherparse::IpNumber::TCP).then_some(())?;
    read(TcpHeaderSlice::from_slice(ip.payload().payload).ok()?)
}

fn syn_sequence(packet: &Packet) -> Option<u32> {
    with_tcp_header(packet, |header| {
        header.syn().then(|| header.sequence_number())
    })
}

/// The segment size that a SYN or its answer names.
fn segment_size(packet: &Packet) -> Option<u16> {
    with_tcp_header(packet, |header| {
        let mut options = header.options_iterator().filter_map(Result::ok);
        let size = options.find_map(|option| match option {
            TcpOptionElement::MaximumSegmentSize(size) => Some(size),
            _ => None,
        });
        size.filter(|_| header.syn())
    })
}

/// Networks of the devices without an Ethernet header.
const TUN_CLIENT: u8 = 9;
const TUN_TARGET: u8 = 8;

fn tun_address(family: Family, number: u8, end: u8) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.{number}.0.{end}"),
        Family::V6 => format!("fd00:{number}::{end}"),
    };
    text.parse().expect("an address")
}

#[track_caller]
fn tun(host: &Netns, other: &Netns, device: &str, number: u8) -> TunCable {
    let cable = TunCable::join(host, other, device);
    for (ns, end) in [(host, 1), (other, 2)] {
        ns.ip(&format!(
            "address add {}/24 dev {device}\naddress add {}/64 dev {device} nodad",
            tun_address(Family::V4, number, end),
            tun_address(Family::V6, number, end),
        ));
    }
    cable
}

#[test]
fn a_device_without_an_ethernet_header_leads_to_the_target_or_to_the_client() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let (client, target) = (&world.client.ns, &world.behind().ns);
        let _cables = [
            tun(&world.host.ns, client, "tun0", TUN_CLIENT),
            tun(&world.host.ns, target, "tun1", TUN_TARGET),
        ];
        // What is asked over the tun device is answered over it.
        for (option, family) in [("-4", Family::V4), ("-6", Family::V6)] {
            let own = tun_address(family, TUN_TARGET, 2);
            target.sh(&format!(
                "ip {option} rule add from {own} lookup 100
                 ip {option} route add default dev tun1 table 100"
            ));
        }
        let _tcp = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let targets = Family::BOTH.map(|family| {
            let over_tun = tun_address(family, TUN_TARGET, 2);
            [over_tun, world.behind().address(family)]
        });
        // One for every address would answer from any of them.
        let _udp: Vec<_> = targets
            .as_flattened()
            .iter()
            .map(|address| {
                world
                    .behind()
                    .udp_server(UdpListen::Address(*address), SERVICE)
            })
            .collect();
        let rules = Family::BOTH.map(|family| {
            let over_tun = SocketAddr::new(tun_address(family, TUN_TARGET, 2), SERVICE);
            let over_ethernet = world.behind().at(family, SERVICE);
            format!("8080:{over_ethernet}/tcp+udp 8081:{over_tun}/tcp+udp")
        });
        let rules = rules.join(" ");
        let portfwd = world
            .host
            .portfwd(&format!("--no-local --nat {} {rules}", nat.word()));
        for family in Family::BOTH {
            let over_tun = tun_address(family, TUN_CLIENT, 1);
            for (address, own) in [
                (over_tun, tun_address(family, TUN_CLIENT, 2)),
                (world.host.address(family), world.client.address(family)),
            ] {
                for (port, masquerade) in [
                    (8080, world.inside_address(family)),
                    (8081, tun_address(family, TUN_TARGET, 1)),
                ] {
                    let remote = SocketAddr::new(address, port);
                    let case = format!("{nat:?} {remote}");
                    let seen = if nat == Nat::Preserve {
                        own
                    } else {
                        masquerade
                    };
                    let talk = Dial::new(client, remote).open();
                    let talk = talk.unwrap_or_else(|error| panic!("{case}: {error}"));
                    assert_eq!(talk.server.peer.ip(), seen, "{case}");
                    let (sent, received) = talk.exchange(1 << 20).expect("bulk");
                    assert_eq!(sent, received, "{case}");
                    let reply = world.client.udp(family).ask(remote, b"hello");
                    let reply = reply.unwrap_or_else(|error| panic!("{case}: {error}"));
                    assert_eq!(reply.server.expect("a name").peer.ip(), seen, "{case}");
                }
            }
        }
        assert_eq!(portfwd.stop().stderr, "");
    }
}
