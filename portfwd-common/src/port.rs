//! The port table: a load for each port of a packet decides whether it can be
//! ours.

use crate::map_type;

/// Ports of one protocol.
pub const PORTS_PER_PROTO: u32 = 65_536;

/// Entries of the port table: two banks, three protocols, every port.
pub const PORT_TABLE_LEN: u32 = 2 * Proto::COUNT * PORTS_PER_PROTO;

/// A transport protocol that rules can name. The discriminant is its row in
/// the port table.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Proto {
    /// RFC 9293.
    Tcp = 0,
    /// RFC 768.
    Udp = 1,
    /// RFC 9260.
    Sctp = 2,
}

impl Proto {
    /// How many protocols there are.
    pub const COUNT: u32 = 3;

    /// The protocol's IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Which of the two copies of the rules a number speaks of: 0 or 1. A change
/// fills the bank that is not in use and then switches with one store.
pub type Bank = u32;

/// Where a port stands in the port table.
#[inline(always)]
pub const fn port_index(bank: Bank, proto: Proto, port: u16) -> u32 {
    ((bank & 1) * Proto::COUNT + proto as u32) * PORTS_PER_PROTO + port as u32
}

/// What the rules know of one port of one protocol; 0 is nothing.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PortEntry(pub u32);
map_type!(PortEntry, 4);

impl PortEntry {
    /// The low bits: the class, an interval of ports that the same rules
    /// cover. 0: no rule listens here.
    pub const CLASS_MASK: u32 = 0x00ff_ffff;
    /// Some rule of the class names a listen address.
    pub const PROBE_ADDR: u32 = 1 << 24;
    /// Some rule of the class listens on every address.
    pub const PROBE_ANY: u32 = 1 << 25;
    /// Some rule of the class rewrites, so packets to the port may have a flow.
    pub const TRACKED: u32 = 1 << 26;
    /// Target port of a rule that rewrites for a socket of this host: replies
    /// leave from here, and direct packets to it are asked for clashes.
    pub const TARGET: u32 = 1 << 27;
    /// Target port of a rule to another host: replies arrive from here, and
    /// packets to it, of this host and of those it routes for, are asked for
    /// clashes.
    pub const REMOTE: u32 = 1 << 28;

    /// The class, 0 where no rule listens.
    #[inline(always)]
    pub const fn class(self) -> u32 {
        self.0 & Self::CLASS_MASK
    }

    /// True when every bit of `bits` is set.
    #[inline(always)]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}
