//! Where TCP is measured: a client, the host that forwards, and a target where
//! that is another host, each a namespace, with a veth pair between neighbours.

use std::net::{IpAddr, SocketAddr};

use portfwd_tests::{
    Family, Netns,
    world::{Network, OUTSIDE},
};

use super::load::Sources;

/// What the devices do for the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// As network cards: what crosses a wire is a packet of the MTU with its
    /// checksum computed by who sends it, and who receives merges it again. The
    /// target is reached by a next hop, so that nobody takes the short way
    /// through a veth pair, which a card has not.
    Cards,
    /// As containers: veth as it is made, where segments that were never cut
    /// and checksums that were never computed pass from stack to stack.
    Containers,
}

/// The host's device towards the client.
pub const ETH0: &str = "eth0";
/// The host's device towards the target, and the device of the others.
pub const ETH1: &str = "eth1";
/// The port that is dialled on the host.
pub const DIALLED: u16 = 80;
/// The port of the service.
pub const SERVICE: u16 = 5000;

/// Between the host and the target.
const INSIDE: Network = Network {
    v4: [198, 51, 100],
    v6: 0xb,
};

/// The target itself, where it is reached by a next hop.
const BEYOND: Network = Network {
    v4: [203, 0, 113],
    v6: 0xc,
};

/// Numbers on every network.
const HOST: u8 = 1;
const OTHER: u8 = 2;

/// More addresses of the client: with all their ports, more than a case dials.
const MORE: u8 = 10;
const HOW_MANY: u8 = 8;

/// A client and a host, and perhaps a target behind it. Both ends take the
/// host for their default route; the host forwards nothing by itself.
pub struct Site {
    /// Who dials.
    pub client: Netns,
    /// Who forwards.
    pub host: Netns,
    /// Another host, where the service is.
    pub target: Option<Netns>,
    devices: Devices,
}

impl Site {
    /// The service is on the host.
    pub fn local(devices: Devices) -> Self {
        let (client, host) = (Netns::new(), Netns::new());
        link(&OUTSIDE, &host, ETH0, &client, devices);
        for number in MORE..MORE + HOW_MANY {
            OUTSIDE.assign(&client, ETH1, number);
        }
        Self {
            client,
            host,
            target: None,
            devices,
        }
    }

    /// The service is on the target.
    pub fn remote(devices: Devices) -> Self {
        let target = Netns::new();
        let site = Self::local(devices);
        link(&INSIDE, &site.host, ETH1, &target, devices);
        if devices == Devices::Cards {
            beyond(&site.host, &target);
        }
        Self {
            target: Some(target),
            ..site
        }
    }

    /// The address and port that are dialled on the host.
    pub fn dialled(&self, family: Family) -> SocketAddr {
        (OUTSIDE.address(family, HOST), DIALLED).into()
    }

    /// The address and port of the service itself.
    pub fn service(&self, family: Family) -> SocketAddr {
        let addr = match (&self.target, self.devices) {
            (None, _) => OUTSIDE.address(family, HOST),
            (Some(_), Devices::Containers) => INSIDE.address(family, OTHER),
            (Some(_), Devices::Cards) => BEYOND.address(family, OTHER),
        };
        (addr, SERVICE).into()
    }

    /// Where connections may come from.
    pub fn sources(&self, family: Family) -> Sources {
        Sources {
            first: OUTSIDE.address(family, MORE),
            count: HOW_MANY,
            ports: Sources::PORTS,
        }
    }

    /// Where connections come from that use again what the server has in
    /// TIME_WAIT: fewer than one sample takes.
    pub fn few_sources(&self, family: Family) -> Sources {
        Sources {
            count: 1,
            ports: 64,
            ..self.sources(family)
        }
    }

    /// The namespace of the service.
    pub fn server(&self) -> &Netns {
        self.target.as_ref().unwrap_or(&self.host)
    }

    /// Lets the host forward packets that nobody takes.
    pub fn route(&self) {
        self.host.sysctl("net.ipv4.ip_forward", 1);
        self.host.sysctl("net.ipv6.conf.all.forwarding", 1);
    }
}

/// Joins the host to a machine that has nothing else.
fn link(network: &Network, host: &Netns, device: &str, other: &Netns, devices: Devices) {
    network.join(host, device, other, ETH1);
    network.assign(host, device, HOST);
    for family in Family::BOTH {
        let gateway = network.address(family, HOST);
        other.ip(&format!("route add default via {gateway}"));
    }
    if devices == Devices::Cards {
        // The host's own devices may leave cutting and checksums to the card,
        // so what the others get is merged already where the stack sends it.
        other.sh(&format!("ethtool -K {ETH1} tx off gro on >/dev/null"));
        host.sh(&format!("ethtool -K {device} gro on >/dev/null"));
    }
}

fn beyond(host: &Netns, target: &Netns) {
    for family in Family::BOTH {
        let own = |addr: IpAddr| match addr {
            IpAddr::V4(_) => format!("{addr}/32"),
            IpAddr::V6(_) => format!("{addr}/128"),
        };
        let own = own(BEYOND.address(family, OTHER));
        let by = INSIDE.address(family, OTHER);
        target.ip(&format!("address add {own} dev lo"));
        host.ip(&format!("route add {own} via {by}"));
    }
}
