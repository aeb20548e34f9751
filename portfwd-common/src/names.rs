//! Names of programs, maps and globals in the BPF object. The kernel keeps 15
//! bytes of a name.

/// TC ingress, devices with an Ethernet header.
pub const TC_IN: &str = "portfwd_in";
/// TC ingress, devices without a link-layer header.
pub const TC_IN_L3: &str = "portfwd_in_l3";
/// TC ingress of devices whose clients are not served: replies of other hosts
/// arrive there all the same. Devices with an Ethernet header.
pub const TC_BACK: &str = "portfwd_back";
/// The same for devices without a link-layer header.
pub const TC_BACK_L3: &str = "portfwd_back_l3";
/// TC egress, devices with an Ethernet header.
pub const TC_OUT: &str = "portfwd_out";
/// TC egress, devices without a link-layer header.
pub const TC_OUT_L3: &str = "portfwd_out_l3";

/// XDP: forwards packets of known flows to other hosts.
pub const XDP: &str = "portfwd_xdp";

/// A program of this host connects a socket, over IPv4.
pub const CONNECT4: &str = "pf_connect4";
/// The same over IPv6, by mapped addresses too.
pub const CONNECT6: &str = "pf_connect6";
/// It sends a datagram to an address, over IPv4.
pub const SENDMSG4: &str = "pf_sendmsg4";
/// The same over IPv6.
pub const SENDMSG6: &str = "pf_sendmsg6";
/// It is told where a datagram came from, over IPv4.
pub const RECVMSG4: &str = "pf_recvmsg4";
/// The same over IPv6, by mapped addresses too.
pub const RECVMSG6: &str = "pf_recvmsg6";
/// It asks for a socket's peer, over IPv4.
pub const PEERNAME4: &str = "pf_peername4";
/// The same over IPv6, by mapped addresses too.
pub const PEERNAME6: &str = "pf_peername6";

/// The programs of a cgroup, the way back first.
pub const HOOKS: [&str; 8] = [
    PEERNAME4, PEERNAME6, RECVMSG4, RECVMSG6, SENDMSG4, SENDMSG6, CONNECT4, CONNECT6,
];

/// Array of [`crate::PortEntry`].
pub const PORTS: &str = "PORTS";
/// Hash of [`crate::ClaimKey`] to rule slot.
pub const CLAIMS: &str = "CLAIMS";
/// Array of [`crate::RuleEntry`].
pub const RULES: &str = "RULES";
/// Array of [`crate::TargetEntry`].
pub const TARGETS: &str = "TARGETS";
/// Trie of [`crate::FromKey`].
pub const FROM: &str = "FROM";
/// Hash of this host's addresses.
pub const LOCALS: &str = "LOCALS";
/// Hash of the other hosts that are targets.
pub const REMOTES: &str = "REMOTES";
/// Trie of [`crate::rule::HopKey`] to the next hop's address.
pub const NEXT_HOPS: &str = "NEXT_HOPS";
/// Trie of [`crate::Addr`] to the interface that the host reaches it by.
pub const HOMES: &str = "HOMES";
/// Hash of the interfaces on which `route_localnet` is ours.
pub const GUARDED: &str = "GUARDED";
/// Array of [`crate::Device`] by interface index.
pub const DEVICES: &str = "DEVICES";
/// Array of [`crate::device::Confirmed`].
pub const CONFIRMED: &str = "CONFIRMED";
/// One [`crate::Forwarder`].
pub const FORWARDER: &str = "FORWARDER";
/// Flows without proof that the client receives.
pub const NEW: &str = "NEW";
/// Flows with that proof.
pub const FLOWS: &str = "FLOWS";
/// Hash of [`crate::FlowKey`] to [`crate::flow::Foreign`].
pub const FOREIGN: &str = "FOREIGN";
/// Per-CPU array of [`crate::RuleCounters`].
pub const RULE_COUNTERS: &str = "RULE_COUNTERS";
/// Per-CPU array of packets by verdict number.
pub const VERDICTS: &str = "VERDICTS";
/// Hash of [`crate::PeerKey`] to the [`crate::Peer`] that was dialled.
pub const DIALLED: &str = "DIALLED";
/// Per-CPU array of calls by verdict number. Calls are made with preemption
/// on, so they are not counted where packets are.
pub const HOOK_VERDICTS: &str = "HOOK_VERDICTS";

/// The maps that a forwarder pins.
pub const PINNED: [&str; 20] = [
    PORTS,
    CLAIMS,
    RULES,
    TARGETS,
    FROM,
    LOCALS,
    REMOTES,
    NEXT_HOPS,
    HOMES,
    GUARDED,
    DEVICES,
    CONFIRMED,
    FORWARDER,
    NEW,
    FLOWS,
    FOREIGN,
    RULE_COUNTERS,
    VERDICTS,
    DIALLED,
    HOOK_VERDICTS,
];

/// Global `u8`: 1 when TCP may be steered, 0 when it is always rewritten.
pub const STEER: &str = "STEER";
/// Global `u8`: 1 when the kernel steers to `SO_REUSEPORT` listeners (6.6,
/// commit 9c02bec95954), so that no TCP flow to this host is ever tracked.
pub const STEER_ALL: &str = "STEER_ALL";
/// Global `u32`: how long a tick of the kernel's clock is, in units of 2^-32
/// seconds.
pub const TICK: &str = "TICK";
/// Global `u8`: 1 when the kernel has `bpf_check_mtu` (5.12).
pub const CHECK_MTU: &str = "CHECK_MTU";
/// Global `u32`: the ports that this host gives its own connections
/// (`ip_local_port_range`), the first in the high half and the last in the low.
pub const LOCAL_PORTS: &str = "LOCAL_PORTS";
/// Global `u64`: cookie of the network namespace whose sockets are served by
/// the programs of a cgroup; 0 is none.
pub const NETNS_COOKIE: &str = "NETNS_COOKIE";
/// Global `u32`: seconds, as [`crate::Timeouts`] names them.
pub const TCP_HALF_OPEN: &str = "TCP_HALF_OPEN";
/// Global `u32`, seconds.
pub const TCP_ESTABLISHED: &str = "TCP_ESTABLISHED";
/// Global `u32`, seconds.
pub const UDP_ONE_WAY: &str = "UDP_ONE_WAY";
/// Global `u32`, seconds.
pub const UDP_TWO_WAY: &str = "UDP_TWO_WAY";
