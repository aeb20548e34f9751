//! Devices as the accelerator (XDP) knows them.

use crate::map_type;

/// An Ethernet address: six bytes as they lie in a frame, two to a word.
pub type Mac = [u16; 3];

/// Devices that the table has a place for: one with this index or a higher one
/// is not accelerated.
pub const MAX_DEVICES: u32 = 65_536;

/// A device in the table, at the place that is its index. All zero: the
/// accelerator has nothing to do with it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Device {
    /// Frames that arrive for this host carry it as destination, and frames
    /// that are sent as source.
    pub mac: Mac,
    /// Bytes of layer 3 that fit a frame which XDP sends by the device; 0 where
    /// XDP sends none.
    pub mtu: u16,
}
map_type!(Device, 8);

/// A next hop that a packet has left to by TC, in the slot that its tag names.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Confirmed {
    /// A number made of device and Ethernet address.
    pub tag: u32,
    /// When, in seconds as [`crate::names::TICK`] counts them.
    pub seen: u32,
}
map_type!(Confirmed, 8);

/// Slots for confirmed next hops, a power of two. Where two share one, their
/// packets go by TC in turns: slower, and never wrong.
pub const CONFIRMED_SLOTS: u32 = 16_384;
