//! Sites: a host that forwards to another host, and clients on every side of
//! the two. The forwarding host forwards nothing by itself.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    Cgroup, Family, Nat, Netns, Node, Portfwd, TcpServer, UdpServer, Watch, Watchers,
    relay::{DIALLED, SERVICE},
    state::devices,
    world::{INSIDE, Network, OUTSIDE, text},
};

/// Where the target is, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the network of the host's `eth1`; clients come in by `eth0`.
    AnotherInterface,
    /// Beyond a gateway on the network of `eth1`.
    BehindGateway,
    /// On the network of `eth0`, with the clients and the default gateway.
    SameInterface,
    /// In a container on the host's bridge `br0`.
    Container,
}

impl Place {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self::AnotherInterface,
        Self::BehindGateway,
        Self::SameInterface,
        Self::Container,
    ];
}

/// Who dials the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// One on another network than the target.
    Remote,
    /// One on the target's network.
    Neighbour,
    /// The target.
    Target,
    /// A program on the host.
    Host,
}

impl Who {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Remote, Self::Neighbour, Self::Target, Self::Host];

    /// Those who dial from another machine.
    pub const OTHERS: [Self; 3] = [Self::Remote, Self::Neighbour, Self::Target];
}

/// Beyond the gateway.
const BEYOND: Network = Network {
    v4: [203, 0, 113],
    v6: 0xc,
};

/// Numbers on every network.
const HOST: u8 = 1;
const TARGET: u8 = 3;
const NEIGHBOUR: u8 = 4;
const REMOTE: u8 = 2;
const GATEWAY: u8 = 254;

/// A host, its target, and who dials it.
///
/// The host is 192.0.2.1 and 2001:db8:a::1 on `eth0`, the way to its default
/// gateway, and 198.51.100.1 and 2001:db8:b::1 on the device that leads to the
/// target, where that is another. The target has services on both protocols
/// that say whom they see.
///
/// Until the site is dropped every packet is checked.
pub struct Site {
    // They end first, and while every namespace is there.
    _services: (TcpServer, UdpServer),
    watch: Watchers,
    /// The host that forwards.
    pub host: Node,
    /// The client elsewhere.
    pub remote: Node,
    /// The client on the target's network.
    pub neighbour: Node,
    /// The host that is forwarded to.
    pub target: Node,
    /// Between the host and whoever is beyond, in places that have one.
    pub gateway: Option<Netns>,
    /// What the programs of the host that dial belong to.
    pub cgroup: Cgroup,
    place: Place,
    switches: Vec<Netns>,
}

impl Site {
    /// A site with the target in this place.
    #[track_caller]
    pub fn new(place: Place) -> Self {
        match place {
            Place::AnotherInterface => Self::another_interface(),
            Place::BehindGateway => Self::behind_gateway(),
            Place::SameInterface => Self::same_interface(),
            Place::Container => Self::container(),
        }
    }

    #[track_caller]
    fn another_interface() -> Self {
        let (host, remote, outside) = outside();
        let (target, neighbour) = (INSIDE.node(TARGET), INSIDE.node(NEIGHBOUR));
        let inside = lan(
            &INSIDE,
            &[
                (&host.ns, "eth1", HOST),
                (&target.ns, "eth0", TARGET),
                (&neighbour.ns, "eth0", NEIGHBOUR),
            ],
        );
        for ns in [&target.ns, &neighbour.ns] {
            INSIDE.default_route(ns, HOST);
        }
        let nodes = [host, remote, neighbour, target];
        Self::assembled(Place::AnotherInterface, nodes, None, vec![outside, inside])
    }

    #[track_caller]
    fn behind_gateway() -> Self {
        let (host, remote, outside) = outside();
        let (target, neighbour) = (BEYOND.node(TARGET), BEYOND.node(NEIGHBOUR));
        let gateway = gateway();
        let inside = lan(
            &INSIDE,
            &[(&host.ns, "eth1", HOST), (&gateway, "eth0", GATEWAY)],
        );
        let beyond = lan(
            &BEYOND,
            &[
                (&gateway, "eth1", GATEWAY),
                (&target.ns, "eth0", TARGET),
                (&neighbour.ns, "eth0", NEIGHBOUR),
            ],
        );
        for ns in [&target.ns, &neighbour.ns] {
            BEYOND.default_route(ns, GATEWAY);
        }
        INSIDE.default_route(&gateway, HOST);
        host.ns.ip(&format!(
            "route add {}/24 via {}\nroute add {}/64 via {}",
            BEYOND.v4(0),
            INSIDE.v4(GATEWAY),
            BEYOND.v6(0),
            INSIDE.v6(GATEWAY),
        ));
        let nodes = [host, remote, neighbour, target];
        let switches = vec![outside, inside, beyond];
        Self::assembled(Place::BehindGateway, nodes, Some(gateway), switches)
    }

    #[track_caller]
    fn same_interface() -> Self {
        let (host, remote) = (OUTSIDE.node(HOST), BEYOND.node(REMOTE));
        let (target, neighbour) = (OUTSIDE.node(TARGET), OUTSIDE.node(NEIGHBOUR));
        let gateway = gateway();
        let outside = lan(
            &OUTSIDE,
            &[
                (&host.ns, "eth0", HOST),
                (&gateway, "eth0", GATEWAY),
                (&target.ns, "eth0", TARGET),
                (&neighbour.ns, "eth0", NEIGHBOUR),
            ],
        );
        let beyond = lan(
            &BEYOND,
            &[(&gateway, "eth1", GATEWAY), (&remote.ns, "eth0", REMOTE)],
        );
        for ns in [&host.ns, &target.ns, &neighbour.ns] {
            OUTSIDE.default_route(ns, GATEWAY);
        }
        BEYOND.default_route(&remote.ns, GATEWAY);
        let nodes = [host, remote, neighbour, target];
        let switches = vec![outside, beyond];
        Self::assembled(Place::SameInterface, nodes, Some(gateway), switches)
    }

    #[track_caller]
    fn container() -> Self {
        let (host, remote, outside) = outside();
        let (target, neighbour) = (INSIDE.node(TARGET), INSIDE.node(NEIGHBOUR));
        bridge(&host.ns, &text(INSIDE.mac(HOST)));
        plug(&host.ns, &INSIDE, (&target.ns, "eth0", TARGET));
        plug(&host.ns, &INSIDE, (&neighbour.ns, "eth0", NEIGHBOUR));
        INSIDE.assign(&host.ns, "br0", HOST);
        host.ns.until_running("br0");
        for ns in [&target.ns, &neighbour.ns] {
            INSIDE.default_route(ns, HOST);
        }
        let nodes = [host, remote, neighbour, target];
        Self::assembled(Place::Container, nodes, None, vec![outside])
    }

    fn assembled(
        place: Place,
        [host, remote, neighbour, target]: [Node; 4],
        gateway: Option<Netns>,
        switches: Vec<Netns>,
    ) -> Self {
        let named = [
            ("host", Some(&host.ns)),
            ("remote client", Some(&remote.ns)),
            ("neighbour", Some(&neighbour.ns)),
            ("target", Some(&target.ns)),
            ("gateway", gateway.as_ref()),
        ];
        let named = named.into_iter().filter_map(|(name, ns)| Some((name, ns?)));
        let watch = Watchers::start(named);
        Self {
            _services: target.services(SERVICE),
            watch,
            host,
            remote,
            neighbour,
            target,
            gateway,
            cgroup: Cgroup::new(),
            place,
            switches,
        }
    }

    /// Checks other packets than all.
    #[must_use]
    pub fn watching(self, watch: Watch) -> Self {
        self.watch.filter(watch);
        self
    }

    /// Routes what the target answers to every client through the host, as
    /// one who forces `--nat preserve` has to.
    #[track_caller]
    pub fn route_answers_through_host(&self) {
        let clients = [&self.remote, &self.neighbour];
        match self.place {
            Place::AnotherInterface | Place::Container => {
                via(&self.target.ns, &clients, &INSIDE, HOST);
            }
            Place::SameInterface => via(&self.target.ns, &clients, &OUTSIDE, HOST),
            Place::BehindGateway => {
                via(&self.target.ns, &clients, &BEYOND, GATEWAY);
                self.gateway_returns_to_host();
            }
        }
    }

    /// What the target says goes from the gateway to the host; what the host
    /// made of it goes on to the client.
    #[track_caller]
    fn gateway_returns_to_host(&self) {
        let gateway = self.gateway.as_ref().expect("this place has a gateway");
        for (option, target, client, host) in [
            (
                "-4",
                IpAddr::from(self.target.v4),
                IpAddr::from(self.neighbour.v4),
                IpAddr::from(INSIDE.v4(HOST)),
            ),
            (
                "-6",
                self.target.v6.into(),
                self.neighbour.v6.into(),
                INSIDE.v6(HOST).into(),
            ),
        ] {
            gateway.sh(&format!(
                "ip {option} rule add from {target} to {client} lookup 100
                 ip {option} route replace default via {host} table 100"
            ));
        }
    }

    /// The cables of the host become wires, which NICs with XDP have: nobody
    /// hands it a checksum to complete, and what XDP sends arrives.
    #[must_use]
    #[track_caller]
    pub fn wired(self) -> Self {
        for node in [&self.remote, &self.neighbour, &self.target] {
            node.ns.sh("ethtool -K eth0 tx off >/dev/null");
        }
        if let Some(gateway) = &self.gateway {
            gateway.sh("for d in eth0 eth1; do ethtool -K $d tx off >/dev/null; done");
        }
        for switch in &self.switches {
            let port = format!("veth{HOST}");
            if devices(switch).contains(&port) {
                switch.sh(&format!("ethtool -K {port} gro on >/dev/null"));
            }
        }
        self
    }

    /// The address by which the target sees a client.
    pub fn seen(&self, nat: Nat, who: Who, family: Family) -> IpAddr {
        if self.keeps(nat, who) {
            self.node(who).address(family)
        } else {
            self.towards_target(family)
        }
    }

    fn keeps(&self, nat: Nat, who: Who) -> bool {
        let away_from_target = who == Who::Remote;
        // No gateway on the way, and not by the device of the default route.
        let sure_to_return = matches!(self.place, Place::AnotherInterface | Place::Container);
        match (who, nat) {
            // A host takes no packet from its own address; the host is itself.
            (Who::Target | Who::Host, _) | (_, Nat::Masquerade) => false,
            (_, Nat::Preserve) => true,
            (_, Nat::Auto) => away_from_target && sure_to_return,
        }
    }

    /// The machine of the one who dials.
    pub fn node(&self, who: Who) -> &Node {
        match who {
            Who::Remote => &self.remote,
            Who::Neighbour => &self.neighbour,
            Who::Target => &self.target,
            Who::Host => &self.host,
        }
    }

    /// The host's address on the way to the target.
    pub fn towards_target(&self, family: Family) -> IpAddr {
        match self.place {
            Place::SameInterface => OUTSIDE.address(family, HOST),
            _ => INSIDE.address(family, HOST),
        }
    }

    /// Where a client of the family finds the rules: at every address of the
    /// host.
    pub fn dialled(&self, family: Family) -> Vec<SocketAddr> {
        let mut addresses = vec![self.host.address(family), self.towards_target(family)];
        addresses.dedup();
        let at = |address| SocketAddr::new(address, DIALLED);
        addresses.into_iter().map(at).collect()
    }

    /// Starts `portfwd` on the host with the rules to the target's services.
    #[track_caller]
    pub fn portfwd(&self, nat: Nat) -> Portfwd {
        self.portfwd_with(nat, &self.target.rules())
    }

    /// Starts `portfwd` on the host with other rules; the answers' routes are
    /// made for it.
    #[track_caller]
    pub fn portfwd_with(&self, nat: Nat, rules: &str) -> Portfwd {
        if nat == Nat::Preserve {
            self.route_answers_through_host();
        }
        self.host.portfwd(&format!(
            "--nat {} --cgroup {} {rules}",
            nat.word(),
            self.cgroup.path().display(),
        ))
    }
}

/// The host and a client on one network, each the other's default gateway.
#[track_caller]
fn outside() -> (Node, Node, Netns) {
    let (host, remote) = (OUTSIDE.node(HOST), OUTSIDE.node(REMOTE));
    let switch = lan(
        &OUTSIDE,
        &[(&host.ns, "eth0", HOST), (&remote.ns, "eth0", REMOTE)],
    );
    OUTSIDE.default_route(&host.ns, REMOTE);
    OUTSIDE.default_route(&remote.ns, HOST);
    (host, remote, switch)
}

/// A router that tells nobody of shorter ways.
#[track_caller]
fn gateway() -> Netns {
    let ns = Netns::new();
    for scope in ["all", "default"] {
        ns.sysctl(&format!("net.ipv4.conf.{scope}.send_redirects"), 0);
    }
    ns.sysctl("net.ipv4.ip_forward", 1);
    ns.sysctl("net.ipv6.conf.all.forwarding", 1);
    ns
}

/// A device of a namespace, and its number on the network.
type Member<'a> = (&'a Netns, &'a str, u8);

/// Joins the members by a switch.
#[track_caller]
fn lan(network: &Network, members: &[Member<'_>]) -> Netns {
    let switch = Netns::new();
    bridge(&switch, "02:00:00:00:ff:01");
    for member in members {
        plug(&switch, network, *member);
    }
    switch
}

#[track_caller]
fn bridge(ns: &Netns, mac: &str) {
    ns.ip(&format!(
        "link add br0 address {mac} type bridge mcast_snooping 0
         link set br0 up"
    ));
}

/// Joins a member to the bridge `br0` of a namespace.
#[track_caller]
fn plug(bridge: &Netns, network: &Network, (ns, device, number): Member<'_>) {
    for scope in ["all", "default"] {
        ns.sysctl(&format!("net.ipv4.conf.{scope}.accept_redirects"), 0);
        ns.sysctl(&format!("net.ipv6.conf.{scope}.accept_redirects"), 0);
    }
    let port = format!("veth{number}");
    let (this, that) = (index(), index());
    bridge.ip(&format!(
        "link add {port} index {this} type veth peer name {device} index {that} address {} netns {}
         link set {port} master br0 addrgenmode none
         link set {port} up",
        text(network.mac(number)),
        ns.name(),
    ));
    ns.ip(&format!("link set {device} up"));
    network.assign(ns, device, number);
    bridge.until_running(&port);
    ns.until_running(device);
}

/// Equal indices on both ends of a pair would make the kernel take its time
/// (up to a second) to see the carrier.
fn index() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Routes to single clients by way of a number of the network.
#[track_caller]
fn via(ns: &Netns, clients: &[&Node], network: &Network, gateway: u8) {
    for client in clients {
        ns.ip(&format!(
            "route replace {} via {}\nroute replace {} via {}",
            client.v4,
            network.v4(gateway),
            client.v6,
            network.v6(gateway),
        ));
    }
}
