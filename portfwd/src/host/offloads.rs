//! What a device does to packets before a program sees them (ethtool).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Error;

/// Offloads of what arrives on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// VLAN tags are taken out of the frame (`rx-vlan-offload`).
    pub strips_vlan: bool,
    /// Packets are put together (`generic-receive-offload`).
    pub gro: bool,
}

/// Asks for the offloads of devices of the network namespace that the thread
/// was in when it was opened.
#[derive(Debug)]
pub struct Ethtool(OwnedFd);

/// `ETHTOOL_GFLAGS`, `ETHTOOL_GGRO` and `ETH_FLAG_RXVLAN` (linux/ethtool.h).
const GET_FLAGS: u32 = 0x25;
const GET_GRO: u32 = 0x2b;
const RX_VLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

nix::ioctl_readwrite_bad!(
    /// Asks of the device that the request names what the value in it says.
    siocethtool,
    libc::SIOCETHTOOL,
    libc::ifreq
);

impl Ethtool {
    /// Opens a socket to ask by.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where there is none.
    pub fn open() -> Result<Self, Error> {
        let kind = SockType::Datagram;
        socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)
            .map(Self)
            .map_err(|errno| {
                Error::machine(format!(
                    "cannot ask for the offloads of interfaces: {}",
                    errno.desc()
                ))
            })
    }

    /// The offloads of a device by its name.
    ///
    /// # Errors
    ///
    /// What the kernel answers: the device may be gone, say.
    pub fn offloads(&self, device: &str) -> io::Result<Offloads> {
        Ok(Offloads {
            strips_vlan: self.value(device, GET_FLAGS)? & RX_VLAN != 0,
            gro: self.value(device, GET_GRO)? != 0,
        })
    }

    fn value(&self, device: &str, command: u32) -> io::Result<u32> {
        // SAFETY: numbers, a text and a pointer, for all of which zero is one.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        let name = device.as_bytes();
        // The last byte stays the zero that ends the text.
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(name) {
            *place = byte.cast_signed();
        }
        let mut value = Value { command, data: 0 };
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the kernel reads and writes the request and the value that it
        // points to, which is as large as the command says; both outlive the call.
        unsafe { siocethtool(self.0.as_raw_fd(), &raw mut request) }?;
        Ok(value.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_there_answers_and_no_other() {
        let ethtool = Ethtool::open().expect("a socket");
        let of_lo = ethtool.offloads("lo").expect("every namespace has it");
        assert!(!of_lo.strips_vlan);
        for none in ["no-such-device", "a-name-that-is-too-long"] {
            assert!(ethtool.offloads(none).is_err(), "{none}");
        }
    }
}
