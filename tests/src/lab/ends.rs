//! Who has which address in a lab, and the frames between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Family, Frame};

/// The client's port where a test needs no other.
pub const FROM: u16 = 40_000;

/// The host's address on `eth0`.
pub const fn host_at(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(v4(1), port),
        Family::V6 => SocketAddr::new(v6(1), port),
    }
}

/// A client on the network of `eth0`.
pub const fn client_at(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(v4(2), port),
        Family::V6 => SocketAddr::new(v6(2), port),
    }
}

/// A host behind `lan0`; number 1 is this one.
pub const fn lan_at(family: Family, number: u8, port: u16) -> SocketAddr {
    let addr = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, number as u16)),
    };
    SocketAddr::new(addr, port)
}

/// An address that is neither the host's nor on its network.
pub const fn stranger_at(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), port),
        Family::V6 => {
            let addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 9);
            SocketAddr::new(IpAddr::V6(addr), port)
        }
    }
}

/// A client behind `bare0`. A run reads a packet without a link-layer header as
/// if it had one: these addresses have an EtherType where it is looked for.
pub const fn bare_client(family: Family) -> SocketAddr {
    let addr = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(8, 0, 2, 2)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 2)),
    };
    SocketAddr::new(addr, FROM)
}

/// The frame as it can arrive by `bare0`: an option in the IPv4 header, without
/// which its first byte would be a multicast address's.
pub fn bare_frame(frame: Frame) -> Frame {
    frame.options(&[1; 4])
}

/// A datagram from the client to a port of the host.
pub fn to_host(family: Family, port: u16) -> Frame {
    Frame::datagram(client_at(family, FROM), host_at(family, port))
}

/// A datagram from a port of the host to the client.
pub fn to_client(family: Family, port: u16) -> Frame {
    Frame::datagram(host_at(family, port), client_at(family, FROM))
}

/// An opening segment from the client to a port of the host.
pub fn syn(family: Family, port: u16) -> Frame {
    Frame::syn(client_at(family, FROM), host_at(family, port))
}

/// A segment that acknowledges, from the client to a port of the host.
pub fn ack(family: Family, port: u16) -> Frame {
    Frame::ack(client_at(family, FROM), host_at(family, port))
}

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))
}
