//! TCP: servers that say who they are and whom they see, and clients that ask.

mod client;
mod server;

use std::{
    fmt,
    hash::Hasher as _,
    io::{self, Read as _},
    net::{SocketAddr, TcpStream},
    str::FromStr,
    time::Duration,
};

pub use client::{Conversation, Dial};
pub use server::{Listen, Manner, TcpServer, TcpServerBuilder};

use crate::wait::deadline;

/// How long an end waits for the other unless told.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What the server of a connection says in its first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name the server was given, its port if none.
    pub name: String,
    /// The accepted socket's own address and port: the dialled port where the
    /// connection was steered, the target's where it was rewritten.
    pub local: SocketAddr,
    /// The client as the server sees it.
    pub peer: SocketAddr,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.local, self.peer)
    }
}

impl FromStr for Identity {
    type Err = io::Error;

    fn from_str(line: &str) -> io::Result<Self> {
        let wrong = || io::Error::other(format!("no server's first line: {line:?}"));
        let mut words = line.split_whitespace();
        let mut word = || words.next().ok_or_else(wrong);
        let name = word()?.to_owned();
        let local = word()?.parse().map_err(|_| wrong())?;
        let peer = word()?.parse().map_err(|_| wrong())?;
        Ok(Self { name, local, peer })
    }
}

/// A length and a hash of what was sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Bytes.
    pub length: u64,
    /// SipHash of the bytes.
    pub hash: u64,
}

fn digest(stream: &mut TcpStream) -> io::Result<Digest> {
    let mut hasher = std::hash::DefaultHasher::new();
    let (mut length, mut buffer) = (0, vec![0; 1 << 18]);
    loop {
        match stream.read(&mut buffer)? {
            0 => {
                return Ok(Digest {
                    length,
                    hash: hasher.finish(),
                });
            }
            count => {
                hasher.write(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

/// Binds as soon as the port is free: a child process that another test is
/// just starting holds a copy of every socket for a moment, also of those
/// closed since.
pub(crate) fn once_free<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let bound = deadline(Duration::from_secs(1), || match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        result => Some(result),
    });
    bound.unwrap_or_else(|| Err(io::ErrorKind::AddrInUse.into()))
}

/// The address that is meant: IPv4 where a dual-stack socket says `::ffff:`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn an_identity_reads_what_it_prints() {
        let identity = Identity {
            name: "web".to_owned(),
            local: "[2001:db8::1]:80".parse().expect("an end"),
            peer: "192.0.2.2:40000".parse().expect("an end"),
        };
        assert_eq!(
            identity.to_string().parse::<Identity>().ok(),
            Some(identity)
        );
    }
}
