//! The networks of clients, each with the one interface that leads to it.
//!
//! Who borrows an address of such a network, at another interface, gets no
//! answer: it goes to the network. Clients of every other address are answered
//! by the interface that they came in by.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use portfwd_common::{Addr, rule::MAX_HOMES};

use crate::{
    host::routes::{Hop, MAIN_TABLE},
    table::Table,
};

/// What the table of homes holds: by the bits of the address that count, the
/// interface or [`NO_HOME`].
pub(crate) type Entries = HashMap<(u32, Addr), u32>;

/// Several interfaces lead to the network. A wider one around it may have a
/// home all the same, so this is an entry too.
const NO_HOME: u32 = 0;

/// The index of `lo` in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// The homes as they were found last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Homes {
    /// What the datapath is to have of them.
    pub(crate) table: Table<Addr, u32, MAX_HOMES>,
    /// There were more networks than the table holds.
    many_networks: bool,
}

impl Homes {
    /// Takes the hops of all routes. Where they are too many, connected
    /// networks count, and what lies within them.
    pub(crate) fn take(&mut self, hops: &[Hop]) {
        let mut found = entries(hops.iter());
        self.many_networks = !Table::<_, _, MAX_HOMES>::fits(&found);
        if self.many_networks {
            let connected = Connected::of(hops);
            found = entries(hops.iter().filter(|hop| connected.contain(hop)));
        }
        self.table.take(found, |networks| {
            log::warn!(
                "clients get their replies by the interface that they came in by, with a borrowed \
                 address too: the connected networks and the routes into them are {networks}, and \
                 {MAX_HOMES} fit; let portfwd run where fewer are"
            );
        });
    }

    /// A router of the internet hears of a new route all the time: it waits
    /// until an address or a default route changes.
    pub(crate) const fn waits(&self) -> bool {
        self.many_networks
    }
}

fn entries<'a>(hops: impl Iterator<Item = &'a Hop>) -> Entries {
    let mut entries = Entries::new();
    for hop in hops.filter(|hop| may_be_home(hop)) {
        let home = match hop.ifindex {
            LOOPBACK => NO_HOME,
            ifindex => ifindex,
        };
        let known = entries.entry(key(hop)).or_insert(home);
        if *known != home {
            *known = NO_HOME;
        }
    }
    entries
}

const fn may_be_home(hop: &Hop) -> bool {
    hop.table == MAIN_TABLE && !hop.is_default() && !hop.is_link_local() && !hop.is_multicast()
}

fn key(hop: &Hop) -> (u32, Addr) {
    let bits = u32::from(hop.bits);
    match hop.network {
        IpAddr::V4(_) => (96 + bits, hop.network.into()),
        IpAddr::V6(_) => (bits, hop.network.into()),
    }
}

/// The networks that no router leads to.
struct Connected {
    networks: HashSet<(u32, Addr)>,
    lengths: BTreeSet<u32>,
}

impl Connected {
    fn of(hops: &[Hop]) -> Self {
        let connected = |hop: &&Hop| hop.gateway.is_none() && may_be_home(hop);
        let networks: HashSet<_> = hops.iter().filter(connected).map(key).collect();
        let lengths = networks.iter().map(|(bits, _)| *bits).collect();
        Self { networks, lengths }
    }

    fn contain(&self, hop: &Hop) -> bool {
        let (bits, addr) = key(hop);
        let mut wider = self.lengths.range(..=bits);
        wider.any(|bits| self.networks.contains(&(*bits, first_bits(addr, *bits))))
    }
}

fn first_bits(addr: Addr, bits: u32) -> Addr {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or_default();
    let masked = (u128::from_be_bytes(addr.octets()) & mask).to_be_bytes();
    let (words, _) = masked.as_chunks();
    Addr([0, 1, 2, 3].map(|index: usize| u32::from_ne_bytes(words[index])))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ETH0: u32 = 2;
    const ETH1: u32 = 3;

    /// `192.0.2.0/24` or `192.0.2.0/24 via 10.0.0.1`, in the main table.
    fn hop(ifindex: u32, route: &str) -> Hop {
        let (network, gateway) = match route.split_once(" via ") {
            Some((network, gateway)) => (network, Some(gateway)),
            None => (route, None),
        };
        let net: ipnet::IpNet = network.parse().expect("a prefix");
        Hop {
            ifindex,
            network: net.addr(),
            bits: net.prefix_len(),
            gateway: gateway.map(|gateway| gateway.parse().expect("an address")),
            table: MAIN_TABLE,
            metric: 0,
        }
    }

    fn of(homes: &[(u32, &str)]) -> Entries {
        let home = |(ifindex, network): &(u32, &str)| (key(&hop(ETH0, network)), *ifindex);
        homes.iter().map(home).collect()
    }

    fn found(hops: &[Hop]) -> Entries {
        let mut homes = Homes::default();
        homes.take(hops);
        homes.table.entries().clone()
    }

    #[test]
    fn a_network_that_one_interface_leads_to_has_a_home() {
        let hops = [
            hop(ETH0, "192.0.2.0/24"),
            hop(ETH1, "10.0.0.0/8 via 192.0.2.9"),
            hop(ETH1, "10.0.0.0/8 via 192.0.2.8"),
            hop(ETH1, "2001:db8::/64"),
        ];
        let wanted = of(&[
            (ETH0, "192.0.2.0/24"),
            (ETH1, "10.0.0.0/8"),
            (ETH1, "2001:db8::/64"),
        ]);
        assert_eq!(found(&hops), wanted);
    }

    #[test]
    fn where_several_interfaces_lead_none_is_the_home() {
        let hops = [
            hop(ETH0, "10.0.0.0/8"),
            hop(ETH0, "10.1.0.0/16"),
            hop(ETH1, "10.1.0.0/16"),
            hop(ETH0, "10.1.0.0/16 via 10.0.0.1"),
            hop(LOOPBACK, "10.2.0.0/16"),
        ];
        let wanted = of(&[
            (ETH0, "10.0.0.0/8"),
            (NO_HOME, "10.1.0.0/16"),
            (NO_HOME, "10.2.0.0/16"),
        ]);
        assert_eq!(found(&hops), wanted);
    }

    #[test]
    fn what_is_no_network_of_clients_is_left_out() {
        for route in [
            "0.0.0.0/0",
            "128.0.0.0/1",
            "::/0",
            "2000::/3",
            "fe80::/64",
            "fe80::/10",
            "224.0.0.0/4",
            "239.1.1.1/32",
            "ff00::/8",
        ] {
            assert_eq!(found(&[hop(ETH0, route)]), Entries::new(), "{route}");
        }
        let elsewhere = Hop {
            table: 100,
            ..hop(ETH1, "192.0.2.0/24")
        };
        assert_eq!(found(&[elsewhere]), Entries::new());
        let main = hop(ETH0, "192.0.2.0/24");
        assert_eq!(found(&[elsewhere, main]), of(&[(ETH0, "192.0.2.0/24")]));
    }

    #[test]
    fn of_too_many_the_connected_ones_count() {
        let internet: Vec<Hop> = (0..MAX_HOMES)
            .map(|number| Hop {
                network: Ipv4Addr::from_bits(0x2000_0000 + (number << 8)).into(),
                ..hop(ETH1, "0.0.0.0/24 via 192.0.2.9")
            })
            .collect();
        let mut homes = Homes::default();
        homes.take(&internet);
        assert_eq!(homes.table.entries().len(), MAX_HOMES as usize);
        assert!(!homes.waits());
        let own = [
            hop(ETH0, "10.0.0.0/8"),
            hop(ETH1, "10.1.0.0/16 via 192.0.2.9"),
            hop(ETH1, "11.0.0.0/8 via 192.0.2.9"),
            hop(ETH1, "2001:db8::/64"),
        ];
        homes.take(&[&internet[..], &own].concat());
        let wanted = of(&[
            (ETH0, "10.0.0.0/8"),
            (ETH1, "10.1.0.0/16"),
            (ETH1, "2001:db8::/64"),
        ]);
        assert_eq!(*homes.table.entries(), wanted);
        assert!(homes.waits() && !homes.table.too_many);

        let connected = |hop: &Hop| Hop {
            gateway: None,
            ..*hop
        };
        let links: Vec<Hop> = internet.iter().map(connected).collect();
        homes.take(&[&links[..], &own].concat());
        assert!(homes.table.too_many && homes.table.entries().is_empty());
        homes.take(&own);
        assert!(!homes.waits() && !homes.table.too_many);
        assert_eq!(homes.table.entries().len(), 4);
    }

    #[test]
    fn an_ipv4_prefix_is_one_of_the_mapped_address() {
        let (bits, addr) = key(&hop(ETH0, "192.0.2.0/24"));
        assert_eq!(bits, 120);
        assert_eq!(addr.octets()[12..15], [192, 0, 2]);
        assert_eq!(first_bits(addr, 128), addr);
        assert_eq!(first_bits(addr, 0), Addr::UNSPECIFIED);
    }
}
