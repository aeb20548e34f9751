//! Who forwards in the host's namespace, and how each is set up.

pub mod conntrack;
pub mod portfwd;
pub mod rivals;
pub mod rules;
pub mod yardstick;

use anyhow::Result;

use self::rules::{Nat, Rules};
use portfwd_tests::Portfwd;

use crate::{remote::Traffic, site::Site, yard::Yard};

/// What stands in the host's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarder {
    /// Nothing: the host itself is the sink.
    Direct,
    /// The kernel's routing, without NAT.
    Plain,
    /// The fixed rewrite at XDP.
    YardstickXdp,
    /// The fixed rewrite at TC ingress.
    YardstickTc,
    /// nftables, one rule with a map of all ports.
    NftMap,
    /// nftables, a rule for each port.
    NftChain,
    /// iptables, a rule for each port.
    Iptables,
    /// `portfwd --mode tc`.
    PortfwdTc,
    /// `portfwd --mode xdp`.
    PortfwdXdp,
}

impl Forwarder {
    /// In tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Plain => "plain forwarding",
            Self::YardstickXdp => "yardstick XDP",
            Self::YardstickTc => "yardstick TC",
            Self::NftMap => "nft map",
            Self::NftChain => "nft chain",
            Self::Iptables => "iptables",
            Self::PortfwdTc => "portfwd TC",
            Self::PortfwdXdp => "portfwd XDP",
        }
    }

    /// Whether it rewrites: else clients dial the target itself.
    pub const fn translates(self) -> bool {
        !matches!(self, Self::Direct | Self::Plain)
    }

    /// Whether it remembers flows, which then have to be two-way.
    pub const fn remembers(self) -> bool {
        matches!(self, Self::NftMap | Self::NftChain | Self::Iptables) || self.is_portfwd()
    }

    /// Whether it is portfwd.
    pub const fn is_portfwd(self) -> bool {
        matches!(self, Self::PortfwdTc | Self::PortfwdXdp)
    }

    /// Whether it can take part here.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn available(self) -> Result<(), String> {
        match self {
            Self::PortfwdXdp => portfwd::takes_xdp(),
            Self::NftMap | Self::NftChain => rivals::is_there("nft"),
            Self::Iptables => rivals::is_there("iptables-restore"),
            _ => Ok(()),
        }
    }

    /// Sets it up in the site's host for so many flows at most. What is
    /// dropped undoes it, unless the site's end does.
    ///
    /// # Errors
    ///
    /// The kernel refuses something.
    pub fn set_up(self, site: &Site, rules: Rules, nat: Nat, flows: u32) -> Result<Guard> {
        match self {
            Self::Direct => {}
            Self::Plain => site.route(),
            Self::YardstickXdp | Self::YardstickTc => {
                return Ok(yardstick::set_up(self, site, rules)?.into());
            }
            Self::NftMap => rivals::nft_map(site, rules, nat),
            Self::NftChain => rivals::nft_chain(site, rules, nat),
            Self::Iptables => rivals::iptables(site, rules, nat),
            Self::PortfwdTc | Self::PortfwdXdp => {
                return Ok(portfwd::start(self, site, rules, nat, flows).into());
            }
        }
        Ok(Guard::default())
    }
}

impl Forwarder {
    /// The same, and portfwd has room for exactly the traffic's flows.
    ///
    /// # Errors
    ///
    /// The kernel refuses something.
    pub fn set_up_exactly(self, site: &Site, traffic: Traffic) -> Result<Guard> {
        let Traffic {
            rules, nat, room, ..
        } = traffic;
        match self {
            Self::PortfwdTc | Self::PortfwdXdp => {
                Ok(portfwd::start_with_room(self, site, rules, nat, room).into())
            }
            _ => self.set_up(site, rules, nat, room),
        }
    }
}

/// What undoes a forwarder, as far as the end of its namespace does not.
#[derive(Default)]
pub struct Guard {
    /// Programs of the benchmark: the way there and the way back.
    _yardstick: Option<[Yard; 2]>,
    /// The process.
    _portfwd: Option<Portfwd>,
}

impl From<[Yard; 2]> for Guard {
    fn from(yards: [Yard; 2]) -> Self {
        Self {
            _yardstick: Some(yards),
            ..Self::default()
        }
    }
}

impl From<Portfwd> for Guard {
    fn from(portfwd: Portfwd) -> Self {
        Self {
            _portfwd: Some(portfwd),
            ..Self::default()
        }
    }
}
