//! The seam between the corridor and what carries the packet.

use portfwd_common::{Addr, Family, Mac};

use crate::{
    packet::{Packet, Tuple},
    remember::Reserved,
    tables::{Draft, Tables},
};

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

/// The way to another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// The interface that it leaves by.
    pub ifindex: u32,
    /// The interface is the host end of a veth pair, whose other end may be
    /// given the packet at once.
    pub peer: bool,
    /// `peer`: Ethernet destination and source of the frame.
    pub link: [u32; 3],
    /// Bytes of layer 3 that fit; 0 where that is not known.
    pub mtu: u32,
    /// IPv6: the next hop; unspecified where the kernel finds it.
    pub hop: Addr,
}

/// The addresses of an Ethernet frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Who it is for.
    pub dst: Mac,
    /// Who sends it.
    pub src: Mac,
}

/// What an interface lets pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// It is there.
    pub exists: bool,
    /// The packet, or each of its segments, fits.
    pub fits: bool,
    /// Bytes of layer 3 that fit; 0 where the kernel does not say.
    pub mtu: u32,
}

/// A packet that can be read. Offsets count from the first byte of the IP header.
pub trait Readable {
    /// What the link layer says.
    fn frame(&self) -> Frame;

    /// Makes the first `len` bytes readable, or all where there are fewer.
    fn pull(&mut self, len: usize);

    /// `N` 32-bit words at `offset` as they lie in memory (network byte
    /// order); none where they are not all there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
}

/// A packet that the accelerator can send: XDP, before the stack has seen it.
pub trait Express: Readable {
    /// Gives the packet the tuple `to` and one hop less, with its checksums, and
    /// its frame the addresses of `link`. False, and nothing written, where the
    /// headers are not all there.
    fn express(&mut self, packet: &Packet, to: &Tuple, link: &Link) -> bool;
}

/// A packet on a hook that can do everything.
pub trait Hook: Readable {
    /// The addresses of the frame as it leaves; none where it has no Ethernet
    /// header.
    fn link(&self) -> Option<Link>;

    /// Copies the `len` bytes at `offset`, 64 at most; false where they are not
    /// all there.
    fn copy(&self, offset: u16, to: &mut [u8; 64], len: u32) -> bool;

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

    /// What the interface lets pass, and whether the packet does.
    fn room(&self, packet: &Packet, ifindex: u32) -> Room;

    /// [`crate::remember::reserve_next`] for the packet in the draft, where a
    /// hook can have it apart from the rest of the program.
    fn reserve_next<T: Tables>(&self, tables: &T, draft: &mut Draft) -> Reserved;

    /// Gives the packet the tuple `to` and as many hops as told, and updates its
    /// checksums. Cannot fail: everything that can has been asked before.
    fn rewrite(&mut self, packet: &Packet, to: &Tuple, hops: u8);

    /// Writes the MSS, of 16 bits at `offset`, of a SYN.
    fn set_mss(&mut self, packet: &Packet, offset: u16, from: u16, to: u16);

    /// Sends the packet to another host when the program ends, with a verdict
    /// whose action is [`portfwd_common::Action::Send`].
    fn send(&mut self, way: &Way);

    /// [`crate::relay::send`], where a hook can have it apart from the rest of
    /// the program.
    fn relay(&mut self, draft: &mut Draft);
}
