//! Names of programs, maps and globals in the BPF object. The kernel keeps 15
//! bytes of a name.

/// TC ingress, devices with an Ethernet header.
pub const TC_IN: &str = "portfwd_in";
/// TC ingress, devices without a link-layer header.
pub const TC_IN_L3: &str = "portfwd_in_l3";
/// TC egress, devices with an Ethernet header.
pub const TC_OUT: &str = "portfwd_out";
/// TC egress, devices without a link-layer header.
pub const TC_OUT_L3: &str = "portfwd_out_l3";

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
/// Hash of the interfaces on which `route_localnet` is ours.
pub const GUARDED: &str = "GUARDED";
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

/// The maps that a forwarder pins.
pub const PINNED: [&str; 13] = [
    PORTS,
    CLAIMS,
    RULES,
    TARGETS,
    FROM,
    LOCALS,
    GUARDED,
    FORWARDER,
    NEW,
    FLOWS,
    FOREIGN,
    RULE_COUNTERS,
    VERDICTS,
];

/// Global `u8`: 1 when TCP may be steered, 0 when it is always rewritten.
pub const STEER: &str = "STEER";
/// Global `u8`: 1 when the kernel steers to `SO_REUSEPORT` listeners (6.6,
/// commit 9c02bec95954), so that no TCP flow to this host is ever tracked.
pub const STEER_ALL: &str = "STEER_ALL";
/// Global `u8`: 1 when the kernel has the coarse clock (5.11).
pub const COARSE_CLOCK: &str = "COARSE_CLOCK";
/// Global `u32`: seconds, as [`crate::Timeouts`] names them.
pub const TCP_HALF_OPEN: &str = "TCP_HALF_OPEN";
/// Global `u32`, seconds.
pub const TCP_ESTABLISHED: &str = "TCP_ESTABLISHED";
/// Global `u32`, seconds.
pub const UDP_ONE_WAY: &str = "UDP_ONE_WAY";
/// Global `u32`, seconds.
pub const UDP_TWO_WAY: &str = "UDP_TWO_WAY";
