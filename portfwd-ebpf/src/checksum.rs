//! Internet checksums after a change (RFC 1624): the sum is taken over the words
//! that change, not over the packet.

use portfwd_common::Addr;

/// What a word that becomes another adds to the sum of 16-bit words that a
/// checksum is made of, in any byte order (RFC 1071, section 2).
#[inline(always)]
pub const fn changed(from: u32, to: u32) -> u64 {
    !from as u64 + to as u64
}

/// The same for an address.
#[inline(always)]
pub const fn changed_addr(from: &Addr, to: &Addr) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (from.0, to.0);
    changed(a, e) + changed(b, f) + changed(c, g) + changed(d, h)
}

/// Such changes in the 32 bits that the kernel takes (`__wsum`).
#[inline(always)]
pub const fn folded(changes: u64) -> u32 {
    let sum = (changes >> 32) + (changes & 0xffff_ffff);
    ((sum >> 32) + (sum & 0xffff_ffff)) as u32
}

/// A checksum after such changes (RFC 1624, equation 3).
#[inline(always)]
pub const fn updated(checksum: u16, changes: u64) -> u16 {
    let mut sum = !checksum as u64 + changes;
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}
