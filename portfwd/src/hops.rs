//! The routers of IPv6 clients by interface, where the kernel may name that of
//! another interface.
//!
//! Replies leave by an interface that is chosen before the route. The kernel,
//! asked for the next hop there, walks its routes best first, whatever their
//! interface. So wherever two interfaces lead to one network, all routes of
//! both are given to the datapath.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use portfwd_common::{
    Addr,
    rule::{HopKey, MAX_NEXT_HOPS},
};

use crate::{
    host::routes::{Hop, MAIN_TABLE},
    table::Table,
};

/// What the table of next hops holds, by the bits of the key that count:
/// routers, or [`Addr::UNSPECIFIED`] for what is on the link.
pub(crate) type Entries = HashMap<(u32, HopKey), Addr>;

/// The next hops as they were found last.
#[derive(Clone, Debug, Default)]
pub(crate) struct NextHops {
    /// What the datapath is to have of them.
    pub(crate) table: Table<HopKey, Addr, MAX_NEXT_HOPS>,
    /// There were more routes than the table holds.
    many_routes: bool,
}

impl NextHops {
    /// Takes the hops of all IPv6 routes.
    pub(crate) fn take(&mut self, hops: &[Hop]) {
        self.many_routes = hops.len() > MAX_NEXT_HOPS as usize;
        self.table.take(entries(hops), |needed| {
            log::warn!(
                "IPv6 clients that come in by another interface than their best route may get no \
                 reply: the interfaces that lead to one network have {needed} routes, and \
                 {MAX_NEXT_HOPS} fit; let fewer routes leave by them"
            );
        });
    }

    /// A router of the internet hears of a new route all the time: where it has
    /// no use for the table, it waits until a default route changes.
    pub(crate) fn waits(&self) -> bool {
        self.many_routes && self.table.entries().is_empty()
    }
}

/// The best hop of each interface to each network, for interfaces that share
/// a network; the table that is asked first cannot be known without the
/// packet, so it is taken to be the main one.
fn entries(hops: &[Hop]) -> Entries {
    let sharing = sharing(hops);
    let shared = hops.iter().filter(|hop| sharing.contains(&hop.ifindex));
    let mut hops: Vec<&Hop> = shared.collect();
    hops.sort_by_key(|hop| (hop.table != MAIN_TABLE, hop.table, hop.metric));
    let mut entries = Entries::new();
    for hop in hops {
        entries.entry(key(hop)).or_insert_with(|| next(hop));
    }
    entries
}

/// The interfaces that lead to a network that another one leads to as well, in
/// whichever table: a rule may ask for a mark that replies do not carry.
fn sharing(hops: &[Hop]) -> BTreeSet<u32> {
    let mut first: BTreeMap<Option<(IpAddr, u8)>, u32> = BTreeMap::new();
    let mut sharing = BTreeSet::new();
    for hop in hops.iter().filter(|hop| may_be_shared(hop)) {
        let other = *first.entry(network(hop)).or_insert(hop.ifindex);
        if other != hop.ifindex {
            sharing.extend([other, hop.ifindex]);
        }
    }
    sharing
}

/// Link-local and multicast addresses mean nothing without their interface:
/// there the kernel looks at no other one.
const fn may_be_shared(hop: &Hop) -> bool {
    !hop.is_link_local() && !hop.is_multicast()
}

/// All parts of a default route are one network.
const fn network(hop: &Hop) -> Option<(IpAddr, u8)> {
    match hop.is_default() {
        true => None,
        false => Some((hop.network, hop.bits)),
    }
}

fn key(hop: &Hop) -> (u32, HopKey) {
    let key = HopKey {
        ifindex: hop.ifindex.to_be(),
        addr: hop.network.into(),
    };
    (HopKey::prefix_len(hop.bits.into()), key)
}

fn next(hop: &Hop) -> Addr {
    hop.gateway.map_or(Addr::UNSPECIFIED, Addr::from)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const ETH0: u32 = 2;
    const ETH1: u32 = 3;
    const BR0: u32 = 4;

    fn v6(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// `2001:db8::/32 via fe80::1`, in the main table.
    fn hop(ifindex: u32, route: &str) -> Hop {
        let (network, gateway) = match route.split_once(" via ") {
            Some((network, gateway)) => (network, Some(v6(gateway))),
            None => (route, None),
        };
        let (network, bits) = network.split_once('/').expect("a prefix");
        Hop {
            ifindex,
            network: v6(network),
            bits: bits.parse().expect("a length"),
            gateway,
            table: MAIN_TABLE,
            metric: 1024,
        }
    }

    fn first() -> [Hop; 3] {
        ["::/0 via fe80::a", "2001:db8:a::/64", "fe80::/64"].map(|route| hop(ETH0, route))
    }

    fn second() -> [Hop; 3] {
        ["::/0 via fe80::b", "2001:db8:b::/64", "fe80::/64"].map(|route| hop(ETH1, route))
    }

    fn network_behind() -> [Hop; 2] {
        ["2001:db8:c::/64", "fe80::/64"].map(|route| hop(BR0, route))
    }

    fn of(hops: &[Hop]) -> Entries {
        hops.iter().map(|hop| (key(hop), next(hop))).collect()
    }

    #[test]
    fn one_way_to_each_network_needs_no_entry() {
        let hops = [&first()[..], &network_behind()].concat();
        assert_eq!(entries(&hops), Entries::new());
        let again = Hop {
            metric: 1,
            ..first()[0]
        };
        assert_eq!(entries(&[first()[0], again]), Entries::new());
    }

    #[test]
    fn two_default_routes_need_all_routes_of_their_interfaces() {
        let wanted = of(&[first(), second()].concat());
        assert_eq!(wanted.len(), 6);
        let mut hops = [&first()[..], &second(), &network_behind()].concat();
        assert_eq!(entries(&hops), wanted);
        hops[3].metric = 4096;
        assert_eq!(entries(&hops), wanted, "another metric");
        hops[3].table = 7;
        assert_eq!(entries(&hops), wanted, "another table");
    }

    #[test]
    fn parts_of_a_default_route_are_one() {
        let tunnel = ["::/1", "8000::/1"].map(|route| hop(ETH1, route));
        let hops = [&first()[..], &tunnel].concat();
        assert_eq!(entries(&hops), of(&hops));
    }

    #[test]
    fn a_network_on_two_links_needs_entries() {
        let links = [ETH0, ETH1].map(|device| hop(device, "2001:db8::/64"));
        let found = entries(&links);
        assert_eq!(found, of(&links));
        assert!(found.values().all(Addr::is_unspecified));
    }

    #[test]
    fn what_belongs_to_one_link_is_no_other_way() {
        for network in [
            "fe80::/64",
            "fe80::/10",
            "fe80::1/128",
            "ff00::/8",
            "ff02::1/128",
        ] {
            let links = [ETH0, ETH1].map(|device| hop(device, network));
            assert_eq!(entries(&links), Entries::new(), "{network}");
        }
    }

    #[test]
    fn the_best_route_of_an_interface_counts() {
        let worse = Hop {
            gateway: Some(v6("fe80::f")),
            metric: 2048,
            ..first()[0]
        };
        let elsewhere = Hop {
            gateway: Some(v6("fe80::e")),
            table: 7,
            metric: 1,
            ..first()[0]
        };
        let wanted = of(&[first(), second()].concat());
        for before in [true, false] {
            let mut hops = [first(), second()].concat();
            let at = if before { 0 } else { hops.len() };
            hops.splice(at..at, [worse, elsewhere]);
            assert_eq!(entries(&hops), wanted);
        }
    }

    #[test]
    fn more_than_the_table_holds_is_nothing() {
        let internet: Vec<Hop> = (0..MAX_NEXT_HOPS)
            .map(|number| Hop {
                network: Ipv6Addr::from_bits(0x2a00 << 112 | u128::from(number) << 64).into(),
                bits: 64,
                ..second()[0]
            })
            .collect();
        let mut next_hops = NextHops::default();
        next_hops.take(&[&internet[..], &first()].concat());
        assert!(
            !next_hops.table.too_many && next_hops.waits(),
            "one way to each"
        );
        next_hops.take(&[&internet[..], &first(), &second()].concat());
        assert!(next_hops.table.too_many && next_hops.waits());
        assert_eq!(*next_hops.table.entries(), Entries::new());
        next_hops.take(&[&internet[..3], &first(), &second()].concat());
        assert!(!next_hops.table.too_many && !next_hops.waits());
        assert_eq!(next_hops.table.entries().len(), 9);
    }

    #[test]
    fn keys_match_the_longest_prefix_by_interface() {
        let (bits, key) = key(&hop(0x0102, "2001:db8::/32"));
        assert_eq!(bits, 32 + 32);
        assert_eq!(key.ifindex.to_ne_bytes(), [0, 0, 1, 2]);
        assert_eq!(key.addr.octets()[..4], [0x20, 0x01, 0x0d, 0xb8]);
    }
}
