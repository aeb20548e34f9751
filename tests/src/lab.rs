//! A lab: the programs, loaded and attached to nothing, see one packet at a
//! time in a namespace with real addresses, routes and sockets.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use portfwd::{
    dataplane::{Dataplane, Entrance, Features, Settings, Side, Trial},
    host::{bpffs, devices::Link, kernel::Release},
    plan::{self, TcpMechanism},
    reach::Reach,
    rule::{Nat, RuleSpec, Target},
};
use portfwd_common::{
    Action, RuleCounters, TargetEntry, Timeouts, Verdict, settings::LOCAL_PORTS_DEFAULT,
};

use crate::{
    Family, Frame, Netns,
    checksum::{self, Sums},
};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

const LO: u32 = 1;
const ROOM: u32 = 1024;

/// How TCP is carried: what a kernel from 6.6 on does, what an older one does,
/// and what a kernel without steering does.
pub const MECHANISMS: [TcpMechanism; 3] = [
    TcpMechanism::Steer,
    TcpMechanism::SteerOrRewrite,
    TcpMechanism::Rewrite,
];

/// The loaded programs with their rules, and the host around them: `eth0`
/// with 192.0.2.1/24 and 2001:db8::1/64 and a default route, `lo`, and `bare0`
/// for the programs of devices without a link-layer header. The other end of
/// `eth0` is `wire`, where nobody answers.
pub struct Lab {
    /// The namespace.
    pub ns: Netns,
    plane: Dataplane,
    rules: u32,
    _pins: Pins,
}

/// A lab to be opened.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    tcp: TcpMechanism,
    max_flows: u32,
    rules: Vec<RuleSpec>,
    across: Option<Across>,
}

/// How this host reaches the targets behind `lan0`.
#[derive(Clone, Copy, Debug)]
struct Across {
    flags: u16,
    mtu: u32,
}

impl LabBuilder {
    /// Targets of 10.0.0.0/24 and 2001:db8:2::/64 are other hosts behind
    /// `lan0`, where this host is number 1; with these flags of
    /// [`TargetEntry`].
    pub fn across(mut self, flags: u16, mtu: u32) -> Self {
        self.across = Some(Across { flags, mtu });
        self
    }

    /// Rules that only these sources may use.
    #[track_caller]
    pub fn rules_from(mut self, rules: &str, from: &str) -> Self {
        let from = from
            .split_whitespace()
            .map(|prefix| prefix.parse().expect("a prefix"))
            .collect::<Vec<_>>();
        for text in rules.split_whitespace() {
            let rule = text.parse().unwrap_or_else(|error| panic!("{error}"));
            self.rules.push(RuleSpec {
                rule,
                name: None,
                from: from.clone(),
                nat: Nat::default(),
            });
        }
        self
    }

    /// Flows that the tables hold, 1024 unless told.
    pub fn max_flows(mut self, flows: u32) -> Self {
        self.max_flows = flows;
        self
    }

    /// Loads the programs with these rules.
    #[track_caller]
    pub fn open(self) -> Lab {
        plan::check(&self.rules).expect("rules that can stand beside each other");
        let settings = Settings {
            timeouts: Timeouts::DEFAULT,
            max_flows: self.max_flows,
            local_ports: LOCAL_PORTS_DEFAULT,
            log_flows: false,
        };
        let ns = host();
        let lan = self.across.map(|across| Lan::add(&ns, across));
        let pins = Pins::new();
        let mut plane = Dataplane::load(&settings, features(self.tcp), &pins.0)
            .unwrap_or_else(|error| panic!("{error}"));
        let place = |rule: &RuleSpec, target: &Target| {
            let across = lan
                .zip(target.addr)
                .and_then(|(lan, addr)| lan.target(addr));
            across.unwrap_or_else(|| Reach::Local.entry(target, rule.nat))
        };
        plane
            .install(&plan::plan(&self.rules, self.tcp, place))
            .unwrap_or_else(|error| panic!("{error}"));
        let mut own = vec![(v4(1), 2), (v6(1), 2)];
        if let Some(lan) = lan {
            own.extend(Family::BOTH.map(|family| (lan_at(family, 1, 0).ip(), lan.ifindex)));
        }
        plane.set_locals(&own).expect("these addresses fit");
        Lab {
            ns,
            plane,
            rules: self.rules.len() as u32,
            _pins: pins,
        }
    }
}

/// The device of the targets on other hosts.
#[derive(Clone, Copy, Debug)]
struct Lan {
    ifindex: u32,
    flags: u16,
}

impl Lan {
    #[track_caller]
    fn add(ns: &Netns, Across { flags, mtu }: Across) -> Self {
        ns.ip(&format!(
            "link add lan0 address 02:00:00:00:00:01 mtu {mtu} type veth peer name lan1
             link set lan0 up
             link set lan1 up
             address add 10.0.0.1/24 dev lan0
             address add 2001:db8:2::1/64 dev lan0 nodad"
        ));
        Self {
            ifindex: ns.ifindex("lan0"),
            flags,
        }
    }

    fn target(self, addr: IpAddr) -> Option<TargetEntry> {
        let family = match addr {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let source = lan_at(family, 1, 0).ip();
        let prefix = match (addr, source) {
            (IpAddr::V4(addr), IpAddr::V4(source)) => addr.octets()[..3] == source.octets()[..3],
            (IpAddr::V6(addr), IpAddr::V6(source)) => addr.octets()[..8] == source.octets()[..8],
            _ => false,
        };
        prefix.then(|| TargetEntry {
            source: source.into(),
            ifindex: self.ifindex,
            flags: self.flags,
            ..TargetEntry::local(addr.into(), 1)
        })
    }
}

/// What the running kernel has, less what the mechanism does without.
fn features(tcp: TcpMechanism) -> Features {
    let release = Release::running().expect("a kernel has a release");
    let probed = Features::probe(release).expect("root loads programs");
    assert!(probed.steer_all, "these tests are for kernels from 6.6 on");
    match tcp {
        TcpMechanism::Steer => probed,
        TcpMechanism::SteerOrRewrite => Features {
            steer_all: false,
            ..probed
        },
        TcpMechanism::Rewrite => probed.without_steering(),
    }
}

fn host() -> Netns {
    let ns = Netns::new();
    ns.ip(
        "link add eth0 address 02:00:00:00:00:01 type veth peer name wire address 02:00:00:00:00:02
           link add bare0 type veth peer name bare1
           link set eth0 up
           link set wire up
           link set bare0 up
           link set bare1 up
           address add 192.0.2.1/24 dev eth0
           address add 2001:db8::1/64 dev eth0 nodad
           route add default via 192.0.2.254
           route add default via 2001:db8::fe
           neighbor add 192.0.2.2 dev eth0 lladdr 02:00:00:00:00:02 nud permanent
           neighbor add 2001:db8::2 dev eth0 lladdr 02:00:00:00:00:02 nud permanent",
    );
    ns
}

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))
}

/// The host's address on `eth0`.
pub const fn host_at(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(v4(1), port),
        Family::V6 => SocketAddr::new(v6(1), port),
    }
}

/// A client on the network of `eth0`.
pub const fn client_at(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(v4(2), port),
        Family::V6 => SocketAddr::new(v6(2), port),
    }
}

/// A host behind `lan0`; number 1 is this one.
pub const fn lan_at(family: Family, number: u8, port: u16) -> SocketAddr {
    let addr = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, number as u16)),
    };
    SocketAddr::new(addr, port)
}

/// An address that is neither the host's nor on its network.
pub const fn stranger_at(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), port),
        Family::V6 => {
            let addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 9);
            SocketAddr::new(IpAddr::V6(addr), port)
        }
    }
}

impl Lab {
    /// A lab with TCP carried as told and these rules.
    #[track_caller]
    pub fn builder(tcp: TcpMechanism, rules: &str) -> LabBuilder {
        LabBuilder {
            tcp,
            max_flows: ROOM,
            rules: Vec::new(),
            across: None,
        }
        .rules_from(rules, "")
    }

    /// The same, opened.
    #[track_caller]
    pub fn new(tcp: TcpMechanism, rules: &str) -> Self {
        Self::builder(tcp, rules).open()
    }

    /// A UDP service on every address of both families.
    #[track_caller]
    pub fn udp_service(&self, port: u16) -> UdpSocket {
        self.ns
            .enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))
            .expect("a free port")
    }

    /// A TCP service on every address of both families.
    #[track_caller]
    pub fn tcp_service(&self, port: u16) -> TcpListener {
        self.tcp_service_on(Ipv6Addr::UNSPECIFIED.into(), port)
    }

    /// A TCP service on one address.
    #[track_caller]
    pub fn tcp_service_on(&self, addr: IpAddr, port: u16) -> TcpListener {
        self.ns
            .enter(|| TcpListener::bind((addr, port)))
            .expect("a free port")
    }

    /// Where this host forwards, it knows whose addresses are whose.
    #[track_caller]
    pub fn forwards(&self) {
        self.ns.sysctl("net.ipv4.ip_forward", 1);
        self.ns.sysctl("net.ipv6.conf.all.forwarding", 1);
    }

    /// From now on `eth0` is guarded.
    #[track_caller]
    pub fn guard_eth0(&mut self) {
        let ifindex = self.ns.ifindex("eth0");
        self.plane.guard(ifindex).expect("one device fits");
    }

    /// The programs of a device of this namespace.
    #[track_caller]
    pub fn eth0(&mut self) -> Hooks<'_> {
        let ifindex = self.ns.ifindex("eth0");
        self.hooks(ifindex, Link::Ethernet)
    }

    /// The programs of `lan0`.
    #[track_caller]
    pub fn lan(&mut self) -> Hooks<'_> {
        let ifindex = self.ns.ifindex("lan0");
        self.hooks(ifindex, Link::Ethernet)
    }

    /// The programs of `lo`.
    pub fn lo(&mut self) -> Hooks<'_> {
        self.hooks(LO, Link::Ethernet)
    }

    /// The programs of a device without a link-layer header.
    #[track_caller]
    pub fn bare(&mut self) -> Hooks<'_> {
        let ifindex = self.ns.ifindex("bare0");
        self.hooks(ifindex, Link::Bare)
    }

    /// A frame arrives by `eth0`.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn arrives(&mut self, frame: impl Bytes) -> Seen {
        self.eth0().arrives(frame)
    }

    /// This host sends a frame by `eth0`.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn leaves(&mut self, frame: impl Bytes) -> Seen {
        self.eth0().leaves(frame)
    }

    /// Instructions that the verifier walked in a program.
    #[track_caller]
    pub fn verified_instructions(&mut self, side: Side, link: Link) -> u32 {
        self.plane
            .verified_instructions(side, link)
            .unwrap_or_else(|error| panic!("{error}"))
            .expect("known since 5.16")
    }

    fn hooks(&mut self, ifindex: u32, link: Link) -> Hooks<'_> {
        Hooks {
            lab: self,
            entrance: Entrance {
                side: Side::Ingress,
                link,
                ifindex,
                ingress_ifindex: 0,
                gso_size: 0,
            },
        }
    }

    fn counts(&self) -> (Vec<(Verdict, u64)>, Vec<RuleCounters>) {
        let verdicts = self.plane.verdicts().expect("verdicts are read");
        let rules = self.plane.rule_counters(self.rules);
        (verdicts, rules.expect("counters are read"))
    }
}

/// The bytes of a frame, from its Ethernet header on.
pub trait Bytes {
    /// The bytes.
    fn bytes(&self) -> Vec<u8>;
}

impl Bytes for Frame {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> Vec<u8> {
        self.clone()
    }
}

impl<T: Bytes> Bytes for &T {
    fn bytes(&self) -> Vec<u8> {
        (*self).bytes()
    }
}

/// Both hooks of a device.
pub struct Hooks<'a> {
    lab: &'a mut Lab,
    entrance: Entrance,
}

impl Hooks<'_> {
    /// The packet is a GSO packet with this many payload bytes in a segment.
    pub fn segmented(mut self, gso_size: u32) -> Self {
        self.entrance.gso_size = gso_size;
        self
    }

    /// This host only forwards the packet.
    #[track_caller]
    pub fn forwarded(mut self) -> Self {
        self.entrance.ingress_ifindex = self.lab.ns.ifindex("bare0");
        self
    }

    /// A frame arrives.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn arrives(mut self, frame: impl Bytes) -> Seen {
        self.entrance.side = Side::Ingress;
        self.see(&frame.bytes())
    }

    /// A frame arrives where no client is served.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn arrives_back(mut self, frame: impl Bytes) -> Seen {
        self.entrance.side = Side::Back;
        self.see(&frame.bytes())
    }

    /// This host sends a frame.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn leaves(mut self, frame: impl Bytes) -> Seen {
        self.entrance.side = Side::Egress;
        self.see(&frame.bytes())
    }

    /// The frames arrive one after the other, without a look at any.
    #[track_caller]
    pub fn all_arrive(mut self, frames: impl Iterator<Item = Vec<u8>> + Send) {
        self.entrance.side = Side::Ingress;
        self.run(frames);
    }

    /// This host sends the frames one after the other, without a look at any.
    #[track_caller]
    pub fn all_leave(mut self, frames: impl Iterator<Item = Vec<u8>> + Send) {
        self.entrance.side = Side::Egress;
        self.run(frames);
    }

    #[track_caller]
    fn run(self, frames: impl Iterator<Item = Vec<u8>> + Send) {
        let Self { lab, entrance } = self;
        lab.ns.enter(|| {
            for frame in frames {
                let _trial = lab
                    .plane
                    .run_once(entrance, &frame)
                    .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
            }
        });
    }

    /// How long the program runs on a frame that arrives, on average of so
    /// many passes; each runs on what the one before it made, and each must
    /// end with this verdict.
    #[track_caller]
    pub fn takes(self, verdict: Verdict, frame: impl Bytes, passes: u32) -> Duration {
        let Self { lab, entrance } = self;
        let frame = on_device(&lab.ns, entrance, &frame.bytes());
        let (before, _) = lab.counts();
        let plane = &mut lab.plane;
        let trial = lab
            .ns
            .enter(|| plane.run_again(entrance, &frame, passes))
            .unwrap_or_else(|error| panic!("{error}"));
        let (after, _) = lab.counts();
        assert_eq!(counted(&before, &after), [(verdict, u64::from(passes))]);
        trial.duration
    }

    #[track_caller]
    fn see(self, frame: &[u8]) -> Seen {
        let Self { lab, entrance } = self;
        let frame = on_device(&lab.ns, entrance, frame);
        let (verdicts, rules) = lab.counts();
        let plane = &mut lab.plane;
        let trial = lab
            .ns
            .enter(|| plane.run_once(entrance, &frame))
            .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
        let (verdicts_after, rules_after) = lab.counts();
        let counted = counted(&verdicts, &verdicts_after);
        let [(verdict, 1)] = counted[..] else {
            panic!("one packet has one verdict, not {counted:?}");
        };
        let rules = rules.into_iter().zip(rules_after);
        Seen {
            frame,
            link: entrance.link,
            trial,
            verdict,
            rules: rules.map(|(before, after)| less(after, before)).collect(),
        }
    }
}

/// The verdicts that were counted in between, and how often.
fn counted(before: &[(Verdict, u64)], after: &[(Verdict, u64)]) -> Vec<(Verdict, u64)> {
    before
        .iter()
        .zip(after)
        .map(|((verdict, before), (_, after))| (*verdict, after - before))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// A frame as it looks on the device.
#[track_caller]
fn on_device(ns: &Netns, entrance: Entrance, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if entrance.ifindex == LO {
        frame[..12].fill(0);
    }
    if entrance.link == Link::Bare {
        frame.drain(..ETHERNET);
        if entrance.side != Side::Egress {
            // A run takes the first bytes for the frame's destination.
            let [a, b, c, d, e, f] = frame[..6] else {
                unreachable!("six bytes");
            };
            ns.ip(&format!(
                "link set bare0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
            ));
        }
    }
    frame
}

fn less(after: RuleCounters, before: RuleCounters) -> RuleCounters {
    RuleCounters {
        packets: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
        packets_back: after.packets_back - before.packets_back,
        bytes_back: after.bytes_back - before.bytes_back,
        connections: after.connections - before.connections,
    }
}

/// What became of a frame: each of its methods is a sentence about it.
#[derive(Debug)]
pub struct Seen {
    frame: Vec<u8>,
    link: Link,
    trial: Trial,
    verdict: Verdict,
    rules: Vec<RuleCounters>,
}

impl Seen {
    /// The frame stays as it is, gets this verdict and what follows from it,
    /// and counts for no rule.
    #[track_caller]
    pub fn is(self, verdict: Verdict) {
        self.stays(verdict).counts_for_none();
    }

    /// The frame stays as it is and gets this verdict.
    #[track_caller]
    pub fn stays(self, verdict: Verdict) -> Self {
        self.judged(verdict);
        assert_eq!(self.trial.frame, self.frame, "{verdict:?} changes no byte");
        self
    }

    /// The frame becomes another one, with every checksum right.
    #[track_caller]
    pub fn becomes(self, verdict: Verdict, wanted: impl Bytes) -> Self {
        self.judged(verdict);
        let wanted = wanted.bytes();
        let start = match (self.link, verdict.action()) {
            (Link::Bare, Action::Pass | Action::Drop) => 0,
            // A link-layer header is put before what is sent from there.
            (Link::Ethernet, _) | (Link::Bare, Action::Send) => ETHERNET,
        };
        let (header, found) = self.trial.frame.split_at(start);
        match self.link {
            Link::Ethernet => assert_eq!(header, &self.frame[..start], "link layer"),
            Link::Bare => assert!(header.iter().all(|byte| *byte == 0), "{header:02x?}"),
        }
        assert_eq!(found, &wanted[ETHERNET..], "{verdict:?}");
        let sums = checksum::check(found, false);
        assert!(!matches!(sums, Sums::Wrong(_)), "{verdict:?}: {sums:?}");
        self
    }

    /// It is the client's packet of the rule in this slot.
    #[track_caller]
    pub fn counts_for(self, slot: usize) {
        let wanted = self.one();
        self.counted(slot, wanted);
    }

    /// The same, and it opens a connection.
    #[track_caller]
    pub fn opens(self, slot: usize) {
        let wanted = RuleCounters {
            connections: 1,
            ..self.one()
        };
        self.counted(slot, wanted);
    }

    /// It is a packet to the client of the rule in this slot.
    #[track_caller]
    pub fn counts_back_for(self, slot: usize) {
        let wanted = RuleCounters {
            packets_back: 1,
            bytes_back: self.length(),
            ..RuleCounters::default()
        };
        self.counted(slot, wanted);
    }

    /// No rule counts it.
    #[track_caller]
    pub fn counts_for_none(self) {
        assert!(
            self.rules
                .iter()
                .all(|rule| *rule == RuleCounters::default()),
            "{:?} counts for no rule: {:?}",
            self.verdict,
            self.rules
        );
    }

    /// Exactly these numbers for the rule in this slot, nothing for another.
    #[track_caller]
    pub fn counted(self, slot: usize, wanted: RuleCounters) {
        for (index, found) in self.rules.iter().enumerate() {
            let wanted = if index == slot {
                wanted
            } else {
                RuleCounters::default()
            };
            assert_eq!(*found, wanted, "rule {index}, {:?}", self.verdict);
        }
    }

    /// The frame that came out.
    pub fn frame(&self) -> &[u8] {
        &self.trial.frame
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    #[track_caller]
    fn judged(&self, verdict: Verdict) {
        assert_eq!(self.verdict, verdict);
        assert_eq!(self.trial.action, verdict.action(), "{verdict:?}");
        if verdict.action() == Action::Drop {
            assert_eq!(self.trial.frame, self.frame, "dropped as it came");
        }
    }

    fn one(&self) -> RuleCounters {
        RuleCounters {
            packets: 1,
            bytes: self.length(),
            ..RuleCounters::default()
        }
    }

    /// Bytes of layer 3.
    fn length(&self) -> u64 {
        let header = match self.link {
            Link::Ethernet => ETHERNET,
            Link::Bare => 0,
        };
        (self.frame.len() - header) as u64
    }
}

/// A folder for the pins of one lab, removed with what is in it.
#[derive(Debug)]
struct Pins(PathBuf);

impl Pins {
    #[track_caller]
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let bpffs = bpffs::mounted().unwrap_or_else(|error| panic!("{error}"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = bpffs.join(format!("portfwd-lab-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        Self(folder)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} was not removed: {error}", self.0.display());
        }
    }
}
