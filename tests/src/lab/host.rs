//! The host of a lab: a namespace with its devices, addresses and routes.

use std::net::IpAddr;

use portfwd_common::TargetEntry;

use super::lan_at;
use crate::{Family, Netns};

/// The namespace, as [`Lab`](super::Lab) describes it.
pub(super) fn host() -> Netns {
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

/// How this host reaches the targets behind `lan0`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Across {
    pub(super) flags: u16,
    pub(super) mtu: u32,
}

/// The device of the targets on other hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lan {
    pub(super) ifindex: u32,
    flags: u16,
}

impl Lan {
    #[track_caller]
    pub(super) fn add(ns: &Netns, Across { flags, mtu }: Across) -> Self {
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

    pub(super) fn target(self, addr: IpAddr) -> Option<TargetEntry> {
        let source = lan_at(Family::of(addr), 1, 0).ip();
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
