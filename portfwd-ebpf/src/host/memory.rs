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
};

use portfwd_common::{
    Addr, ClaimKey, Device, Flow, FlowKey, FromKey, Mac, Peer, PeerKey, PortEntry, Proto,
    RuleCounters, RuleEntry, TargetEntry, Timeouts, Verdict, device::Confirmed, names,
};

use super::{
    Forward, Tally, WhenFull, draft,
    entries::{Entries, name},
};
use crate::tables::{Count, Draft, Life, Marks, NotInserted, Table, Tables};

/// What runs in the middle of another walk: the other CPU.
type Interruption = Box<dyn FnOnce(&Memory)>;

/// The tables, filled by tests.
pub struct Memory {
    /// Calls that concern a map or the clock.
    pub tally: Tally,
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
    /// Other hosts that are targets.
    pub remotes: RefCell<Vec<Addr>>,
    /// Next hops that differ from the kernel's: interface, destination, hop.
    pub next_hops: RefCell<Vec<(u32, Addr, Addr)>>,
    /// Clients whose network one interface leads to, and its index.
    pub homes: RefCell<Vec<(Addr, u32)>>,
    /// Devices as the accelerator knows them, by index.
    pub devices: RefCell<HashMap<u32, Device>>,
    /// The epoch of next hops.
    pub epoch: Cell<u8>,
    /// The confirmed next hops, by slot.
    pub confirmed: RefCell<HashMap<u32, Confirmed>>,
    /// Ports that this host gives its own connections, first and last.
    pub local_ports: Cell<(u16, u16)>,
    /// Calls on the flow tables so far.
    pub calls: Cell<u64>,
    ports: RefCell<HashMap<(u8, Proto, u16), PortEntry>>,
    claims: RefCell<HashMap<ClaimKey, u32>>,
    rules: RefCell<HashMap<u32, RuleEntry>>,
    targets: RefCell<HashMap<u32, &'static TargetEntry>>,
    sources: RefCell<Vec<(u32, Addr, u32)>>,
    new: RefCell<Entries>,
    flows: RefCell<Entries>,
    foreign: RefCell<HashMap<FlowKey, u32>>,
    dialled: RefCell<HashMap<PeerKey, Peer>>,
    verdicts: RefCell<HashMap<Verdict, u64>>,
    calls_by_verdict: RefCell<HashMap<Verdict, u64>>,
    counters: RefCell<HashMap<u32, RuleCounters>>,
    interruption: RefCell<Option<(u64, Interruption)>>,
    /// What the last walk left in the draft, unless one is on its way.
    draft: Cell<Option<Draft>>,
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
            tally: Tally::default(),
            clock: Cell::new(1_000),
            bank: Cell::new(0),
            steers: Cell::new(true),
            tracks_tcp: Cell::new(true),
            when_full: Cell::new(WhenFull::Evict),
            timeouts: Cell::new(Timeouts::DEFAULT),
            guarded: RefCell::default(),
            own: RefCell::default(),
            remotes: RefCell::default(),
            next_hops: RefCell::default(),
            homes: RefCell::default(),
            devices: RefCell::default(),
            epoch: Cell::new(1),
            confirmed: RefCell::default(),
            local_ports: Cell::new((32_768, 60_999)),
            calls: Cell::new(0),
            ports: RefCell::default(),
            claims: RefCell::default(),
            rules: RefCell::default(),
            targets: RefCell::default(),
            sources: RefCell::default(),
            new: entries(),
            flows: entries(),
            foreign: RefCell::default(),
            dialled: RefCell::default(),
            verdicts: RefCell::default(),
            calls_by_verdict: RefCell::default(),
            counters: RefCell::default(),
            interruption: RefCell::default(),
            draft: Cell::new(Some(draft::EMPTY)),
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
        let here = TargetEntry::local(forward.target, 1);
        self.set_target(slot, forward.across.unwrap_or(here));
        let target = match forward.across {
            None => PortEntry::TARGET,
            Some(target) => {
                self.remotes.borrow_mut().push(target.addr);
                PortEntry::REMOTE
            }
        };
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
            self.mark(forward.proto, forward.target_port(port), target);
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

    /// Clears bits of a port in the bank in use.
    pub fn unmark(&self, proto: Proto, port: u16, bits: u32) {
        let mut ports = self.ports.borrow_mut();
        ports.entry((self.bank.get(), proto, port)).or_default().0 &= !bits;
    }

    /// Writes a target entry.
    pub fn set_target(&self, index: u32, target: TargetEntry) {
        let target: &TargetEntry = Box::leak(Box::new(target));
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

    /// How often a verdict on a call was counted.
    pub fn calls_with(&self, verdict: Verdict) -> u64 {
        let verdicts = self.calls_by_verdict.borrow();
        verdicts.get(&verdict).copied().unwrap_or_default()
    }

    /// What a rule was counted for.
    pub fn counters(&self, slot: u32) -> RuleCounters {
        let counters = self.counters.borrow();
        counters.get(&slot).copied().unwrap_or_default()
    }

    /// Ends a walk: the next one on this CPU finds the draft as it was left.
    pub(super) fn keep(&self, draft: &Draft) {
        self.draft.set(Some(*draft));
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

impl Tables for Memory {
    fn now(&self) -> u32 {
        self.tally.helper("jiffies64");
        self.clock.get()
    }

    fn lifetime(&self, proto: u8, life: Life) -> u32 {
        let timeouts = self.timeouts.get();
        match (proto == Proto::Tcp.number(), life) {
            (true, Life::Transitory) => timeouts.tcp_half_open,
            (true, Life::Proven) => timeouts.tcp_established,
            (false, Life::Transitory) => timeouts.udp_one_way,
            (false, Life::Proven) => timeouts.udp_two_way,
        }
    }

    fn local_ports(&self) -> (u16, u16) {
        self.local_ports.get()
    }

    fn next_hop(&self, ifindex: u32, addr: &Addr, hop: &mut Addr) {
        self.tally.lookup(names::NEXT_HOPS);
        let hops = self.next_hops.borrow();
        let found = hops
            .iter()
            .find(|(index, to, _)| (*index, to) == (ifindex, addr));
        if let Some((_, _, found)) = found {
            *hop = *found;
        }
    }

    fn home(&self, addr: &Addr) -> u32 {
        self.tally.lookup(names::HOMES);
        let homes = self.homes.borrow();
        let home = homes.iter().find(|(of, _)| of == addr);
        home.map_or(0, |(_, ifindex)| *ifindex)
    }

    fn is_remote(&self, addr: &Addr) -> bool {
        self.tally.lookup(names::REMOTES);
        self.remotes.borrow().contains(addr)
    }

    fn tracks_tcp(&self) -> bool {
        self.tracks_tcp.get()
    }

    fn steers(&self) -> bool {
        self.steers.get()
    }

    fn port(&self, proto: Proto, port: u16) -> PortEntry {
        self.tally.lookup(names::PORTS);
        let ports = self.ports.borrow();
        let entry = ports.get(&(self.bank.get(), proto, port));
        entry.copied().unwrap_or_default()
    }

    fn bank(&self) -> u8 {
        self.bank.get()
    }

    fn claim(&self, key: &ClaimKey) -> Option<u32> {
        self.tally.lookup(names::CLAIMS);
        self.claims.borrow().get(key).copied()
    }

    fn rule(&self, slot: u32) -> Option<RuleEntry> {
        self.tally.lookup(names::RULES);
        self.rules.borrow().get(&slot).copied()
    }

    fn target(&self, index: u32) -> Option<&TargetEntry> {
        self.tally.lookup(names::TARGETS);
        self.targets.borrow().get(&index).copied()
    }

    fn lists(&self, key: &FromKey) -> bool {
        self.tally.lookup(names::FROM);
        let slot = u32::from_be(key.slot);
        let addr = u128::from_be_bytes(key.addr.octets());
        self.sources.borrow().iter().any(|(of, prefix, bits)| {
            let prefix = u128::from_be_bytes(prefix.octets());
            let differs = (prefix ^ addr).checked_shr(128 - bits).unwrap_or_default();
            *of == slot && differs == 0
        })
    }

    fn is_own(&self, addr: &Addr) -> bool {
        self.tally.lookup(names::LOCALS);
        self.own.borrow().contains(addr)
    }

    fn guards(&self, ifindex: u32) -> bool {
        self.tally.lookup(names::GUARDED);
        self.guarded.borrow().contains(&ifindex)
    }

    fn device(&self, ifindex: u32) -> Device {
        self.tally.lookup(names::DEVICES);
        let devices = self.devices.borrow();
        devices.get(&ifindex).copied().unwrap_or_default()
    }

    fn epoch(&self) -> u8 {
        self.epoch.get()
    }

    fn confirmed(&self, slot: u32) -> Confirmed {
        self.tally.lookup(names::CONFIRMED);
        let confirmed = self.confirmed.borrow();
        confirmed.get(&slot).copied().unwrap_or_default()
    }

    fn confirm(&self, slot: u32, confirmed: Confirmed) {
        self.tally.lookup(names::CONFIRMED);
        self.confirmed.borrow_mut().insert(slot, confirmed);
    }

    fn flow(&self, table: Table, key: &FlowKey) -> Option<&Flow> {
        self.tally.on("lookup", name(table));
        self.step();
        let mut entries = self.table(table).borrow_mut();
        let flow = entries.flows.get(key).copied()?;
        entries.used.insert(*key, self.calls.get());
        Some(flow)
    }

    fn insert(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        self.tally.on("update", name(table));
        self.step();
        if self.table(table).borrow().flows.contains_key(key) {
            return Err(NotInserted::Exists);
        }
        self.write(table, key, flow)
    }

    fn put(&self, table: Table, key: &FlowKey, flow: &Flow) -> bool {
        self.tally.on("update", name(table));
        self.step();
        self.write(table, key, flow).is_ok()
    }

    fn remove(&self, table: Table, key: &FlowKey) -> bool {
        self.tally.on("delete", name(table));
        self.step();
        self.table(table).borrow_mut().forget(key)
    }

    fn touch(&self, table: Table, key: &FlowKey, now: u32, ifindex: u32) {
        self.tally.on("lookup", name(table));
        self.step();
        self.change(table, key, |flow| {
            flow.seen = now;
            flow.ifindex = ifindex;
        });
    }

    fn learn(&self, table: Table, key: &FlowKey, hop: Mac, epoch: u8) -> bool {
        self.tally.on("lookup", name(table));
        self.step();
        self.change(table, key, |flow| {
            flow.hop = hop;
            flow.epoch = epoch;
        })
    }

    fn mark(&self, table: Table, key: &FlowKey, marks: &Marks) -> bool {
        self.tally.on("lookup", name(table));
        self.step();
        self.change(table, key, |flow| marks.write(flow))
    }

    fn foreign(&self, key: &FlowKey) -> Option<u32> {
        self.tally.lookup(names::FOREIGN);
        self.foreign.borrow().get(key).copied()
    }

    fn put_foreign(&self, key: &FlowKey, now: u32) {
        self.tally.on("update", names::FOREIGN);
        self.foreign.borrow_mut().insert(*key, now);
    }

    fn dialled(&self, key: &PeerKey) -> Option<Peer> {
        self.tally.lookup(names::DIALLED);
        self.dialled.borrow().get(key).copied()
    }

    fn put_dialled(&self, key: &PeerKey, dialled: &Peer) -> bool {
        self.tally.on("update", names::DIALLED);
        self.dialled.borrow_mut().insert(*key, *dialled);
        true
    }

    fn forget_dialled(&self, key: &PeerKey) {
        self.tally.on("delete", names::DIALLED);
        self.dialled.borrow_mut().remove(key);
    }

    fn draft(&self) -> Option<&mut Draft> {
        self.tally.lookup("DRAFT");
        // The other CPU, in the middle of a walk, has a draft of its own.
        let draft = self.draft.take().unwrap_or(draft::EMPTY);
        Some(Box::leak(Box::new(draft)))
    }

    fn count_rule(&self, slot: u32, count: &Count) {
        self.tally.lookup(names::RULE_COUNTERS);
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
        self.tally.lookup(names::VERDICTS);
        *self.verdicts.borrow_mut().entry(verdict).or_default() += 1;
    }

    fn count_call(&self, verdict: Verdict) {
        self.tally.lookup(names::HOOK_VERDICTS);
        *self
            .calls_by_verdict
            .borrow_mut()
            .entry(verdict)
            .or_default() += 1;
    }
}
