//! The maps, and the corridor's view of them.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie},
    helpers::generated::bpf_jiffies64,
    macros::btf_map,
};
use portfwd_common::{
    Addr, ClaimKey, Device, Flow, FlowKey, Forwarder, FromKey, Mac, Peer, PeerKey, PortEntry,
    Proto, RuleCounters, RuleEntry, TargetEntry, Timeouts, Verdict,
    device::{CONFIRMED_SLOTS, Confirmed, MAX_DEVICES},
    flow::Foreign,
    peer::MAX_PEERS,
    port::{PORT_TABLE_LEN, port_index},
    rule::{HopKey, MAX_CLAIMS, MAX_FROM, MAX_HOMES, MAX_NEXT_HOPS, MAX_RULES, MAX_TARGETS},
    settings::{DEFAULT_MAX_FLOWS, LOCAL_PORTS_DEFAULT, tick},
};

use crate::tables::{Count, Draft, Life, Marks, NotInserted, Table, Tables};

const EEXIST: i32 = -17;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// The loader sizes the flow tables; these stand where it does not.
const FLOW_ENTRIES: usize = 2 * DEFAULT_MAX_FLOWS as usize;

#[btf_map]
static PORTS: Array<PortEntry, { PORT_TABLE_LEN as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static CLAIMS: HashMap<ClaimKey, u32, { MAX_CLAIMS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static RULES: Array<RuleEntry, { MAX_RULES as usize }> = Array::new();
#[btf_map]
static TARGETS: Array<TargetEntry, { MAX_TARGETS as usize }> = Array::new();
#[btf_map]
static FROM: LpmTrie<FromKey, u32, { MAX_FROM as usize }> = LpmTrie::new();
#[btf_map]
static NEXT_HOPS: LpmTrie<HopKey, Addr, { MAX_NEXT_HOPS as usize }> = LpmTrie::new();
#[btf_map]
static HOMES: LpmTrie<Addr, u32, { MAX_HOMES as usize }> = LpmTrie::new();
#[btf_map]
static LOCALS: HashMap<Addr, u32, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
static REMOTES: HashMap<Addr, u32, { MAX_TARGETS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static GUARDED: HashMap<u32, u32, 4_096, NO_PREALLOC> = HashMap::new();
#[btf_map]
static DEVICES: Array<Device, { MAX_DEVICES as usize }> = Array::new();
#[btf_map]
static CONFIRMED: Array<Confirmed, { CONFIRMED_SLOTS as usize }> = Array::new();
#[btf_map]
static FORWARDER: Array<Forwarder, 1> = Array::new();
#[btf_map]
static NEW: LruHashMap<FlowKey, Flow, FLOW_ENTRIES> = LruHashMap::new();
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, FLOW_ENTRIES> = LruHashMap::new();
#[btf_map]
static FOREIGN: LruHashMap<FlowKey, Foreign, FLOW_ENTRIES> = LruHashMap::new();
#[btf_map]
static RULE_COUNTERS: PerCpuArray<RuleCounters, { MAX_RULES as usize }> = PerCpuArray::new();
#[btf_map]
static VERDICTS: PerCpuArray<u64, { Verdict::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
static DIALLED: LruHashMap<PeerKey, Peer, { MAX_PEERS as usize }> = LruHashMap::new();
#[btf_map]
static HOOK_VERDICTS: PerCpuArray<u64, { Verdict::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static DRAFT: PerCpuArray<Draft, 1> = PerCpuArray::new();

#[unsafe(no_mangle)]
static STEER: Global<u8> = Global::new(1);
#[unsafe(no_mangle)]
static STEER_ALL: Global<u8> = Global::new(1);
#[unsafe(no_mangle)]
static TICK: Global<u32> = Global::new(tick(4_000_000));
#[unsafe(no_mangle)]
static CHECK_MTU: Global<u8> = Global::new(1);
#[unsafe(no_mangle)]
static LOCAL_PORTS: Global<u32> = Global::new(LOCAL_PORTS_DEFAULT);
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_HALF_OPEN: Global<u32> = Global::new(Timeouts::DEFAULT.tcp_half_open);
#[unsafe(no_mangle)]
static TCP_ESTABLISHED: Global<u32> = Global::new(Timeouts::DEFAULT.tcp_established);
#[unsafe(no_mangle)]
static UDP_ONE_WAY: Global<u32> = Global::new(Timeouts::DEFAULT.udp_one_way);
#[unsafe(no_mangle)]
static UDP_TWO_WAY: Global<u32> = Global::new(Timeouts::DEFAULT.udp_two_way);

/// True when the kernel has `bpf_check_mtu`.
#[inline(always)]
pub fn checks_mtu() -> bool {
    CHECK_MTU.load() != 0
}

/// The draft of the packet that is being walked.
#[inline(always)]
pub fn draft() -> Option<&'static mut Draft> {
    // SAFETY: this CPU's value, and nothing on the CPU comes in between. A
    // program asks once; a part of it that is verified by itself asks while its
    // caller lends it its own reference. Each field is plain numbers and
    // written before it is read.
    DRAFT.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// The kernel's maps, with the bank of rules that the packet walks by and the
/// epoch of next hops.
pub struct Maps {
    bank: u32,
    epoch: u32,
}

impl Maps {
    /// Reads which bank is in use, once for the packet.
    #[inline(always)]
    pub fn open() -> Self {
        let (bank, epoch) = FORWARDER
            .get(0)
            .map_or((0, 0), |forwarder| (forwarder.bank, forwarder.epoch));
        Self { bank, epoch }
    }

    /// The maps for what looks up no port, no claim and no next hop.
    #[inline(always)]
    pub const fn without_bank() -> Self {
        Self { bank: 0, epoch: 0 }
    }

    /// Cookie of the network namespace that is forwarded in.
    #[inline(always)]
    pub fn netns_cookie() -> u64 {
        NETNS_COOKIE.load()
    }
}

#[inline(always)]
const fn table(table: Table) -> &'static LruHashMap<FlowKey, Flow, FLOW_ENTRIES> {
    match table {
        Table::New => &NEW,
        Table::Flows => &FLOWS,
    }
}

impl Tables for Maps {
    /// The count of ticks is read in line (5.6), and 64 bits of it and of what
    /// it is multiplied with last for a century.
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: takes no argument.
        let ticks = unsafe { bpf_jiffies64() };
        (ticks.wrapping_mul(TICK.load().into()) >> 32) as u32
    }

    #[inline(always)]
    fn lifetime(&self, proto: u8, life: Life) -> u32 {
        match (proto == Proto::Tcp.number(), life) {
            (true, Life::Transitory) => TCP_HALF_OPEN.load(),
            (true, Life::Proven) => TCP_ESTABLISHED.load(),
            (false, Life::Transitory) => UDP_ONE_WAY.load(),
            (false, Life::Proven) => UDP_TWO_WAY.load(),
        }
    }

    #[inline(always)]
    fn local_ports(&self) -> (u16, u16) {
        let ports = LOCAL_PORTS.load();
        ((ports >> 16) as u16, ports as u16)
    }

    #[inline(always)]
    fn tracks_tcp(&self) -> bool {
        STEER_ALL.load() == 0 || STEER.load() == 0
    }

    #[inline(always)]
    fn steers(&self) -> bool {
        STEER.load() != 0
    }

    #[inline(always)]
    fn port(&self, proto: Proto, port: u16) -> PortEntry {
        PORTS
            .get(port_index(self.bank, proto, port))
            .copied()
            .unwrap_or_default()
    }

    #[inline(always)]
    fn bank(&self) -> u8 {
        self.bank as u8 & 1
    }

    #[inline(always)]
    fn claim(&self, key: &ClaimKey) -> Option<u32> {
        // SAFETY: not preallocated: an entry is freed after this run at the
        // earliest. Copied at once.
        unsafe { CLAIMS.get(key) }.copied()
    }

    #[inline(always)]
    fn rule(&self, slot: u32) -> Option<RuleEntry> {
        RULES.get(slot).copied()
    }

    #[inline(always)]
    fn target(&self, index: u32) -> Option<&TargetEntry> {
        TARGETS.get(index)
    }

    #[inline(never)]
    fn lists(&self, key: &FromKey) -> bool {
        let bits = FromKey::prefix_len(128);
        FROM.get(&lpm_trie::Key::new(bits, *key)).is_some()
    }

    #[inline(always)]
    fn is_own(&self, addr: &Addr) -> bool {
        // SAFETY: only whether it is there.
        unsafe { LOCALS.get(addr) }.is_some()
    }

    #[inline(always)]
    fn is_remote(&self, addr: &Addr) -> bool {
        // SAFETY: only whether it is there.
        unsafe { REMOTES.get(addr) }.is_some()
    }

    #[inline(never)]
    fn next_hop(&self, ifindex: u32, addr: &Addr, hop: &mut Addr) {
        let key = HopKey {
            ifindex: ifindex.to_be(),
            addr: *addr,
        };
        let bits = HopKey::prefix_len(128);
        if let Some(found) = NEXT_HOPS.get(&lpm_trie::Key::new(bits, key)) {
            *hop = if found.is_unspecified() {
                *addr
            } else {
                *found
            };
        }
    }

    #[inline(never)]
    fn home(&self, addr: &Addr) -> u32 {
        HOMES
            .get(&lpm_trie::Key::new(128, *addr))
            .map_or(0, |home| *home)
    }

    #[inline(always)]
    fn guards(&self, ifindex: u32) -> bool {
        // SAFETY: only whether it is there.
        unsafe { GUARDED.get(ifindex) }.is_some()
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Device {
        DEVICES.get(ifindex).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn epoch(&self) -> u8 {
        self.epoch as u8
    }

    #[inline(always)]
    fn confirmed(&self, slot: u32) -> Confirmed {
        CONFIRMED.get(slot).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn confirm(&self, slot: u32, confirmed: Confirmed) {
        if let Some(at) = CONFIRMED.get_ptr_mut(slot) {
            // SAFETY: a map value. Two CPUs that write at once may mix two next
            // hops, which then count as neither.
            unsafe { *at = confirmed };
        }
    }

    #[inline(always)]
    fn flow(&self, which: Table, key: &FlowKey) -> Option<&Flow> {
        // SAFETY: the memory stays the map's. The LRU may give the entry to
        // another flow while it is read: that takes an eviction and an insert
        // within one run of the program.
        unsafe { table(which).get(key) }
    }

    #[inline(always)]
    fn insert(&self, which: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        match table(which).insert(key, flow, BPF_NOEXIST.into()) {
            Ok(()) => Ok(()),
            Err(EEXIST) => Err(NotInserted::Exists),
            Err(_) => Err(NotInserted::Full),
        }
    }

    #[inline(always)]
    fn put(&self, which: Table, key: &FlowKey, flow: &Flow) -> bool {
        table(which).insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove(&self, which: Table, key: &FlowKey) -> bool {
        table(which).remove(key).is_ok()
    }

    #[inline(always)]
    fn touch(&self, which: Table, key: &FlowKey, now: u32, ifindex: u32) {
        if let Some(flow) = table(which).get_ptr_mut(key) {
            // SAFETY: a map value; CPUs that race here write the same second,
            // and each the interface of a packet that came in at it.
            unsafe {
                (*flow).seen = now;
                (*flow).ifindex = ifindex;
            }
        }
    }

    #[inline(always)]
    fn learn(&self, which: Table, key: &FlowKey, hop: Mac, epoch: u8) -> bool {
        let Some(flow) = table(which).get_ptr_mut(key) else {
            return false;
        };
        // SAFETY: a map value. Who reads half of an address finds it confirmed
        // nowhere.
        unsafe {
            (*flow).hop = hop;
            (*flow).epoch = epoch;
        }
        true
    }

    #[inline(always)]
    fn mark(&self, which: Table, key: &FlowKey, marks: &Marks) -> bool {
        let Some(flow) = table(which).get_ptr_mut(key) else {
            return false;
        };
        // SAFETY: a map value. Of the bits that two CPUs set at once one is
        // lost if both load the flags before either stores them.
        marks.write(unsafe { &mut *flow });
        true
    }

    #[inline(always)]
    fn foreign(&self, key: &FlowKey) -> Option<u32> {
        // SAFETY: one aligned word.
        unsafe { FOREIGN.get(key) }.map(|foreign| foreign.seen)
    }

    #[inline(always)]
    fn put_foreign(&self, key: &FlowKey, now: u32) {
        let _full = FOREIGN.insert(key, Foreign { seen: now }, 0);
    }

    #[inline(always)]
    fn dialled(&self, key: &PeerKey) -> Option<Peer> {
        // SAFETY: copied at once. The LRU may give the entry to another socket
        // while it is read: that takes an eviction and an insert in between.
        unsafe { DIALLED.get(key) }.copied()
    }

    #[inline(always)]
    fn put_dialled(&self, key: &PeerKey, dialled: &Peer) -> bool {
        DIALLED.insert(key, dialled, 0).is_ok()
    }

    #[inline(always)]
    fn forget_dialled(&self, key: &PeerKey) {
        let _none = DIALLED.remove(key);
    }

    #[inline(always)]
    fn draft(&self) -> Option<&mut Draft> {
        draft()
    }

    #[inline(always)]
    fn count_rule(&self, slot: u32, count: &Count) {
        let Some(counters) = RULE_COUNTERS.get_ptr_mut(slot) else {
            return;
        };
        // SAFETY: this CPU's value. TC runs with softirqs off, so nothing
        // comes in between.
        let counters = unsafe { &mut *counters };
        let (packets, bytes) = (u64::from(count.packets), u64::from(count.bytes));
        if count.back {
            counters.packets_back += packets;
            counters.bytes_back += bytes;
        } else {
            counters.packets += packets;
            counters.bytes += bytes;
        }
        counters.connections += u64::from(count.opens);
    }

    #[inline(always)]
    fn count_verdict(&self, verdict: Verdict) {
        if let Some(count) = VERDICTS.get_ptr_mut(verdict as u32) {
            // SAFETY: as above.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn count_call(&self, verdict: Verdict) {
        if let Some(count) = HOOK_VERDICTS.get_ptr_mut(verdict as u32) {
            // SAFETY: an aligned map value.
            unsafe { increment(count) };
        }
    }
}

/// Adds 1 so that no addition is lost where a call comes in the middle of
/// another. The kernel has known the instruction from the beginning; core has
/// no word for it, since the target has no other atomic one.
///
/// # Safety
///
/// `count` is aligned and may be written.
#[inline(always)]
unsafe fn increment(count: *mut u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({count} + 0) += {one}",
            count = in(reg) count,
            one = in(reg) 1_u64,
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        *count += 1;
    }
}
