//! The devices on which packets meet the IP layer of this host, and its
//! addresses.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::net::IpAddr;

use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily as Family;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    LinkXdp, Prop,
};

use super::kernel::Release;
use super::netlink;
use crate::Error;

/// Where the IP header of a packet starts on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// Behind an Ethernet header.
    Ethernet,
    /// At the first byte: tun, wireguard, ppp and tunnels.
    Bare,
}

/// A layer-3 device: one that is no port of another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Device {
    /// Interface index, which survives a rename.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Where its packets start.
    pub link: Link,
    /// The device of packets that never leave this host.
    pub loopback: bool,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// One end of a veth pair whose other end is in another namespace.
    pub leads_out: bool,
    /// Bytes of layer 3 that fit a frame.
    pub mtu: u32,
    /// Who puts packets into it.
    pub wire: Wire,
    /// A VLAN device of this namespace stands on it.
    pub under_vlan: bool,
    /// The XDP program that is attached to it.
    pub xdp: Option<Attached>,
}

/// An XDP program on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attached {
    /// Its id.
    pub program: u32,
    /// It runs in the stack and not in the driver.
    pub generic: bool,
}

/// Where a device's packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// From a network, with whole checksums, as far as the driver knows.
    Network,
    /// From the stack at the other end of a veth pair.
    Veth,
    /// From a program, such as a virtual machine.
    Tap,
    /// From other devices of this host: a bridge, say, or a VLAN device.
    Host,
}

impl Wire {
    /// May packets come with a checksum that is still to be completed, as
    /// nothing on this host tells XDP?
    pub const fn is_partial(self) -> bool {
        matches!(self, Self::Veth | Self::Tap)
    }
}

/// Why no program is attached to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// It is a port of a bridge, bond, team or virtual switch: its packets
    /// reach this host on that device, named here.
    Port(String),
    /// Its packets are not where a program would look for them.
    Unsuited(String),
}

/// Every layer-3 device, by index.
pub async fn list(handle: &Handle) -> Result<Vec<Device>, Error> {
    let facts = facts(handle).await?;
    let kernel = Release::running()?;
    Ok(facts
        .iter()
        .filter_map(|device| classify(device, &facts, kernel).ok())
        .collect())
}

/// The layer-3 device of this name or alternative name.
pub async fn named(handle: &Handle, name: &str) -> Result<Device, Error> {
    find(&facts(handle).await?, Release::running()?, name)
}

/// Every address of this host with the index of its device, in order. An
/// address that two devices have stands here twice; one that another host
/// was found to use already is not ours.
pub async fn addresses(handle: &Handle) -> Result<Vec<(IpAddr, u32)>, Error> {
    let mut unique = BTreeSet::new();
    let messages = handle.address().get().execute();
    netlink::list(messages, |message| unique.extend(address_of(&message)))
        .await
        .map_err(|error| refused(&error))?;
    Ok(unique.into_iter().collect())
}

/// The current name of a device of this network namespace.
pub fn name_of(ifindex: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer holds `IF_NAMESIZE` bytes, the most that is written,
    // the final zero included.
    let name = unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr()) };
    if name.is_null() {
        return None;
    }
    // SAFETY: on success `name` is the buffer, which is still alive and holds
    // a text that ends in zero.
    let name = unsafe { CStr::from_ptr(name) };
    Some(name.to_string_lossy().into_owned())
}

/// What the kernel says of a device, as far as it decides anything here.
#[derive(Debug, Clone)]
struct Facts {
    index: u32,
    name: String,
    other_names: Vec<String>,
    layer: LinkLayerType,
    flags: LinkFlags,
    kind: Option<InfoKind>,
    master: Option<u32>,
    mac: Option<[u8; 6]>,
    /// What it is linked to: the device under a VLAN device, the other end of
    /// a pair.
    linked: Option<u32>,
    /// That is in another namespace.
    linked_away: bool,
    mtu: u32,
    xdp: Option<Attached>,
}

async fn facts(handle: &Handle) -> Result<Vec<Facts>, Error> {
    let request = handle
        .link()
        .get()
        .set_filter_mask(Family::Unspec, vec![LinkExtentMask::SkipStats]);
    let mut facts = Vec::new();
    netlink::list(request.execute(), |message| facts.extend(facts_of(message)))
        .await
        .map_err(|error| refused(&error))?;
    facts.sort_by_key(|device| device.index);
    // A device that changes while the list is sent may be in it twice.
    facts.dedup_by_key(|device| device.index);
    Ok(facts)
}

fn facts_of(message: LinkMessage) -> Option<Facts> {
    let mut facts = Facts {
        index: message.header.index,
        name: String::new(),
        other_names: Vec::new(),
        layer: message.header.link_layer_type,
        flags: message.header.flags,
        kind: None,
        master: None,
        mac: None,
        linked: None,
        linked_away: false,
        mtu: 0,
        xdp: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.name = name,
            LinkAttribute::Controller(master) => facts.master = Some(master),
            LinkAttribute::Address(bytes) => facts.mac = bytes.try_into().ok(),
            LinkAttribute::Link(index) => facts.linked = Some(index),
            LinkAttribute::LinkNetNsId(_) => facts.linked_away = true,
            LinkAttribute::Mtu(mtu) => facts.mtu = mtu,
            LinkAttribute::Xdp(parts) => facts.xdp = parts.into_iter().find_map(program_of),
            LinkAttribute::LinkInfo(infos) => facts.kind = infos.into_iter().find_map(kind_of),
            LinkAttribute::PropList(props) => {
                facts.other_names = props.into_iter().filter_map(other_name).collect();
            }
            _ => {}
        }
    }
    (!facts.name.is_empty()).then_some(facts)
}

fn kind_of(info: LinkInfo) -> Option<InfoKind> {
    match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    }
}

/// Native and generic programs cannot stand on a device at once.
fn program_of(part: LinkXdp) -> Option<Attached> {
    let (program, generic) = match part {
        LinkXdp::DrvProgId(program) => (program, false),
        LinkXdp::SkbProgId(program) => (program, true),
        _ => return None,
    };
    Some(Attached { program, generic })
}

fn other_name(prop: Prop) -> Option<String> {
    match prop {
        Prop::AltIfName(name) => Some(name),
        _ => None,
    }
}

fn find(all: &[Facts], kernel: Release, name: &str) -> Result<Device, Error> {
    let found = all
        .iter()
        .find(|device| device.name == name || device.other_names.iter().any(|other| other == name));
    let Some(device) = found else {
        return Err(Error::machine(format!(
            "interface {name} does not exist here; there is {}",
            usable(all, kernel)
        )));
    };
    classify(device, all, kernel).map_err(|why| match why {
        Why::Port(master) => Error::machine(format!(
            "interface {name} is a port of {master} and its packets reach this host there; \
             name {} instead",
            on_top(device, all)
        )),
        Why::Unsuited(reason) => Error::machine(format!(
            "interface {name} cannot be used: {reason}; there is {}",
            usable(all, kernel)
        )),
    })
}

fn usable(all: &[Facts], kernel: Release) -> String {
    let names: Vec<String> = all
        .iter()
        .filter_map(|device| classify(device, all, kernel).ok())
        .map(|device| device.name)
        .collect();
    names.join(", ")
}

/// The master that is no port itself: a bond may be a port of a bridge.
fn on_top<'a>(device: &'a Facts, all: &'a [Facts]) -> &'a str {
    let by_index: HashMap<u32, &Facts> = all.iter().map(|facts| (facts.index, facts)).collect();
    let mut top = device;
    // The kernel refuses rings; the bound only keeps us from trusting that.
    for _ in 0..all.len() {
        match top.master.and_then(|index| by_index.get(&index)) {
            Some(master) if master.kind != Some(InfoKind::Vrf) => top = master,
            _ => break,
        }
    }
    &top.name
}

fn classify(device: &Facts, all: &[Facts], kernel: Release) -> Result<Device, Why> {
    if let Some(master) = port_of(device, all) {
        return Err(Why::Port(master));
    }
    let link = link_of(device, kernel).map_err(Why::Unsuited)?;
    Ok(Device {
        index: device.index,
        name: device.name.clone(),
        link,
        loopback: device.flags.contains(LinkFlags::Loopback),
        mac: device.mac.filter(|_| device.layer == LinkLayerType::Ether),
        leads_out: device.kind == Some(InfoKind::Veth) && device.linked_away,
        mtu: device.mtu,
        wire: match device.kind {
            Some(InfoKind::Veth) => Wire::Veth,
            Some(InfoKind::Tun) => Wire::Tap,
            // A bond has the XDP of its ports' drivers (5.15).
            None | Some(InfoKind::Bond) => Wire::Network,
            Some(_) => Wire::Host,
        },
        under_vlan: all.iter().any(|other| is_vlan_on(other, device)),
        xdp: device.xdp,
    })
}

fn is_vlan_on(other: &Facts, device: &Facts) -> bool {
    other.kind == Some(InfoKind::Vlan) && !other.linked_away && other.linked == Some(device.index)
}

/// The name of the master whose port a device is. A VRF is a master too, but
/// its members keep their packets: it only chooses their routing table.
fn port_of(device: &Facts, all: &[Facts]) -> Option<String> {
    let index = device.master?;
    match all.iter().find(|other| other.index == index) {
        Some(master) if master.kind == Some(InfoKind::Vrf) => None,
        Some(master) => Some(master.name.clone()),
        None => Some(format!("interface {index}")),
    }
}

/// Where a TC program finds the IP header on a device, in both directions.
fn link_of(device: &Facts, kernel: Release) -> Result<Link, String> {
    if let Some(kind) = &device.kind {
        suited(kind, kernel)?;
    }
    match device.layer {
        LinkLayerType::Ether | LinkLayerType::Loopback => Ok(Link::Ethernet),
        LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit => Ok(Link::Bare),
        // Only a tunnel to one fixed peer: else the GRE header with the
        // peer's address is its link-layer header (`ipgre_header_ops`).
        LinkLayerType::Ipgre | LinkLayerType::Ip6gre if to_one_peer(device.flags) => Ok(Link::Bare),
        LinkLayerType::Ipgre | LinkLayerType::Ip6gre => {
            Err("it is a GRE tunnel without one fixed remote address".to_owned())
        }
        other => Err(format!(
            "its link type, {}, carries neither Ethernet nor bare IP packets",
            other.to_string().to_lowercase()
        )),
    }
}

fn to_one_peer(flags: LinkFlags) -> bool {
    flags.contains(LinkFlags::Pointopoint) && !flags.contains(LinkFlags::Broadcast)
}

/// Kinds whose link type alone would mislead.
fn suited(kind: &InfoKind, kernel: Release) -> Result<(), String> {
    match kind {
        // What leaves on it has just come in elsewhere and goes back there.
        InfoKind::Ifb => Err("it only queues packets of other interfaces (ifb)".to_owned()),
        // `skb_mac_header_rebuild` keeps the Ethernet header of the device
        // that the encrypted packet came in on; leaving, there is none.
        InfoKind::Xfrm | InfoKind::Vti | InfoKind::Vti6 => Err(format!(
            "its packets start elsewhere coming in than leaving ({kind})"
        )),
        // 5.14 reset the MAC header after decapsulation (commit 730eed2772e7
        // for sit and its series for the others).
        InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::Gtp
        | InfoKind::BareUdp
            if kernel
                < (Release {
                    major: 5,
                    minor: 14,
                }) =>
        {
            Err(format!(
                "before Linux 5.14 its packets come in behind their outer header ({kind})"
            ))
        }
        _ => Ok(()),
    }
}

/// `IFA_LOCAL` where it is given: with a peer, `IFA_ADDRESS` is the peer's.
fn address_of(message: &AddressMessage) -> Option<(IpAddr, u32)> {
    let (mut local, mut address, mut refused) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(flags) => refused = flags.contains(AddressFlags::Dadfailed),
            _ => {}
        }
    }
    if refused {
        return None;
    }
    Some((local.or(address)?, message.header.index))
}

fn refused(error: &rtnetlink::Error) -> Error {
    Error::machine(format!(
        "the kernel does not list its interfaces or addresses: {error}; try `ip address`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Release = Release {
        major: 6,
        minor: 18,
    };
    const OLD: Release = Release {
        major: 5,
        minor: 10,
    };

    fn device(index: u32, name: &str, layer: LinkLayerType) -> Facts {
        Facts {
            index,
            name: name.to_owned(),
            other_names: Vec::new(),
            layer,
            flags: LinkFlags::empty(),
            kind: None,
            master: None,
            mac: None,
            linked: None,
            linked_away: false,
            mtu: 1500,
            xdp: None,
        }
    }

    fn ether(index: u32, name: &str) -> Facts {
        device(index, name, LinkLayerType::Ether)
    }

    fn of_kind(mut facts: Facts, kind: InfoKind) -> Facts {
        facts.kind = Some(kind);
        facts
    }

    fn port(mut facts: Facts, master: u32) -> Facts {
        facts.master = Some(master);
        facts
    }

    fn other_kind(kind: &str) -> InfoKind {
        InfoKind::Other(kind.to_owned())
    }

    #[test]
    fn link_types_tell_where_ip_starts() {
        use LinkLayerType as L;
        for layer in [L::Ether, L::Loopback] {
            assert_eq!(
                link_of(&device(2, "x", layer), NEW),
                Ok(Link::Ethernet),
                "{layer}"
            );
        }
        for layer in [L::None, L::Rawip, L::Ppp, L::Tunnel, L::Tunnel6, L::Sit] {
            assert_eq!(
                link_of(&device(2, "x", layer), NEW),
                Ok(Link::Bare),
                "{layer}"
            );
        }
        for layer in [
            L::Can,
            L::Infiniband,
            L::Netlink,
            L::Void,
            L::Ieee80211Radiotap,
            L::Pimreg,
        ] {
            assert!(link_of(&device(2, "x", layer), NEW).is_err(), "{layer}");
        }
    }

    #[test]
    fn gre_needs_one_peer() {
        for layer in [LinkLayerType::Ipgre, LinkLayerType::Ip6gre] {
            let mut tunnel = device(2, "gre1", layer);
            assert!(link_of(&tunnel, NEW).is_err(), "no remote");
            tunnel.flags = LinkFlags::Pointopoint;
            assert_eq!(link_of(&tunnel, NEW), Ok(Link::Bare));
            tunnel.flags |= LinkFlags::Broadcast;
            assert!(link_of(&tunnel, NEW).is_err(), "multicast");
        }
    }

    #[test]
    fn tunnels_need_the_kernel_that_resets_their_header() {
        let sit = of_kind(device(2, "sit1", LinkLayerType::Sit), InfoKind::SitTun);
        assert!(link_of(&sit, OLD).unwrap_err().contains("5.14"));
        assert_eq!(link_of(&sit, NEW), Ok(Link::Bare));
        let tun = of_kind(device(2, "tun0", LinkLayerType::None), InfoKind::Tun);
        assert_eq!(link_of(&tun, OLD), Ok(Link::Bare));
    }

    #[test]
    fn kinds_that_would_mislead_are_left_out() {
        let ifb = of_kind(ether(2, "ifb0"), InfoKind::Ifb);
        assert!(link_of(&ifb, NEW).unwrap_err().contains("ifb"));
        let ipsec = of_kind(device(2, "ipsec0", LinkLayerType::None), InfoKind::Xfrm);
        assert!(link_of(&ipsec, NEW).is_err());
    }

    #[test]
    fn ports_are_left_out_and_members_of_a_vrf_stay() {
        for kind in [
            InfoKind::Bridge,
            InfoKind::Bond,
            InfoKind::Team,
            other_kind("openvswitch"),
        ] {
            let all = [port(ether(2, "eth0"), 3), of_kind(ether(3, "top"), kind)];
            let why = classify(&all[0], &all, NEW).unwrap_err();
            assert_eq!(why, Why::Port("top".to_owned()));
            assert!(classify(&all[1], &all, NEW).is_ok());
        }
        let all = [
            port(ether(2, "eth0"), 3),
            of_kind(ether(3, "red"), InfoKind::Vrf),
        ];
        assert!(all.iter().all(|device| classify(device, &all, NEW).is_ok()));
    }

    #[test]
    fn a_master_out_of_sight_still_makes_a_port() {
        let all = [port(ether(2, "eth0"), 9)];
        let why = classify(&all[0], &all, NEW).unwrap_err();
        assert_eq!(why, Why::Port("interface 9".to_owned()));
    }

    #[test]
    fn a_veth_leads_out_where_its_other_end_is_elsewhere() {
        let leads_out = |kind: InfoKind, linked_away| {
            let mut facts = of_kind(ether(2, "veth0"), kind);
            facts.linked_away = linked_away;
            classify(&facts, &[], NEW).map(|device| device.leads_out)
        };
        assert_eq!(leads_out(InfoKind::Veth, true), Ok(true));
        assert_eq!(leads_out(InfoKind::Veth, false), Ok(false));
        assert_eq!(leads_out(InfoKind::MacVlan, true), Ok(false));
    }

    #[test]
    fn only_lo_is_loopback() {
        let mut lo = device(1, "lo", LinkLayerType::Loopback);
        lo.flags = LinkFlags::Loopback;
        let all = [lo, ether(2, "eth0")];
        assert!(classify(&all[0], &all, NEW).unwrap().loopback);
        assert!(!classify(&all[1], &all, NEW).unwrap().loopback);
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_that_exist() {
        let all = [
            ether(1, "lo"),
            port(ether(2, "eth0"), 3),
            of_kind(ether(3, "br0"), InfoKind::Bridge),
        ];
        let error = find(&all, NEW, "eth9").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.to_string(),
            "interface eth9 does not exist here; there is lo, br0"
        );
    }

    #[test]
    fn a_port_is_answered_with_its_master() {
        let bond = port(of_kind(ether(3, "bond0"), InfoKind::Bond), 4);
        let vrf = of_kind(ether(5, "red"), InfoKind::Vrf);
        let bridge = port(of_kind(ether(4, "br0"), InfoKind::Bridge), 5);
        let all = [port(ether(2, "eth0"), 3), bond, bridge, vrf];
        let message = find(&all, NEW, "eth0").unwrap_err().to_string();
        assert!(
            message.contains("port of bond0") && message.contains("name br0"),
            "{message}"
        );
        assert_eq!(find(&all, NEW, "br0").unwrap().index, 4);
    }

    #[test]
    fn an_alternative_name_finds_the_device() {
        let mut long = ether(2, "eth0");
        long.other_names.push("enp0s31f6".to_owned());
        assert_eq!(find(&[long], NEW, "enp0s31f6").unwrap().name, "eth0");
    }

    #[test]
    fn our_own_address_is_told_from_the_peers() {
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        let peer: IpAddr = "10.0.0.2".parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.index = 4;
        message.attributes = vec![
            AddressAttribute::Address(peer),
            AddressAttribute::Local(own),
        ];
        assert_eq!(address_of(&message), Some((own, 4)));
        message.attributes = vec![AddressAttribute::Address(own)];
        assert_eq!(address_of(&message), Some((own, 4)));
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Dadfailed));
        assert_eq!(address_of(&message), None);
    }
}
