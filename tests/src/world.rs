//! Worlds: a host that forwards and those who talk to it, each a namespace.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use crate::{
    Dial, Frame, Listen, Netns, Packet, Portfwd, Report, Tcp, TcpServer, UdpClient, UdpListen,
    UdpManner, UdpServer, Watchers, Wire, bpf::Mirror, frame::Mac, tcp::TcpServerBuilder,
};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Every promise holds for both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address; an IPv4 address stays one inside `::ffff:`.
    pub fn of(address: IpAddr) -> Self {
        if address.to_canonical().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// The address that stands for every one.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// 127.0.0.1 or ::1.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// From where, and under which of its addresses, a client reaches the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the network.
    Remote(Family),
    /// From the host itself by 127.0.0.1 or ::1.
    Loopback(Family),
    /// From the host itself by its own address.
    Own(Family),
}

impl Way {
    /// All six.
    pub const ALL: [Self; 6] = [
        Self::Remote(Family::V4),
        Self::Remote(Family::V6),
        Self::Loopback(Family::V4),
        Self::Own(Family::V4),
        Self::Loopback(Family::V6),
        Self::Own(Family::V6),
    ];

    /// The family of the addresses.
    pub fn family(self) -> Family {
        match self {
            Self::Remote(family) | Self::Loopback(family) | Self::Own(family) => family,
        }
    }
}

/// A machine of a world: its namespace, and its addresses on `eth0`.
#[derive(Debug)]
pub struct Node {
    /// The namespace.
    pub ns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The hardware address of `eth0`.
    pub mac: Mac,
}

impl Node {
    /// The address of the family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The address of the family with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Starts `portfwd` with the words of `args` here and waits until it is
    /// ready.
    #[track_caller]
    pub fn portfwd(&self, args: &str) -> Portfwd {
        Portfwd::start(&self.ns, Tcp::Steered, args)
    }

    /// The same, with TCP to this host carried as told.
    #[track_caller]
    pub fn portfwd_with(&self, tcp: Tcp, args: &str) -> Portfwd {
        Portfwd::start(&self.ns, tcp, args)
    }

    /// Starts a TCP server that echoes.
    #[track_caller]
    pub fn tcp_server(&self, listen: Listen, port: u16) -> TcpServer {
        self.tcp_server_builder(listen, port).start()
    }

    /// A TCP server, to be started.
    pub fn tcp_server_builder(&self, listen: Listen, port: u16) -> TcpServerBuilder<'_> {
        TcpServer::builder(&self.ns, listen, port)
    }

    /// Starts a UDP server that says whom it sees.
    #[track_caller]
    pub fn udp_server(&self, listen: UdpListen, port: u16) -> UdpServer {
        UdpServer::start(&self.ns, listen, port, UdpManner::Identify)
    }

    /// Starts a UDP server that answers as told.
    #[track_caller]
    pub fn udp_server_with(&self, listen: UdpListen, port: u16, manner: UdpManner) -> UdpServer {
        UdpServer::start(&self.ns, listen, port, manner)
    }

    /// Starts both servers at this port. They listen on every address and say
    /// whom they see.
    #[track_caller]
    pub fn services(&self, port: u16) -> (TcpServer, UdpServer) {
        (
            self.tcp_server(Listen::DualStack, port),
            self.udp_server(UdpListen::DualStack, port),
        )
    }

    /// Gives it one more address, which is on no network.
    #[track_caller]
    pub fn add_address(&self, address: IpAddr) {
        let option = if address.is_ipv6() { "nodad" } else { "" };
        self.ns
            .ip(&format!("address add {address} dev lo {option}"));
    }

    /// Every segment is on the wire as the stack sends and gets it.
    #[track_caller]
    pub fn without_offloads(&self) {
        self.ns
            .sh("ethtool -K eth0 tso off gso off gro off >/dev/null");
    }

    /// Switches forwarding of both families.
    #[track_caller]
    pub fn forwarding(&self, on: bool) {
        self.ns.sysctl("net.ipv4.ip_forward", u8::from(on));
        self.ns.sysctl("net.ipv6.conf.all.forwarding", u8::from(on));
    }

    /// A TCP connection from here, to be opened.
    pub fn tcp(&self, remote: SocketAddr) -> Dial<'_> {
        Dial::new(&self.ns, remote)
    }

    /// An unconnected UDP socket of the family on any port.
    #[track_caller]
    pub fn udp(&self, family: Family) -> UdpClient {
        self.udp_from(family, 0)
    }

    /// An unconnected UDP socket of the family on a port, which others may
    /// use at the same time.
    #[track_caller]
    pub fn udp_from(&self, family: Family, port: u16) -> UdpClient {
        UdpClient::bound(&self.ns, SocketAddr::new(family.any(), port))
    }
}

/// Which packets the captures of a world check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// All.
    Everything,
    /// UDP only.
    Udp,
    /// One of so many, chosen at random, for bulk traffic.
    OneOf(u32),
    /// None.
    Nothing,
}

impl Watch {
    /// A classic filter over the layer-3 packet, for [`crate::Capture::filter`].
    pub fn filter(self) -> Vec<libc::sock_filter> {
        const LOAD: u16 = 0x20;
        const LOAD_BYTE: u16 = 0x30;
        const JUMP_EQUAL: u16 = 0x15;
        const MODULO: u16 = 0x94;
        const RETURN: u16 = 0x06;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let load = |what: i32| step(LOAD, 0, 0, (libc::SKF_AD_OFF + what) as u32);
        let take = step(RETURN, 0, 0, u32::MAX);
        let leave = step(RETURN, 0, 0, 0);
        match self {
            Self::Everything => vec![take],
            Self::Nothing => vec![leave],
            Self::OneOf(count) => vec![
                load(libc::SKF_AD_RANDOM),
                step(MODULO, 0, 0, count),
                step(JUMP_EQUAL, 0, 1, 0),
                take,
                leave,
            ],
            Self::Udp => vec![
                load(libc::SKF_AD_PROTOCOL),
                step(JUMP_EQUAL, 0, 2, libc::ETH_P_IP as u32),
                step(LOAD_BYTE, 0, 0, 9),
                step(JUMP_EQUAL, 4, 5, libc::IPPROTO_UDP as u32),
                load(libc::SKF_AD_PROTOCOL),
                step(JUMP_EQUAL, 0, 3, libc::ETH_P_IPV6 as u32),
                step(LOAD_BYTE, 0, 0, 6),
                step(JUMP_EQUAL, 0, 1, libc::IPPROTO_UDP as u32),
                take,
                leave,
            ],
        }
    }
}

/// The network between the client and the host.
pub const OUTSIDE: Network = Network {
    v4: [192, 0, 2],
    v6: 0xa,
};

/// The network behind the host.
pub(crate) const INSIDE: Network = Network {
    v4: [198, 51, 100],
    v6: 0xb,
};

/// One more network of the host, on its `eth2`.
pub const THIRD: Network = Network {
    v4: [10, 7, 0],
    v6: 7,
};

/// The port of the host's service, unless a test needs several.
pub const SERVICE: u16 = 5000;

/// A second address of the host on `eth0`.
const SECOND: u8 = 11;

/// An IPv4 and an IPv6 network on one link.
pub struct Network {
    /// What its IPv4 addresses start with.
    pub v4: [u8; 3],
    /// What its IPv6 addresses have after 2001:db8.
    pub v6: u16,
}

impl Network {
    /// A new machine that is to have this number.
    pub(crate) fn node(&self, number: u8) -> Node {
        Node {
            ns: Netns::new(),
            v4: self.v4(number),
            v6: self.v6(number),
            mac: self.mac(number),
        }
    }

    pub(crate) fn v4(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.v4;
        Ipv4Addr::new(a, b, c, number)
    }

    pub(crate) fn v6(&self, number: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.v6, 0, 0, 0, 0, number.into())
    }

    /// The address of this number.
    pub fn address(&self, family: Family, number: u8) -> IpAddr {
        match family {
            Family::V4 => self.v4(number).into(),
            Family::V6 => self.v6(number).into(),
        }
    }

    pub(crate) fn mac(&self, number: u8) -> Mac {
        [2, 0, 0, 0, self.v6 as u8, number]
    }

    /// Gives a device the addresses of this number.
    #[track_caller]
    pub fn assign(&self, ns: &Netns, device: &str, number: u8) {
        ns.ip(&format!(
            "address add {}/24 dev {device}
             address add {}/64 dev {device} nodad",
            self.v4(number),
            self.v6(number),
        ));
    }

    /// Joins a device of the host to one of another machine, which is number
    /// 2; the host gets its addresses from the caller.
    #[track_caller]
    pub fn join(&self, host: &Netns, device: &str, other: &Netns, others: &str) {
        let index = u32::from(self.v6) * 10;
        // Equal indices on both ends would make the kernel take its time (up
        // to a second) to see the carrier.
        host.ip(&format!(
            "link add {device} index {} address {} type veth peer name {others} index {} address {} netns {}
             link set {device} up",
            index + 1,
            text(self.mac(1)),
            index + 2,
            text(self.mac(2)),
            other.name(),
        ));
        other.ip(&format!("link set {others} up"));
        self.assign(other, others, 2);
        host.until_running(device);
        other.until_running(others);
    }

    /// Whatever is elsewhere is reached by way of this number.
    #[track_caller]
    pub(crate) fn default_route(&self, ns: &Netns, gateway: u8) {
        ns.ip(&format!(
            "route add default via {}\nroute add default via {}",
            self.v4(gateway),
            self.v6(gateway),
        ));
    }
}

/// A host with what stands before and behind it.
///
/// The client is 192.0.2.2 and 2001:db8:a::2, the host 192.0.2.1 and
/// 2001:db8:a::1, both on their `eth0`, and each is the other's default route.
/// What stands behind the host is 198.51.100.2 and 2001:db8:b::2, the host is
/// number 1 there.
///
/// Until the world is dropped every packet is checked; see [`World::finish`].
pub struct World {
    // It ends first, while every namespace is there.
    watch: Watchers,
    /// The host.
    pub host: Node,
    /// The client on the network.
    pub client: Node,
    behind: Option<Node>,
    mirrors: Vec<Mirror>,
    /// Where the mirror's other end lies, so that no one hears it.
    _sink: Netns,
}

impl World {
    /// A client and the host.
    #[track_caller]
    pub fn direct() -> Self {
        Self::watched(outside(), None, &["eth0", "lo"])
    }

    /// The host is a router between the client and a server behind it, which
    /// is on the host's `eth1`.
    #[track_caller]
    pub fn router() -> Self {
        let (host, client) = outside();
        let behind = joined(&host.ns, "eth1", &INSIDE);
        host.forwarding(true);
        INSIDE.assign(&host.ns, "eth1", 1);
        Self::watched((host, client), Some(behind), &["eth0", "eth1", "lo"])
    }

    /// The same, but the host forwards nothing by itself.
    #[track_caller]
    pub fn forwarder() -> Self {
        let world = Self::router();
        world.host.forwarding(false);
        world
    }

    /// A container behind the host: its device's other end, `veth0`, is a port
    /// of the host's bridge `br0`.
    #[track_caller]
    pub fn bridge() -> Self {
        let (host, client) = outside();
        host.ns.ip("link add br0 type bridge\nlink set br0 up\n");
        let behind = joined(&host.ns, "veth0", &INSIDE);
        host.ns.ip("link set veth0 master br0\n");
        host.forwarding(true);
        INSIDE.assign(&host.ns, "br0", 1);
        host.ns.until_running("br0");
        Self::watched((host, client), Some(behind), &["eth0", "br0", "lo"])
    }

    /// A machine behind the host whose IPv4 and IPv6 traffic to the network
    /// nftables masquerades with the host's address.
    #[track_caller]
    pub fn masquerade() -> Self {
        let world = Self::router();
        world.host.ns.nft(
            "table inet nat {
                chain postrouting {
                    type nat hook postrouting priority srcnat;
                    oifname eth0 masquerade
                }
            }",
        );
        world
    }

    /// Joins one more machine to the host, on [`THIRD`].
    #[track_caller]
    pub fn join_third(&self) -> Node {
        let third = joined(&self.host.ns, "eth2", &THIRD);
        THIRD.assign(&self.host.ns, "eth2", 1);
        third
    }

    /// Gives the host a second address of each family on `eth0`.
    #[must_use]
    pub fn with_second_address(self) -> Self {
        OUTSIDE.assign(&self.host.ns, "eth0", SECOND);
        self
    }

    /// Checks other packets than all.
    #[must_use]
    pub fn watching(mut self, watch: Watch) -> Self {
        if watch == Watch::Nothing {
            self.mirrors.clear();
        }
        self.watch.filter(watch);
        self
    }

    /// The machine behind the host.
    ///
    /// # Panics
    ///
    /// In a world without one.
    #[track_caller]
    pub fn behind(&self) -> &Node {
        self.behind
            .as_ref()
            .expect("this world has a machine behind its host")
    }

    /// The host's second address.
    pub fn second_address(&self, family: Family) -> IpAddr {
        OUTSIDE.address(family, SECOND)
    }

    /// The host's address towards the machine behind it.
    pub fn inside_address(&self, family: Family) -> IpAddr {
        INSIDE.address(family, 1)
    }

    /// Where one who goes this way finds the host's port.
    pub fn remote(&self, way: Way, port: u16) -> SocketAddr {
        let address = match way {
            Way::Remote(family) | Way::Own(family) => self.host.address(family),
            Way::Loopback(family) => family.loopback(),
        };
        SocketAddr::new(address, port)
    }

    /// The machine of the one who goes this way.
    pub fn dialler(&self, way: Way) -> &Node {
        match way {
            Way::Remote(_) => &self.client,
            Way::Loopback(_) | Way::Own(_) => &self.host,
        }
    }

    /// The address that the one who goes this way has.
    pub fn source(&self, way: Way) -> IpAddr {
        match way {
            Way::Loopback(family) => family.loopback(),
            Way::Remote(family) | Way::Own(family) => self.dialler(way).address(family),
        }
    }

    /// A TCP connection to the host's port, to be opened.
    pub fn tcp(&self, way: Way, port: u16) -> Dial<'_> {
        self.dialler(way).tcp(self.remote(way, port))
    }

    /// An unconnected UDP socket of one who goes this way.
    #[track_caller]
    pub fn udp(&self, way: Way) -> UdpClient {
        self.dialler(way).udp(way.family())
    }

    /// The client's end of the cable to the host.
    #[track_caller]
    pub fn wire(&self) -> Wire {
        Wire::new(&self.client.ns, "eth0", self.client.mac, self.host.mac)
    }

    /// The end of the cable to the host that the machine behind it has.
    #[track_caller]
    pub fn wire_behind(&self) -> Wire {
        let behind = self.behind();
        Wire::new(&behind.ns, "eth0", behind.mac, INSIDE.mac(1))
    }

    /// Sends a SYN to the host from each of `count` addresses that never
    /// answer, all of them beyond the client.
    #[track_caller]
    pub fn forge_syns(&self, family: Family, port: u16, count: u32) {
        self.forge_syns_from(family, port, 0..count);
    }

    /// The same, from those addresses that have these numbers.
    #[track_caller]
    pub fn forge_syns_from(&self, family: Family, port: u16, numbers: Range<u32>) {
        let (wire, host) = (self.wire(), self.host.at(family, port));
        wire.send_all(numbers.map(|number| {
            let port = 1024 + (number % 60_000) as u16;
            Frame::syn(SocketAddr::new(stranger(family, number), port), host)
        }));
    }

    /// Forgives wrong checksums that the test itself sends.
    pub fn forgive(&self, forgiven: impl Fn(&Packet) -> bool + Clone + Send + 'static) {
        self.watch.forgive(forgiven);
    }

    /// Ends the world and tells what its captures found, the host's first.
    /// Dropping it does the same.
    ///
    /// # Panics
    ///
    /// When a checksum was wrong.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Report> {
        self.watch.verify()
    }

    #[track_caller]
    fn watched((host, client): (Node, Node), behind: Option<Node>, mirrored: &[&str]) -> Self {
        let (sink, mirrors) = mirror(&host.ns, mirrored);
        let named = [
            ("host", Some(&host)),
            ("client", Some(&client)),
            ("behind", behind.as_ref()),
        ];
        let watch = Watchers::start(
            named
                .into_iter()
                .filter_map(|(name, node)| Some((name, &node?.ns))),
        );
        Self {
            watch,
            host,
            client,
            behind,
            mirrors,
            _sink: sink,
        }
    }
}

/// The device of the host that mirrored packets leave by. As the port of a
/// bridge it is no device that a forwarder takes traffic from.
pub const MIRROR: &str = "mirror0";

/// Lets what the stack gets from these devices, behind all programs, leave by
/// a device of its own as well, where the host's capture sees it.
fn mirror(ns: &Netns, devices: &[&str]) -> (Netns, Vec<Mirror>) {
    let sink = Netns::new();
    ns.ip(&format!(
        "link add {MIRROR} type veth peer name {MIRROR} netns {}
         link add mirrors type bridge
         link set {MIRROR} master mirrors addrgenmode none
         link set {MIRROR} up",
        sink.name(),
    ));
    sink.ip(&format!("link set {MIRROR} addrgenmode none up"));
    ns.until_running(MIRROR);
    let mirrors = devices
        .iter()
        .map_while(|device| match Mirror::attach(ns, device, MIRROR) {
            Ok(mirror) => Some(mirror),
            Err(error) => {
                eprintln!("no tcx before Linux 6.6, what is delivered goes unchecked: {error}");
                None
            }
        })
        .collect();
    (sink, mirrors)
}

/// The host and the client on their common network.
fn outside() -> (Node, Node) {
    let host = OUTSIDE.node(1);
    let client = joined(&host.ns, "eth0", &OUTSIDE);
    OUTSIDE.assign(&host.ns, "eth0", 1);
    // Whoever else there is in the world lies beyond the client.
    OUTSIDE.default_route(&host.ns, 2);
    (host, client)
}

/// A machine whose `eth0` is joined to a device of the host, its default route.
fn joined(host: &Netns, device: &str, network: &Network) -> Node {
    let node = network.node(2);
    network.join(host, device, &node.ns, "eth0");
    network.default_route(&node.ns, 1);
    node
}

/// As `ip` takes it.
pub(crate) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// One of many addresses beyond the client.
pub fn stranger(family: Family, number: u32) -> IpAddr {
    match family {
        // 100.64.0.0/10, and on from there.
        Family::V4 => Ipv4Addr::from_bits(0x6440_0001 + number).into(),
        Family::V6 => Ipv6Addr::from_bits((0x2001_0db8_000f << 80) + 1 + u128::from(number)).into(),
    }
}
