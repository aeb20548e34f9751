//! How the targets of rules are reached, and what becomes of the client's
//! address on the way there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use portfwd_common::{Addr, Family, TargetEntry};
use rtnetlink::Handle;

use crate::{
    Error,
    homes::Homes,
    hops::NextHops,
    host::{
        devices::{self, Device, Link},
        routes::{self, DefaultDevices},
    },
    rule::{Nat, Rule, RuleSpec, Target},
};

/// Where a target is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// A socket of this host.
    Local,
    /// Another host, and the way there while one leads to it.
    Remote(Option<Way>),
}

/// The way to another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// The interface that packets leave by.
    pub ifindex: u32,
    /// Its name.
    pub device: String,
    /// The address of this host that masqueraded packets leave with.
    pub source: Option<IpAddr>,
    /// The router that packets go to, unless the target is on the link.
    pub gateway: Option<IpAddr>,
    /// A default route leaves by the interface too.
    pub default: bool,
    /// What the interface is; none where no program is attached to it, for it
    /// is a port of another one or its packets cannot be read.
    pub kind: Option<Link>,
    /// The Ethernet address of the interface, where it is one end of a veth
    /// pair whose other end is in another namespace.
    pub pair: Option<[u8; 6]>,
    /// The target's Ethernet address, where it is known and needed.
    pub neighbour: Option<[u8; 6]>,
    /// XDP sends by the interface: it learns the next hop where packets leave
    /// by TC, so none is given to the other end of a pair.
    pub express: bool,
}

/// Which clients keep their address on the way to another host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Always,
    /// Those that do not come in by the interface that leads to the target.
    Across,
    Never,
}

impl Reach {
    /// What the datapath reads of the target.
    pub fn entry(&self, target: &Target, nat: Nat) -> TargetEntry {
        let addr = target.addr.map_or(Addr::UNSPECIFIED, Addr::from);
        let local = TargetEntry::local(addr, target.weight);
        let nowhere = TargetEntry { flags: 0, ..local };
        match self {
            Self::Local => local,
            Self::Remote(None) => nowhere,
            Self::Remote(Some(way)) => TargetEntry {
                source: way.source.map_or(Addr::UNSPECIFIED, Addr::from),
                hop: way.hop(addr),
                ifindex: way.ifindex,
                link: way.link().unwrap_or_default(),
                flags: way.flags(nat),
                ..nowhere
            },
        }
    }
}

impl Way {
    /// Whether packets may be given to the other end of the veth pair itself,
    /// once the target's Ethernet address is known.
    pub const fn may_peer(&self) -> bool {
        self.pair.is_some() && self.gateway.is_none() && !self.express
    }

    /// What becomes of the client's address, and why: for people.
    pub fn nat(&self, nat: Nat) -> String {
        let device = &self.device;
        match (nat, self.keeps(nat), self.gateway) {
            (Nat::Preserve, ..) => "preserve (--nat)".to_owned(),
            (Nat::Masquerade, ..) => format!("{} (--nat)", self.masquerade()),
            (Nat::Auto, Keeps::Never, Some(gateway)) => {
                format!("auto: {} (behind the gateway {gateway})", self.masquerade())
            }
            (Nat::Auto, Keeps::Never, None) if self.default => format!(
                "auto: {} ({device} is the way of the default route)",
                self.masquerade()
            ),
            (Nat::Auto, Keeps::Never, None) if self.kind.is_none() => format!(
                "auto: {} (portfwd leaves {device} out, so replies may take another way)",
                self.masquerade()
            ),
            (Nat::Auto, Keeps::Never, None) => format!(
                "auto: {} ({device} is a tunnel, whose other end may take no other source)",
                self.masquerade()
            ),
            (Nat::Auto, ..) if self.source.is_none() => format!(
                "auto: preserve (on-link {device}); clients on {device} are dropped as no-route, \
                 for this host has no address to masquerade them with"
            ),
            (Nat::Auto, ..) => {
                format!("auto: preserve (on-link {device}), masquerade for clients on {device}")
            }
        }
    }

    fn masquerade(&self) -> String {
        match self.source {
            Some(source) => format!("masquerade as {source}"),
            None => {
                "masquerade, but this host has no address for it: dropped as no-route".to_owned()
            }
        }
    }

    /// The reply is sure to come back through this host where the target is
    /// on a link of its own: not behind a router, which may know another way,
    /// nor where the rest of the world is, nor at the other end of a tunnel,
    /// which has no neighbours and may drop what has a foreign source or answer
    /// it another way, nor where no program sees what comes in.
    const fn keeps(&self, nat: Nat) -> Keeps {
        let on_link = self.gateway.is_none() && !self.default;
        match (nat, self.kind) {
            (Nat::Preserve, _) => Keeps::Always,
            (Nat::Auto, Some(Link::Ethernet)) if on_link => Keeps::Across,
            (Nat::Auto | Nat::Masquerade, _) => Keeps::Never,
        }
    }

    /// The next hop over IPv6, where the kernel may take one of another
    /// interface: its own routes are one step ahead of what was read of them.
    fn hop(&self, target: Addr) -> Addr {
        match target.family() {
            Family::V4 => Addr::UNSPECIFIED,
            Family::V6 => self.gateway.map_or(target, Addr::from),
        }
    }

    fn flags(&self, nat: Nat) -> u16 {
        let peer = match self.link() {
            Some(_) => TargetEntry::PEER,
            None => 0,
        };
        peer | match self.keeps(nat) {
            Keeps::Always => TargetEntry::PRESERVE,
            Keeps::Across => TargetEntry::PRESERVE_ACROSS,
            Keeps::Never => 0,
        }
    }

    /// Destination and source of the frames that the other end of the pair is
    /// given.
    fn link(&self) -> Option<[u32; 3]> {
        if !self.may_peer() {
            return None;
        }
        let [a, b, c, d, e, f] = self.neighbour?;
        let [g, h, i, j, k, l] = self.pair?;
        Some([[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes))
    }

    /// The same but for what is only known of the neighbour.
    fn leads_as(&self, other: &Self) -> bool {
        let without = |way: &Self| Self {
            neighbour: None,
            ..way.clone()
        };
        without(self) == without(other)
    }
}

/// The ways to the other hosts that are targets. Which addresses these are is
/// settled once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ways {
    ways: BTreeMap<IpAddr, Option<Way>>,
    /// The targets that a route has led to since the start.
    reached: BTreeSet<IpAddr>,
    /// The ways were asked for before.
    looked: bool,
    devices: Vec<Device>,
    defaults: DefaultDevices,
    /// The devices that XDP sends by.
    express: BTreeSet<u32>,
    /// The ways back to clients: the next hops by interface, and the interfaces
    /// by network.
    pub(crate) next_hops: NextHops,
    pub(crate) homes: Homes,
}

const fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

fn link_local(rule: &Rule, addr: IpAddr) -> Error {
    Error::machine(format!(
        "rule `{rule}`: {addr} is no address of this host, and a link-local address of another \
         says not by which interface; type an address of it that others reach too"
    ))
}

impl Ways {
    /// Tells targets on other hosts from those on this one: without an
    /// address, with a loopback address or with one of this host's own. No way
    /// is known yet.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] for one on another host that no way can be told of.
    pub(crate) async fn find(handle: &Handle, specs: &[RuleSpec]) -> Result<Self, Error> {
        let own: BTreeSet<IpAddr> = devices::addresses(handle)
            .await?
            .into_iter()
            .map(|(addr, _)| addr)
            .collect();
        let mut found = Self::default();
        for spec in specs {
            for addr in spec.rule.targets.iter().filter_map(|target| target.addr) {
                if addr.is_loopback() || own.contains(&addr) || leads_here(handle, addr).await? {
                    continue;
                }
                if is_link_local(addr) {
                    return Err(link_local(&spec.rule, addr));
                }
                found.ways.insert(addr, None);
            }
        }
        Ok(found)
    }

    /// True where every target is on this host.
    pub(crate) fn is_empty(&self) -> bool {
        self.ways.is_empty()
    }

    /// The devices that lead to targets.
    pub(crate) fn devices(&self) -> BTreeSet<u32> {
        let ways = self.ways.values().flatten();
        ways.map(|way| way.ifindex).collect()
    }

    /// From now on XDP sends by these devices.
    pub(crate) fn express(&mut self, devices: &BTreeSet<u32>) {
        self.express.clone_from(devices);
        for way in self.ways.values_mut().flatten() {
            way.express = devices.contains(&way.ifindex);
        }
    }

    /// Does a target's neighbour matter?
    pub(crate) fn may_peer(&self) -> bool {
        self.ways.values().flatten().any(Way::may_peer)
    }

    /// Where a target is now.
    pub(crate) fn reach(&self, target: &Target) -> Reach {
        match target.addr.and_then(|addr| self.ways.get(&addr)) {
            Some(way) => Reach::Remote(way.clone()),
            None => Reach::Local,
        }
    }

    /// Clients are served by other hosts with addresses of their family only.
    fn serves_v4(&self) -> bool {
        self.ways.keys().any(IpAddr::is_ipv4)
    }

    fn serves_v6(&self) -> bool {
        self.ways.keys().any(IpAddr::is_ipv6)
    }

    /// Asks for every way again, where devices or default routes may have
    /// changed. These are the devices now.
    pub(crate) async fn look_around(
        &mut self,
        handle: &Handle,
        devices: Vec<Device>,
    ) -> Result<(), Error> {
        self.devices = devices;
        self.look_at_hops(handle).await?;
        self.look(handle).await
    }

    /// Asks for every way again, where routes to networks may have changed.
    pub(crate) async fn look_at_routes(&mut self, handle: &Handle) -> Result<(), Error> {
        if !self.homes.waits() {
            self.look_at_hops(handle).await?;
        } else if self.serves_v6() && !self.next_hops.waits() {
            self.next_hops.take(&routes::v6_hops(handle).await?);
        }
        self.look(handle).await
    }

    async fn look_at_hops(&mut self, handle: &Handle) -> Result<(), Error> {
        let mut hops = Vec::new();
        if self.serves_v6() {
            hops = routes::v6_hops(handle).await?;
            self.next_hops.take(&hops);
        }
        if self.serves_v4() {
            hops.extend(routes::v4_hops(handle).await?);
        }
        self.defaults = DefaultDevices::of(&hops);
        self.homes.take(&hops);
        Ok(())
    }

    async fn look(&mut self, handle: &Handle) -> Result<(), Error> {
        for (addr, known) in &mut self.ways {
            let mut way = way_to(handle, *addr, &self.devices, &self.defaults).await?;
            if let Some(way) = &mut way {
                way.express = self.express.contains(&way.ifindex);
            }
            let again = way.is_some() && !self.reached.insert(*addr);
            if self.looked
                && let Some(change) = change(*addr, known.as_ref(), way.as_ref(), again)
            {
                log::log!(change.level, "{}", change.text);
            }
            *known = way;
        }
        self.looked = true;
        Ok(())
    }

    /// Asks again for the neighbours that matter.
    pub(crate) async fn look_at_neighbours(&mut self, handle: &Handle) -> Result<(), Error> {
        for (addr, known) in &mut self.ways {
            if let Some(way) = known.as_mut().filter(|way| way.may_peer()) {
                way.neighbour = routes::neighbour(handle, way.ifindex, *addr).await?;
            }
        }
        Ok(())
    }
}

async fn leads_here(handle: &Handle, addr: IpAddr) -> Result<bool, Error> {
    let route = routes::route(handle, addr).await?;
    Ok(route.is_some_and(|route| route.local))
}

async fn way_to(
    handle: &Handle,
    addr: IpAddr,
    devices: &[Device],
    defaults: &DefaultDevices,
) -> Result<Option<Way>, Error> {
    let route = routes::route(handle, addr).await?;
    // An address that has become this host's own is no other host's any more.
    let Some(route) = route.filter(|route| !route.local) else {
        return Ok(None);
    };
    let Some(name) = devices::name_of(route.ifindex) else {
        return Ok(None);
    };
    let device = devices.iter().find(|device| device.index == route.ifindex);
    let mut way = Way {
        ifindex: route.ifindex,
        device: name,
        source: route.source,
        gateway: route.gateway,
        default: defaults.contains(route.ifindex, addr),
        kind: device.map(|device| device.link),
        pair: device.filter(|device| device.leads_out).and_then(|d| d.mac),
        neighbour: None,
        express: false,
    };
    if way.may_peer() {
        way.neighbour = routes::neighbour(handle, way.ifindex, addr).await?;
    }
    Ok(Some(way))
}

/// What people are told of a change.
struct Change {
    level: log::Level,
    text: String,
}

/// What has changed since the last look; `again` says that a route has led
/// there before.
fn change(addr: IpAddr, before: Option<&Way>, now: Option<&Way>, again: bool) -> Option<Change> {
    let (level, text) = match (before, now) {
        (Some(_), None) => (
            log::Level::Warn,
            format!("no route leads to {addr} any more: dropped as no-route"),
        ),
        (None, Some(way)) => {
            let when = if again { "again" } else { "now" };
            let text = format!("a route leads to {addr} {when}, by {}", way.device);
            (log::Level::Warn, text)
        }
        (Some(before), Some(way)) if !before.leads_as(way) => (
            log::Level::Info,
            format!("the way to {addr} is now by {}", way.device),
        ),
        (Some(_), Some(_)) | (None, None) => return None,
    };
    Some(Change { level, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: Nat = Nat::Auto;

    fn target(text: &str) -> Target {
        let spec: crate::rule::Rule = text.parse().unwrap_or_else(|error| panic!("{error}"));
        spec.targets[0]
    }

    fn on_link(device: &str) -> Way {
        Way {
            ifindex: 7,
            device: device.to_owned(),
            source: Some("10.0.0.1".parse().expect("an address")),
            gateway: None,
            default: false,
            kind: Some(Link::Ethernet),
            pair: None,
            neighbour: None,
            express: false,
        }
    }

    fn behind(gateway: &str) -> Way {
        Way {
            gateway: Some(gateway.parse().expect("an address")),
            ..on_link("eth0")
        }
    }

    fn tunnel() -> Way {
        Way {
            kind: Some(Link::Bare),
            ..on_link("wg0")
        }
    }

    /// A port of a bridge, say.
    fn left_out() -> Way {
        Way {
            kind: None,
            ..on_link("eth1")
        }
    }

    fn flags(way: Way, nat: Nat) -> u16 {
        let target = target("80:10.0.0.5:8080");
        Reach::Remote(Some(way)).entry(&target, nat).flags
    }

    #[test]
    fn a_target_is_here_there_or_nowhere() {
        let target = target("80:10.0.0.5:8080");
        let addr = Addr::from(target.addr.expect("an address"));
        let local = Reach::Local.entry(&target, AUTO);
        assert_eq!(local, TargetEntry::local(addr, 1));
        let nowhere = Reach::Remote(None).entry(&target, Nat::Preserve);
        assert_eq!((nowhere.ifindex, nowhere.flags), (0, 0));
        assert!(!nowhere.is_local() && nowhere.source.is_unspecified());
        let there = Reach::Remote(Some(on_link("br0"))).entry(&target, AUTO);
        assert_eq!((there.addr, there.ifindex), (addr, 7));
        let source: IpAddr = "10.0.0.1".parse().expect("an address");
        assert_eq!(there.source, Addr::from(source));
    }

    #[test]
    fn auto_keeps_the_address_on_a_link_of_its_own_only() {
        let on_default = Way {
            default: true,
            ..on_link("eth0")
        };
        for (way, nat, expected) in [
            (on_link("br0"), AUTO, TargetEntry::PRESERVE_ACROSS),
            (behind("10.0.0.254"), AUTO, 0),
            (on_default.clone(), AUTO, 0),
            (tunnel(), AUTO, 0),
            (left_out(), AUTO, 0),
            (tunnel(), Nat::Preserve, TargetEntry::PRESERVE),
            (on_link("br0"), Nat::Masquerade, 0),
            (on_link("br0"), Nat::Preserve, TargetEntry::PRESERVE),
            (behind("10.0.0.254"), Nat::Preserve, TargetEntry::PRESERVE),
            (on_default, Nat::Preserve, TargetEntry::PRESERVE),
        ] {
            assert_eq!(flags(way.clone(), nat), expected, "{way:?} {nat:?}");
        }
    }

    #[test]
    fn it_says_what_becomes_of_the_address_and_why() {
        let on_default = Way {
            default: true,
            ..on_link("eth0")
        };
        let homeless = Way {
            source: None,
            ..on_link("br0")
        };
        for (way, nat, expected) in [
            (
                on_link("br0"),
                AUTO,
                "auto: preserve (on-link br0), masquerade for clients on br0",
            ),
            (
                behind("192.0.2.254"),
                AUTO,
                "auto: masquerade as 10.0.0.1 (behind the gateway 192.0.2.254)",
            ),
            (
                on_default,
                AUTO,
                "auto: masquerade as 10.0.0.1 (eth0 is the way of the default route)",
            ),
            (
                tunnel(),
                AUTO,
                "auto: masquerade as 10.0.0.1 \
                 (wg0 is a tunnel, whose other end may take no other source)",
            ),
            (
                left_out(),
                AUTO,
                "auto: masquerade as 10.0.0.1 \
                 (portfwd leaves eth1 out, so replies may take another way)",
            ),
            (on_link("br0"), Nat::Preserve, "preserve (--nat)"),
            (
                on_link("br0"),
                Nat::Masquerade,
                "masquerade as 10.0.0.1 (--nat)",
            ),
            (
                homeless.clone(),
                Nat::Masquerade,
                "masquerade, but this host has no address for it: dropped as no-route (--nat)",
            ),
        ] {
            assert_eq!(way.nat(nat), expected);
        }
        assert!(homeless.nat(AUTO).contains("dropped as no-route"));
    }

    #[test]
    fn a_change_of_the_way_is_told_for_what_it_is() {
        let addr = "10.0.0.5".parse().expect("an address");
        let told = |before: Option<&Way>, now: Option<&Way>, again| {
            change(addr, before, now, again).map(|change| change.text)
        };
        let way = on_link("br0");
        let known = Way {
            neighbour: Some([2; 6]),
            ..way.clone()
        };
        for (before, now, again, text) in [
            (None, None, false, None),
            (
                None,
                Some(&way),
                false,
                Some("a route leads to 10.0.0.5 now, by br0"),
            ),
            (
                Some(&way),
                None,
                true,
                Some("no route leads to 10.0.0.5 any more: dropped as no-route"),
            ),
            (
                None,
                Some(&way),
                true,
                Some("a route leads to 10.0.0.5 again, by br0"),
            ),
            (Some(&way), Some(&known), true, None),
            (
                Some(&way),
                Some(&tunnel()),
                true,
                Some("the way to 10.0.0.5 is now by wg0"),
            ),
        ] {
            assert_eq!(told(before, now, again).as_deref(), text);
        }
    }

    #[test]
    fn neighbours_matter_where_a_pair_leads_to_a_target() {
        let mut ways = Ways::default();
        assert!(!ways.may_peer());
        let [first, second] = ["10.0.0.5", "10.0.0.6"].map(|text| text.parse().expect("one"));
        ways.ways = BTreeMap::from([(first, None), (second, Some(on_link("br0")))]);
        assert!(!ways.may_peer());
        let pair = Way {
            pair: Some([2, 0, 0, 0, 0, 1]),
            ..on_link("veth0")
        };
        ways.ways.insert(first, Some(pair));
        assert!(ways.may_peer());
    }

    #[test]
    fn a_pair_is_crossed_once_the_neighbour_is_known() {
        let to = [2, 0, 0, 0, 0, 5];
        let from = [2, 0, 0, 0, 0, 1];
        let unknown = Way {
            pair: Some(from),
            ..on_link("veth0")
        };
        let known = Way {
            neighbour: Some(to),
            ..unknown.clone()
        };
        assert!(unknown.may_peer() && unknown.leads_as(&known));
        assert_eq!(flags(unknown, AUTO), TargetEntry::PRESERVE_ACROSS);
        let target = target("80:10.0.0.5:8080");
        let entry = Reach::Remote(Some(known.clone())).entry(&target, AUTO);
        assert_eq!(
            entry.flags,
            TargetEntry::PRESERVE_ACROSS | TargetEntry::PEER
        );
        let bytes: Vec<u8> = entry.link.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(bytes, [to, from].concat());
        let routed = Way {
            gateway: behind("10.0.0.254").gateway,
            ..known
        };
        let express = Way {
            express: true,
            gateway: None,
            ..routed.clone()
        };
        assert!(!routed.may_peer());
        assert_eq!(flags(routed, AUTO), 0);
        assert!(!express.may_peer());
        assert_eq!(flags(express, AUTO) & TargetEntry::PEER, 0);
    }
}
