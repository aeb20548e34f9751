//! Clients that dial a server and talk to it.

use std::{
    fmt,
    hash::Hasher as _,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Digest, Identity, TIMEOUT, canonical, digest};
use crate::{
    Family, Netns,
    wait::{deadline, until},
};

/// A TCP connection to be opened.
#[derive(Clone, Debug)]
pub struct Dial<'a> {
    ns: &'a Netns,
    remote: SocketAddr,
    source: Option<IpAddr>,
    port: u16,
    timeout: Duration,
    abort: bool,
}

impl<'a> Dial<'a> {
    /// A connection from the namespace.
    pub fn new(ns: &'a Netns, remote: SocketAddr) -> Self {
        Self {
            ns,
            remote,
            source: None,
            port: 0,
            timeout: TIMEOUT,
            abort: false,
        }
    }

    /// From this port, which other connections may use at the same time.
    pub fn from_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// From this address.
    pub fn from(mut self, source: impl Into<IpAddr>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// How long each step may take, 3 s unless told.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Ends with a reset, which leaves no TIME_WAIT on either side.
    pub fn ending_with_reset(mut self) -> Self {
        self.abort = true;
        self
    }

    /// Opens the connection and reads the server's first line.
    pub fn open(&self) -> io::Result<Conversation> {
        let stream = self.connect()?;
        let local = canonical(stream.local_addr()?);
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(Conversation {
            server: line.parse()?,
            local,
            reader,
        })
    }

    /// Opens the connection only. A child that another test starts holds copies
    /// of all sockets until its exec, and with them, for a moment, a tuple that
    /// was given up: then it is tried again.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let mut last = self.attempt();
        deadline(Duration::from_millis(500), || {
            let held = |error: &io::Error| error.kind() == io::ErrorKind::AddrNotAvailable;
            if self.port == 0 || !last.as_ref().is_err_and(held) {
                return Some(());
            }
            last = self.attempt();
            None
        });
        last
    }

    fn attempt(&self) -> io::Result<TcpStream> {
        let domain = Domain::for_address(self.remote);
        let socket = self
            .ns
            .enter(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)))?;
        if self.port != 0 || self.source.is_some() {
            let source = self.source.unwrap_or(Family::of(self.remote.ip()).any());
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(source, self.port).into())?;
        }
        if self.abort {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        socket.connect_timeout(&self.remote.into(), self.timeout)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(stream)
    }

    /// Opens the connection and proves it in both directions.
    #[track_caller]
    pub fn assert_served(&self) -> Conversation {
        let mut talk = self
            .open()
            .unwrap_or_else(|error| panic!("{self}: {error}"));
        assert!(talk.echoes("hello"), "{self}: {talk:?}");
        talk
    }

    /// The same, to the server of this name, which sees the client itself.
    #[track_caller]
    pub fn assert_served_by(&self, name: &str) {
        let talk = self.assert_served();
        assert_eq!(talk.server.name, name, "{self}");
        assert!(talk.client_is_kept(), "{self}: {talk:?}");
    }

    /// Is the connection refused, by a reset and not by silence?
    pub fn is_refused(&self) -> bool {
        self.connect()
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// The connection is refused.
    #[track_caller]
    pub fn assert_refused(&self) {
        assert!(self.is_refused(), "{self} is not refused");
    }
}

impl fmt::Display for Dial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.ns.name(), self.remote)
    }
}

/// An open connection whose server has said who it is.
#[derive(Debug)]
pub struct Conversation {
    /// The server and what it sees.
    pub server: Identity,
    /// The client's own address and port.
    pub local: SocketAddr,
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Sends the text and tells whether it comes back.
    pub fn echoes(&mut self, text: &str) -> bool {
        let mut answer = vec![0; text.len()];
        self.stream().write_all(text.as_bytes()).is_ok()
            && self.reader.read_exact(&mut answer).is_ok()
            && answer == text.as_bytes()
    }

    /// Does the server see the client's own address and port?
    pub fn client_is_kept(&self) -> bool {
        self.server.peer == self.local
    }

    /// Reads until the server closes, closes, and waits until the kernel has
    /// forgotten the connection on this side.
    pub fn until_closed(mut self) -> io::Result<()> {
        io::copy(&mut self.reader, &mut io::sink())?;
        let stream = self.stream();
        stream.shutdown(Shutdown::Write)?;
        until("the server to acknowledge the end", || {
            stream.peer_addr().is_err()
        });
        Ok(())
    }

    /// Sends `length` bytes to a [`super::Manner::Digest`] server. Returns
    /// what was sent and what the server says it got.
    pub fn send_bulk(mut self, length: u64) -> io::Result<(Digest, Digest)> {
        let mut hasher = std::hash::DefaultHasher::new();
        let mut block: Vec<u8> = (0..1 << 18)
            .map(|n: u32| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8)
            .collect();
        let mut left = length;
        while left > 0 {
            // A block that is lost, twice there or out of turn shows.
            block[..8].copy_from_slice(&left.to_le_bytes());
            let part = &block[..left.min(block.len() as u64) as usize];
            hasher.write(part);
            self.stream().write_all(part)?;
            left -= part.len() as u64;
        }
        self.stream().shutdown(Shutdown::Write)?;

        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let &[received, hash] = numbers.as_slice() else {
            return Err(io::Error::other(format!("no digest: {line:?}")));
        };
        Ok((
            Digest {
                length,
                hash: hasher.finish(),
            },
            Digest {
                length: received,
                hash,
            },
        ))
    }

    /// Sends this much to a [`super::Manner::Echo`] server while reading it
    /// back. Returns a hash of what was sent and of what came.
    pub fn exchange(mut self, length: u64) -> io::Result<(u64, u64)> {
        let mut writer = self.stream().try_clone()?;
        thread::scope(|scope| {
            let sender = scope.spawn(move || send(&mut writer, length));
            let received = digest(self.stream());
            let sent = sender.join().expect("the sender does not panic")?;
            Ok((sent, received?.hash))
        })
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// Closes with a reset.
    pub fn abort(self) {
        // A connection that is gone already needs no reset.
        let _ = SockRef::from(self.reader.get_ref()).set_linger(Some(Duration::ZERO));
    }
}

/// Large, and no multiple of a segment.
const BLOCK: usize = 200_003;

/// Sends this much, ends, and returns a hash of it.
fn send(stream: &mut TcpStream, length: u64) -> io::Result<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    let mut block = vec![0x5a; BLOCK];
    let mut left = length;
    while left > 0 {
        // A block that is lost, twice there or out of turn shows.
        block[..8].copy_from_slice(&left.to_le_bytes());
        let part = &block[..left.min(BLOCK as u64) as usize];
        hasher.write(part);
        stream.write_all(part)?;
        left -= part.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hasher.finish())
}
