//! The seam between the corridor and the maps.

use portfwd_common::{
    Addr, ClaimKey, Device, Flow, FlowKey, FromKey, Mac, Peer, PeerKey, PortEntry, Proto,
    RuleEntry, TargetEntry, device::Confirmed,
};

use crate::{hook::Way, mss::Options, packet::Packet, place::Placement};

/// Which flow table: a flow is in one of them with both its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Small: half-open TCP and one-sided UDP. A flood stays in here.
    New,
    /// Flows whose client has proved that it receives.
    Flows,
}

impl Table {
    /// The table that this is not.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::New => Self::Flows,
            Self::Flows => Self::New,
        }
    }
}

/// How far a flow has come, which decides how long it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// No proof yet that the client receives; or TCP that has ended.
    Transitory,
    /// Proved.
    Proven,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotInserted {
    /// The key is there already.
    Exists,
    /// There is no room.
    Full,
}

/// What a packet changes in the flags of a flow. Bits and not the whole, since
/// packets of both directions may be on two CPUs at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marks {
    /// Flags to set.
    pub set: u16,
    /// Flags to clear.
    pub clear: u16,
    /// The target's initial sequence number, which comes with
    /// [`Flow::ANSWERED`].
    pub isn: u32,
}

impl Marks {
    /// Changes an entry.
    #[inline(always)]
    pub const fn write(&self, flow: &mut Flow) {
        flow.flags = flow.flags & !self.clear | self.set;
        if self.set & Flow::ANSWERED != 0 {
            flow.isn = self.isn;
        }
    }
}

/// What the corridor reads and writes besides the packet.
pub trait Tables {
    /// Seconds since some time before the boot, without those asleep.
    fn now(&self) -> u32;
    /// Seconds without a packet after which an entry counts as absent.
    fn lifetime(&self, proto: u8, life: Life) -> u32;
    /// The ports that this host gives its own connections: first and last.
    fn local_ports(&self) -> (u16, u16);
    /// True when some TCP may be rewritten: flows of TCP exist.
    fn tracks_tcp(&self) -> bool;
    /// False when TCP is never steered.
    fn steers(&self) -> bool;

    /// The port's entry in the bank in use.
    fn port(&self, proto: Proto, port: u16) -> PortEntry;
    /// The bank in use.
    fn bank(&self) -> u8;
    /// The slot of the rule with the claim.
    fn claim(&self, key: &ClaimKey) -> Option<u32>;
    /// A rule by its slot.
    fn rule(&self, slot: u32) -> Option<RuleEntry>;
    /// A target by its index.
    fn target(&self, index: u32) -> Option<&TargetEntry>;
    /// True when the rule's sources hold the key's address.
    fn lists(&self, key: &FromKey) -> bool;
    /// True for an address of this host.
    fn is_own(&self, addr: &Addr) -> bool;
    /// True for another host that is a target.
    fn is_remote(&self, addr: &Addr) -> bool;
    /// Writes the next hop of an IPv6 destination by an interface, the
    /// destination itself where it is on the link; nothing where the kernel
    /// finds it.
    fn next_hop(&self, ifindex: u32, addr: &Addr, hop: &mut Addr);
    /// The interface that leads to a client's network by another route than a
    /// default one; 0 where there is none, or more than one.
    fn home(&self, addr: &Addr) -> u32;
    /// True for a device on which a rule opened 127.0.0.0/8.
    fn guards(&self, ifindex: u32) -> bool;

    /// A device as the accelerator knows it.
    fn device(&self, ifindex: u32) -> Device;
    /// The epoch of next hops.
    fn epoch(&self) -> u8;
    /// What stands in a slot of the confirmed next hops.
    fn confirmed(&self, slot: u32) -> Confirmed;
    /// Writes it.
    fn confirm(&self, slot: u32, confirmed: Confirmed);

    /// A flow entry.
    fn flow(&self, table: Table, key: &FlowKey) -> Option<&Flow>;
    /// Inserts an entry that must not be there.
    fn insert(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted>;
    /// Writes an entry, there or not; false where there is no room.
    fn put(&self, table: Table, key: &FlowKey, flow: &Flow) -> bool;
    /// Removes an entry; false where there was none.
    fn remove(&self, table: Table, key: &FlowKey) -> bool;
    /// Sets the time and the client's interface of an entry in place, if there
    /// is one.
    fn touch(&self, table: Table, key: &FlowKey, now: u32, ifindex: u32);
    /// Writes the next hop of an entry in place, with its epoch; false where
    /// there is none.
    fn learn(&self, table: Table, key: &FlowKey, hop: Mac, epoch: u8) -> bool;
    /// Changes the flags of an entry in place; false where there is none.
    fn mark(&self, table: Table, key: &FlowKey, marks: &Marks) -> bool;

    /// When a foreign flow was last seen.
    fn foreign(&self, key: &FlowKey) -> Option<u32>;
    /// Remembers a foreign flow.
    fn put_foreign(&self, key: &FlowKey, now: u32);

    /// What a socket of this host dialled, as it would see the peer now.
    fn dialled(&self, key: &PeerKey) -> Option<Peer>;
    /// Remembers it; false where there is no room.
    fn put_dialled(&self, key: &PeerKey, dialled: &Peer) -> bool;
    /// Forgets it, there or not.
    fn forget_dialled(&self, key: &PeerKey);

    /// Memory that is this CPU's until the program ends, for a packet on its
    /// way: the stack is short, and the verifier does not track what lies
    /// there, so it walks each stage once and not once for each way that leads
    /// to it.
    #[expect(clippy::mut_from_ref, reason = "asked for once in a run")]
    fn draft(&self) -> Option<&mut Draft>;

    /// Counts a packet of a rule.
    fn count_rule(&self, slot: u32, count: &Count);
    /// Counts a verdict.
    fn count_verdict(&self, verdict: portfwd_common::Verdict);
    /// Counts a verdict on a call of a program of this host.
    fn count_call(&self, verdict: portfwd_common::Verdict);
}

/// A packet on its way through the corridor.
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    /// The packet as it came.
    pub packet: Packet,
    /// What it becomes.
    pub placement: Placement,
    /// Source ports that were tried and taken. Here and not in a register: a
    /// count that the verifier knows would make each try another program.
    pub tried: u32,
    /// The time at which its flow was looked for, see [`Tables::now`].
    pub now: u32,
    /// Where it goes next, if that is another host.
    pub way: Way,
    /// The interface that the packet has been sent to another host by and will
    /// be met at next, at egress; 0 when the next packet is another one.
    pub sent: u32,
    /// The TCP options of a SYN that is sent on.
    pub options: Options,
    /// The key that is being written.
    pub key: FlowKey,
    /// The entry that is being written.
    pub flow: Flow,
}

/// What one packet adds to its rule's counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// Packets on the wire.
    pub packets: u32,
    /// Bytes of layer 3 on the wire.
    pub bytes: u32,
    /// From target to client.
    pub back: bool,
    /// Opens a connection.
    pub opens: bool,
}
