//! The calls of programs of this host, as the kernel shows them to a cgroup.
//!
//! Fields are read and written one by one and volatile: the verifier takes no
//! wider access to the addresses, and none to the rest of the context.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use portfwd_common::{Addr, Peer, Proto};

use crate::{
    dial::{self, Socket},
    maps::Maps,
};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// A connection of MPTCP is dialled as one of TCP.
const IPPROTO_MPTCP: u32 = 262;

/// The width of the addresses of a call.
pub trait Width {
    /// The peer's address.
    ///
    /// # Safety
    ///
    /// `call` is the context of a program of this width.
    unsafe fn addr(call: *mut bpf_sock_addr) -> Addr;
    /// Writes the peer's address.
    ///
    /// # Safety
    ///
    /// As for [`Width::addr`].
    unsafe fn set_addr(call: *mut bpf_sock_addr, addr: &Addr);
    /// The address that the socket is bound to.
    ///
    /// # Safety
    ///
    /// `socket` is the socket of such a call.
    unsafe fn bound(socket: *mut bpf_sock) -> Addr;
    /// The address that the socket is connected to.
    ///
    /// # Safety
    ///
    /// As for [`Width::bound`].
    unsafe fn connected(socket: *mut bpf_sock) -> Addr;
    /// The address that a datagram is sent from.
    ///
    /// # Safety
    ///
    /// `call` is the context of a sendmsg program of this width.
    unsafe fn sent_from(call: *mut bpf_sock_addr) -> Addr;
}

/// IPv4.
#[derive(Debug)]
pub struct V4;
/// IPv6, and IPv4 by mapped addresses.
#[derive(Debug)]
pub struct V6;

macro_rules! read {
    ($pointer:ident . $($field:tt)+) => {
        (&raw const (*$pointer).$($field)+).read_volatile()
    };
}

macro_rules! write {
    ($value:expr => $pointer:ident . $($field:tt)+) => {
        (&raw mut (*$pointer).$($field)+).write_volatile($value)
    };
}

macro_rules! read_v6 {
    ($pointer:ident . $field:ident) => {
        Addr([
            read!($pointer.$field[0]),
            read!($pointer.$field[1]),
            read!($pointer.$field[2]),
            read!($pointer.$field[3]),
        ])
    };
}

impl Width for V4 {
    #[inline(always)]
    unsafe fn addr(call: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's promise.
        Addr::v4(unsafe { read!(call.user_ip4) })
    }

    #[inline(always)]
    unsafe fn set_addr(call: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: the caller's promise.
        unsafe { write!(addr.v4_word() => call.user_ip4) };
    }

    #[inline(always)]
    unsafe fn bound(socket: *mut bpf_sock) -> Addr {
        // SAFETY: the caller's promise.
        Addr::v4(unsafe { read!(socket.src_ip4) })
    }

    #[inline(always)]
    unsafe fn connected(socket: *mut bpf_sock) -> Addr {
        // SAFETY: the caller's promise.
        Addr::v4(unsafe { read!(socket.dst_ip4) })
    }

    #[inline(always)]
    unsafe fn sent_from(call: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's promise.
        Addr::v4(unsafe { read!(call.msg_src_ip4) })
    }
}

impl Width for V6 {
    #[inline(always)]
    unsafe fn addr(call: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's promise.
        unsafe { read_v6!(call.user_ip6) }
    }

    #[inline(always)]
    unsafe fn set_addr(call: *mut bpf_sock_addr, addr: &Addr) {
        let [a, b, c, d] = addr.0;
        // SAFETY: the caller's promise.
        unsafe {
            write!(a => call.user_ip6[0]);
            write!(b => call.user_ip6[1]);
            write!(c => call.user_ip6[2]);
            write!(d => call.user_ip6[3]);
        }
    }

    #[inline(always)]
    unsafe fn bound(socket: *mut bpf_sock) -> Addr {
        // SAFETY: the caller's promise.
        unsafe { read_v6!(socket.src_ip6) }
    }

    #[inline(always)]
    unsafe fn connected(socket: *mut bpf_sock) -> Addr {
        // SAFETY: the caller's promise.
        unsafe { read_v6!(socket.dst_ip6) }
    }

    #[inline(always)]
    unsafe fn sent_from(call: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's promise.
        unsafe { read_v6!(call.msg_src_ip6) }
    }
}

/// A socket connects.
///
/// # Safety
///
/// `context` is that of a connect program of the width.
#[inline(always)]
pub unsafe fn connect<W: Width>(context: &SockAddrContext) {
    let call = context.sock_addr;
    if let Some(proto) = served(context) {
        let socket = Socket {
            cookie: cookie(context),
            proto,
            // SAFETY: the caller's promise; every such call has a socket.
            source: unsafe { W::bound(read!(call.__bindgen_anon_1.sk)) },
            connected: Addr::UNSPECIFIED,
        };
        // SAFETY: the caller's promise.
        unsafe { dial::<W>(context, &socket) };
    }
}

/// A datagram is sent to an address.
///
/// # Safety
///
/// `context` is that of a sendmsg program of the width.
#[inline(always)]
pub unsafe fn send<W: Width>(context: &SockAddrContext) {
    let call = context.sock_addr;
    if let Some(proto) = served(context) {
        let socket = Socket {
            cookie: cookie(context),
            proto,
            // SAFETY: the caller's promise.
            source: unsafe { W::sent_from(call) },
            // SAFETY: as above; every such call has a socket.
            connected: unsafe { W::connected(read!(call.__bindgen_anon_1.sk)) },
        };
        // SAFETY: the caller's promise.
        unsafe { dial::<W>(context, &socket) };
    }
}

/// A program asks who the peer is.
///
/// # Safety
///
/// `context` is that of a recvmsg or getpeername program of the width.
#[inline(always)]
pub unsafe fn answer<W: Width>(context: &SockAddrContext) {
    if let Some(proto) = served(context) {
        let cookie = cookie(context);
        // SAFETY: the caller's promise.
        unsafe {
            let peer = peer::<W>(context);
            if let Some(dialled) = dial::answer(&Maps::without_bank(), cookie, proto, &peer) {
                set_peer::<W>(context, &dialled);
            }
        }
    }
}

/// # Safety
///
/// `context` is that of a connect or sendmsg program of the width.
#[inline(always)]
unsafe fn dial<W: Width>(context: &SockAddrContext, socket: &Socket) {
    // SAFETY: the caller's promise.
    unsafe {
        let peer = peer::<W>(context);
        if let Ok(target) = dial::dial(&Maps::open(), socket, &peer) {
            set_peer::<W>(context, &target);
        }
    }
}

/// The protocol of a call in the namespace that is forwarded in, if rules can
/// name it.
#[inline(always)]
fn served(context: &SockAddrContext) -> Option<Proto> {
    // SAFETY: the context of the program that runs.
    let cookie = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    if cookie != Maps::netns_cookie() {
        return None;
    }
    let call = context.sock_addr;
    // SAFETY: as above.
    match unsafe { read!(call.protocol) } {
        IPPROTO_TCP | IPPROTO_MPTCP => Some(Proto::Tcp),
        IPPROTO_UDP => Some(Proto::Udp),
        _ => None,
    }
}

#[inline(always)]
fn cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: the context of the program that runs.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// # Safety
///
/// The width is that of the program.
#[inline(always)]
unsafe fn peer<W: Width>(context: &SockAddrContext) -> Peer {
    let call = context.sock_addr;
    // SAFETY: the caller's promise. The port lies in network byte order in the
    // first half of the word.
    unsafe { Peer::new(W::addr(call), u16::from_be(read!(call.user_port) as u16)) }
}

/// # Safety
///
/// The width is that of the program.
#[inline(always)]
unsafe fn set_peer<W: Width>(context: &SockAddrContext, peer: &Peer) {
    let call = context.sock_addr;
    // SAFETY: as above.
    unsafe {
        W::set_addr(call, &peer.addr);
        write!(u32::from(peer.port.to_be()) => call.user_port);
    }
}
