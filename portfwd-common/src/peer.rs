//! Peers of sockets of this host that dialled a rule for another host.

use crate::{Addr, map_type};

/// A peer as a socket of this host has it since it was sent there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerKey {
    /// Cookie of the socket; the kernel never gives one twice.
    pub socket: u64,
    /// The target's address.
    pub addr: Addr,
    /// The target's port.
    pub port: u16,
    /// [`crate::Proto`] as a number.
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 5],
}
map_type!(PeerKey, 32);

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    /// Address.
    pub addr: Addr,
    /// Port.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}
map_type!(Peer, 20);

impl Peer {
    /// A port of an address.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self {
            addr,
            port,
            reserved: 0,
        }
    }
}

/// Peers that are remembered; the LRU gives up those that were asked for
/// least recently.
pub const MAX_PEERS: u32 = 65_536;
