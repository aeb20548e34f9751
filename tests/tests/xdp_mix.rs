//! A mix of packets that XDP forwards and packets that it leaves to TC: what
//! arrives at either end is byte for byte what arrives with TC alone.

use std::net::SocketAddr;

use portfwd_tests::{
    Capture, Family, Frame, Keep, Nat, Netns, Output, Packet, Wire, World,
    express::EXPRESS,
    frame::{ETHERNET, balance, summed_v4},
    relay::{DIALLED, SERVICE},
    until,
};

/// The port of the client in the flows that are compared, and in the one that
/// only tells that all before it has arrived.
const CLIENT: u16 = 40_000;
const LAST: u16 = 40_001;

/// Bytes of layer 3 that fit either way out.
const MTU: usize = 1400;

/// Who sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Client,
    Target,
}
use End::{Client, Target};

/// A packet as it arrived, by who sent it.
type Arrived = (End, Vec<u8>);

/// One run of the mix.
struct Mix {
    world: World,
    family: Family,
    wires: [Wire; 2],
    captures: [Capture; 2],
    /// Whom the target sees.
    peer: SocketAddr,
    marks: u32,
    arrived: Vec<(String, Vec<Arrived>)>,
}

impl Mix {
    /// Both ends are deaf: what arrives is seen, and nobody answers it.
    #[track_caller]
    fn start(nat: Nat, family: Family, mode: &str) -> (Self, portfwd_tests::Portfwd) {
        let world = World::forwarder().wired();
        for ns in [&world.client.ns, &world.behind().ns] {
            ns.nft(
                "table inet deaf {
                    chain in {
                        type filter hook input priority filter;
                        meta l4proto { tcp, udp } drop
                    }
                }",
            );
        }
        world
            .host
            .ns
            .ip("link set eth0 mtu 1400\nlink set eth1 mtu 1400");
        let rules = world.behind().rules();
        let portfwd = world.host.relay(nat, &format!("{mode} {rules}"));
        let source = match nat {
            Nat::Masquerade => world.inside_address(family),
            _ => world.client.address(family),
        };
        let mix = Self {
            wires: [world.wire(), world.wire_behind()],
            captures: [
                Capture::start(&world.client.ns, Keep::Everything),
                Capture::start(&world.behind().ns, Keep::Everything),
            ],
            peer: SocketAddr::new(source, CLIENT),
            world,
            family,
            marks: 0,
            arrived: Vec::new(),
        };
        (mix, portfwd)
    }

    fn host(&self) -> SocketAddr {
        self.world.host.at(self.family, DIALLED)
    }

    fn target(&self) -> SocketAddr {
        self.world.behind().at(self.family, SERVICE)
    }

    /// The ends of a packet as its sender writes them.
    fn ends(&self, from: End) -> (SocketAddr, SocketAddr) {
        match from {
            Client => (self.world.client.at(self.family, CLIENT), self.host()),
            Target => (self.target(), self.peer),
        }
    }

    fn udp(&self, from: End) -> Frame {
        let (source, destination) = self.ends(from);
        Frame::datagram(source, destination)
    }

    fn ack(&self, from: End) -> Frame {
        let (source, destination) = self.ends(from);
        Frame::ack(source, destination).with_tcp(|header| {
            (header.sequence_number, header.acknowledgment_number) = match from {
                Client => (1001, 100),
                Target => (100, 1001),
            };
        })
    }

    /// The bytes of a frame on the sender's wire.
    fn bytes(&self, from: End, frame: Frame) -> Vec<u8> {
        let host = match from {
            Client => self.world.host.mac,
            Target => [2, 0, 0, 0, 0xb, 1],
        };
        let own = match from {
            Client => self.world.client.mac,
            Target => self.world.behind().mac,
        };
        frame.macs(own, host).to_vec()
    }

    /// Sends a frame, and remembers all that arrives for it.
    #[track_caller]
    fn send(&mut self, label: &str, from: End, frame: Frame) {
        let bytes = self.bytes(from, frame);
        self.send_bytes(label, from, &bytes);
    }

    #[track_caller]
    fn send_bytes(&mut self, label: &str, from: End, bytes: &[u8]) {
        let before = self.captures.each_ref().map(|c| c.packets(counts).len());
        self.wires[from as usize].send_bytes(bytes);
        self.settle();
        let mut arrived = Vec::new();
        for (end, (capture, before)) in self.captures.iter().zip(before).enumerate() {
            let sender = if end == 0 { Target } else { Client };
            let packets = capture.packets(counts).into_iter().skip(before);
            arrived.extend(packets.map(|packet| (sender, packet.bytes)));
        }
        self.arrived
            .push((format!("{label} of the {from:?}"), arrived));
    }

    /// The rule has counted what arrived, as it was on the wire.
    #[track_caller]
    fn assert_counted(&self, output: &Output) {
        let rule = self.world.behind().rule(self.family);
        let (target, host) = (self.target(), self.host());
        let [at_client, at_target] = &self.captures;
        // What the host's stack says itself brings nothing.
        let ours = |packet: &Packet| !(packet.outgoing || packet.is_reset() && is_bare(packet));
        for (arrived, columns) in [
            (
                at_target.packets(|packet| ours(packet) && packet.goes_to(target)),
                ["packets", "bytes"],
            ),
            (
                at_client.packets(|packet| ours(packet) && packet.comes_from(host)),
                ["packets back", "bytes back"],
            ),
        ] {
            let bytes: usize = arrived.iter().map(length).sum();
            let wanted = [arrived.len(), bytes].map(|count| Some(count as u64));
            let counted = columns.map(|column| output.rule_counter(&rule, column));
            assert_eq!(counted, wanted, "{columns:?}\n{output}");
        }
    }

    /// Waits until all that was sent has arrived: wires keep the order.
    #[track_caller]
    fn settle(&mut self) {
        self.marks += 1;
        let mark = format!("mark {};", self.marks);
        let own = self.world.client.at(self.family, LAST);
        let there = Frame::udp(own, self.host()).payload(mark.as_bytes());
        self.wires[0].send(&there);
        let brings = |packet: &Packet| {
            let view = packet.view();
            !packet.outgoing && view.is_some_and(|view| view.payload == mark.as_bytes())
        };
        let arrived = self.captures[1].wait_for("the mark at the target", brings);
        let peer = arrived.view().expect("UDP").source;
        let back = Frame::udp(self.target(), peer).payload(mark.as_bytes());
        self.wires[1].send(&back);
        self.captures[0].wait_for("the mark at the client", brings);
    }
}

/// Is it of the flows that are compared, or of what becomes of them?
fn counts(packet: &Packet) -> bool {
    const IPV6: u16 = 0x86dd;
    const IPV4: u16 = 0x0800;
    // A host tells the link which groups it is in, behind an extension.
    let multicast = |bytes: &[u8]| bytes[24] == 0xff;
    // Of ICMP the host's stack answers as many as it wants to in a second.
    match packet.protocol {
        _ if packet.outgoing || packet.device != "eth0" => false,
        IPV4 => packet.bytes[9] != 1 && !is_mark(packet),
        IPV6 => packet.bytes[6] != 58 && !multicast(&packet.bytes) && !is_mark(packet),
        _ => false,
    }
}

fn is_bare(packet: &Packet) -> bool {
    packet.view().is_some_and(|view| view.payload.is_empty())
}

/// Bytes of the packet as its header says.
fn length(packet: &Packet) -> usize {
    let bytes = &packet.bytes;
    match bytes[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
        _ => 40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]])),
    }
}

fn is_mark(packet: &Packet) -> bool {
    packet
        .view()
        .is_some_and(|view| view.payload.starts_with(b"mark "))
}

/// The bytes with a header of eight bytes behind the IPv6 header, or the IPv4
/// packet as a first fragment.
fn extended(mut bytes: Vec<u8>, next: u8, header: [u8; 8]) -> Vec<u8> {
    if bytes[ETHERNET] >> 4 == 4 {
        bytes[ETHERNET + 6] |= 0x20;
        return summed_v4(bytes);
    }
    let behind = bytes[ETHERNET + 6];
    bytes[ETHERNET + 6] = next;
    let [high, low] = [bytes[ETHERNET + 4], bytes[ETHERNET + 5]];
    let len = u16::from_be_bytes([high, low]) + 8;
    bytes[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&len.to_be_bytes());
    let at = ETHERNET + 40;
    let [_, rest @ ..] = header;
    bytes.splice(at..at, [behind].into_iter().chain(rest));
    bytes
}

fn tagged(mut bytes: Vec<u8>, tag: u16) -> Vec<u8> {
    let [high, low] = tag.to_be_bytes();
    bytes.splice(12..12, [0x81, 0x00, high, low]);
    bytes
}

/// Every kind of datagram, from either end.
#[track_caller]
fn datagrams(mix: &mut Mix) {
    for (label, from) in [
        ("the first", Client),
        ("the next", Client),
        ("the answer", Target),
        ("the next", Target),
        ("the proof", Client),
        ("the next", Client),
        ("the next", Target),
    ] {
        mix.send(label, from, mix.udp(from));
    }
    for from in [Client, Target] {
        let plain = |mix: &mut Mix| mix.send("a plain one", from, mix.udp(from));
        let headers = if mix.family == Family::V4 { 28 } else { 48 };
        for len in [0, 1, 2, 1000, MTU - headers] {
            mix.send("a length", from, mix.udp(from).payload(&vec![7; len]));
        }
        mix.send(
            "too large",
            from,
            mix.udp(from).payload(&vec![7; MTU - headers + 1]),
        );
        plain(mix);
        for (label, hops) in [("the last hop", 1), ("two hops", 2), ("all hops", 255)] {
            mix.send(label, from, mix.udp(from).hop_limit(hops));
            plain(mix);
        }
        for class in [0xbb, 0x03] {
            let frame = mix.udp(from).traffic_class(class).identification(0xbeef);
            mix.send("a class", from, frame);
        }
        if mix.family == Family::V4 {
            mix.send("without a sum", from, mix.udp(from).unsummed());
            for words in [1, 5, 10] {
                mix.send("options", from, mix.udp(from).options(&vec![1; words * 4]));
                plain(mix);
            }
        }
        // Whose sum comes out as zero on the other side.
        let to = match from {
            Client => balance(mix.peer, mix.target()),
            Target => balance(mix.host(), mix.world.client.at(mix.family, CLIENT)),
        };
        mix.send("a sum of zero", from, mix.udp(from).payload(&to));
        plain(mix);
        special(mix, from, |mix| mix.udp(from));
    }
}

/// What is no plain packet, and a plain one behind each.
#[track_caller]
fn special(mix: &mut Mix, from: End, frame: impl Fn(&Mix) -> Frame) {
    let bytes = mix.bytes(from, frame(mix));
    let mut multicast = bytes.clone();
    multicast[..6].copy_from_slice(&[0xff; 6]);
    let mut others = bytes.clone();
    others[..6].copy_from_slice(&[2, 0, 0, 0, 0, 99]);
    let padded = [&bytes[..], &[0xaa; 6]].concat();
    for (label, special) in [
        (
            "a fragment",
            extended(bytes.clone(), 44, [0, 0, 0, 1, 0, 0, 0, 7]),
        ),
        (
            "an extension",
            extended(bytes.clone(), 60, [0, 0, 1, 4, 0, 0, 0, 0]),
        ),
        ("a priority tag", tagged(bytes.clone(), 0xa000)),
        ("a VLAN tag", tagged(bytes.clone(), 5)),
        ("a broadcast", multicast),
        ("to another host", others),
        ("padding", padded),
    ] {
        mix.send_bytes(label, from, &special);
        mix.send_bytes("a plain one", from, &bytes);
    }
    forget_neighbours(&mix.world.host.ns);
    mix.send_bytes("no neighbour", from, &bytes);
    mix.send_bytes("a plain one", from, &bytes);
}

#[track_caller]
fn forget_neighbours(ns: &Netns) {
    until("no neighbour to be known", || {
        ns.ip("neigh flush all");
        !ns.sh("ip neigh").contains("lladdr")
    });
}

/// A connection from its first segment to its end, and the next one from the
/// same port.
#[track_caller]
fn segments(mix: &mut Mix) {
    for _ in 0..2 {
        let (own, host) = mix.ends(Client);
        mix.send("a SYN", Client, Frame::syn(own, host));
        let (target, peer) = mix.ends(Target);
        mix.send("a SYN-ACK", Target, Frame::syn_ack(target, peer));
        for from in [Client, Client, Target, Target] {
            mix.send("data", from, mix.ack(from));
        }
        for from in [Client, Target] {
            let with = |change: fn(&mut etherparse::TcpHeader)| mix.ack(from).with_tcp(change);
            let frames = [
                ("PSH", with(|header| header.psh = true)),
                ("URG", with(|header| header.urg = true)),
                ("ECE", with(|header| header.ece = true)),
                (
                    "options",
                    with(|header| header.set_options_raw(&[1; 12]).expect("they fit")),
                ),
                ("a RST", with(|header| header.rst = true)),
                ("after it", mix.ack(from)),
                (
                    "a late SYN",
                    with(|header| (header.syn, header.ack) = (true, false)),
                ),
                ("a late SYN-ACK", with(|header| header.syn = true)),
                ("no flags", with(|header| header.ack = false)),
                ("the last hop", mix.ack(from).hop_limit(1)),
            ];
            for (label, frame) in frames {
                mix.send(label, from, frame);
                mix.send("data", from, mix.ack(from));
            }
            special(mix, from, |mix| mix.ack(from));
        }
        for from in [Client, Target] {
            let fin = mix.ack(from).with_tcp(|header| header.fin = true);
            mix.send("a FIN", from, fin);
            mix.send("data", Client, mix.ack(Client));
            mix.send("data", Target, mix.ack(Target));
        }
    }
}

/// What is forwarded to nobody; all else arrives, and once.
const LEFT: [&str; 7] = [
    "too large",
    "the last hop",
    "a fragment",
    "an extension",
    "a VLAN tag",
    "a broadcast",
    "to another host",
];

/// Runs the mix, and tells what arrived and what was counted.
#[track_caller]
fn run(
    nat: Nat,
    family: Family,
    mode: &str,
    send: fn(&mut Mix),
) -> (Vec<(String, Vec<Arrived>)>, Output) {
    let (mut mix, portfwd) = Mix::start(nat, family, mode);
    send(&mut mix);
    let output = portfwd.stop();
    mix.assert_counted(&output);
    (mix.arrived, output)
}

#[track_caller]
fn all_is_as_with_tc_alone(send: fn(&mut Mix)) {
    for nat in Nat::FORCED {
        for family in Family::BOTH {
            let case = format!("{nat:?} {family:?}");
            let (with, output) = run(nat, family, EXPRESS, send);
            let (without, alone) = run(nat, family, "--mode tc -i eth0 -i eth1", send);
            assert_eq!(with.len(), without.len(), "{case}");
            for (step, (with, without)) in with.iter().zip(&without).enumerate() {
                assert_eq!(with, without, "{case}, step {step}");
            }
            for (label, arrived) in &with {
                let is_left_to_the_host = LEFT.iter().any(|left| label.starts_with(left));
                assert!(
                    is_left_to_the_host || arrived.len() == 1,
                    "{case}, {label}: {arrived:02x?}"
                );
            }
            let express = output.express();
            let sent = output.verdict("forwarded") + output.verdict("returned");
            println!(
                "{case}: {} steps, XDP carried {express} of {sent}",
                with.len()
            );
            // Marks and plain packets, less one a second and next hop.
            assert!(express > sent / 4, "{case}: {express} of {sent}\n{output}");
            assert_eq!(alone.verdict("deferred"), 0, "{case}\n{alone}");
            same_counters(&output, &alone, &case);
        }
    }
}

/// The rules count the same, and so do the verdicts on packets of theirs.
#[track_caller]
fn same_counters(with: &Output, without: &Output, case: &str) {
    let lines = |output: &Output| -> Vec<String> {
        let rows = output.stdout.lines();
        let of_rules = rows.filter(|line| line.contains(":8080") || line.contains(" 8080:"));
        of_rules
            .filter(|line| line.starts_with(' '))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(lines(with), lines(without), "{case}");
    assert!(!lines(with).is_empty(), "{with}");
    for verdict in [
        "forwarded",
        "returned",
        "hop-limit",
        "too-large",
        "vlan",
        "stray",
        "no-port",
        "table-full",
        "no-route",
    ] {
        let counts = [with, without].map(|output| output.verdict(verdict));
        assert_eq!(counts[0], counts[1], "{case}: {verdict}\n{with}\n{without}");
    }
}

#[test]
fn a_mix_of_datagrams_arrives_as_with_tc_alone() {
    all_is_as_with_tc_alone(datagrams);
}

#[test]
fn a_mix_of_segments_arrives_as_with_tc_alone() {
    all_is_as_with_tc_alone(segments);
}
