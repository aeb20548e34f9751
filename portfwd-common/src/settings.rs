//! Settings of a forwarder.

use crate::map_type;

/// Run-time state of the forwarder, the one value of its array.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Forwarder {
    /// [`crate::ABI`] of the binary that made the maps.
    pub abi: u32,
    /// Bank of rules in use.
    pub bank: u32,
    /// 1 to 255, another number after each change of routes, addresses or
    /// devices: next hops that flows have learned before count no more.
    pub epoch: u32,
}
map_type!(Forwarder, 12);

/// Seconds that the accelerator leaves the time of a flow's last packet
/// unwritten: the proved ones are kept so much longer.
pub const UNWRITTEN: u32 = 8;

/// How long a flow without packets lives, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timeouts {
    /// TCP before the handshake is proved (RFC 5382, REQ-5: at least 240 s).
    pub tcp_half_open: u32,
    /// TCP after it (RFC 5382, REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// UDP before a second client packet follows a reply (RFC 4787, REQ-5).
    pub udp_one_way: u32,
    /// UDP after it (RFC 4787, REQ-5 recommends 5 min).
    pub udp_two_way: u32,
}

impl Timeouts {
    /// The values that a forwarder starts with.
    pub const DEFAULT: Self = Self {
        tcp_half_open: 240,
        tcp_established: 7_440,
        udp_one_way: 120,
        udp_two_way: 300,
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// [`crate::names::TICK`] of a kernel whose tick takes so many nanoseconds.
pub const fn tick(nanoseconds: u32) -> u32 {
    (((nanoseconds as u64) << 32) / 1_000_000_000) as u32
}

/// Flows that the tables are sized for by default.
pub const DEFAULT_MAX_FLOWS: u32 = 131_072;

/// Flows that the tables are sized for at most.
pub const MOST_FLOWS: u32 = 1 << 24;

/// `ip_local_port_range` as the kernel starts with it, the first port in the
/// high half and the last in the low.
pub const LOCAL_PORTS_DEFAULT: u32 = local_ports(32_768, 60_999);

/// The ports that a host gives its own connections, as
/// [`crate::names::LOCAL_PORTS`] holds them.
pub const fn local_ports(first: u16, last: u16) -> u32 {
    (first as u32) << 16 | last as u32
}

/// Entries of the flow table that holds `flows` flows, at most [`MOST_FLOWS`]:
/// two a flow, and room for what the LRU keeps free on each CPU, since it
/// evicts before it is full.
pub const fn flow_entries(flows: u32, cpus: u32) -> u32 {
    2 * flows + flows / 2 + 128 * cpus
}
