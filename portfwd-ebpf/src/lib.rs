//! The packet corridor: every packet walks it once, and leaves with a verdict.
//!
//! The files stand in the order in which a packet meets them:
//!
//! 1. [`packet`] finds every header once,
//! 2. [`ports`] asks whether a rule names the port at all,
//! 3. [`known`] looks for a flow, a foreign flow or a socket,
//! 4. [`claim`] finds the rule,
//! 5. [`steer`] hands TCP to the target's listener, or [`place`] chooses what
//!    the packet becomes,
//! 6. [`remember`] makes the flow, and only then
//! 7. [`hook::Hook::rewrite`] touches the packet, or [`relay`] does and sends it
//!    on to another host.
//!
//! [`accelerate`] is the short walk at XDP, of known flows only; [`hop`] learns
//! next hops for it.
//!
//! [`dial`] sends programs of this host to other hosts: no packet of theirs ever
//! goes to a rule.
//!
//! [`ingress`] and [`egress`] are the walks, [`outcome`] is their one exit.
//! What differs between TC, XDP and a byte buffer on the host stands behind
//! [`hook::Hook`], the maps behind [`tables::Tables`].

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod accelerate;
#[cfg(feature = "bpf")]
pub mod cgroup;
pub mod checksum;
pub mod claim;
pub mod dial;
pub mod egress;
pub mod hook;
pub mod hop;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
pub mod ingress;
pub mod known;
#[cfg(feature = "bpf")]
pub mod maps;
pub mod mss;
pub mod outcome;
pub mod packet;
pub mod place;
pub mod ports;
pub mod relay;
pub mod remember;
pub mod steer;
pub mod tables;
#[cfg(feature = "bpf")]
pub mod tc;
#[cfg(feature = "bpf")]
pub mod xdp;
