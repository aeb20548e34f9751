//! The seam between the corridor and what carries the packet.

use portfwd_common::{Addr, Family};

use crate::packet::{Packet, Tuple};

/// `lo` has this index in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// State of a TCP socket, as `bpf_sock::state` numbers it.
pub type SocketState = u32;
/// No socket at all.
pub const NO_SOCKET: SocketState = 0;
/// A connection that carries data.
pub const ESTABLISHED: SocketState = 1;
/// An active open without an answer yet.
pub const SYN_SENT: SocketState = 2;
/// Closed, waiting for stray segments.
pub const TIME_WAIT: SocketState = 6;
/// A listener.
pub const LISTEN: SocketState = 10;
/// A request socket: the handshake's first half.
pub const NEW_SYN_RECV: SocketState = 12;

/// What the link layer says of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// EtherType of the packet, host byte order, VLAN tags skipped.
    pub ethertype: u16,
    /// The device that the hook is on.
    pub ifindex: u32,
    /// Bytes from the IP header to the end.
    pub len: u32,
    /// Payload bytes of each segment of a GSO packet, 0 for a plain one.
    pub gso_size: u32,
    /// The link delivered it to this host alone.
    pub for_host: bool,
    /// A VLAN tag other than the priority tag.
    pub vlan: bool,
    /// At egress: this host only forwards the packet.
    pub forwarded: bool,
}

/// A UDP socket, found by a tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UdpSocket {
    /// There is none.
    None,
    /// It receives from everyone.
    Bound,
    /// It receives from the tuple's source alone.
    Connected,
}

/// What became of a packet that was offered to a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Steering {
    /// Nothing listens there.
    NoListener,
    /// An ACK that completes no handshake: the listener would only reset it.
    NoHandshake,
    /// The listener has it.
    Assigned {
        /// The packet completes a handshake by a valid SYN cookie.
        cookie: bool,
    },
    /// The kernel does not assign to this kind of listener.
    Refused,
}

/// A packet on a hook. Offsets count from the first byte of the IP header.
pub trait Hook {
    /// What the link layer says.
    fn frame(&self) -> Frame;

    /// Makes the first `len` bytes readable, or all where there are fewer.
    fn pull(&mut self, len: usize);

    /// `N` 32-bit words at `offset` as they lie in memory (network byte
    /// order); none where they are not all there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// True when the destination of a packet from the network may be this host's. Without
    /// forwarding the kernel does not say, but then it delivers to nobody
    /// else either.
    fn may_be_local(&self, packet: &Packet) -> bool;

    /// State of the socket that a TCP packet with the tuple belongs to, or
    /// [`NO_SOCKET`].
    fn tcp_socket(&self, family: Family, tuple: &Tuple) -> SocketState;

    /// The UDP socket that would receive a packet with the tuple.
    fn udp_socket(&self, family: Family, tuple: &Tuple) -> UdpSocket;

    /// At egress: true when the packet was sent by a socket of its tuple.
    fn sent_by_socket(&self, packet: &Packet) -> bool;

    /// Hands the packet to the listener on `addr` and `port`.
    fn steer(&self, packet: &Packet, addr: &Addr, port: u16) -> Steering;

    /// Gives the packet the tuple `to` and updates its checksums. Cannot fail:
    /// everything that can has been asked before.
    fn rewrite(&mut self, packet: &Packet, to: &Tuple);
}
