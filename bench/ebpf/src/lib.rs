//! What the programs and the benchmark share: the plan of a load, the constants
//! of a fixed rewrite, and the layout of a frame.

#![cfg_attr(target_arch = "bpf", no_std)]

/// Bytes of a frame of the load: Ethernet, IPv4 and UDP headers and 18 bytes of
/// payload, 60 in all, the least that Ethernet carries (without its checksum).
pub const FRAME: usize = 60;

/// Offsets in a frame.
pub mod at {
    /// Destination MAC.
    pub const MAC_TO: usize = 0;
    /// Source MAC.
    pub const MAC_FROM: usize = 6;
    /// EtherType.
    pub const ETHERTYPE: usize = 12;
    /// Version and header length.
    pub const IP: usize = 14;
    /// TTL; the protocol is the byte behind.
    pub const TTL: usize = 22;
    /// Header checksum.
    pub const IP_SUM: usize = 24;
    /// Source address.
    pub const SADDR: usize = 26;
    /// Destination address.
    pub const DADDR: usize = 30;
    /// Source port.
    pub const SPORT: usize = 34;
    /// Destination port.
    pub const DPORT: usize = 36;
    /// UDP length.
    pub const UDP_LEN: usize = 38;
    /// UDP checksum.
    pub const UDP_SUM: usize = 40;
}

/// What the generator sends. Numbers are in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The device that frames leave by.
    pub ifindex: u32,
    /// So many flows, then again from the first; 0: each frame a new one.
    pub flows: u32,
    /// Address of the first flow.
    pub saddr: u32,
    /// Of all flows.
    pub daddr: u32,
    /// Sum of the IPv4 header's fixed words, in network byte order.
    pub ip_sum: u32,
    /// Sum of the fixed words that the UDP checksum covers.
    pub udp_sum: u32,
    /// First source port of each address.
    pub sport: u16,
    /// Last source port of each address; then comes the next address.
    pub sport_last: u16,
    /// First destination port; each frame goes to the next one.
    pub dport: u16,
    /// Last destination port.
    pub dport_last: u16,
    /// Destination and source MAC.
    pub macs: [u8; 12],
}

/// Where the generator stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames sent.
    pub sent: u64,
    /// Flows of this pass that are done.
    pub flow: u32,
    /// Address of the next frame.
    pub saddr: u32,
    /// Source port of the next frame.
    pub sport: u16,
    /// Destination port of the next frame.
    pub dport: u16,
    /// Zero.
    pub padding: u32,
}

impl Progress {
    /// Before the first frame of a plan.
    pub const fn start(plan: &Plan) -> Self {
        Self {
            sent: 0,
            flow: 0,
            saddr: plan.saddr,
            sport: plan.sport,
            dport: plan.dport,
            padding: 0,
        }
    }
}

/// A fixed rewrite of one of the two ends. Addresses, ports and MACs are in the
/// order of the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The device to leave by.
    pub ifindex: u32,
    /// 0: the destination is rewritten; 1: the source.
    pub source: u32,
    /// The new address.
    pub addr: [u8; 4],
    /// The new port.
    pub port: [u8; 2],
    /// Zero.
    pub padding: [u8; 2],
    /// What the IPv4 checksum changes by: its complement is added.
    pub ip_delta: u32,
    /// What the UDP checksum changes by.
    pub udp_delta: u32,
    /// New destination and source MAC.
    pub macs: [u8; 12],
}

// SAFETY: plain numbers without implicit padding: every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Plan {}

// SAFETY: as for `Plan`.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Progress {}

// SAFETY: as for `Plan`.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Rewrite {}

/// What a sink does with a frame.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkMode {
    /// Count and drop.
    Drop = 0,
    /// Count and send back, with all addresses and ports swapped.
    Echo = 1,
}

/// Names of programs, 15 bytes at most.
pub mod names {
    /// XDP, for test runs with live frames: sends the plan's next frame.
    pub const GENERATE: &str = "yard_generate";
    /// XDP: counts IPv4 UDP and drops it or sends it back.
    pub const SINK: &str = "yard_sink";
    /// The same at TC ingress, for what comes past XDP (`bpf_redirect_peer`).
    pub const SINK_TC: &str = "yard_sink_tc";
    /// XDP: the fixed rewrite.
    pub const FIXED_XDP: &str = "yard_xdp";
    /// TC: the fixed rewrite.
    pub const FIXED_TC: &str = "yard_tc";
    /// XDP: passes all.
    pub const EMPTY_XDP: &str = "yard_empty_xdp";
    /// TC: passes all.
    pub const EMPTY_TC: &str = "yard_empty_tc";
    /// On a socket: counts and takes nothing.
    pub const SOCKET_SINK: &str = "yard_socket";
    /// Array of one [`super::Plan`].
    pub const PLAN: &str = "PLAN";
    /// Array of one [`super::Progress`].
    pub const PROGRESS: &str = "PROGRESS";
    /// Per-CPU array of one `u64`: what sinks have counted.
    pub const COUNT: &str = "COUNT";
    /// Array of one `u32`: a [`super::SinkMode`].
    pub const MODE: &str = "MODE";
    /// Global: a [`super::Rewrite`].
    pub const REWRITE: &str = "REWRITE";
}
