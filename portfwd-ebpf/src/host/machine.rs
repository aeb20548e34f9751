//! What the kernel would answer about sockets and addresses.

use std::cell::RefCell;

use portfwd_common::{Addr, Family, Proto};

use super::Tally;
use crate::{
    hook::{LISTEN, NO_SOCKET, SocketState, Steering, UdpSocket},
    packet::{Packet, Tuple},
};

/// A TCP listener.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Its address: [`Addr::UNSPECIFIED`] takes both families,
    /// [`Addr::V4_UNSPECIFIED`] every IPv4 address.
    pub addr: Addr,
    /// Its port.
    pub port: u16,
    /// The kernel does not assign packets to it.
    pub refuses: bool,
}

/// Sockets and addresses of a machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Calls that concern a packet, a socket or a route.
    pub tally: Tally,
    /// Its addresses; those of 127.0.0.0/8 and `::1` need not be named.
    pub addresses: Vec<Addr>,
    /// It forwards, so the kernel says which addresses are its own.
    pub forwards: bool,
    /// TCP sockets by the tuple of the packets that they receive.
    pub connections: RefCell<Vec<(Tuple, SocketState)>>,
    /// TCP listeners.
    pub listeners: Vec<Listener>,
    /// UDP sockets that are not connected, by address and port.
    pub udp: Vec<(Addr, u16)>,
    /// MTUs of its interfaces by index; where one is named, no other exists.
    pub mtus: Vec<(u32, u32)>,
    /// Acknowledgement numbers that complete a SYN cookie.
    pub cookies: Vec<u32>,
    /// Address and port of the listeners that were given a packet, in order.
    pub steered: RefCell<Vec<(Addr, u16)>>,
}

impl Machine {
    /// A machine with addresses of its own, that forwards.
    pub fn new(addresses: &[Addr]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            forwards: true,
            ..Self::default()
        }
    }

    /// Adds a listener on `addr` and `port`.
    pub fn listen(mut self, addr: Addr, port: u16) -> Self {
        self.listeners.push(Listener {
            addr,
            port,
            refuses: false,
        });
        self
    }

    /// Adds a listener that the kernel does not steer to.
    pub fn listen_unsteerable(mut self, addr: Addr, port: u16) -> Self {
        self.listeners.push(Listener {
            addr,
            port,
            refuses: true,
        });
        self
    }

    /// Adds a UDP socket.
    pub fn bind(mut self, addr: Addr, port: u16) -> Self {
        self.udp.push((addr, port));
        self
    }

    /// Adds a TCP socket that receives packets with `tuple`.
    pub fn connect(self, tuple: Tuple, state: SocketState) -> Self {
        self.connections.borrow_mut().push((tuple, state));
        self
    }

    /// Gives an interface an MTU.
    pub fn mtu_of(mut self, ifindex: u32, mtu: u32) -> Self {
        self.mtus.push((ifindex, mtu));
        self
    }

    pub(super) fn mtu(&self, ifindex: u32) -> u32 {
        let found = self.mtus.iter().find(|(index, _)| *index == ifindex);
        found.map_or(0, |(_, mtu)| *mtu)
    }

    pub(super) fn may_be_local(&self, packet: &Packet) -> bool {
        self.tally.helper("fib_lookup");
        let dst = &packet.tuple.dst;
        !self.forwards || dst.is_loopback() || self.addresses.contains(dst)
    }

    pub(super) fn tcp_socket(&self, family: Family, tuple: &Tuple) -> SocketState {
        self.tally.helper("skc_lookup_tcp");
        let connections = self.connections.borrow();
        let connection = connections.iter().find(|(of, _)| of == tuple);
        let state = match connection {
            Some((_, state)) => *state,
            None if self.listener(family, &tuple.dst, tuple.dport).is_some() => LISTEN,
            None => NO_SOCKET,
        };
        if state != NO_SOCKET {
            self.tally.helper("sk_release");
        }
        state
    }

    pub(super) fn udp_socket(&self, family: Family, tuple: &Tuple) -> UdpSocket {
        self.tally.helper("sk_lookup_udp");
        let takes =
            |(addr, port): &(_, u16)| *port == tuple.dport && takes(addr, family, &tuple.dst);
        if self.udp.iter().any(takes) {
            self.tally.helper("sk_release");
            UdpSocket::Bound
        } else {
            UdpSocket::None
        }
    }

    pub(super) fn sent_by_socket(&self, packet: &Packet) -> bool {
        packet.proto == Proto::Tcp
            && !matches!(
                self.tcp_socket(packet.family, &packet.tuple.reversed()),
                NO_SOCKET | LISTEN
            )
    }

    pub(super) fn steer(&self, packet: &Packet, addr: &Addr, port: u16) -> Steering {
        self.tally.helper("skc_lookup_tcp");
        let listener = self.listener(packet.family, addr, port);
        if listener.is_some() {
            self.tally.helper("sk_release");
        }
        if listener.is_some() && packet.is_ack() {
            self.tally.helper("skb_load_bytes");
            self.tally.helper("skb_load_bytes");
            self.tally.helper("tcp_check_syncookie");
        }
        match listener {
            None => Steering::NoListener,
            Some(listener) if listener.refuses => {
                self.tally.helper("sk_assign");
                Steering::Refused
            }
            Some(_) if packet.is_ack() && !self.cookies.contains(&packet.ack) => {
                Steering::NoHandshake
            }
            Some(_) => {
                self.tally.helper("sk_assign");
                self.steered.borrow_mut().push((*addr, port));
                Steering::Assigned {
                    cookie: packet.is_ack(),
                }
            }
        }
    }

    fn listener(&self, family: Family, addr: &Addr, port: u16) -> Option<&Listener> {
        self.listeners
            .iter()
            .find(|listener| listener.port == port && takes(&listener.addr, family, addr))
    }
}

/// Would a socket bound to `bound` receive what is sent to `addr`?
fn takes(bound: &Addr, family: Family, addr: &Addr) -> bool {
    bound == addr
        || bound.is_unspecified()
        || (*bound == Addr::V4_UNSPECIFIED && family == Family::V4)
}
