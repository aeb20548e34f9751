//! Servers that say who they are and whom they see.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Identity, TIMEOUT, canonical, digest, once_free};
use crate::{Family, Netns, wait::until};

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
