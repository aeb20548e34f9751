//! Rules: what was typed, read into one type that prints back as it is typed.
//!
//! A rule is `[LISTEN:]PORTS:(PORTS | TARGET[:PORTS])[,…][/PROTO]`. Reading
//! and printing are inverse: what a rule prints reads back as the same rule.

mod address;
mod firewalld;
mod later;
mod print;
mod sources;
mod text;
mod valid;

use std::net::IpAddr;

use ipnet::IpNet;
pub use later::not_yet;
pub use portfwd_common::Proto;
pub use print::proto_name;
pub use sources::{check_sources, source};

/// One rule: which ports of which address go where.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// The address that clients dial; `None` is `*`, every unicast address of
    /// this host.
    pub listen: Option<IpAddr>,
    /// The ports that clients dial.
    pub ports: PortRange,
    /// Where packets go; at least one. Several are all on other hosts and of
    /// one family.
    pub targets: Vec<Target>,
    /// The protocols that the rule holds for.
    pub protos: Protos,
}

impl Rule {
    /// The addresses in the rule, the listen address first.
    fn addrs(&self) -> impl Iterator<Item = IpAddr> {
        let targets = self.targets.iter().filter_map(|target| target.addr);
        self.listen.into_iter().chain(targets)
    }
}

/// One target of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// `None` is this host, at the address that was dialled.
    pub addr: Option<IpAddr>,
    /// As many ports as the rule listens on (the offset is kept), or one for
    /// all. `None` keeps the dialled port; only a target with an address may.
    pub ports: Option<PortRange>,
    /// Share of new connections among the targets, at least 1.
    pub weight: u16,
}

/// Ports from the first to the last, both included, neither of them 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not before the first.
    pub last: u16,
}

impl PortRange {
    /// How many ports there are.
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// True when the port is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Protocols in the order in which they were typed: at least one, none twice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Protos(Vec<Proto>);

impl Protos {
    /// The protocols in this order; `None` where there is none or one is there
    /// twice.
    pub fn new(protos: &[Proto]) -> Option<Self> {
        let twice = |(index, proto)| protos[..index].contains(proto);
        let valid = !protos.is_empty() && !protos.iter().enumerate().any(twice);
        valid.then(|| Self(protos.to_vec()))
    }

    /// The protocols in the order in which they were typed.
    pub fn iter(&self) -> impl Iterator<Item = Proto> {
        self.0.iter().copied()
    }

    /// True when the protocol is one of them.
    pub fn contains(&self, proto: Proto) -> bool {
        self.0.contains(&proto)
    }
}

impl Default for Protos {
    fn default() -> Self {
        Self(vec![Proto::Tcp])
    }
}

/// A rule with the options that were given for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleSpec {
    /// The rule itself.
    pub rule: Rule,
    /// `--name`: unique among the rules of a forwarder.
    pub name: Option<String>,
    /// `--from`: the sources that are served; empty is everyone.
    pub from: Vec<IpNet>,
    /// `--nat`.
    pub nat: Nat,
}

impl From<Rule> for RuleSpec {
    /// The rule without a name, for every source.
    fn from(rule: Rule) -> Self {
        Self {
            rule,
            name: None,
            from: Vec::new(),
            nat: Nat::Auto,
        }
    }
}

/// What becomes of the client's address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Nat {
    /// Kept where the reply is sure to come back through this host.
    #[default]
    Auto,
    /// Always replaced by an address of this host.
    Masquerade,
    /// Always kept.
    Preserve,
}
