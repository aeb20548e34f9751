//! Three hosts in a row, in namespaces of their own:
//!
//! ```text
//! client                host                         target
//!   eth0 ────────────── net0          lan0 ────────── eth0
//!   10.1.0.2            10.1.0.1      10.2.0.1        10.2.0.2
//!   10.64.0.0/10
//! ```
//!
//! All devices are veths. Those of client and target stand for NICs of other
//! machines, so that what leaves them has its checksums, and all take packets
//! by NAPI (GRO on), as NICs do and as XDP needs it.

use std::net::{Ipv4Addr, SocketAddrV4};

use portfwd_tests::Netns;

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// The host's address towards the client.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The host's address towards the target.
pub const HOST_LAN: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// The target's address.
pub const TARGET: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// The first of the many clients behind the client's device.
pub const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);

/// The first of others, whom no load of [`CLIENTS`] reaches soon.
pub const OTHERS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);

/// Device of client and target.
pub const END: &str = "eth0";
/// Device of the host towards the client.
pub const NET: &str = "net0";
/// Device of the host towards the target.
pub const LAN: &str = "lan0";

/// MAC of a device: the last byte tells which.
pub const fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}
/// MAC of the client's device.
pub const MAC_CLIENT: [u8; 6] = mac(1);
/// MAC of the host's device towards the client.
pub const MAC_NET: [u8; 6] = mac(2);
/// MAC of the host's device towards the target.
pub const MAC_LAN: [u8; 6] = mac(3);
/// MAC of the target's device.
pub const MAC_TARGET: [u8; 6] = mac(4);

/// The three namespaces; dropping them removes all.
#[derive(Debug)]
pub struct Site {
    /// Sends.
    pub client: Netns,
    /// Forwards.
    pub host: Netns,
    /// Is sent to.
    pub target: Netns,
}

impl Site {
    /// Lays them out. The host forwards nothing yet.
    ///
    /// # Panics
    ///
    /// Without root, or where `ip` or `ethtool` fails.
    #[track_caller]
    pub fn new() -> Self {
        let site = Self {
            client: Netns::new(),
            host: Netns::new(),
            target: Netns::new(),
        };
        // What IPv6 sends by itself comes by timers, from any CPU.
        for ns in [&site.client, &site.host, &site.target] {
            ns.sysctl("net.ipv6.conf.default.disable_ipv6", 1);
        }
        site.cable(NET, MAC_NET, &site.client, MAC_CLIENT);
        site.cable(LAN, MAC_LAN, &site.target, MAC_TARGET);
        site.client.ip(&end(CLIENT, HOST, MAC_NET));
        site.target.ip(&end(TARGET, HOST_LAN, MAC_LAN));
        site.host.ip(&format!(
            "address add {HOST}/24 dev {NET}
             address add {HOST_LAN}/24 dev {LAN}
             link set {NET} up
             link set {LAN} up
             neighbor add {CLIENT} dev {NET} lladdr {} nud permanent
             neighbor add {TARGET} dev {LAN} lladdr {} nud permanent
             route add {CLIENTS}/10 via {CLIENT} dev {NET}",
            text(MAC_CLIENT),
            text(MAC_TARGET),
        ));
        for name in ["all", "default", NET, LAN] {
            site.host
                .sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), 0);
        }
        for end in [&site.client, &site.target] {
            end.sh(&format!("ethtool -K {END} tx off gro on >/dev/null"));
        }
        site.host
            .sh(&format!("ethtool -K {NET} gro on; ethtool -K {LAN} gro on"));
        for (ns, device) in [
            (&site.client, END),
            (&site.target, END),
            (&site.host, NET),
            (&site.host, LAN),
        ] {
            ns.until_running(device);
        }
        site
    }

    /// The host forwards as a router.
    #[track_caller]
    pub fn route(&self) {
        self.host.sysctl("net.ipv4.ip_forward", 1);
    }

    fn cable(&self, device: &str, mac: [u8; 6], end: &Netns, end_mac: [u8; 6]) {
        self.host.ip(&format!(
            "link add {device} address {} type veth peer name {END} address {} netns {}",
            text(mac),
            text(end_mac),
            end.name(),
        ));
    }
}

/// A port of the host, as clients dial it.
pub const fn host_at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(HOST, port)
}

/// A port of the target.
pub const fn target_at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(TARGET, port)
}

fn end(own: Ipv4Addr, gateway: Ipv4Addr, gateway_mac: [u8; 6]) -> String {
    format!(
        "address add {own}/24 dev {END}
         link set {END} up
         neighbor add {gateway} dev {END} lladdr {} nud permanent
         route add default via {gateway}",
        text(gateway_mac)
    )
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
