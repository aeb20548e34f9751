//! Frames made by hand, and the wire that they are put on.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, TcpHeader,
};

use crate::{Family, Netns, checksum, packet_socket::PacketSocket};

/// Bytes of an IP header without options or extensions.
pub const fn ip_header(family: Family) -> usize {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// A hardware address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A frame with right lengths and checksums. Break the bytes of
/// [`Frame::to_vec`] for one that is wrong.
#[derive(Clone, Debug)]
pub struct Frame {
    source: SocketAddr,
    destination: SocketAddr,
    macs: (Mac, Mac),
    layer4: Layer4,
    hop_limit: u8,
    traffic_class: u8,
    identification: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Layer4 {
    Tcp(Box<TcpHeader>),
    Udp { summed: bool },
}

impl Frame {
    /// A TCP segment without flags, sequence number 1000.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let header = TcpHeader::new(source.port(), destination.port(), 1000, 0xffff);
        Self::new(source, destination, Layer4::Tcp(Box::new(header)))
    }

    /// A TCP segment that opens a connection.
    pub fn syn(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::tcp(source, destination).with_tcp(|header| header.syn = true)
    }

    /// A TCP segment that takes a connection, sequence number 99.
    pub fn syn_ack(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::syn(source, destination).with_tcp(|header| {
            header.ack = true;
            header.sequence_number = 99;
        })
    }

    /// A TCP segment with data that acknowledges a [`Frame::syn_ack`].
    pub fn ack(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::tcp(source, destination)
            .with_tcp(|header| {
                header.ack = true;
                header.acknowledgment_number = 100;
            })
            .payload(b"hello")
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Layer4::Udp { summed: true })
    }

    /// A UDP datagram with an odd number of bytes in it.
    pub fn datagram(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::udp(source, destination).payload(b"a question of odd length")
    }

    /// Changes the TCP header; nothing for UDP.
    pub fn with_tcp(mut self, change: impl FnOnce(&mut TcpHeader)) -> Self {
        if let Layer4::Tcp(header) = &mut self.layer4 {
            change(header);
        }
        self
    }

    /// The bytes after the layer-4 header.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// TTL or hop limit, 64 unless told.
    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// The frame behind a router: one hop fewer is left.
    pub fn one_hop_on(mut self) -> Self {
        self.hop_limit -= 1;
        self
    }

    /// DSCP and ECN, 0 unless told.
    pub fn traffic_class(mut self, traffic_class: u8) -> Self {
        self.traffic_class = traffic_class;
        self
    }

    /// The identification of IPv4, the flow label of IPv6; 0 unless told.
    pub fn identification(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// IPv4 options, in words of four bytes; nothing for IPv6.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// UDP without a checksum; nothing for TCP.
    pub fn unsummed(mut self) -> Self {
        if let Layer4::Udp { summed } = &mut self.layer4 {
            *summed = false;
        }
        self
    }

    /// Source and destination hardware addresses; a [`Wire`] sets its own.
    pub fn macs(mut self, source: Mac, destination: Mac) -> Self {
        self.macs = (source, destination);
        self
    }

    /// The bytes, from the Ethernet header on.
    ///
    /// # Panics
    ///
    /// When the ends are of two families.
    pub fn to_vec(&self) -> Vec<u8> {
        let ip = PacketBuilder::ip(self.ip());
        let mut packet = Vec::new();
        let written = match &self.layer4 {
            Layer4::Tcp(header) => ip
                .tcp_header((**header).clone())
                .write(&mut packet, &self.payload),
            Layer4::Udp { .. } => ip
                .udp(self.source.port(), self.destination.port())
                .write(&mut packet, &self.payload),
        };
        written.expect("a frame that fits IP");
        if let Layer4::Udp { summed: false } = self.layer4 {
            let at = packet.len() - self.payload.len() - 2;
            packet[at..at + 2].fill(0);
        }
        self.ethernet().into_iter().chain(packet).collect()
    }

    /// Lengths and protocol are filled in when it is written.
    fn ip(&self) -> IpHeaders {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (from.octets(), to.octets());
                let header = Ipv4Header::new(0, self.hop_limit, IpNumber::UDP, from, to);
                let mut header = header.expect("an empty packet is not too long");
                header.dscp = (self.traffic_class >> 2).try_into().expect("six bits");
                header.ecn = (self.traffic_class & 3).try_into().expect("two bits");
                header.identification = self.identification;
                header.options = (&*self.options).try_into().expect("words of four bytes");
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: Ipv6FlowLabel::try_from(u32::from(self.identification))
                        .expect("twenty bits"),
                    hop_limit: self.hop_limit,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Default::default())
            }
            _ => panic!(
                "{} and {} are of two families",
                self.source, self.destination
            ),
        }
    }

    fn new(source: SocketAddr, destination: SocketAddr, layer4: Layer4) -> Self {
        let macs = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        Self {
            source,
            destination,
            macs,
            layer4,
            hop_limit: 64,
            traffic_class: 0,
            identification: 0,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    fn ethernet(&self) -> [u8; ETHERNET] {
        let ether_type = if self.destination.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        Ethernet2Header {
            source: self.macs.0,
            destination: self.macs.1,
            ether_type,
        }
        .to_bytes()
    }
}

/// The bytes of a frame, from its Ethernet header on.
pub trait Bytes {
    /// The bytes.
    fn bytes(&self) -> Vec<u8>;
}

impl Bytes for Frame {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> Vec<u8> {
        self.clone()
    }
}

impl<T: Bytes> Bytes for &T {
    fn bytes(&self) -> Vec<u8> {
        (*self).bytes()
    }
}

/// The payload with which the checksum of a UDP datagram between these ends
/// comes out as zero.
pub fn balance(source: SocketAddr, destination: SocketAddr) -> [u8; 2] {
    // The checksum over zeros, in their place.
    let frame = Frame::udp(source, destination).payload(&[0, 0]).to_vec();
    let [.., high, low, _, _] = frame[..] else {
        unreachable!("a datagram with two bytes");
    };
    [high, low]
}

/// The bytes of an IPv4 frame with the checksum of its header made anew.
pub fn summed_v4(mut frame: Vec<u8>) -> Vec<u8> {
    let end = ETHERNET + usize::from(frame[ETHERNET] & 0x0f) * 4;
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = !checksum::fold(checksum::sum(&frame[ETHERNET..end]));
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A device from which frames are sent to one neighbour, past the sender's own
/// stack.
#[derive(Debug)]
pub struct Wire {
    socket: PacketSocket,
    macs: (Mac, Mac),
}

impl Wire {
    /// Sends by a device of the namespace, between two hardware addresses.
    #[track_caller]
    pub fn new(ns: &Netns, device: &str, source: Mac, destination: Mac) -> Self {
        let ifindex = ns.ifindex(device);
        let socket = ns
            .enter(|| PacketSocket::sender(ifindex))
            .expect("root sends packets");
        Self {
            socket,
            macs: (source, destination),
        }
    }

    /// Sends the frame with the hardware addresses of this wire.
    #[track_caller]
    pub fn send(&self, frame: &Frame) {
        let (source, destination) = self.macs;
        self.send_bytes(&frame.clone().macs(source, destination).to_vec());
    }

    /// Sends many frames with the hardware addresses of this wire.
    #[track_caller]
    pub fn send_all(&self, frames: impl IntoIterator<Item = Frame>) {
        let (source, destination) = self.macs;
        let bytes = |frame: Frame| frame.macs(source, destination).to_vec();
        let frames: Vec<_> = frames.into_iter().map(bytes).collect();
        self.socket
            .send_all(&frames)
            .expect("the device takes frames");
    }

    /// Sends the bytes as they are.
    #[track_caller]
    pub fn send_bytes(&self, frame: &[u8]) {
        self.socket.send(frame).expect("the device takes a frame");
    }
}
