//! A lab: the programs, loaded and attached to nothing, see one packet at a
//! time in a namespace with real addresses, routes and sockets. One packet in,
//! one verdict, one packet out, as the kernel runs them, without a wire.
//!
//! Out of reach here, and shown on the wire: `vlan`, since a run cannot carry
//! a stripped tag, `cannot-steer`, since a run refuses every assignment in the
//! same way, and segments of a GSO packet that do not fit, since a packet of a
//! run has no transport header that the kernel knows (EINVAL from 6.17 on).
//! `table-full` would take an LRU that cannot make room. A frame that ends
//! within its IP header is refused by the kernel (EINVAL).

mod builder;
mod ends;
mod hooks;
mod host;
mod seen;

use std::net::{IpAddr, Ipv6Addr, TcpListener, UdpSocket};

use portfwd::{
    dataplane::{Dataplane, Side},
    host::devices::Link,
    plan::TcpMechanism,
};
use portfwd_common::{RuleCounters, Verdict};

use self::builder::Pins;
pub use self::{
    builder::LabBuilder,
    ends::{
        FROM, ack, bare_client, bare_frame, client_at, host_at, lan_at, stranger_at, syn,
        to_client, to_host,
    },
    hooks::Hooks,
    seen::Seen,
};
use crate::{Netns, frame::Bytes};

/// The index of `lo` in every namespace.
const LO: u32 = 1;

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

impl Lab {
    /// A lab with TCP carried as told and these rules.
    #[track_caller]
    pub fn builder(tcp: TcpMechanism, rules: &str) -> LabBuilder {
        LabBuilder::new(tcp).rules_from(rules, "")
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

    /// A service of both protocols on every address of both families.
    #[track_caller]
    pub fn services(&self, port: u16) -> (TcpListener, UdpSocket) {
        (self.tcp_service(port), self.udp_service(port))
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

    /// The programs of `eth0`.
    #[track_caller]
    pub fn eth0(&mut self) -> Hooks<'_> {
        let ifindex = self.ns.ifindex("eth0");
        Hooks::new(self, ifindex, Link::Ethernet)
    }

    /// The programs of `lan0`.
    #[track_caller]
    pub fn lan(&mut self) -> Hooks<'_> {
        let ifindex = self.ns.ifindex("lan0");
        Hooks::new(self, ifindex, Link::Ethernet)
    }

    /// The programs of `lo`.
    pub fn lo(&mut self) -> Hooks<'_> {
        Hooks::new(self, LO, Link::Ethernet)
    }

    /// The programs of a device without a link-layer header.
    #[track_caller]
    pub fn bare(&mut self) -> Hooks<'_> {
        let ifindex = self.ns.ifindex("bare0");
        Hooks::new(self, ifindex, Link::Bare)
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

    fn counts(&self) -> (Vec<(Verdict, u64)>, Vec<RuleCounters>) {
        let verdicts = self.plane.verdicts().expect("verdicts are read");
        let rules = self.plane.rule_counters(self.rules);
        (verdicts, rules.expect("counters are read"))
    }
}
