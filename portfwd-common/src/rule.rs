//! Rules as the datapath reads them.

use crate::{Addr, map_type};

/// Rules that one forwarder holds.
pub const MAX_RULES: u32 = 16_384;
/// Targets of one rule.
pub const MAX_TARGETS_PER_RULE: u32 = 64;
/// Targets of all rules together.
pub const MAX_TARGETS: u32 = 65_535;
/// Claims of all rules in both banks.
pub const MAX_CLAIMS: u32 = 262_144;
/// Source prefixes of all rules together.
pub const MAX_FROM: u32 = 65_536;

/// Who claims a packet to a port of a class: looked up with the dialled
/// address, then with [`Addr::UNSPECIFIED`] for the rules that listen on every
/// address. User space has settled every precedence: there is one answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClaimKey {
    /// The dialled address, or none.
    pub addr: Addr,
    /// Class of the dialled port.
    pub class: u32,
    /// Bank of rules, 0 or 1.
    pub bank: u8,
    /// [`crate::Proto`] as a number.
    pub proto: u8,
    /// [`crate::Family`] of the packet.
    pub family: u8,
    /// Zero.
    pub reserved: u8,
}
map_type!(ClaimKey, 24);

/// One rule. The port that a packet goes to is
/// `target_first + ((dport - listen_first) & offset_mask)`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RuleEntry {
    /// First listen port.
    pub listen_first: u16,
    /// First target port.
    pub target_first: u16,
    /// 0xffff shifts a range, 0 sends every port to one.
    pub offset_mask: u16,
    /// `RuleEntry::*` bits.
    pub flags: u16,
    /// Index of the first target.
    pub targets: u32,
    /// How many targets follow, at least 1.
    pub n_targets: u32,
    /// Goes up each time the slot is given to another rule: flows of the rule
    /// before are known by the old number. Never 0.
    pub generation: u32,
}
map_type!(RuleEntry, 20);

impl RuleEntry {
    /// Only sources found in the source table are served.
    pub const HAS_FROM: u16 = 1;
    /// TCP of this rule is rewritten and not steered.
    pub const REWRITE_TCP: u16 = 1 << 1;

    /// The port that a packet to `dport` goes to.
    #[inline(always)]
    pub const fn target_port(&self, dport: u16) -> u16 {
        self.target_first
            .wrapping_add(dport.wrapping_sub(self.listen_first) & self.offset_mask)
    }
}

/// One target of a rule.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TargetEntry {
    /// Where packets go; unspecified is the address that was dialled.
    pub addr: Addr,
    /// Another host: the address of this host that masqueraded packets leave
    /// with; unspecified where there is none.
    pub source: Addr,
    /// Another host over IPv6: the next hop there, a router or the target
    /// itself. Unspecified: the kernel finds it.
    pub hop: Addr,
    /// Egress interface; 0 for a socket on this host, and for another host
    /// that no route leads to.
    pub ifindex: u32,
    /// [`TargetEntry::PEER`]: the Ethernet addresses of the frame, six bytes
    /// each, destination then source, as they lie in the header.
    pub link: [u32; 3],
    /// Share of new flows among the targets of the rule, at least 1.
    pub weight: u16,
    /// `TargetEntry::*` bits.
    pub flags: u16,
}
map_type!(TargetEntry, 68);

impl TargetEntry {
    /// A socket on this host.
    pub const LOCAL: u16 = 1;
    /// Another host: clients keep their address.
    pub const PRESERVE: u16 = 1 << 1;
    /// Another host: clients keep their address unless they came in by the
    /// interface that leads to the target. With neither bit they are
    /// masqueraded.
    pub const PRESERVE_ACROSS: u16 = 1 << 2;
    /// The egress interface is the host end of a veth pair whose other end is
    /// in another namespace, and `link` says what its frames carry.
    pub const PEER: u16 = 1 << 3;

    /// A socket on this host, at `addr` or at the address that was dialled.
    pub const fn local(addr: Addr, weight: u16) -> Self {
        Self {
            addr,
            source: Addr::UNSPECIFIED,
            hop: Addr::UNSPECIFIED,
            ifindex: 0,
            link: [0; 3],
            weight,
            flags: Self::LOCAL,
        }
    }

    /// Where what was sent to `dialled` goes.
    #[inline(always)]
    pub const fn addr_for<'a>(&'a self, dialled: &'a Addr) -> &'a Addr {
        if self.addr.is_unspecified() {
            dialled
        } else {
            &self.addr
        }
    }

    /// True for a socket on this host.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }
}

/// Key of the source table (a longest-prefix-match trie): the
/// rule slot in network byte order, then the source address. The prefix is
/// 32 bits longer than that of the address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FromKey {
    /// Rule slot, network byte order.
    pub slot: u32,
    /// Source address.
    pub addr: Addr,
}
map_type!(FromKey, 20);

impl FromKey {
    /// Bits of the key that a source of `addr_bits` bits uses; an IPv4 prefix
    /// counts from the first byte of the mapped address, so /8 is 96 + 8.
    pub const fn prefix_len(addr_bits: u32) -> u32 {
        32 + addr_bits
    }
}

/// Key of the next-hop table (a longest-prefix-match trie): an interface in
/// network byte order, then an IPv6 destination. The kernel, asked for the next
/// hop by an interface, may name that of another one where its route is better
/// (`ip6_route_output_flags`: without a socket that is bound to the interface,
/// and with a source address, the interface is a wish only).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HopKey {
    /// Interface, network byte order.
    pub ifindex: u32,
    /// Destination.
    pub addr: Addr,
}
map_type!(HopKey, 20);

impl HopKey {
    /// Bits of the key that a destination prefix of `addr_bits` bits uses.
    pub const fn prefix_len(addr_bits: u32) -> u32 {
        32 + addr_bits
    }
}

/// Prefixes in the next-hop table.
pub const MAX_NEXT_HOPS: u32 = 16_384;

/// Prefixes in the table of homes: networks that one interface leads to, by
/// another route than a default one. A prefix of `bits` of an IPv4 address is
/// one of 96 + `bits` of the mapped address. 0 stands where more than one leads
/// there: without it a wider network would be found.
pub const MAX_HOMES: u32 = 16_384;
