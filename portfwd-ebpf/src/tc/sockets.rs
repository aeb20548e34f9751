//! Sockets of this namespace, by the tuple of a packet.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_sk_assign, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_lookup_tcp,
        bpf_tcp_check_syncookie,
    },
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};
use portfwd_common::{Addr, Family};

use super::Tc;
use crate::{
    hook::{LISTEN, NO_SOCKET, SocketState, Steering, UdpSocket},
    packet::{Packet, Tuple},
    place::listening,
};

const ESOCKTNOSUPPORT: i64 = 94;
/// The namespace that the program runs in (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;

impl<const L2: usize> Tc<'_, L2> {
    #[inline(never)]
    pub(super) fn state_of_tcp(&self, family: Family, tuple: &Tuple) -> SocketState {
        let socket = self.tcp_lookup(family, tuple);
        if socket.is_null() {
            return NO_SOCKET;
        }
        // SAFETY: not null, and released right after.
        unsafe {
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state
        }
    }

    #[inline(never)]
    pub(super) fn find_udp(&self, family: Family, tuple: &Tuple) -> UdpSocket {
        let context = self.context.as_ptr().cast();
        // SAFETY: the tuple is valid for `size` bytes; what is found is
        // released.
        unsafe {
            let socket = with_socket_tuple(family, tuple, |words, size| {
                bpf_sk_lookup_udp(context, words, size, CURRENT_NETNS, 0)
            });
            if socket.is_null() {
                return UdpSocket::None;
            }
            let connected = (*socket).dst_port != 0;
            bpf_sk_release(socket.cast());
            if connected {
                UdpSocket::Connected
            } else {
                UdpSocket::Bound
            }
        }
    }

    #[inline(never)]
    pub(super) fn assign(&self, packet: &Packet, addr: &Addr, port: u16) -> Steering {
        let to = Tuple {
            dst: *addr,
            dport: port,
            ..packet.tuple
        };
        let socket = self.tcp_lookup(packet.family, &listening(packet.family, &to));
        if socket.is_null() {
            return Steering::NoListener;
        }
        // SAFETY: not null until it is released, on every path.
        unsafe {
            if (*socket).state != LISTEN {
                bpf_sk_release(socket.cast());
                return Steering::NoListener;
            }
            let cookie = packet.is_ack() && self.completes_cookie(packet, socket);
            if packet.is_ack() && !cookie {
                bpf_sk_release(socket.cast());
                return Steering::NoHandshake;
            }
            let error = bpf_sk_assign(self.context.as_ptr(), socket.cast(), 0);
            bpf_sk_release(socket.cast());
            // The verdict does not hang on the assignment otherwise: a test
            // run has no socket to give a packet to (EOPNOTSUPP).
            if error == -ESOCKTNOSUPPORT {
                Steering::Refused
            } else {
                Steering::Assigned { cookie }
            }
        }
    }

    /// # Safety
    ///
    /// `socket` must be a listener that has not been released.
    #[inline(always)]
    unsafe fn completes_cookie(&self, packet: &Packet, socket: *mut bpf_sock) -> bool {
        let mut ip = MaybeUninit::<Ipv6Hdr>::uninit();
        let mut tcp = MaybeUninit::<TcpHdr>::uninit();
        let length = match packet.family {
            Family::V4 => Ipv4Hdr::LEN,
            Family::V6 => Ipv6Hdr::LEN,
        };
        // SAFETY: each buffer is valid for the length that is read into it,
        // and `socket` by the contract above.
        unsafe {
            self.read(0, ip.as_mut_ptr().cast(), length)
                && self.read(
                    packet.transport.into(),
                    tcp.as_mut_ptr().cast(),
                    TcpHdr::LEN,
                )
                && bpf_tcp_check_syncookie(
                    socket.cast(),
                    ip.as_mut_ptr().cast(),
                    length as u32,
                    tcp.as_mut_ptr().cast(),
                    TcpHdr::LEN as u32,
                ) == 0
        }
    }

    /// # Safety
    ///
    /// `to` must be valid for `len` bytes.
    #[inline(always)]
    unsafe fn read(&self, offset: u32, to: *mut u8, len: usize) -> bool {
        // SAFETY: as the caller says.
        unsafe {
            bpf_skb_load_bytes(self.skb().cast(), Self::at(offset), to.cast(), len as u32) == 0
        }
    }

    #[inline(always)]
    fn tcp_lookup(&self, family: Family, tuple: &Tuple) -> *mut bpf_sock {
        let context = self.context.as_ptr().cast();
        // SAFETY: the tuple is valid for `size` bytes; every caller releases
        // what is found.
        with_socket_tuple(family, tuple, |words, size| unsafe {
            bpf_skc_lookup_tcp(context, words, size, CURRENT_NETNS, 0)
        })
    }
}

/// Lends the words of a `bpf_sock_tuple` and how many bytes of it the family
/// uses. Each family's words stand for themselves: the stack is short.
#[inline(always)]
fn with_socket_tuple<R>(
    family: Family,
    tuple: &Tuple,
    lookup: impl Fn(*mut bpf_sock_tuple, u32) -> R,
) -> R {
    let ports = tuple.port_word();
    match family {
        Family::V4 => {
            let mut words = [tuple.src.v4_word(), tuple.dst.v4_word(), ports];
            lookup(words.as_mut_ptr().cast(), 12)
        }
        Family::V6 => {
            let ([a, b, c, d], [e, f, g, h]) = (tuple.src.0, tuple.dst.0);
            let mut words = [a, b, c, d, e, f, g, h, ports];
            lookup(words.as_mut_ptr().cast(), 36)
        }
    }
}
