//! TCP: servers that say who they are and whom they see, and clients that ask.

use std::{
    collections::HashMap,
    fmt,
    hash::Hasher as _,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    Family, Netns,
    wait::{deadline, until},
};

/// How long a client waits for an answer unless told.
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

/// Where and how a TCP server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// One socket for every address of both families.
    DualStack,
    /// Every IPv4 address.
    V4Only,
    /// 127.0.0.1 and ::1, a socket each.
    Loopback,
    /// Dual stack with MPTCP, as Go makes listeners.
    Mptcp,
    /// A group of dual-stack sockets with SO_REUSEPORT.
    ReusePort,
    /// One address.
    Address(IpAddr),
}

impl Listen {
    /// The five that a promise is shown for.
    pub const ALL: [Self; 5] = [
        Self::DualStack,
        Self::V4Only,
        Self::Loopback,
        Self::Mptcp,
        Self::ReusePort,
    ];

    /// Does it take connections of the family at all?
    pub fn serves(self, family: Family) -> bool {
        match self {
            Self::V4Only => family == Family::V4,
            Self::Address(address) => family == Family::of(address),
            _ => true,
        }
    }

    fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::DualStack | Self::Mptcp => vec![Ipv6Addr::UNSPECIFIED.into()],
            Self::V4Only => vec![Ipv4Addr::UNSPECIFIED.into()],
            Self::Loopback => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Self::ReusePort => vec![Ipv6Addr::UNSPECIFIED.into(); 4],
            Self::Address(address) => vec![address],
        }
    }

    fn socket(self, address: SocketAddr) -> io::Result<Socket> {
        let protocol = if self == Self::Mptcp {
            Protocol::MPTCP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
        socket.set_reuse_address(true)?;
        if self == Self::ReusePort {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    }
}

/// What a TCP server does with a connection after its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Sends back what it gets.
    Echo,
    /// Closes first, and so keeps the TIME_WAIT.
    CloseFirst,
    /// Reads to the end and then tells how much it was and its hash.
    Digest,
}

/// A TCP server to be started.
#[derive(Clone, Debug)]
pub struct TcpServerBuilder<'a> {
    ns: &'a Netns,
    listen: Listen,
    port: u16,
    name: String,
    manner: Manner,
    backlog: i32,
}

impl TcpServerBuilder<'_> {
    /// The name it answers with; its port unless told.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// What it does after its first line; [`Manner::Echo`] unless told.
    pub fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }

    /// The length of the listener's queue, 1024 unless told.
    pub fn backlog(mut self, backlog: i32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Starts to listen; a client that dials after this call is served.
    #[track_caller]
    pub fn start(self) -> TcpServer {
        let sockets = once_free(|| self.ns.enter(|| self.sockets()))
            .unwrap_or_else(|error| panic!("listen on {} ({:?}): {error}", self.port, self.listen));
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("a descriptor"));
        let desk = Arc::new(Desk {
            name: self.name,
            manner: self.manner,
            open: Mutex::default(),
        });
        let threads = sockets
            .into_iter()
            .map(|socket| {
                let (desk, stop) = (Arc::clone(&desk), Arc::clone(&stop));
                thread::spawn(move || accept(&socket, &desk, &stop))
            })
            .collect();
        TcpServer {
            desk,
            stop,
            threads,
        }
    }

    fn sockets(&self) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for address in self.listen.addresses() {
            let socket = self.listen.socket(SocketAddr::new(address, self.port))?;
            socket.listen(self.backlog)?;
            socket.set_nonblocking(true)?;
            sockets.push(socket);
        }
        Ok(sockets)
    }
}

/// A TCP server that runs until it is dropped.
///
/// It answers each connection with a line, its [`Identity`].
#[derive(Debug)]
pub struct TcpServer {
    desk: Arc<Desk>,
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl TcpServer {
    /// A server in the namespace, to be started.
    pub fn builder(ns: &Netns, listen: Listen, port: u16) -> TcpServerBuilder<'_> {
        let name = port.to_string();
        TcpServerBuilder {
            ns,
            listen,
            port,
            name,
            manner: Manner::Echo,
            backlog: 1024,
        }
    }

    /// Every connection so far.
    pub fn served(&self) -> Vec<Identity> {
        self.desk.open().served.clone()
    }

    /// How many connections came from clients of the family.
    pub fn served_over(&self, family: Family) -> usize {
        let of_family = |identity: &&Identity| Family::of(identity.peer.ip()) == family;
        self.desk.open().served.iter().filter(of_family).count()
    }

    /// Waits until `count` connections were taken in all.
    #[track_caller]
    pub fn until_served(&self, count: usize) {
        until(
            &format!("{count} connections to {}", self.desk.name),
            || self.desk.open().served.len() >= count,
        );
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.write(1).expect("the server threads listen");
        for thread in self.threads.drain(..) {
            // A panic of a server was printed by its own thread.
            let _ = thread.join();
        }
        for stream in self.desk.open().streams.values() {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Debug)]
struct Desk {
    name: String,
    manner: Manner,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    served: Vec<Identity>,
    streams: HashMap<usize, TcpStream>,
}

impl Desk {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let identity = Identity {
            name: self.name.clone(),
            local: canonical(stream.local_addr()?),
            peer: canonical(stream.peer_addr()?),
        };
        let number = {
            let mut open = self.open();
            open.served.push(identity.clone());
            let number = open.served.len();
            // A second descriptor would keep the connection from closing.
            if self.manner != Manner::CloseFirst {
                open.streams.insert(number, stream.try_clone()?);
            }
            number
        };
        // In one segment: formatting would send each part by itself.
        let line = format!("{identity}\n");
        let result = stream
            .write_all(line.as_bytes())
            .and_then(|()| converse(&mut stream, self.manner));
        drop(stream);
        self.open().streams.remove(&number);
        result
    }
}

fn accept(socket: &Socket, desk: &Arc<Desk>, stop: &EventFd) {
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted poll only means another round.
        let _ = poll(&mut ready, PollTimeout::NONE);
        if ready[1].any() == Some(true) {
            // Closing alone would not do: see once_free.
            let _ = socket.shutdown(Shutdown::Both);
            return;
        }
        while let Ok((connection, _)) = socket.accept() {
            let desk = Arc::clone(desk);
            // The client sees it when a conversation breaks off.
            thread::spawn(move || desk.serve(connection.into()).ok());
        }
    }
}

fn converse(stream: &mut TcpStream, manner: Manner) -> io::Result<()> {
    match manner {
        Manner::CloseFirst => {
            stream.shutdown(Shutdown::Write)?;
            // To the client's end, so that nothing unread turns into a reset.
            stream.set_read_timeout(Some(TIMEOUT))?;
            io::copy(stream, &mut io::sink()).map(|_| ())
        }
        Manner::Echo => {
            let mut reader = stream.try_clone()?;
            io::copy(&mut reader, stream)?;
            stream.shutdown(Shutdown::Write)
        }
        Manner::Digest => {
            let digest = digest(stream)?;
            writeln!(stream, "{} {}", digest.length, digest.hash)
        }
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

    /// Is the connection refused, by a reset and not by silence?
    pub fn is_refused(&self) -> bool {
        self.connect()
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
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

    /// Sends `length` bytes to a [`Manner::Digest`] server. Returns what was
    /// sent and what the server says it got.
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

    /// Sends this much to a [`Manner::Echo`] server while reading it back.
    /// Returns a hash of what was sent and of what came.
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
