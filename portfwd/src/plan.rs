//! Rules to what the kernel reads: classes of ports, claims, rules, targets.
//!
//! The datapath never compares rules. The 65,536 ports of a protocol are cut
//! into classes, intervals in which the same rules win, and each class has at
//! most one claim for each listen address and one for every other address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};
use portfwd_common::{
    Addr, ClaimKey, Family, FromKey, PortEntry, Proto, RuleEntry, TargetEntry,
    rule::{MAX_CLAIMS, MAX_FROM, MAX_RULES, MAX_TARGETS, MAX_TARGETS_PER_RULE},
};

use crate::{
    Error,
    rule::{PortRange, Rule, RuleSpec, Target, proto_name},
};

const PROTOS: [Proto; Proto::COUNT as usize] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

/// How TCP reaches a socket of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpMechanism {
    /// The kernel steers to every listener: TCP is never rewritten.
    Steer,
    /// Steered, and rewritten where a listener refuses to be steered to.
    SteerOrRewrite,
    /// Always rewritten.
    Rewrite,
}

/// The contents of the rule maps. A rule's slot is its place in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Every port that is not 0 in the port table: sorted, without overlap.
    pub ports: Vec<PortSpan>,
    /// Who claims what, written for bank 0, and the slot of the rule.
    pub claims: Vec<(ClaimKey, u32)>,
    /// The rules by slot, each of generation 1.
    pub rules: Vec<RuleEntry>,
    /// The targets of all rules.
    pub targets: Vec<TargetEntry>,
    /// The other hosts among them, sorted, none twice.
    pub remotes: Vec<Addr>,
    /// The sources of the rules that list any: prefix length and key.
    pub from: Vec<(u32, FromKey)>,
}

/// Neighbouring ports with the same entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortSpan {
    /// Protocol of the ports.
    pub proto: Proto,
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// The entry of each of them; never 0.
    pub entry: PortEntry,
}

/// Whether the rules can stand beside each other and fit the maps.
///
/// # Errors
///
/// [`Error::Text`] where two rules claim the same, cross or share a name, both
/// named; [`Error::Machine`] where a limit is passed, the limit named.
pub fn check(specs: &[RuleSpec]) -> Result<(), Error> {
    counts_fit(specs)?;
    names_differ(specs)?;
    claims_differ(specs)?;
    let room = MAX_CLAIMS / 2;
    // How packets are carried changes no claim.
    let carried = Carried {
        tcp: TcpMechanism::Steer,
        remote: &vec![false; specs.len()],
    };
    match Cut::new(specs, carried, room as usize) {
        Some(_) => Ok(()),
        None => Err(Error::machine(format!(
            "the rules make more than the {room} claims that a forwarder holds, one for each \
             listen address in each interval of ports; use fewer listen addresses or fewer ranges"
        ))),
    }
}

/// Lays out rules that [`check`] accepts. `place` tells where each target of a
/// rule is: a socket of this host, or another host and the way there. The
/// targets of one rule are all of one kind.
pub fn plan(
    specs: &[RuleSpec],
    tcp: TcpMechanism,
    place: impl Fn(&RuleSpec, &Target) -> TargetEntry,
) -> Plan {
    let placed: Vec<Vec<TargetEntry>> = specs
        .iter()
        .map(|spec| spec.rule.targets.iter().map(|t| place(spec, t)).collect())
        .collect();
    let is_remote = |targets: &Vec<TargetEntry>| !targets.iter().all(TargetEntry::is_local);
    let remote: Vec<bool> = placed.iter().map(is_remote).collect();
    let carried = Carried {
        tcp,
        remote: &remote,
    };
    // With room for everything there is always a cut.
    let cut = Cut::new(specs, carried, usize::MAX).unwrap_or_default();
    let mut plan = Plan {
        ports: cut.ports,
        claims: cut.claims,
        rules: Vec::with_capacity(specs.len()),
        targets: Vec::with_capacity(specs.len()),
        remotes: Vec::new(),
        from: Vec::new(),
    };
    for ((slot, spec), targets) in (0..).zip(specs).zip(placed) {
        let first_target = plan.targets.len() as u32;
        plan.rules.push(rule_entry(spec, first_target, tcp));
        plan.targets.extend(targets);
        plan.from.extend(sources(slot, &spec.from));
    }
    plan.remotes = remotes(&plan.targets);
    plan
}

fn remotes(targets: &[TargetEntry]) -> Vec<Addr> {
    let remote = targets.iter().filter(|target| !target.is_local());
    let unique: BTreeSet<Addr> = remote.map(|target| target.addr).collect();
    unique.into_iter().collect()
}

fn counts_fit(specs: &[RuleSpec]) -> Result<(), Error> {
    let ranges = "write neighbouring ports as one range";
    fits("rules", specs.len(), MAX_RULES, ranges)?;
    for RuleSpec { rule, .. } in specs {
        let targets = rule.targets.len();
        if targets > MAX_TARGETS_PER_RULE as usize {
            return Err(Error::machine(format!(
                "rule `{rule}`: {targets} targets are more than the {MAX_TARGETS_PER_RULE} \
                 that a rule holds; leave some out"
            )));
        }
    }
    let targets = specs.iter().map(|spec| spec.rule.targets.len()).sum();
    fits("targets", targets, MAX_TARGETS, "leave some out")?;
    let from = specs.iter().map(|spec| sources(0, &spec.from).len()).sum();
    let wider = "list fewer and wider prefixes";
    fits("source prefixes", from, MAX_FROM, wider)
}

fn fits(what: &str, count: usize, limit: u32, hint: &str) -> Result<(), Error> {
    if count <= limit as usize {
        return Ok(());
    }
    Err(Error::machine(format!(
        "{count} {what} are more than the {limit} that a forwarder holds; {hint}"
    )))
}

fn names_differ(specs: &[RuleSpec]) -> Result<(), Error> {
    let mut named: HashMap<&str, &Rule> = HashMap::new();
    for spec in specs {
        let Some(name) = spec.name.as_deref() else {
            continue;
        };
        if let Some(other) = named.insert(name, &spec.rule) {
            return Err(Error::text(format!(
                "rules `{other}` and `{}` have the same name `{name}`; give one another name",
                spec.rule
            )));
        }
    }
    Ok(())
}

/// Addresses of one family that a rule listens on: one, or every one
/// ([`Addr::UNSPECIFIED`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Listen {
    family: Family,
    addr: Addr,
}

impl Listen {
    /// Both families, unless the rule has an address: then that one's.
    fn of(rule: &Rule) -> Vec<Self> {
        if let Some(listen) = rule.listen {
            let addr = Addr::from(listen);
            let family = addr.family();
            return vec![Self { family, addr }];
        }
        let every = |family| Self {
            family,
            addr: Addr::UNSPECIFIED,
        };
        match rule.targets.iter().find_map(|target| target.addr) {
            Some(addr) => vec![every(Addr::from(addr).family())],
            None => vec![every(Family::V4), every(Family::V6)],
        }
    }
}

/// Refuses rules with one protocol and one listen address whose ranges are the
/// same or cross.
fn claims_differ(specs: &[RuleSpec]) -> Result<(), Error> {
    let mut claims: BTreeMap<(Proto, Listen), Vec<&Rule>> = BTreeMap::new();
    for RuleSpec { rule, .. } in specs {
        for listen in Listen::of(rule) {
            for proto in rule.protos.iter() {
                claims.entry((proto, listen)).or_default().push(rule);
            }
        }
    }
    for ((proto, _), mut rules) in claims {
        // A stable sort: of two equal ranges the one typed first comes first.
        rules.sort_by_key(|rule| (rule.ports.first, Reverse(rule.ports.last)));
        nested(proto, &rules)?;
    }
    Ok(())
}

/// Walks ranges sorted by first port, the wider before the narrower, with those
/// that are open on a stack: each one must lie within the top.
fn nested(proto: Proto, rules: &[&Rule]) -> Result<(), Error> {
    let mut open: Vec<&Rule> = Vec::new();
    for rule in rules {
        while open
            .pop_if(|top| top.ports.last < rule.ports.first)
            .is_some()
        {}
        if let Some(top) = open.last() {
            if top.ports == rule.ports {
                return Err(same_claim(proto, top, rule));
            }
            if top.ports.last < rule.ports.last {
                return Err(crossing(proto, top, rule));
            }
        }
        open.push(rule);
    }
    Ok(())
}

fn same_claim(proto: Proto, one: &Rule, other: &Rule) -> Error {
    Error::text(format!(
        "rules `{one}` and `{other}` claim the same {} {}; leave one out",
        proto_name(proto),
        ports_word(one.ports)
    ))
}

fn crossing(proto: Proto, lower: &Rule, upper: &Rule) -> Error {
    let both = PortRange {
        first: upper.ports.first,
        last: lower.ports.last,
    };
    Error::text(format!(
        "rules `{lower}` and `{upper}` cross at {} {}; \
         take these ports out of one rule, or put one range inside the other",
        proto_name(proto),
        ports_word(both)
    ))
}

fn ports_word(ports: PortRange) -> String {
    match ports.count() {
        1 => format!("port {ports}"),
        _ => format!("ports {ports}"),
    }
}

/// The ports of every protocol, cut into classes.
#[derive(Default)]
struct Cut {
    ports: Vec<PortSpan>,
    claims: Vec<(ClaimKey, u32)>,
    classes: u32,
}

impl Cut {
    /// `None` where more claims than `room` are needed.
    fn new(specs: &[RuleSpec], carried: Carried<'_>, room: usize) -> Option<Self> {
        let mut cut = Self::default();
        for proto in PROTOS {
            cut.sweep(specs, proto, carried, room)?;
        }
        Some(cut)
    }

    /// Walks the ports of a protocol from edge to edge; what holds between two
    /// edges is one span.
    fn sweep(
        &mut self,
        specs: &[RuleSpec],
        proto: Proto,
        carried: Carried<'_>,
        room: usize,
    ) -> Option<()> {
        let edges = edges(specs, proto, carried);
        let mut open = Open::default();
        let mut classes: HashMap<Winners, PortEntry> = HashMap::new();
        let mut entry = PortEntry::default();
        for (index, edge) in edges.iter().enumerate() {
            open.step(specs, edge.step);
            let next = edges.get(index + 1).map_or(edge.port, |next| next.port);
            if next == edge.port {
                continue;
            }
            if std::mem::take(&mut open.changed) {
                entry = self.class(&mut classes, open.winners(), proto, carried);
                if self.claims.len() > room {
                    return None;
                }
            }
            self.push(PortSpan {
                proto,
                // Between two edges lie ports from 0 to 65535.
                first: edge.port as u16,
                last: (next - 1) as u16,
                entry: PortEntry(entry.0 | open.target_bits()),
            });
        }
        Some(())
    }

    /// The class where these rules win, with its claims if it is a new one.
    fn class(
        &mut self,
        known: &mut HashMap<Winners, PortEntry>,
        winners: Winners,
        proto: Proto,
        carried: Carried<'_>,
    ) -> PortEntry {
        if winners.is_empty() {
            return PortEntry::default();
        }
        if let Some(entry) = known.get(&winners) {
            return *entry;
        }
        self.classes += 1;
        let mut entry = self.classes;
        if winners
            .iter()
            .any(|(_, slot)| carried.tracked(proto, *slot))
        {
            entry |= PortEntry::TRACKED;
        }
        for (listen, slot) in &winners {
            entry |= match listen.addr.is_unspecified() {
                true => PortEntry::PROBE_ANY,
                false => PortEntry::PROBE_ADDR,
            };
            let key = ClaimKey {
                addr: listen.addr,
                class: self.classes,
                bank: 0,
                proto: proto as u8,
                family: listen.family as u8,
                reserved: 0,
            };
            self.claims.push((key, *slot));
        }
        known.insert(winners, PortEntry(entry));
        PortEntry(entry)
    }

    fn push(&mut self, span: PortSpan) {
        if span.entry == PortEntry::default() {
            return;
        }
        if let Some(before) = self.ports.last_mut() {
            let adjoins = before.last.checked_add(1) == Some(span.first);
            if adjoins && before.proto == span.proto && before.entry == span.entry {
                before.last = span.last;
                return;
            }
        }
        self.ports.push(span);
    }
}

/// How the packets of rules are carried.
#[derive(Clone, Copy)]
struct Carried<'a> {
    tcp: TcpMechanism,
    /// By slot: the rule's targets are on other hosts.
    remote: &'a [bool],
}

impl Carried<'_> {
    /// True when packets of a rule may be rewritten. A rule that keeps address
    /// and port counts too: its replies must be known as such.
    fn tracked(self, proto: Proto, slot: u32) -> bool {
        proto != Proto::Tcp || self.tcp != TcpMechanism::Steer || self.is_remote(slot)
    }

    fn is_remote(self, slot: u32) -> bool {
        self.remote[slot as usize]
    }
}

/// A port at which something begins or ends; 65,536 is behind the last one.
struct Edge {
    port: u32,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    Close(u32),
    Open(u32),
    TargetEnd(Side),
    TargetStart(Side),
}

/// Where a target port is.
#[derive(Clone, Copy)]
enum Side {
    Here,
    Elsewhere,
}

/// Every edge of a protocol. At one port rules close before others open, the
/// narrower before the wider, and open the other way round.
fn edges(specs: &[RuleSpec], proto: Proto, carried: Carried<'_>) -> Vec<Edge> {
    let mut edges = Vec::new();
    for (slot, RuleSpec { rule, .. }) in (0..).zip(specs) {
        if !rule.protos.contains(proto) {
            continue;
        }
        around(&mut edges, rule.ports, Step::Open(slot), Step::Close(slot));
        if carried.tracked(proto, slot) {
            let side = match carried.is_remote(slot) {
                true => Side::Elsewhere,
                false => Side::Here,
            };
            for target in &rule.targets {
                let ports = target.ports.unwrap_or(rule.ports);
                around(
                    &mut edges,
                    ports,
                    Step::TargetStart(side),
                    Step::TargetEnd(side),
                );
            }
        }
    }
    let ports = |slot: u32| specs[slot as usize].rule.ports;
    edges.sort_by_key(|edge| match edge.step {
        Step::Close(slot) => (edge.port, 0, Reverse(ports(slot).first)),
        Step::Open(slot) => (edge.port, 1, Reverse(ports(slot).last)),
        Step::TargetEnd(_) | Step::TargetStart(_) => (edge.port, 2, Reverse(0)),
    });
    edges
}

fn around(edges: &mut Vec<Edge>, ports: PortRange, start: Step, end: Step) {
    let [first, last] = [ports.first, ports.last].map(u32::from);
    edges.push(Edge {
        port: first,
        step: start,
    });
    edges.push(Edge {
        port: last + 1,
        step: end,
    });
}

/// The rule that wins on each listen address.
type Winners = Vec<(Listen, u32)>;

/// What holds at the port that the sweep has reached.
#[derive(Default)]
struct Open {
    /// The rules of each listen address, the narrowest last.
    rules: BTreeMap<Listen, Vec<u32>>,
    /// How many ranges of target ports of this host.
    here: usize,
    /// How many of other hosts.
    elsewhere: usize,
    /// A rule has opened or closed.
    changed: bool,
}

impl Open {
    fn step(&mut self, specs: &[RuleSpec], step: Step) {
        match step {
            Step::Open(slot) => {
                for listen in Listen::of(&specs[slot as usize].rule) {
                    self.rules.entry(listen).or_default().push(slot);
                }
                self.changed = true;
            }
            Step::Close(slot) => {
                for listen in Listen::of(&specs[slot as usize].rule) {
                    self.close(listen, slot);
                }
                self.changed = true;
            }
            Step::TargetStart(side) => *self.targets(side) += 1,
            Step::TargetEnd(side) => *self.targets(side) -= 1,
        }
    }

    fn targets(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Here => &mut self.here,
            Side::Elsewhere => &mut self.elsewhere,
        }
    }

    fn target_bits(&self) -> u32 {
        let bit = |bit, ranges| if ranges > 0 { bit } else { 0 };
        bit(PortEntry::TARGET, self.here) | bit(PortEntry::REMOTE, self.elsewhere)
    }

    fn close(&mut self, listen: Listen, slot: u32) {
        let Some(rules) = self.rules.get_mut(&listen) else {
            return;
        };
        // Nested rules close in the order of the stack.
        if rules.pop_if(|top| *top == slot).is_none() {
            rules.retain(|open| *open != slot);
        }
        if rules.is_empty() {
            self.rules.remove(&listen);
        }
    }

    fn winners(&self) -> Winners {
        let narrowest = |(listen, rules): (&Listen, &Vec<u32>)| Some((*listen, *rules.last()?));
        self.rules.iter().filter_map(narrowest).collect()
    }
}

fn rule_entry(spec: &RuleSpec, first_target: u32, tcp: TcpMechanism) -> RuleEntry {
    let rule = &spec.rule;
    let target = rule.targets.first().and_then(|target| target.ports);
    let target = target.unwrap_or(rule.ports);
    let mut flags = 0;
    if !spec.from.is_empty() {
        flags |= RuleEntry::HAS_FROM;
    }
    if tcp == TcpMechanism::Rewrite && rule.protos.contains(Proto::Tcp) {
        flags |= RuleEntry::REWRITE_TCP;
    }
    RuleEntry {
        listen_first: rule.ports.first,
        target_first: target.first,
        offset_mask: if target.count() == 1 { 0 } else { u16::MAX },
        flags,
        targets: first_target,
        n_targets: rule.targets.len() as u32,
        generation: 1,
    }
}

/// Prefixes and keys of the sources that a rule serves, none twice.
fn sources(slot: u32, from: &[IpNet]) -> Vec<(u32, FromKey)> {
    let mut seen = HashSet::new();
    let mut sources = Vec::new();
    for net in from {
        match net.trunc() {
            IpNet::V4(net) => {
                let bits = MAPPED_V4.prefix_len() + net.prefix_len();
                sources.push(source(slot, bits, net.network().into()));
            }
            IpNet::V6(net) => {
                let parts = without_v4(net).into_iter();
                sources.extend(parts.map(|net| {
                    let addr = net.network().into();
                    source(slot, net.prefix_len(), addr)
                }));
            }
        }
    }
    sources.retain(|source| seen.insert(*source));
    sources
}

fn source(slot: u32, bits: u8, addr: IpAddr) -> (u32, FromKey) {
    let key = FromKey {
        slot: slot.to_be(),
        addr: addr.into(),
    };
    (FromKey::prefix_len(bits.into()), key)
}

/// Where IPv4 lies among the addresses of the source table.
const MAPPED_V4: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// An IPv6 prefix without the corner in which the source table keeps IPv4, so
/// that `::/0` is every IPv6 source and no other.
fn without_v4(net: Ipv6Net) -> Vec<Ipv6Net> {
    let corner = MAPPED_V4.prefix_len();
    if net.prefix_len() >= corner || !net.contains(&MAPPED_V4) {
        return vec![net];
    }
    // On the way down to the corner, the half beside each step.
    let steps = net.prefix_len() + 1..=corner;
    let beside = steps.map(|length| {
        let bits = MAPPED_V4.network().to_bits() ^ (1 << (128 - u32::from(length)));
        Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length).trunc()
    });
    beside.collect()
}

#[cfg(test)]
mod tests;
