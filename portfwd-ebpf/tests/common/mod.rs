//! Packets, hosts and judges that the tests of the corridor share.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub mod pair;
mod passed;

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};
use portfwd_common::{Action, Addr, Flow, FlowKey, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    hook::Link,
    host::{self, Buffer, Forward, Machine, Memory},
    outcome::Outcome,
    packet::{ACK, SYN, Tuple},
    tables::Table,
};

pub use passed::Passed;

/// The device of the network.
pub const ETH0: u32 = 2;
/// The loopback device.
pub const LO: u32 = 1;

/// Another device of the network.
pub const ETH1: u32 = 3;
/// The device of the targets on other hosts.
pub const LAN: u32 = 5;

/// A client in the network.
pub const CLIENT: &str = "198.51.100.7:4000";
/// This host's address and a port that rules listen on.
pub const DIALLED: &str = "192.0.2.1:80";
/// The target of a rule.
pub const TARGET: &str = "192.0.2.1:5000";

/// The same over IPv6.
pub const CLIENT6: &str = "[2001:db8:1::7]:4000";
/// The same over IPv6.
pub const DIALLED6: &str = "[2001:db8::1]:80";
/// The same over IPv6.
pub const TARGET6: &str = "[2001:db8::1]:5000";

/// Addresses of this host.
pub const OWN: [&str; 6] = [
    "192.0.2.1",
    "192.0.2.2",
    "2001:db8::1",
    "2001:db8::2",
    "10.0.0.1",
    "2001:db8:2::1",
];

/// Who takes part in a flow to another host.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client, behind [`ETH0`].
    pub client: &'static str,
    /// The address and port of this host that it dials.
    pub dialled: &'static str,
    /// The target, behind [`LAN`].
    pub target: &'static str,
    /// This host's address on [`LAN`], with the client's port.
    pub source: &'static str,
}

/// Over IPv4.
pub const V4: Ends = Ends {
    client: CLIENT,
    dialled: DIALLED,
    target: "10.0.0.5:8080",
    source: "10.0.0.1:4000",
};

/// Over IPv6.
pub const V6: Ends = Ends {
    client: CLIENT6,
    dialled: DIALLED6,
    target: "[2001:db8:2::5]:8080",
    source: "[2001:db8:2::1]:4000",
};

/// Over either.
pub const ENDS: [Ends; 2] = [V4, V6];

impl Ends {
    /// What the client sends.
    pub fn open(&self) -> Tuple {
        tuple(self.client, self.dialled)
    }

    /// What the target sees of it when the client's address is kept.
    pub fn kept(&self) -> Tuple {
        tuple(self.client, self.target)
    }

    /// What the target sees of it when the flow is masqueraded.
    pub fn masked(&self) -> Tuple {
        tuple(self.source, self.target)
    }

    /// The target, with flags.
    pub fn entry(&self, flags: u16) -> TargetEntry {
        TargetEntry {
            addr: self.kept().dst,
            source: self.masked().src,
            hop: Addr::UNSPECIFIED,
            ifindex: LAN,
            link: [0; 3],
            weight: 1,
            flags,
        }
    }

    /// The rule for port 80 of this host.
    pub fn rule(&self, proto: Proto, flags: u16) -> Forward {
        self.rule_on(proto, 80, flags)
    }

    /// A rule for another port.
    pub fn rule_on(&self, proto: Proto, port: u16, flags: u16) -> Forward {
        let port = port..=port;
        match proto {
            Proto::Tcp => Forward::tcp(port, 8080),
            _ => Forward::udp(port, 8080),
        }
        .to_host(self.entry(flags))
    }

    /// A host with that rule.
    pub fn host(&self, proto: Proto, flags: u16) -> Host {
        Host::without_sockets(&[self.rule(proto, flags)])
    }
}

pub fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().expect("an address"))
}

/// The tuple of a packet `from` one end `to` another.
pub fn tuple(from: &str, to: &str) -> Tuple {
    let [from, to] = [from, to].map(|end| end.parse::<SocketAddr>().expect("address and port"));
    Tuple {
        src: from.ip().into(),
        dst: to.ip().into(),
        sport: from.port(),
        dport: to.port(),
    }
}

fn ip_headers(tuple: &Tuple, options: &[u8]) -> IpHeaders {
    match (IpAddr::from(tuple.src), IpAddr::from(tuple.dst)) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header::new(0, 61, IpNumber::UDP, src.octets(), dst.octets())
                .expect("an empty payload");
            header.options = options.try_into().expect("whole words");
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::UDP,
                hop_limit: 61,
                source: src.octets(),
                destination: dst.octets(),
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("one family"),
    }
}

/// A datagram.
pub fn udp(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    udp_with_options(tuple, &[], payload)
}

/// A datagram with IPv4 options.
pub fn udp_with_options(tuple: &Tuple, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ip(ip_headers(tuple, options))
        .udp(tuple.sport, tuple.dport)
        .write(&mut bytes, payload)
        .expect("into memory");
    bytes
}

/// A segment.
pub fn tcp(tuple: &Tuple, flags: u8, [seq, ack]: [u32; 2], payload: &[u8]) -> Vec<u8> {
    tcp_with_options(tuple, &[], flags, [seq, ack], payload)
}

/// A segment with IPv4 options.
pub fn tcp_with_options(
    tuple: &Tuple,
    options: &[u8],
    flags: u8,
    [seq, ack]: [u32; 2],
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut builder =
        PacketBuilder::ip(ip_headers(tuple, options)).tcp(tuple.sport, tuple.dport, seq, 64_000);
    for (bit, set) in [
        (1, Builder::fin as fn(Builder) -> Builder),
        (2, Builder::syn),
        (4, Builder::rst),
        (16, |builder| builder),
    ] {
        if flags & bit != 0 {
            builder = set(builder);
        }
    }
    if flags & ACK != 0 {
        builder = builder.ack(ack);
    }
    builder.write(&mut bytes, payload).expect("into memory");
    bytes
}

type Builder = etherparse::PacketBuilderStep<etherparse::TcpHeader>;

/// A SYN.
pub fn syn(tuple: &Tuple) -> Vec<u8> {
    tcp(tuple, SYN, [100, 0], &[])
}

/// A packet of `proto` that may open a flow.
pub fn first(proto: Proto, tuple: &Tuple) -> Vec<u8> {
    match proto {
        Proto::Tcp => syn(tuple),
        _ => udp(tuple, b"hello"),
    }
}

/// An answer of `proto` to what [`first`] made.
pub fn answer(proto: Proto, tuple: &Tuple) -> Vec<u8> {
    match proto {
        Proto::Tcp => tcp(tuple, SYN | ACK, [700, 101], &[]),
        _ => udp(tuple, b"world!"),
    }
}

/// What a client sends after that answer.
pub fn second(proto: Proto, tuple: &Tuple) -> Vec<u8> {
    match proto {
        Proto::Tcp => tcp(tuple, ACK, [101, 701], b"data"),
        _ => udp(tuple, b"again"),
    }
}

/// A SYN with TCP options, filled up with zeros.
pub fn syn_with(tuple: &Tuple, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut builder = PacketBuilder::ip(ip_headers(tuple, &[]))
        .tcp(tuple.sport, tuple.dport, 100, 64_000)
        .syn();
    if flags & ACK != 0 {
        builder = builder.ack(7);
    }
    builder
        .options_raw(options)
        .expect("40 bytes at most")
        .write(&mut bytes, &[])
        .expect("into memory");
    bytes
}

/// The packet with another TTL or hop limit.
pub fn hops(mut bytes: Vec<u8>, hops: u8) -> Vec<u8> {
    if bytes[0] >> 4 == 6 {
        bytes[7] = hops;
        return bytes;
    }
    bytes[8] = hops;
    bytes[10..12].fill(0);
    let header = usize::from(bytes[0] & 15) * 4;
    let checksum = !fold(sum(&bytes[..header]));
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// TTL or hop limit of a packet.
pub fn hops_of(bytes: &[u8]) -> u8 {
    bytes[if bytes[0] >> 4 == 6 { 7 } else { 8 }]
}

/// Where the transport header starts, and the protocol.
fn transport(bytes: &[u8]) -> (usize, u8) {
    match bytes[0] >> 4 {
        4 => (usize::from(bytes[0] & 15) * 4, bytes[9]),
        _ => (40, bytes[6]),
    }
}

/// The tuple that stands in the bytes of a packet.
pub fn tuple_of(bytes: &[u8]) -> Tuple {
    let at = transport(bytes).0;
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let v4 = |at: usize| {
        let octets: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        Addr::from(IpAddr::from(octets))
    };
    let v6 = |at: usize| {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
        let words = octets.as_chunks::<4>().0;
        Addr([words[0], words[1], words[2], words[3]].map(u32::from_ne_bytes))
    };
    let (src, dst) = match bytes[0] >> 4 {
        4 => (v4(12), v4(16)),
        _ => (v6(8), v6(24)),
    };
    Tuple {
        src,
        dst,
        sport: port(at),
        dport: port(at + 2),
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Where the transport checksum stands.
pub fn checksum_at(bytes: &[u8]) -> usize {
    let (at, protocol) = transport(bytes);
    at + if protocol == 6 { 16 } else { 6 }
}

/// The transport checksum in a packet.
pub fn checksum(bytes: &[u8]) -> u16 {
    let at = checksum_at(bytes);
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Sets the transport checksum.
pub fn set_checksum(bytes: &mut [u8], checksum: u16) {
    let at = checksum_at(bytes);
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Sum of the pseudo-header and of the transport part.
fn sums(bytes: &[u8]) -> (u64, u64) {
    let (at, protocol) = transport(bytes);
    let addresses = match bytes[0] >> 4 {
        4 => &bytes[12..20],
        _ => &bytes[8..40],
    };
    let segment = &bytes[at..];
    let pseudo = sum(addresses) + u64::from(protocol) + segment.len() as u64;
    (pseudo, sum(segment))
}

/// The sum of the pseudo-header: what a partial checksum holds.
pub fn partial_sum(bytes: &[u8]) -> u16 {
    fold(sums(bytes).0)
}

/// Checks every checksum from scratch; `partial` as in [`Buffer::partial`].
#[track_caller]
pub fn assert_sums(bytes: &[u8], partial: bool) {
    if bytes[0] >> 4 == 4 {
        let header = &bytes[..usize::from(bytes[0] & 15) * 4];
        assert_eq!(fold(sum(header)), 0xffff, "IPv4 header {bytes:02x?}");
    }
    let (pseudo, segment) = sums(bytes);
    let is_udp = transport(bytes).1 == 17;
    if partial {
        let (found, wanted) = (checksum(bytes), fold(pseudo));
        assert_eq!(found % 0xffff, wanted % 0xffff, "partial {bytes:02x?}");
        return;
    }
    if is_udp && checksum(bytes) == 0 {
        return;
    }
    assert_eq!(fold(pseudo + segment), 0xffff, "transport {bytes:02x?}");
}

/// A host with its tables. Every packet that walks is judged: its checksums
/// are right, and only a verdict that says so changed a byte.
pub struct Host {
    pub machine: &'static Machine,
    pub memory: Memory,
}

impl Host {
    /// A host with [`OWN`] addresses, sockets on every port that the tests
    /// send to, and rules.
    pub fn new(forwards: &[Forward]) -> Self {
        let mut machine = Machine::new(&OWN.map(addr));
        for port in [80, 443, 5000, 5001, 6000, 8080, 9000, 18000, 18123, 18999] {
            machine = machine.bind(Addr::UNSPECIFIED, port);
        }
        for port in [5000, 6000] {
            machine = machine.listen(Addr::UNSPECIFIED, port);
        }
        Self::on(machine, forwards)
    }

    /// The same without a socket.
    pub fn without_sockets(forwards: &[Forward]) -> Self {
        Self::on(Machine::new(&OWN.map(addr)), forwards)
    }

    /// The same on a machine of one's own.
    pub fn on(machine: Machine, forwards: &[Forward]) -> Self {
        let memory = Memory::with(forwards);
        *memory.own.borrow_mut() = machine.addresses.clone();
        Self {
            machine: Box::leak(Box::new(machine)),
            memory,
        }
    }

    pub fn buffer(&self, bytes: &[u8]) -> Buffer<'static> {
        Buffer::new(self.machine, bytes.to_vec())
    }

    /// A packet arrives from the network.
    #[track_caller]
    pub fn arrive(&self, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let (outcome, bytes) = self.take(self.buffer(bytes));
        (outcome.verdict, bytes)
    }

    /// A packet leaves to the network.
    #[track_caller]
    pub fn depart(&self, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let (outcome, bytes) = self.send(self.buffer(bytes));
        (outcome.verdict, bytes)
    }

    /// A buffer arrives.
    #[track_caller]
    pub fn take(&self, buffer: Buffer<'_>) -> (Outcome, Vec<u8>) {
        let (outcome, buffer) = judged(buffer, |buffer| host::arrive(buffer, &self.memory));
        (outcome, buffer.bytes)
    }

    /// A buffer leaves.
    #[track_caller]
    pub fn send(&self, buffer: Buffer<'_>) -> (Outcome, Vec<u8>) {
        let (outcome, buffer) = judged(buffer, |buffer| host::depart(buffer, &self.memory));
        (outcome, buffer.bytes)
    }

    /// A packet arrives by a device; the tuple that leaves, and the way.
    #[track_caller]
    pub fn pass(&self, bytes: &[u8], ifindex: u32) -> Passed {
        let buffer = self.buffer(bytes).on(ifindex);
        self.leave(judged(buffer, |buffer| host::arrive(buffer, &self.memory)))
    }

    /// The same by a device whose clients are not served.
    #[track_caller]
    pub fn pass_back(&self, bytes: &[u8], ifindex: u32) -> Passed {
        let buffer = self.buffer(bytes).on(ifindex);
        let walk = |buffer: &mut _| host::arrive_back(buffer, &self.memory);
        self.leave(judged(buffer, walk))
    }

    /// What was sent leaves by its device, unless it goes to the other end of a
    /// veth pair at once.
    #[track_caller]
    fn leave(&self, judged: (Outcome, Buffer<'_>)) -> Passed {
        let passed = Passed::of(judged);
        if passed.sent.is_some_and(|way| !way.peer) {
            assert_eq!(self.forward(&passed, None), Verdict::Passing);
        }
        passed
    }

    /// What was sent leaves, in a frame with these addresses.
    #[track_caller]
    pub fn forward(&self, passed: &Passed, link: Option<Link>) -> Verdict {
        let mut buffer = self.buffer(&passed.bytes).on(passed.ifindex());
        buffer.link.forwarded = true;
        buffer.addresses = link;
        self.send(buffer).0.verdict
    }

    /// A client's packet arrives by [`ETH0`] and is sent to the target; the
    /// tuple that the target sees.
    #[track_caller]
    pub fn relayed(&self, bytes: &[u8]) -> Tuple {
        let passed = self.pass(bytes, ETH0);
        assert_eq!(passed.verdict(), Verdict::Forwarded, "{:?}", passed.tuple);
        assert_eq!(passed.ifindex(), LAN);
        passed.tuple
    }

    /// The target's packet arrives by [`LAN`] and is sent to the client; the
    /// tuple that the client sees.
    #[track_caller]
    pub fn returned(&self, bytes: &[u8]) -> Tuple {
        let passed = self.pass(bytes, LAN);
        assert_eq!(passed.verdict(), Verdict::Returned, "{:?}", passed.tuple);
        passed.tuple
    }

    /// A flow of [`Ends::open`] from its first packet to its proof; what the
    /// target sees.
    #[track_caller]
    pub fn prove(&self, proto: Proto, open: &Tuple) -> Tuple {
        let seen = self.relayed(&first(proto, open));
        assert_eq!(
            self.returned(&answer(proto, &seen.reversed())),
            open.reversed()
        );
        assert_eq!(self.relayed(&second(proto, open)), seen);
        seen
    }

    /// Every entry of both flow tables.
    pub fn entries(&self) -> Vec<(Table, FlowKey, Flow)> {
        let mut entries = Vec::new();
        for table in [Table::New, Table::Flows] {
            for (key, flow) in self.memory.entries(table) {
                entries.push((table, key, flow));
            }
        }
        entries.sort_by_key(|(_, key, _)| {
            let ports = (key.sport, key.dport);
            (key.src, key.dst, ports, key.proto, key.side)
        });
        entries
    }

    /// The flow tables are as they were before.
    #[track_caller]
    pub fn assert_entries(&self, before: &[(Table, FlowKey, Flow)]) {
        assert_eq!(self.entries(), before);
    }

    /// A packet arrives and is rewritten; the tuple that the target sees.
    #[track_caller]
    pub fn forwarded(&self, bytes: &[u8]) -> Tuple {
        let (verdict, bytes) = self.arrive(bytes);
        assert_eq!(verdict, Verdict::Rewritten, "{:?}", tuple_of(&bytes));
        tuple_of(&bytes)
    }

    /// The target answers what it saw; the tuple that the client sees.
    #[track_caller]
    pub fn answered(&self, proto: Proto, seen: &Tuple) -> Tuple {
        let (verdict, bytes) = self.depart(&answer(proto, &seen.reversed()));
        assert!(
            matches!(verdict, Verdict::Restored | Verdict::Direct),
            "{verdict:?} {seen:?}"
        );
        tuple_of(&bytes)
    }

    /// Flows in a table, not entries.
    pub fn flows(&self, table: Table) -> usize {
        let entries = self.memory.entries(table);
        let forward = |flow: &Flow| flow.flags & Flow::REPLY == 0;
        entries.iter().filter(|(_, flow)| forward(flow)).count()
    }
}

/// Walks a buffer and checks what every verdict promises.
#[track_caller]
pub fn judged<'a>(
    mut buffer: Buffer<'a>,
    walk: impl FnOnce(&mut Buffer<'a>) -> Outcome,
) -> (Outcome, Buffer<'a>) {
    let before = buffer.bytes.clone();
    let outcome = walk(&mut buffer);
    let verdict = outcome.verdict;
    let sends = verdict.action() == Action::Send;
    let may_change = sends
        || matches!(
            verdict,
            Verdict::Rewritten | Verdict::Restored | Verdict::Moved
        );
    assert_eq!(buffer.sent.is_some(), sends, "{verdict:?}");
    assert_eq!(buffer.bytes.len(), before.len());
    if may_change {
        assert!(buffer.rewrites <= 1);
        assert_sums(&buffer.bytes, buffer.partial);
        let differs = before != buffer.bytes;
        assert!(!differs || buffer.rewrites == 1);
        let hops = hops_of(&before) - u8::from(sends);
        assert_eq!(hops_of(&buffer.bytes), hops, "{verdict:?}");
    } else {
        assert_eq!(before, buffer.bytes, "{verdict:?}");
        assert_eq!(buffer.rewrites, 0);
    }
    (outcome, buffer)
}
