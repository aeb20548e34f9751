//! More clients than a machine has sockets for, each a handmade datagram.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use crate::{
    Family, Frame, Identity, Packet, Watch, Wire, World, packet_socket::PacketSocket,
    tcp::canonical, wait::deadline, world::stranger,
};

/// Datagrams that are under way at once. The queue of a neighbour that is not
/// resolved yet takes more: it drops beyond `unres_qlen_bytes`, 212,992 bytes
/// unless set, and a small datagram takes 768 of them.
const AT_ONCE: usize = 200;

/// How long the answers to these may take unless told.
const PATIENCE: Duration = Duration::from_secs(3);

/// Clients beyond the world's client. They are many, answer nobody, and hear
/// what comes to them.
pub struct Crowd {
    members: Vec<SocketAddr>,
    wire: Wire,
    ear: PacketSocket,
    patience: Duration,
}

impl Crowd {
    /// Clients of so many addresses, each at all of these ports.
    #[track_caller]
    pub fn new(world: &World, family: Family, addresses: u32, ports: Range<u16>) -> Self {
        let at = |address: IpAddr| {
            ports
                .clone()
                .map(move |port| SocketAddr::new(address, port))
        };
        let addresses = (0..addresses).map(|number| stranger(family, number));
        let ear = world.client.ns.enter(PacketSocket::tap);
        let ear = ear.expect("root opens packet sockets");
        ear.filter(&Watch::Udp.filter())
            .expect("the kernel takes the filter");
        Self {
            members: addresses.flat_map(at).collect(),
            wire: world.wire(),
            ear,
            patience: PATIENCE,
        }
    }

    /// How long they wait for an answer that may not come, 3 s unless told.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Are they none at all?
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Each asks a server that says whom it sees, once. Tells what each of
    /// those that were answered from where they had asked was told.
    #[track_caller]
    pub fn ask(&self, remote: SocketAddr) -> BTreeMap<SocketAddr, Identity> {
        let mut answers = BTreeMap::new();
        for members in self.members.chunks(AT_ONCE) {
            let ask = |member: &SocketAddr| Frame::udp(*member, remote).payload(b"hello");
            self.wire.send_all(members.iter().map(ask));
            let wanted = answers.len() + members.len();
            deadline(self.patience, || {
                self.listen(remote, &mut answers);
                (answers.len() >= wanted).then_some(())
            });
        }
        answers
    }

    fn listen(&self, remote: SocketAddr, answers: &mut BTreeMap<SocketAddr, Identity>) {
        let mut buffer = vec![0; 2048];
        while let Some(meta) = self.ear.receive(&mut buffer).expect("the device is up") {
            let packet = Packet {
                device: String::new(),
                outgoing: meta.outgoing,
                partial: meta.partial,
                protocol: meta.protocol,
                bytes: buffer[..meta.length].to_vec(),
            };
            let Some(view) = packet.view().filter(|_| !packet.outgoing) else {
                continue;
            };
            let line = String::from_utf8_lossy(&view.payload);
            if canonical(view.source) == remote
                && let Some(Ok(identity)) = line.lines().next().map(str::parse)
            {
                answers.insert(view.destination, identity);
            }
        }
    }
}
