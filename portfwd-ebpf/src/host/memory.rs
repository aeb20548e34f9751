//! The maps as hash maps of the standard library.
//!
//! What the corridor is lent is leaked: an entry that was found must stay
//! readable while the table changes, as the kernel keeps it until the program
//! ends. A change makes a new entry, so a reference shows the entry as it was
//! when it was found.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    ops::RangeInclusive,
};

use portfwd_common::{
    Addr, ClaimKey, Family, Flow, FlowKey, FromKey, PortEntry, Proto, RuleCounters, RuleEntry,
    TargetEntry, Timeouts, Verdict,
};

use crate::{
    packet::{Packet, Tuple},
    place::Placement,
    tables::{Count, Draft, NotInserted, Table, Tables},
};

/// What a flow table does with an entry that it has no room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// It takes the place of the entry that was used least recently.
    Evict,
    /// It is refused.
    Refuse,
}

/// A rule in words; [`Memory::add`] writes it into the tables.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Protocol.
    pub proto: Proto,
    /// Listen address, or [`Addr::UNSPECIFIED`] for every address.
    pub addr: Addr,
    /// Listen ports.
    pub ports: RangeInclusive<u16>,
    /// Target address, or [`Addr::UNSPECIFIED`] for the one that was dialled.
    pub target: Addr,
    /// First target port.
    pub to: u16,
    /// Every listen port goes to the one target port.
    pub to_one: bool,
    /// The rule's TCP is rewritten.
    pub rewrites_tcp: bool,
    /// Sources and the length of their prefix among the 128 bits; none: all.
    pub from: Vec<(Addr, u32)>,
    /// The rule's generation.
    pub generation: u32,
}

impl Forward {
    /// `ports:to/udp`.
    pub const fn udp(ports: RangeInclusive<u16>, to: u16) -> Self {
        Self {
            proto: Proto::Udp,
            addr: Addr::UNSPECIFIED,
            ports,
            target: Addr::UNSPECIFIED,
            to,
            to_one: false,
            rewrites_tcp: false,
            from: Vec::new(),
            generation: 1,
        }
    }

    /// `ports:to/tcp`.
    pub const fn tcp(ports: RangeInclusive<u16>, to: u16) -> Self {
        let mut forward = Self::udp(ports, to);
        forward.proto = Proto::Tcp;
        forward
    }

    /// The same with TCP rewritten.
    pub const fn rewriting(mut self) -> Self {
        self.rewrites_tcp = true;
        self
    }

    /// The same on one listen address.
    pub const fn on(mut self, addr: Addr) -> Self {
        self.addr = addr;
        self
    }

    /// The same with another target address.
    pub const fn at(mut self, target: Addr) -> Self {
        self.target = target;
        self
    }

    /// The same with every port sent to the first target port.
    pub const fn to_one(mut self) -> Self {
        self.to_one = true;
        self
    }

    /// The same with `addr` and the prefix of `bits` of its 128 among its
    /// sources.
    pub fn from(mut self, addr: Addr, bits: u32) -> Self {
        self.from.push((addr, bits));
        self
    }

    const fn target_port(&self, port: u16) -> u16 {
        self.entry(0).target_port(port)
    }

    const fn entry(&self, slot: u32) -> RuleEntry {
        let mut flags = 0;
        if self.rewrites_tcp {
            flags |= RuleEntry::REWRITE_TCP;
        }
        if !self.from.is_empty() {
            flags |= RuleEntry::HAS_FROM;
        }
        RuleEntry {
            listen_first: *self.ports.start(),
            target_first: self.to,
            offset_mask: if self.to_one { 0 } else { 0xffff },
            flags,
            targets: slot,
            n_targets: 1,
            generation: self.generation,
        }
    }

    fn families(&self) -> &'static [Family] {
        match (self.addr.is_unspecified(), self.target.is_unspecified()) {
            (true, true) => &[Family::V4, Family::V6],
            (true, false) => family(&self.target),
            (false, _) => family(&self.addr),
        }
    }
}

const fn family(addr: &Addr) -> &'static [Family] {
    match addr.family() {
        Family::V4 => &[Family::V4],
        Family::V6 => &[Family::V6],
    }
}

/// What runs in the middle of another walk: the other CPU.
type Interruption = Box<dyn FnOnce(&Memory)>;

/// One flow table.
#[derive(Default)]
struct Entries {
    flows: HashMap<FlowKey, &'static Flow>,
    /// When each entry was used last, by [`Memory::calls`].
    used: HashMap<FlowKey, u64>,
    capacity: usize,
}

/// The tables, filled by tests.
pub struct Memory {
    /// Seconds.
    pub clock: Cell<u32>,
    /// Bank in use.
    pub bank: Cell<u8>,
    /// TCP is steered where the rule allows it.
    pub steers: Cell<bool>,
    /// TCP flows exist.
    pub tracks_tcp: Cell<bool>,
    /// What both flow tables do when they are full.
    pub when_full: Cell<WhenFull>,
    /// Lifetimes of flows.
    pub timeouts: Cell<Timeouts>,
    /// Devices on which 127.0.0.0/8 is open.
    pub guarded: RefCell<Vec<u32>>,
    /// This host's addresses.
    pub own: RefCell<Vec<Addr>>,
    /// Calls on the flow tables so far.
    pub calls: Cell<u64>,
    ports: RefCell<HashMap<(u8, Proto, u16), PortEntry>>,
    claims: RefCell<HashMap<ClaimKey, u32>>,
    rules: RefCell<HashMap<u32, RuleEntry>>,
    targets: RefCell<HashMap<u32, TargetEntry>>,
    sources: RefCell<Vec<(u32, Addr, u32)>>,
    new: RefCell<Entries>,
    flows: RefCell<Entries>,
    foreign: RefCell<HashMap<FlowKey, u32>>,
    verdicts: RefCell<HashMap<Verdict, u64>>,
    counters: RefCell<HashMap<u32, RuleCounters>>,
    interruption: RefCell<Option<(u64, Interruption)>>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("new", &self.new.borrow().flows)
            .field("flows", &self.flows.borrow().flows)
            .field("foreign", &self.foreign.borrow())
            .finish_non_exhaustive()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// Empty tables with room for 4,096 entries each.
    pub fn new() -> Self {
        let entries = || {
            RefCell::new(Entries {
                capacity: 4_096,
                ..Entries::default()
            })
        };
        Self {
            clock: Cell::new(1_000),
            bank: Cell::new(0),
            steers: Cell::new(true),
            tracks_tcp: Cell::new(true),
            when_full: Cell::new(WhenFull::Evict),
            timeouts: Cell::new(Timeouts::DEFAULT),
            guarded: RefCell::default(),
            own: RefCell::default(),
            calls: Cell::new(0),
            ports: RefCell::default(),
            claims: RefCell::default(),
            rules: RefCell::default(),
            targets: RefCell::default(),
            sources: RefCell::default(),
            new: entries(),
            flows: entries(),
            foreign: RefCell::default(),
            verdicts: RefCell::default(),
            counters: RefCell::default(),
            interruption: RefCell::default(),
        }
    }

    /// Tables with rules in the slots 0, 1, … of bank 0.
    pub fn with(forwards: &[Forward]) -> Self {
        let memory = Self::new();
        for (slot, forward) in (0..).zip(forwards) {
            memory.add(slot, forward);
        }
        memory
    }

    /// Writes a rule into `slot` and the bank in use. Each port is a class of
    /// its own; where two rules claim one, the one that was written last wins.
    pub fn add(&self, slot: u32, forward: &Forward) {
        let bank = self.bank.get();
        self.rules.borrow_mut().insert(slot, forward.entry(slot));
        self.set_target(
            slot,
            TargetEntry {
                addr: forward.target,
                ifindex: 0,
                weight: 1,
                flags: TargetEntry::LOCAL,
            },
        );
        for (addr, bits) in &forward.from {
            self.sources.borrow_mut().push((slot, *addr, *bits));
        }
        let probe = match forward.addr.is_unspecified() {
            true => PortEntry::PROBE_ANY,
            false => PortEntry::PROBE_ADDR,
        };
        for port in forward.ports.clone() {
            let class = u32::from(port) + 1;
            self.mark(forward.proto, port, class | probe | PortEntry::TRACKED);
            self.mark(forward.proto, forward.target_port(port), PortEntry::TARGET);
            for family in forward.families() {
                let key = ClaimKey {
                    addr: forward.addr,
                    class,
                    bank,
                    proto: forward.proto as u8,
                    family: *family as u8,
                    reserved: 0,
                };
                self.claims.borrow_mut().insert(key, slot);
            }
        }
    }

    /// Sets bits of a port in the bank in use.
    pub fn mark(&self, proto: Proto, port: u16, bits: u32) {
        let mut ports = self.ports.borrow_mut();
        ports.entry((self.bank.get(), proto, port)).or_default().0 |= bits;
    }

    /// Writes a rule entry.
    pub fn set_rule(&self, slot: u32, rule: RuleEntry) {
        self.rules.borrow_mut().insert(slot, rule);
    }

    /// Writes a target entry.
    pub fn set_target(&self, index: u32, target: TargetEntry) {
        self.targets.borrow_mut().insert(index, target);
    }

    /// Takes the claims of a slot away; the bits of its ports stay, as they do
    /// in the kernel until the last flow ends.
    pub fn withdraw(&self, slot: u32) {
        self.claims.borrow_mut().retain(|_, of| *of != slot);
    }

    /// Lets time pass.
    pub fn wait(&self, seconds: u32) {
        self.clock.set(self.clock.get() + seconds);
    }

    /// Gives a flow table room for so many entries.
    pub fn set_capacity(&self, table: Table, entries: usize) {
        self.table(table).borrow_mut().capacity = entries;
    }

    /// Entries of a flow table.
    pub fn len(&self, table: Table) -> usize {
        self.table(table).borrow().flows.len()
    }

    /// True when no flow is known.
    pub fn is_empty(&self) -> bool {
        self.len(Table::New) + self.len(Table::Flows) == 0
    }

    /// Keys and entries of a flow table.
    pub fn entries(&self, table: Table) -> Vec<(FlowKey, Flow)> {
        let table = self.table(table).borrow();
        table
            .flows
            .iter()
            .map(|(key, flow)| (*key, **flow))
            .collect()
    }

    /// The foreign flows, by the tuple of their replies.
    pub fn foreigners(&self) -> Vec<FlowKey> {
        self.foreign.borrow().keys().copied().collect()
    }

    /// How often a verdict was counted.
    pub fn verdicts(&self, verdict: Verdict) -> u64 {
        let verdicts = self.verdicts.borrow();
        verdicts.get(&verdict).copied().unwrap_or_default()
    }

    /// What a rule was counted for.
    pub fn counters(&self, slot: u32) -> RuleCounters {
        let counters = self.counters.borrow();
        counters.get(&slot).copied().unwrap_or_default()
    }

    /// Lets another CPU run just before the call number `call` (from 0) on a
    /// flow table from now on.
    pub fn interrupt(&self, call: u64, other: impl FnOnce(&Self) + 'static) {
        let at = self.calls.get() + call;
        *self.interruption.borrow_mut() = Some((at, Box::new(other)));
    }

    /// Counts a call on a flow table, and gives the other CPU its turn.
    fn step(&self) {
        let call = self.calls.get();
        self.calls.set(call + 1);
        let due = self
            .interruption
            .borrow_mut()
            .take_if(|(at, _)| *at == call);
        if let Some((_, other)) = due {
            other(self);
        }
    }

    const fn table(&self, table: Table) -> &RefCell<Entries> {
        match table {
            Table::New => &self.new,
            Table::Flows => &self.flows,
        }
    }

    fn write(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        let mut entries = self.table(table).borrow_mut();
        let is_there = entries.flows.contains_key(key);
        if !is_there && entries.flows.len() >= entries.capacity {
            if self.when_full.get() == WhenFull::Refuse || entries.capacity == 0 {
                return Err(NotInserted::Full);
            }
            let oldest = entries.used.iter().min_by_key(|(_, call)| **call);
            let oldest = oldest.map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                entries.forget(&oldest);
            }
        }
        entries.used.insert(*key, self.calls.get());
        entries.flows.insert(*key, Box::leak(Box::new(*flow)));
        Ok(())
    }

    /// Changes an entry that is there.
    fn change(&self, table: Table, key: &FlowKey, change: impl FnOnce(&mut Flow)) -> bool {
        let mut entries = self.table(table).borrow_mut();
        let Some(flow) = entries.flows.get(key).copied() else {
            return false;
        };
        let mut flow = *flow;
        change(&mut flow);
        entries.used.insert(*key, self.calls.get());
        entries.flows.insert(*key, Box::leak(Box::new(flow)));
        true
    }
}

impl Entries {
    fn forget(&mut self, key: &FlowKey) -> bool {
        self.used.remove(key);
        self.flows.remove(key).is_some()
    }
}

impl Tables for Memory {
    fn now(&self) -> u32 {
        self.clock.get()
    }

    fn lifetime(&self, proto: u8, proven: bool) -> u32 {
        let timeouts = self.timeouts.get();
        match (proto == Proto::Tcp.number(), proven) {
            (true, false) => timeouts.tcp_half_open,
            (true, true) => timeouts.tcp_established,
            (false, false) => timeouts.udp_one_way,
            (false, true) => timeouts.udp_two_way,
        }
    }

    fn tracks_tcp(&self) -> bool {
        self.tracks_tcp.get()
    }

    fn steers(&self) -> bool {
        self.steers.get()
    }

    fn port(&self, proto: Proto, port: u16) -> PortEntry {
        let ports = self.ports.borrow();
        let entry = ports.get(&(self.bank.get(), proto, port));
        entry.copied().unwrap_or_default()
    }

    fn bank(&self) -> u8 {
        self.bank.get()
    }

    fn claim(&self, key: &ClaimKey) -> Option<u32> {
        self.claims.borrow().get(key).copied()
    }

    fn rule(&self, slot: u32) -> Option<RuleEntry> {
        self.rules.borrow().get(&slot).copied()
    }

    fn target(&self, index: u32) -> Option<TargetEntry> {
        self.targets.borrow().get(&index).copied()
    }

    fn lists(&self, key: &FromKey) -> bool {
        let slot = u32::from_be(key.slot);
        let addr = u128::from_be_bytes(key.addr.octets());
        self.sources.borrow().iter().any(|(of, prefix, bits)| {
            let prefix = u128::from_be_bytes(prefix.octets());
            let differs = (prefix ^ addr).checked_shr(128 - bits).unwrap_or_default();
            *of == slot && differs == 0
        })
    }

    fn is_own(&self, addr: &Addr) -> bool {
        self.own.borrow().contains(addr)
    }

    fn guards(&self, ifindex: u32) -> bool {
        self.guarded.borrow().contains(&ifindex)
    }

    fn flow(&self, table: Table, key: &FlowKey) -> Option<&Flow> {
        self.step();
        let mut entries = self.table(table).borrow_mut();
        let flow = entries.flows.get(key).copied()?;
        entries.used.insert(*key, self.calls.get());
        Some(flow)
    }

    fn insert(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        self.step();
        if self.table(table).borrow().flows.contains_key(key) {
            return Err(NotInserted::Exists);
        }
        self.write(table, key, flow)
    }

    fn put(&self, table: Table, key: &FlowKey, flow: &Flow) -> bool {
        self.step();
        self.write(table, key, flow).is_ok()
    }

    fn remove(&self, table: Table, key: &FlowKey) -> bool {
        self.step();
        self.table(table).borrow_mut().forget(key)
    }

    fn touch(&self, table: Table, key: &FlowKey, now: u32) -> bool {
        self.step();
        self.change(table, key, |flow| flow.seen = now)
    }

    fn mark(&self, table: Table, key: &FlowKey, flags: u16, isn: u32) {
        self.step();
        self.change(table, key, |flow| {
            flow.isn = isn;
            flow.flags = flags;
        });
    }

    fn foreign(&self, key: &FlowKey) -> Option<u32> {
        self.foreign.borrow().get(key).copied()
    }

    fn put_foreign(&self, key: &FlowKey, now: u32) {
        self.foreign.borrow_mut().insert(*key, now);
    }

    fn draft(&self, packet: &Packet) -> Option<&mut Draft> {
        let to = Tuple {
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            sport: 0,
            dport: 0,
        };
        Some(Box::leak(Box::new(Draft {
            packet: *packet,
            placement: Placement {
                to,
                slot: Flow::NO_RULE,
                generation: 0,
                flags: 0,
            },
            tried: 0,
            key: to.key(packet.proto, 0),
            flow: Flow {
                src: to.src,
                dst: to.dst,
                sport: 0,
                dport: 0,
                rule: Flow::NO_RULE,
                generation: 0,
                ifindex: 0,
                seen: 0,
                isn: 0,
                flags: 0,
                reserved: 0,
            },
        })))
    }

    fn count_rule(&self, slot: u32, count: &Count) {
        let (packets, bytes) = (u64::from(count.packets), u64::from(count.bytes));
        let connections = u64::from(count.opens);
        let add = if count.back {
            RuleCounters {
                packets_back: packets,
                bytes_back: bytes,
                connections,
                ..RuleCounters::default()
            }
        } else {
            RuleCounters {
                packets,
                bytes,
                connections,
                ..RuleCounters::default()
            }
        };
        let mut counters = self.counters.borrow_mut();
        let sum = counters.entry(slot).or_default();
        *sum = *sum + add;
    }

    fn count_verdict(&self, verdict: Verdict) {
        *self.verdicts.borrow_mut().entry(verdict).or_default() += 1;
    }
}
