//! Packet sockets (`AF_PACKET`): the one place of the harness that speaks to
//! them, since no crate knows their addresses and their auxiliary data.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr, thread,
    time::Instant,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::wait::PATIENCE;

/// From linux/if_packet.h; libc has none of these.
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_AUXDATA: libc::c_int = 8;
const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
const PACKET_OUTGOING: u8 = 4;

/// struct tpacket_auxdata
#[repr(C)]
#[derive(Default)]
struct Auxdata {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// struct tpacket_stats
#[repr(C)]
#[derive(Default)]
struct Statistics {
    packets: libc::c_uint,
    drops: libc::c_uint,
}

/// A socket that sees or sends whole packets.
#[derive(Debug)]
pub struct PacketSocket(Socket);

/// What the kernel says about a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Bytes that were received.
    pub length: usize,
    /// Index of the device.
    pub ifindex: u32,
    /// EtherType.
    pub protocol: u16,
    /// Leaves by the device, else it came in.
    pub outgoing: bool,
    /// The layer-4 checksum is still to be completed.
    pub partial: bool,
}

impl PacketSocket {
    /// A socket that sends Ethernet frames by a device of this namespace and
    /// receives nothing.
    pub fn sender(ifindex: u32) -> io::Result<Self> {
        let socket = Self(Socket::new(Domain::PACKET, Type::RAW, None)?);
        socket.bind(0, ifindex)?;
        Ok(socket)
    }

    /// A socket that receives a copy of every packet of every device of this
    /// namespace, from the layer-3 header on.
    pub fn tap() -> io::Result<Self> {
        let socket = Self(Socket::new(Domain::PACKET, Type::DGRAM, None)?);
        socket.0.set_nonblocking(true)?;
        setsockopt(&socket.0, sockopt::RcvBufForce, &(64 << 20))?;
        socket.set(libc::SOL_PACKET, PACKET_AUXDATA, &1i32)?;
        socket.bind(libc::ETH_P_ALL as u16, 0)?;
        Ok(socket)
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(|_| ())
    }

    /// Sends many frames, in as few system calls as it takes. A frame that the
    /// other end's queue has no room for is sent again.
    pub fn send_all(&self, frames: &[Vec<u8>]) -> io::Result<()> {
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec {
                // The kernel only reads it.
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            })
            .collect();
        // SAFETY: all zero is a value of this C struct.
        let empty: libc::mmsghdr = unsafe { mem::zeroed() };
        let mut messages = vec![empty; frames.len()];
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_iov = ptr::from_mut(part);
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut rest = &mut messages[..];
        let end = Instant::now() + PATIENCE;
        while !rest.is_empty() {
            let count = rest.len() as libc::c_uint;
            // SAFETY: `rest` is as long as told, and its messages name one
            // part each, which names a frame; all of them outlive the call.
            let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            if sent >= 0 {
                rest = &mut rest[sent as usize..];
                continue;
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOBUFS) || Instant::now() > end {
                return Err(error);
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// Receives one packet into the buffer, or none when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Meta>> {
        // SAFETY: all zero is a value of these C structs.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { mem::zeroed() };
        let mut control = [0u64; 16];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;

        // SAFETY: every pointer in the message is to a local that lives on and
        // has the length that stands beside it.
        let received = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        if received < 0 {
            return match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            };
        }
        Ok(Some(Meta {
            length: received as usize,
            ifindex: from.sll_ifindex as u32,
            protocol: u16::from_be(from.sll_protocol),
            outgoing: from.sll_pkttype == PACKET_OUTGOING,
            partial: auxdata(&message).status & TP_STATUS_CSUMNOTREADY != 0,
        }))
    }

    /// How many packets found no room since the last call.
    pub fn drops(&self) -> io::Result<u64> {
        let mut statistics = Statistics::default();
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the pointer is to a local of the length that is given.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        done(result)?;
        Ok(statistics.drops.into())
    }

    /// Lets only those packets in that the filter accepts.
    pub fn filter(&self, filter: &[libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            // The kernel only reads it.
            filter: filter.as_ptr().cast_mut(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn bind(&self, protocol: u16, ifindex: u32) -> io::Result<()> {
        // SAFETY: all zero is a value of this C struct.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = ifindex as i32;
        // SAFETY: the pointer is to a local of the length that is given.
        let result = unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        done(result)
    }

    fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the pointer is to a value of the length that is given.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        done(result)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn auxdata(message: &libc::msghdr) -> Auxdata {
    // SAFETY: recvmsg filled the message, its control buffer is still alive
    // and is aligned for a control header.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: the kernel wrote a whole control header here.
        let found = unsafe { &*header };
        if found.cmsg_level == libc::SOL_PACKET && found.cmsg_type == PACKET_AUXDATA {
            // SAFETY: this kind of control message carries this struct.
            return unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
        }
        // SAFETY: as for the first header.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    Auxdata::default()
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
