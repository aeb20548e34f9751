//! Counters of rules; verdicts are counted in an array by their number.

use crate::map_type;

/// What a rule did on one CPU. A packet counts as on the wire (a GSO packet is
/// its segments), bytes are of layer 3.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RuleCounters {
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets to clients.
    pub packets_back: u64,
    /// Bytes to clients.
    pub bytes_back: u64,
    /// Completed TCP handshakes and UDP flows with a first packet.
    pub connections: u64,
}
map_type!(RuleCounters, 40);

impl core::ops::Add for RuleCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            packets_back: self.packets_back + other.packets_back,
            bytes_back: self.bytes_back + other.bytes_back,
            connections: self.connections + other.connections,
        }
    }
}
