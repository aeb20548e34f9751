//! IP addresses as they stand in map keys.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::map_type;

/// An IP address: 16 bytes in network byte order, IPv4 as `::ffff:a.b.c.d`
/// (RFC 4291, section 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Addr(pub [u8; 16]);
map_type!(Addr, 16);

impl Addr {
    /// No address: every listen address, or the address that was dialled.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// An IPv4 address from its four bytes.
    #[inline(always)]
    pub const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The four bytes of an IPv4 address; of an IPv6 address its last four.
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// The four 32-bit words, as they lie in memory (network byte order).
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let a = &self.0;
        [
            u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
            u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
            u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
            u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
        ]
    }

    /// Which family the address belongs to.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        let words = self.words();
        if words[0] == 0 && words[1] == 0 && words[2] == u32::from_be(0xffff) {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// True for the address that stands for none.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let words = self.words();
        words[0] | words[1] | words[2] | words[3] == 0
    }

    /// True for 127.0.0.0/8 and `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.family() {
            Family::V4 => self.0[12] == 127,
            Family::V6 => {
                let words = self.words();
                words[0] | words[1] | words[2] == 0 && words[3] == u32::from_be(1)
            }
        }
    }

    /// True for addresses that name no single host: multicast, the limited
    /// broadcast address and `0.0.0.0` or `::`. A subnet's broadcast address
    /// cannot be told from the address alone.
    #[inline(always)]
    pub const fn names_no_host(&self) -> bool {
        match self.family() {
            Family::V4 => {
                let word = self.words()[3];
                self.0[12] & 0xf0 == 0xe0 || word == u32::MAX || word == 0
            }
            Family::V6 => self.0[0] == 0xff || self.is_unspecified(),
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.family() {
            Family::V4 => Self::V4(Ipv4Addr::from(addr.v4_octets())),
            Family::V6 => Self::V6(Ipv6Addr::from(addr.0)),
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

