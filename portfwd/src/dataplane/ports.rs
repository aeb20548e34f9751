//! The port table, written through memory: a range of 60,000 ports is one copy
//! and not 60,000 system calls. aya has no call for it.

use std::{ffi::c_void, os::fd::BorrowedFd, ptr, slice};

use portfwd_common::{
    Bank, PortEntry,
    port::{PORT_TABLE_LEN, port_index},
};

use super::machine;
use crate::{Error, plan::PortSpan};

const BYTES: usize = PORT_TABLE_LEN as usize * size_of::<Element>();

/// An element of the array: the kernel gives each a multiple of 8 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Element {
    entry: PortEntry,
    padding: u32,
}

/// The map's memory, shared with the kernel.
struct Mapping(*mut c_void);

impl Mapping {
    fn new(map: BorrowedFd<'_>) -> Result<Self, Error> {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let length = BYTES
            .try_into()
            .map_err(|error| machine("the port table", error))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping of the whole map, at no fixed address.
        unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, map, 0) }
            .map(|address| Self(address.as_ptr()))
            .map_err(|error| machine("cannot map the port table", error))
    }

    fn elements(&mut self) -> &mut [Element] {
        // SAFETY: mapped for this many elements, and page aligned. The kernel
        // only reads; a torn word is impossible, since each store is of one.
        unsafe { slice::from_raw_parts_mut(self.0.cast(), PORT_TABLE_LEN as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(address) = ptr::NonNull::new(self.0) {
            // SAFETY: mapped by `new` with this length, and no reference to it
            // outlives `self`.
            let _unmapped = unsafe { nix::sys::mman::munmap(address, BYTES) };
        }
    }
}

/// Writes the ports of a bank that no packet walks by: every entry.
pub(super) fn write(map: BorrowedFd<'_>, bank: Bank, spans: &[PortSpan]) -> Result<(), Error> {
    let mut mapping = Mapping::new(map)?;
    let elements = mapping.elements();
    let half = PORT_TABLE_LEN as usize / 2;
    let start = bank as usize * half;
    elements[start..start + half].fill(Element::default());
    for span in spans {
        let first = port_index(bank, span.proto, span.first) as usize;
        let last = port_index(bank, span.proto, span.last) as usize;
        elements[first..=last].fill(Element {
            entry: span.entry,
            padding: 0,
        });
    }
    Ok(())
}
