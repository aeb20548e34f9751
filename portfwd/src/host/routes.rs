//! Where this host sends a packet: routes, neighbours, and the ports of its
//! own connections.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{ErrorMessage, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily as Family, RouteNetlinkMessage};

use super::netlink;
use crate::Error;

/// The ports that the kernel gives connections of this host, of the network
/// namespace that the reading thread is in.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The longest prefix of a route that counts as a default one, which is
/// written in parts as well: 0.0.0.0/1 and 128.0.0.0/1, or 2000::/3.
pub const LONGEST_DEFAULT: u8 = 3;
const LONGEST_DEFAULT_V4: u8 = 1;

/// The table that is asked where no rule names another one.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The table of this host's own addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;

/// What the kernel answers where nothing leads, and for routes and rules that
/// refuse: unreachable, blackhole and prohibit (`fib_props`, `fib6_props`).
const NO_ROUTE: [libc::c_int; 4] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EINVAL,
    libc::EACCES,
];

/// How this host reaches an address: what `ip route get` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The interface that packets leave by.
    pub ifindex: u32,
    /// The address of this host that they leave with, where it has one.
    pub source: Option<IpAddr>,
    /// The router that they go to; none where the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The address is one of this host's.
    pub local: bool,
}

/// The route to an address; `None` where there is none, or only one that
/// refuses.
///
/// # Errors
///
/// [`Error::Machine`] when the kernel does not answer.
pub async fn route(handle: &Handle, addr: IpAddr) -> Result<Option<Route>, Error> {
    let mut question = RouteMessage::default();
    question.header.address_family = family(addr);
    question.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
    question.attributes = vec![RouteAttribute::Destination(addr.into())];
    let answers = handle.route().get(question).execute();
    match Box::pin(answers).next().await {
        Some(Ok(message)) => Ok(route_of(&message)),
        Some(Err(error)) if is_no_route(&error) => Ok(None),
        Some(Err(error)) => Err(unanswered("routes", &error)),
        None => Err(unanswered("routes", &rtnetlink::Error::RequestFailed)),
    }
}

/// Anything else leaves open whether there is a route.
fn is_no_route(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error)
        if netlink::is_one_of(error.code, &NO_ROUTE) || lacks_family(error))
}

/// IPv6 may be off in the kernel, or be no part of it.
fn lacks_family(error: &ErrorMessage) -> bool {
    netlink::is_one_of(error.code, &[libc::EOPNOTSUPP, libc::EAFNOSUPPORT])
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let local = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Local | RouteType::Anycast => true,
        _ => return None,
    };
    let (mut ifindex, mut source) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = *index,
            RouteAttribute::PrefSource(addr) => source = ip(addr),
            _ => {}
        }
    }
    (ifindex != 0).then_some(Route {
        ifindex,
        source,
        gateway: gateway(&message.attributes),
        local,
    })
}

fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

const fn family(addr: IpAddr) -> Family {
    match addr {
        IpAddr::V4(_) => Family::Inet,
        IpAddr::V6(_) => Family::Inet6,
    }
}

/// The interfaces that default routes leave by, of every table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultDevices {
    v4: BTreeSet<u32>,
    v6: BTreeSet<u32>,
}

impl DefaultDevices {
    /// Does a default route of the address's family leave by the interface?
    pub fn contains(&self, ifindex: u32, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(_) => self.v4.contains(&ifindex),
            IpAddr::V6(_) => self.v6.contains(&ifindex),
        }
    }

    /// Those of the default routes among these hops.
    pub fn of(hops: &[Hop]) -> Self {
        let mut devices = Self::default();
        for hop in hops.iter().filter(|hop| hop.is_default()) {
            match hop.network {
                IpAddr::V4(_) => devices.v4.insert(hop.ifindex),
                IpAddr::V6(_) => devices.v6.insert(hop.ifindex),
            };
        }
        devices
    }
}

/// Where a route of some table sends packets by one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The interface that packets leave by.
    pub ifindex: u32,
    /// The network that the route leads to.
    pub network: IpAddr,
    /// How long the network's prefix is.
    pub bits: u8,
    /// The router that packets go to; none where the network is on the link.
    pub gateway: Option<IpAddr>,
    /// The route's table.
    pub table: u32,
    /// Of two routes of a table to one network, that of the lower metric is
    /// taken.
    pub metric: u32,
}

impl Hop {
    /// A default route that is written in parts is one all the same.
    pub const fn is_default(&self) -> bool {
        let longest = match self.network {
            IpAddr::V4(_) => LONGEST_DEFAULT_V4,
            IpAddr::V6(_) => LONGEST_DEFAULT,
        };
        self.bits <= longest
    }

    /// All its addresses are of fe80::/10.
    pub const fn is_link_local(&self) -> bool {
        match self.network {
            IpAddr::V4(_) => false,
            IpAddr::V6(network) => network.is_unicast_link_local() && self.bits >= 10,
        }
    }

    /// All its addresses are groups.
    pub const fn is_multicast(&self) -> bool {
        let bits = match self.network {
            IpAddr::V4(_) => 4,
            IpAddr::V6(_) => 8,
        };
        self.network.is_multicast() && self.bits >= bits
    }
}

/// Lists the hops of IPv4 unicast routes, of every table but the local one;
/// those of a route with many stand in its order.
///
/// # Errors
///
/// [`Error::Machine`] when the kernel does not answer.
pub async fn v4_hops(handle: &Handle) -> Result<Vec<Hop>, Error> {
    hops(handle, Family::Inet).await
}

/// Lists the hops of IPv6 unicast routes, as [`v4_hops`] does.
///
/// # Errors
///
/// [`Error::Machine`] when the kernel does not answer.
pub async fn v6_hops(handle: &Handle) -> Result<Vec<Hop>, Error> {
    hops(handle, Family::Inet6).await
}

async fn hops(handle: &Handle, family: Family) -> Result<Vec<Hop>, Error> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    let mut hops = Vec::new();
    let routes = handle.route().get(question).execute();
    let listed = netlink::list(routes, |message| {
        // Asked for those of a family that it lacks, the kernel lists all.
        if message.header.address_family == family {
            add_hops(&message, &mut hops);
        }
    });
    match listed.await {
        Err(rtnetlink::Error::NetlinkError(error)) if lacks_family(&error) => Ok(Vec::new()),
        Err(error) => Err(unanswered("routes", &error)),
        Ok(()) => Ok(hops),
    }
}

fn add_hops(message: &RouteMessage, hops: &mut Vec<Hop>) {
    let header = &message.header;
    // A cloned one is what the kernel has learned of a single host: a path MTU.
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return;
    }
    let everything: IpAddr = match header.address_family {
        Family::Inet => Ipv4Addr::UNSPECIFIED.into(),
        Family::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return,
    };
    let mut hop = Hop {
        ifindex: 0,
        network: everything,
        bits: header.destination_prefix_length,
        gateway: gateway(&message.attributes),
        table: header.table.into(),
        metric: 0,
    };
    let mut many = [].as_slice();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.ifindex = *index,
            RouteAttribute::Destination(addr) => hop.network = ip(addr).unwrap_or(everything),
            RouteAttribute::Table(table) => hop.table = *table,
            RouteAttribute::Priority(metric) => hop.metric = *metric,
            RouteAttribute::MultiPath(next) => many = next,
            _ => {}
        }
    }
    if hop.table == LOCAL_TABLE {
        return;
    }
    if hop.ifindex != 0 {
        hops.push(hop);
    }
    hops.extend(many.iter().map(|next| Hop {
        ifindex: next.interface_index,
        gateway: gateway(&next.attributes),
        ..hop
    }));
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip(addr),
        RouteAttribute::Via(RouteVia::Inet(addr)) => Some((*addr).into()),
        RouteAttribute::Via(RouteVia::Inet6(addr)) => Some((*addr).into()),
        _ => None,
    })
}

/// The Ethernet address of a neighbour that was heard of lately, or that was
/// entered by hand. One that is stale is left out: only packets that the
/// kernel addresses itself make it look again.
///
/// # Errors
///
/// [`Error::Machine`] when the kernel does not answer.
pub async fn neighbour(
    handle: &Handle,
    ifindex: u32,
    addr: IpAddr,
) -> Result<Option<[u8; 6]>, Error> {
    let mut question = NeighbourMessage::default();
    question.header.family = family(addr);
    question.header.ifindex = ifindex;
    let destination = match addr {
        IpAddr::V4(addr) => NeighbourAddress::Inet(addr),
        IpAddr::V6(addr) => NeighbourAddress::Inet6(addr),
    };
    question.attributes = vec![NeighbourAttribute::Destination(destination)];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(question));
    request.header.flags = NLM_F_REQUEST;
    let answers = handle
        .clone()
        .request(request)
        .map_err(|error| unanswered("neighbours", &error))?;
    let answer = Box::pin(answers).next().await;
    let error = match answer.map(|message| message.payload) {
        Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))) => {
            return Ok(neighbour_of(&message));
        }
        Some(NetlinkPayload::Error(error)) if is_no_neighbour(&error) => return Ok(None),
        Some(NetlinkPayload::Error(error)) => rtnetlink::Error::NetlinkError(error),
        _ => rtnetlink::Error::RequestFailed,
    };
    Err(unanswered("neighbours", &error))
}

/// It was never asked for, or its device has gone.
fn is_no_neighbour(error: &ErrorMessage) -> bool {
    netlink::is_one_of(error.code, &[libc::ENOENT, libc::ENODEV]) || lacks_family(error)
}

fn neighbour_of(message: &NeighbourMessage) -> Option<[u8; 6]> {
    match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent => {}
        _ => return None,
    }
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        })
}

/// First and last of the ports that this host gives its own connections.
///
/// # Errors
///
/// [`Error::Machine`] when the kernel does not tell.
pub fn local_port_range() -> Result<(u16, u16), Error> {
    let text = fs::read_to_string(LOCAL_PORTS).map_err(|error| {
        Error::machine(format!(
            "cannot read {LOCAL_PORTS}: {error}; run portfwd where /proc is mounted"
        ))
    })?;
    ports_of(&text).ok_or_else(|| {
        Error::machine(format!(
            "{LOCAL_PORTS} holds `{}`, which is no range of ports; set one, as in `32768 60999`",
            text.trim()
        ))
    })
}

fn ports_of(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (numbers.next().is_none() && first <= last).then_some((first, last))
}

fn unanswered(what: &str, error: &rtnetlink::Error) -> Error {
    Error::machine(format!(
        "the kernel does not list its {what}: {error}; try `ip route`"
    ))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn message(family: Family, bits: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = bits;
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        message
    }

    #[test]
    fn a_route_has_a_device_a_source_and_perhaps_a_gateway() {
        let gateway = RouteAttribute::Gateway(addr("192.0.2.254").into());
        let mut answer = message(
            Family::Inet,
            32,
            vec![
                RouteAttribute::Oif(3),
                RouteAttribute::PrefSource(addr("192.0.2.1").into()),
            ],
        );
        let on_link = Route {
            ifindex: 3,
            source: Some(addr("192.0.2.1")),
            gateway: None,
            local: false,
        };
        assert_eq!(route_of(&answer), Some(on_link));
        answer.attributes.push(gateway);
        let behind = Route {
            gateway: Some(addr("192.0.2.254")),
            ..on_link
        };
        assert_eq!(route_of(&answer), Some(behind));
        answer.header.kind = RouteType::Local;
        assert!(route_of(&answer).is_some_and(|route| route.local));
    }

    #[test]
    fn a_gateway_of_the_other_family_is_one() {
        let via = RouteVia::Inet6("fe80::1".parse().expect("an address"));
        let answer = message(
            Family::Inet,
            32,
            vec![RouteAttribute::Oif(3), RouteAttribute::Via(via)],
        );
        let route = route_of(&answer).expect("a route");
        assert_eq!((route.gateway, route.source), (Some(addr("fe80::1")), None));
    }

    #[test]
    fn what_refuses_or_leads_to_many_is_no_route() {
        for kind in [
            RouteType::BlackHole,
            RouteType::Unreachable,
            RouteType::Prohibit,
            RouteType::Broadcast,
            RouteType::Multicast,
        ] {
            let mut answer = message(Family::Inet6, 128, vec![RouteAttribute::Oif(1)]);
            answer.header.kind = kind;
            assert_eq!(route_of(&answer), None, "{kind:?}");
        }
    }

    #[test]
    fn an_answer_that_leaves_the_route_open_is_an_error() {
        let answer = |errno: libc::c_int| {
            let mut error = ErrorMessage::default();
            error.code = NonZeroI32::new(-errno);
            error
        };
        let none = |errno| is_no_route(&rtnetlink::Error::NetlinkError(answer(errno)));
        for errno in [
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::EINVAL,
            libc::EACCES,
            libc::EOPNOTSUPP,
            libc::EAFNOSUPPORT,
        ] {
            assert!(none(errno), "{errno}");
        }
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EINTR, libc::EAGAIN] {
            assert!(!none(errno), "{errno}");
            assert!(!is_no_neighbour(&answer(errno)), "{errno}");
            assert!(!lacks_family(&answer(errno)), "{errno}");
        }
        assert!(!is_no_route(&rtnetlink::Error::RequestFailed));
        assert!(is_no_neighbour(&answer(libc::ENOENT)));
        assert!(is_no_neighbour(&answer(libc::ENODEV)));
    }

    #[test]
    fn default_routes_name_their_devices_by_family() {
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        let mut refused = message(Family::Inet6, 0, vec![RouteAttribute::Oif(9)]);
        refused.header.kind = RouteType::Unreachable;
        let mut hops = Vec::new();
        for route in [
            message(Family::Inet, 0, vec![RouteAttribute::Oif(2)]),
            message(
                Family::Inet,
                0,
                vec![RouteAttribute::MultiPath(vec![hop(3), hop(4)])],
            ),
            message(Family::Inet, 1, vec![RouteAttribute::Oif(5)]),
            message(Family::Inet, 24, vec![RouteAttribute::Oif(6)]),
            message(Family::Inet6, 3, vec![RouteAttribute::Oif(7)]),
            refused,
        ] {
            add_hops(&route, &mut hops);
        }
        let devices = DefaultDevices::of(&hops);
        assert_eq!(devices.v4, BTreeSet::from([2, 3, 4, 5]));
        assert_eq!(devices.v6, BTreeSet::from([7]));
        assert!(devices.contains(2, addr("10.0.0.5")));
        assert!(!devices.contains(2, addr("2001:db8::5")));
    }

    #[test]
    fn hops_are_those_of_unicast_routes() {
        let gateway = |text| RouteAttribute::Gateway(addr(text).into());
        let mut next = RouteNextHop::default();
        next.interface_index = 5;
        next.attributes = vec![gateway("fe80::5")];
        let mut on_link = next.clone();
        on_link.interface_index = 6;
        on_link.attributes.clear();
        let single = message(
            Family::Inet6,
            32,
            vec![
                RouteAttribute::Destination(addr("2001:db8::").into()),
                RouteAttribute::Oif(3),
                gateway("fe80::1"),
                RouteAttribute::Table(1000),
                RouteAttribute::Priority(1024),
            ],
        );
        let mut many = message(
            Family::Inet6,
            0,
            vec![RouteAttribute::MultiPath(vec![next, on_link])],
        );
        many.header.table = RouteHeader::RT_TABLE_MAIN;
        let mut learned = single.clone();
        learned.header.flags = RouteFlags::Cloned;
        let mut refused = single.clone();
        refused.header.kind = RouteType::Unreachable;
        let mut local = single.clone();
        local.attributes.push(RouteAttribute::Table(LOCAL_TABLE));
        let across = message(
            Family::Inet,
            24,
            vec![
                RouteAttribute::Destination(addr("192.0.2.0").into()),
                RouteAttribute::Oif(7),
                RouteAttribute::Via(RouteVia::Inet6("fe80::7".parse().expect("an address"))),
                RouteAttribute::Table(MAIN_TABLE),
            ],
        );
        let mut hops = Vec::new();
        for route in [&single, &many, &learned, &refused, &local, &across] {
            add_hops(route, &mut hops);
        }
        let first = Hop {
            ifindex: 3,
            network: addr("2001:db8::"),
            bits: 32,
            gateway: Some(addr("fe80::1")),
            table: 1000,
            metric: 1024,
        };
        let second = Hop {
            ifindex: 5,
            network: addr("::"),
            bits: 0,
            gateway: Some(addr("fe80::5")),
            table: MAIN_TABLE,
            metric: 0,
        };
        let third = Hop {
            ifindex: 6,
            gateway: None,
            ..second
        };
        let fourth = Hop {
            ifindex: 7,
            network: addr("192.0.2.0"),
            bits: 24,
            gateway: Some(addr("fe80::7")),
            ..second
        };
        assert_eq!(hops, [first, second, third, fourth]);
    }

    #[test]
    fn a_neighbour_counts_while_it_is_heard_of() {
        use NeighbourState as S;
        let mac = [2, 0, 0, 0, 0, 9];
        let mut entry = NeighbourMessage::default();
        entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        for (state, known) in [
            (S::Reachable, true),
            (S::Delay, true),
            (S::Probe, true),
            (S::Permanent, true),
            (S::Stale, false),
            (S::Incomplete, false),
            (S::Failed, false),
        ] {
            entry.header.state = state;
            assert_eq!(neighbour_of(&entry), known.then_some(mac), "{state:?}");
        }
        entry.header.state = S::Reachable;
        entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![0; 20])];
        assert_eq!(neighbour_of(&entry), None);
    }

    #[test]
    fn the_port_range_is_two_numbers() {
        assert_eq!(ports_of("32768\t60999\n"), Some((32768, 60999)));
        for text in ["", "32768", "1 2 3", "a b", "9 8", "1 65536"] {
            assert_eq!(ports_of(text), None, "{text}");
        }
        assert!(local_port_range().is_ok());
    }
}
