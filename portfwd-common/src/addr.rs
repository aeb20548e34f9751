//! IP addresses as they stand in map keys.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::map_type;

/// An IP address: four 32-bit words as they lie in a header (network byte
/// order), IPv4 as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Addr(pub [u32; 4]);
map_type!(Addr, 16);

/// The third word of an IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// No address: every listen address, or the address that was dialled.
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// `0.0.0.0`.
    pub const V4_UNSPECIFIED: Self = Self::v4(0);

    /// An IPv4 address from its word in a header.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The word of an IPv4 address in a header; of an IPv6 address its last.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// The 16 bytes in network byte order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        *self.bytes()
    }

    /// The same where they lie.
    #[inline(always)]
    pub const fn bytes(&self) -> &[u8; 16] {
        // SAFETY: four words are sixteen bytes, and bytes need no alignment.
        unsafe { &*core::ptr::from_ref(&self.0).cast() }
    }

    /// Which family the address belongs to.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// True for the address that stands for none.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// True for 127.0.0.0/8 and `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        self.is_loopback_of(self.family())
    }

    /// The same where the family is known from the packet.
    #[inline(always)]
    pub const fn is_loopback_of(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.first_v4_octet() == 127,
            Family::V6 => self.0[0] | self.0[1] | self.0[2] == 0 && self.0[3] == 1_u32.to_be(),
        }
    }

    /// True for fe80::/10 (RFC 4291, section 2.5.6), where the family is known
    /// from the packet. IPv4 has 169.254.0.0/16 (RFC 3927).
    #[inline(always)]
    pub const fn is_link_local_of(&self, family: Family) -> bool {
        match family {
            Family::V4 => u32::from_be(self.v4_word()) >> 16 == 0xa9fe,
            Family::V6 => u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6,
        }
    }

    /// True for addresses that name no single host: multicast, the limited
    /// broadcast address and `0.0.0.0` or `::`. A subnet's broadcast address
    /// cannot be told from the address alone.
    pub const fn names_no_host(&self) -> bool {
        self.names_no_host_of(self.family())
    }

    /// The same where the family is known from the packet.
    #[inline(always)]
    pub const fn names_no_host_of(&self, family: Family) -> bool {
        match family {
            Family::V4 => {
                let word = self.v4_word();
                self.first_v4_octet() & 0xf0 == 0xe0 || word == u32::MAX || word == 0
            }
            Family::V6 => u32::from_be(self.0[0]) >> 24 == 0xff || self.is_unspecified(),
        }
    }

    #[inline(always)]
    const fn first_v4_octet(&self) -> u32 {
        u32::from_be(self.v4_word()) >> 24
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v6.octets();
                Self(
                    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]]
                        .map(u32::from_ne_bytes),
                )
            }
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.family() {
            Family::V4 => Self::V4(Ipv4Addr::from(addr.v4_word().to_ne_bytes())),
            Family::V6 => Self::V6(Ipv6Addr::from(addr.octets())),
        }
    }
}

/// Address family, as the datapath numbers it in keys.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}
