//! The way to another host and back: what a packet keeps, what it loses, and
//! what the host need not know or change for it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{SlicedPacket, TcpHeaderSlice, TcpOptionElement, TransportSlice};
use portfwd_tests::{
    Capture, Dial, Family, Frame, Keep, Listen, Nat, Netns, Node, Packet, Place, Site, State,
    TunCable, UdpClient, UdpListen, UdpManner, UdpServer, Watch, Who, World, checksum,
    frame::ETHERNET,
    relay::{DIALLED, SERVICE, rules},
    until,
    world::Network,
};

/// Until a retransmission would hide a lost first packet.
const AT_ONCE: Duration = Duration::from_millis(500);

/// The port that handmade clients have.
const CLIENT: u16 = 40_000;

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
            let _portfwd = site.portfwd(nat);
            for family in Family::BOTH {
                for who in [Who::Remote, Who::Neighbour] {
                    let cell = format!("{place:?} {nat:?} {who:?} {family:?}");
                    first_packets_arrive(site.node(who), &site.host, family, &cell);
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
        let _services = world.behind().services(SERVICE);
        let _portfwd = world.relay(nat);
        for family in Family::BOTH {
            let cell = format!("{nat:?} {family:?}");
            first_packets_arrive(&world.client, &world.host, family, &cell);
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
fn first_packets_arrive(client: &Node, host: &Node, family: Family, cell: &str) {
    let remote = host.at(family, DIALLED);
    forget_neighbours(&host.ns);
    let start = Instant::now();
    let talk = client.tcp(remote).ending_with_reset().open();
    let took = start.elapsed();
    assert!(talk.is_ok() && took < AT_ONCE, "{cell}: {talk:?} {took:?}");
    drop(talk);
    forget_neighbours(&host.ns);
    // It is sent once.
    let reply = client.udp(family).ask(remote, b"first");
    assert!(reply.is_ok(), "{cell}: {reply:?}");
}

#[test]
fn no_sysctl_of_a_host_that_forwards_nothing_is_changed() {
    for place in [Place::AnotherInterface, Place::Container] {
        let site = Site::new(place);
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
    _target: UdpServer,
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
            _target: world.behind().udp_server_with(
                UdpListen::DualStack,
                SERVICE,
                UdpManner::Count,
            ),
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
        let payload = payload_of(frame);
        self.at_target
            .wait_for("the datagram at the target", |packet| {
                packet.goes_to(self.target()) && brings(packet, &payload)
            })
    }

    #[track_caller]
    fn send_back(&self, frame: &Frame) -> Packet {
        self.world.wire_behind().send(frame);
        let payload = payload_of(frame);
        self.at_client
            .wait_for("the datagram at the client", |packet| {
                packet.comes_from(self.host()) && brings(packet, &payload)
            })
    }

    /// How many with this payload have arrived at either end.
    fn arrived(&self, payload: &[u8]) -> usize {
        let captures = [&self.at_target, &self.at_client];
        let arrived = captures.map(|capture| capture.packets(|packet| brings(packet, payload)));
        arrived.iter().map(Vec::len).sum()
    }

    /// Opens the flow, and tells whom the target sees.
    #[track_caller]
    fn peer(&self) -> SocketAddr {
        let first = self.send_there(&self.there(b"whom do you see?"));
        first.view().expect("UDP").source
    }
}

/// What tells a datagram from others.
fn payload_of(frame: &Frame) -> Vec<u8> {
    let bytes = frame.to_vec();
    let sliced = SlicedPacket::from_ethernet(&bytes).expect("a whole frame");
    match sliced.transport {
        Some(TransportSlice::Udp(datagram)) => datagram.payload().to_vec(),
        other => panic!("no datagram: {other:?}"),
    }
}

/// Is it what arrives of the datagram with this payload?
fn brings(packet: &Packet, payload: &[u8]) -> bool {
    let view = packet.view();
    !packet.outgoing && view.is_some_and(|view| view.payload == payload)
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
        let portfwd = world.relay(nat);
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
        let portfwd = world.relay(nat);
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
            let arrived = [b"tired", b"fresh"].map(|payload| datagrams.arrived(payload));
            assert_eq!(arrived, [0, 2], "{nat:?} {family:?}");
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
            world.host.ns.ip(&format!("link set {narrow} mtu {MTU}"));
            let portfwd = world.relay(nat);
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
                assert_eq!(datagrams.arrived(&larger), 0, "{nat:?} {family:?}");
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
        node.without_offloads();
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
            let portfwd = world.relay(nat);
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
            let _portfwd = world.relay(nat);
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
const TUN_CLIENT: Network = Network {
    v4: [10, 9, 0],
    v6: 9,
};
const TUN_TARGET: Network = Network {
    v4: [10, 8, 0],
    v6: 8,
};

#[track_caller]
fn tun(host: &Netns, other: &Netns, device: &str, network: &Network) -> TunCable {
    let cable = TunCable::join(host, other, device);
    network.assign(host, device, 1);
    network.assign(other, device, 2);
    cable
}

#[test]
fn a_device_without_an_ethernet_header_leads_to_the_target_or_to_the_client() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let (client, target) = (&world.client.ns, &world.behind().ns);
        let _cables = [
            tun(&world.host.ns, client, "tun0", &TUN_CLIENT),
            tun(&world.host.ns, target, "tun1", &TUN_TARGET),
        ];
        // What is asked over the tun device is answered over it.
        for (option, family) in [("-4", Family::V4), ("-6", Family::V6)] {
            let own = TUN_TARGET.address(family, 2);
            target.sh(&format!(
                "ip {option} rule add from {own} lookup 100
                 ip {option} route add default dev tun1 table 100"
            ));
        }
        let _tcp = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let targets = Family::BOTH.map(|family| {
            let over_tun = TUN_TARGET.address(family, 2);
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
        let rules = rules(|family| {
            let over_tun = SocketAddr::new(TUN_TARGET.address(family, 2), SERVICE);
            let over_ethernet = world.behind().at(family, SERVICE);
            format!("8080:{over_ethernet}/tcp+udp 8081:{over_tun}/tcp+udp")
        });
        let portfwd = world.host.relay(nat, &rules);
        for family in Family::BOTH {
            for (address, own) in [
                (TUN_CLIENT.address(family, 1), TUN_CLIENT.address(family, 2)),
                (world.host.address(family), world.client.address(family)),
            ] {
                for (port, masquerade) in [
                    (8080, world.inside_address(family)),
                    (8081, TUN_TARGET.address(family, 1)),
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
