//! The contract between the packet corridor in the kernel and the rule
//! corridor in user space.
//!
//! Every type that lies in a BPF map is defined here once: `repr(C)`, padding
//! spelled out, size asserted. Addresses are 16 bytes in network byte order,
//! an IPv4 address as `::ffff:a.b.c.d`; every other number is in host byte
//! order.

#![no_std]

pub mod addr;
pub mod counter;
pub mod device;
pub mod flow;
pub mod names;
pub mod peer;
pub mod port;
pub mod rule;
pub mod settings;
pub mod verdict;

pub use addr::{Addr, Family};
pub use counter::RuleCounters;
pub use device::{Device, Mac};
pub use flow::{Flow, FlowKey};
pub use peer::{Peer, PeerKey};
pub use port::{Bank, PortEntry, Proto};
pub use rule::{ClaimKey, FromKey, RuleEntry, TargetEntry};
pub use settings::{Forwarder, Timeouts};
pub use verdict::{Action, Verdict};

/// Version of the map layout. Another number means that pins of one binary
/// cannot be used by the other.
pub const ABI: u32 = 3;

/// Asserts a size at compile time and makes the type readable from user space.
macro_rules! map_type {
    ($type:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: the type is `repr(C)` or `repr(transparent)`, has no hidden
        // padding (the size above is the sum of its fields) and every bit
        // pattern is a value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use map_type;
