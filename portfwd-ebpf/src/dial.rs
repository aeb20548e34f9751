//! Programs of this host that dial a rule for another host: their sockets are
//! sent to the target before there is a packet, and are told of the peer that
//! they dialled ever after.
//!
//! A socket that sends to one target by several dialled addresses is told of
//! the last one. Where it then sends to the target itself it is told of that.

use portfwd_common::{Addr, Family, Peer, PeerKey, PortEntry, Proto, Verdict};

use crate::{
    claim::{self, Dialled},
    ports,
    tables::Tables,
};

/// 127.0.0.1.
const LOOPBACK_V4: Addr = Addr::v4(0x7f00_0001_u32.to_be());
/// ::1.
const LOOPBACK_V6: Addr = Addr([0, 0, 0, 1_u32.to_be()]);

/// A socket of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    /// Its cookie.
    pub cookie: u64,
    /// Protocol.
    pub proto: Proto,
    /// The address that it is bound to or sends from, unspecified in either
    /// family where the kernel is to choose.
    pub source: Addr,
    /// A datagram is sent: the address that the socket is connected to. Over
    /// IPv6 the kernel shows what a connected socket sends to a mapped address
    /// as if the address had been given.
    pub connected: Addr,
}

impl Socket {
    /// The address that it has chosen itself.
    #[inline(always)]
    fn bound(&self) -> Option<&Addr> {
        if is_any(&self.source) {
            None
        } else {
            Some(&self.source)
        }
    }
}

/// A socket connects, or sends a datagram: where to instead, or why it is left
/// alone.
#[inline(always)]
pub fn dial<T: Tables>(tables: &T, socket: &Socket, peer: &Peer) -> Result<Peer, Verdict> {
    let entry = ports::named(tables.port(socket.proto, peer.port))?;
    let dialled = Peer::new(host(socket, &peer.addr), peer.port);
    match target(tables, socket, &dialled, entry) {
        Ok(target) => {
            let key = key(socket.cookie, socket.proto, &target);
            // A socket that sends many datagrams writes once.
            if tables.dialled(&key) != Some(dialled) && !tables.put_dialled(&key, &dialled) {
                return Err(Verdict::TableFull);
            }
            tables.count_call(Verdict::Dialled);
            Ok(target)
        }
        Err(verdict) => {
            let key = key(socket.cookie, socket.proto, &dialled);
            // Most have none; and a look takes no lock.
            if entry.has(PortEntry::REMOTE)
                && socket.connected != dialled.addr
                && tables.dialled(&key).is_some()
            {
                tables.forget_dialled(&key);
            }
            Err(verdict)
        }
    }
}

/// The peer of a datagram or of a connection, as the socket dialled it.
#[inline(always)]
pub fn answer<T: Tables>(tables: &T, cookie: u64, proto: Proto, peer: &Peer) -> Option<Peer> {
    tables.dialled(&key(cookie, proto, peer))
}

#[inline(always)]
const fn key(cookie: u64, proto: Proto, peer: &Peer) -> PeerKey {
    PeerKey {
        socket: cookie,
        addr: peer.addr,
        port: peer.port,
        proto: proto as u8,
        reserved: [0; 5],
    }
}

/// The target on another host of the rule that claims what was dialled.
#[inline(always)]
fn target<T: Tables>(
    tables: &T,
    socket: &Socket,
    peer: &Peer,
    entry: PortEntry,
) -> Result<Peer, Verdict> {
    if entry.class() == 0 {
        return Err(Verdict::NoRule);
    }
    let family = peer.addr.family();
    if !peer.addr.is_loopback_of(family) && !tables.is_own(&peer.addr) {
        return Err(Verdict::NotLocal);
    }
    let dialled = Dialled {
        proto: socket.proto,
        family,
        addr: &peer.addr,
        port: peer.port,
    };
    let source = source(socket, &peer.addr, family);
    let claimed = claim::rule(tables, entry, &dialled, &source)?;
    let target = claimed.target(tables).ok_or(Verdict::NoRule)?;
    if target.is_local() || target.addr.family() != family {
        return Err(Verdict::NoRule);
    }
    // The kernel sends nothing from a loopback address to another host: the
    // call fails as it does without the rule.
    if socket.bound().is_some_and(Addr::is_loopback) {
        return Err(Verdict::NoRoute);
    }
    let port = claimed.rule.target_port(dialled.port);
    Ok(Peer::new(target.addr, port))
}

/// The host that an address dials: for 0.0.0.0 and `::` the kernel takes the
/// socket's own IPv4 address, else the loopback address.
#[inline(always)]
fn host(socket: &Socket, addr: &Addr) -> Addr {
    if !is_any(addr) {
        return *addr;
    }
    match (addr.family(), socket.source.family()) {
        (Family::V6, Family::V6) => LOOPBACK_V6,
        (Family::V6, Family::V4) => LOOPBACK_V4,
        (Family::V4, _) => *socket.bound().unwrap_or(&LOOPBACK_V4),
    }
}

/// The source that rules are asked for: the one that the kernel would take to
/// reach the dialled address, which is this host's.
#[inline(always)]
fn source(socket: &Socket, dialled: &Addr, family: Family) -> Addr {
    match socket.bound() {
        Some(source) => *source,
        None if !dialled.is_loopback_of(family) => *dialled,
        None => match family {
            Family::V4 => LOOPBACK_V4,
            Family::V6 => LOOPBACK_V6,
        },
    }
}

/// 0.0.0.0 or `::`.
#[inline(always)]
fn is_any(addr: &Addr) -> bool {
    addr.is_unspecified() || *addr == Addr::V4_UNSPECIFIED
}
