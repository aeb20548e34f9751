//! UDP: servers that say whom they see, and clients that ask.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Family, Identity, Netns,
    tcp::{canonical, once_free},
    wait::{deadline, until},
};

const TIMEOUT: Duration = Duration::from_secs(3);

/// How often a server looks whether it should stop.
const PATROL: Duration = Duration::from_millis(20);

/// The largest datagram.
const LARGEST: usize = 1 << 16;

/// Where a UDP server is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpListen {
    /// Every address of both families: it answers from the primary address.
    DualStack,
    /// Every IPv4 address.
    V4Only,
    /// 127.0.0.1 and ::1, a socket each.
    Loopback,
    /// One address.
    Address(IpAddr),
}

impl UdpListen {
    fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::DualStack => vec![Ipv6Addr::UNSPECIFIED.into()],
            Self::V4Only => vec![Ipv4Addr::UNSPECIFIED.into()],
            Self::Loopback => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Self::Address(address) => vec![address],
        }
    }
}

/// What a UDP server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpManner {
    /// Its identity in a line, then the datagram.
    Identify,
    /// The datagram as it came.
    Echo,
    /// A DNS answer that gives every name the address [`DNS_ANSWER`].
    Dns,
    /// Nothing: it counts [`UdpServer::tally`].
    Count,
}

/// What a [`UdpManner::Dns`] server says.
pub const DNS_ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// A UDP server that runs until it is dropped. Its sockets are unconnected.
#[derive(Debug)]
pub struct UdpServer {
    ledger: Arc<Ledger>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Ledger {
    name: String,
    stop: AtomicBool,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    served: Vec<SocketAddr>,
    tally: Tally,
}

/// Numbered datagrams, sent or received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// A sum over their numbers and bytes that does not depend on the order.
    pub hash: u64,
}

impl Tally {
    fn add(&mut self, datagram: &[u8]) {
        use std::hash::Hasher as _;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(datagram);
        self.count += 1;
        self.hash = self.hash.wrapping_add(hasher.finish());
    }
}

impl UdpServer {
    /// Starts a server with its port as name.
    #[track_caller]
    pub fn start(ns: &Netns, listen: UdpListen, port: u16, manner: UdpManner) -> Self {
        let sockets = once_free(|| ns.enter(|| bind_all(listen, port)))
            .unwrap_or_else(|error| panic!("udp {port} ({listen:?}): {error}"));
        let ledger = Arc::new(Ledger {
            name: port.to_string(),
            stop: AtomicBool::new(false),
            book: Mutex::default(),
        });
        let threads = sockets
            .into_iter()
            .map(|socket| {
                let ledger = Arc::clone(&ledger);
                thread::spawn(move || serve(&socket, &ledger, manner))
            })
            .collect();
        Self { ledger, threads }
    }

    /// The source of every datagram so far, in order. A counting server keeps
    /// none.
    pub fn served(&self) -> Vec<SocketAddr> {
        self.ledger.book().served.clone()
    }

    /// How many datagrams came from clients of the family.
    pub fn served_over(&self, family: Family) -> usize {
        self.served()
            .iter()
            .filter(|peer| Family::of(peer.ip()) == family)
            .count()
    }

    /// What a [`UdpManner::Count`] server got.
    pub fn tally(&self) -> Tally {
        self.ledger.book().tally
    }

    /// Waits until as many datagrams are counted, or until none came for a
    /// second; returns what was counted.
    pub fn settled(&self, wanted: u64) -> Tally {
        let (mut last, mut since) = (self.tally().count, Instant::now());
        deadline(crate::wait::PATIENCE, || {
            let count = self.tally().count;
            if count != last {
                (last, since) = (count, Instant::now());
            }
            (count >= wanted || since.elapsed() > Duration::from_secs(1)).then_some(())
        });
        self.tally()
    }

    /// Waits until `count` datagrams were answered in all.
    #[track_caller]
    pub fn until_served(&self, count: usize) {
        until(
            &format!("{count} datagrams to {}", self.ledger.name),
            || self.ledger.book().served.len() >= count,
        );
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.ledger.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of a server was printed by its own thread.
            let _ = thread.join();
        }
    }
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind_all(listen: UdpListen, port: u16) -> io::Result<Vec<UdpSocket>> {
    let bind = |address| bind(SocketAddr::new(address, port), false);
    listen.addresses().into_iter().map(bind).collect()
}

/// A socket of the thread's namespace. Those that share a port should be
/// connected to different ends.
fn bind(address: SocketAddr, share: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(share)?;
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))?;
    socket.bind(&address.into())?;
    socket.set_read_timeout(Some(PATROL))?;
    Ok(socket.into())
}

fn serve(socket: &UdpSocket, ledger: &Ledger, manner: UdpManner) {
    let mut buffer = vec![0; LARGEST];
    while !ledger.stop.load(Ordering::Relaxed) {
        // A timeout, or an ICMP error for an answer that nobody wanted.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let datagram = &buffer[..length];
        if manner == UdpManner::Count {
            ledger.book().tally.add(datagram);
            continue;
        }
        ledger.book().served.push(canonical(peer));
        // The client misses an answer that could not be sent.
        let _ = match manner {
            UdpManner::Identify => {
                let local = socket.local_addr().expect("a bound socket has an address");
                let identity = Identity {
                    name: ledger.name.clone(),
                    local: canonical(local),
                    peer: canonical(peer),
                };
                let answer = [format!("{identity}\n").as_bytes(), datagram].concat();
                socket.send_to(&answer, peer)
            }
            UdpManner::Dns => match dns_answer(datagram) {
                Some(answer) => socket.send_to(&answer, peer),
                None => continue,
            },
            UdpManner::Echo | UdpManner::Count => socket.send_to(datagram, peer),
        };
    }
}

/// The answer to a question of one name (RFC 1035, section 4.1), as a
/// [`UdpManner::Dns`] server gives it.
pub fn dns_answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = question.get(HEADER..)?.iter().position(|&byte| byte == 0)?;
    // The name's end, type and class; what follows are additional records.
    let asked = question.get(HEADER..HEADER + name + 1 + 4)?;
    let mut answer = question.get(..2)?.to_vec();
    // A response without error; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(asked);
    // The name at offset 12, A, IN, for 60 s, 4 bytes.
    answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(DNS_ANSWER.octets());
    Some(answer)
}

/// A UDP client: one socket, so one source port for all it asks.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpReply {
    /// Where the answer came from: what the client dialled, if all is well.
    pub from: SocketAddr,
    /// The server, if it said who it is.
    pub server: Option<Identity>,
    /// The datagram that it sent back.
    pub payload: Vec<u8>,
}

impl UdpClient {
    /// An unconnected socket, bound to this address; port 0 for any.
    #[track_caller]
    pub fn bound(ns: &Netns, local: SocketAddr) -> Self {
        let socket = ns.enter(|| bind(local, true));
        let socket = socket.unwrap_or_else(|error| panic!("udp from {local}: {error}"));
        Self {
            socket,
            timeout: TIMEOUT,
        }
    }

    /// Connects the socket: the kernel then takes answers from there only, and
    /// tells ICMP errors.
    #[track_caller]
    pub fn connected(self, remote: SocketAddr) -> Self {
        self.socket
            .connect(remote)
            .unwrap_or_else(|error| panic!("udp to {remote}: {error}"));
        self
    }

    /// How long to wait for an answer, 3 s unless told.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client's own address and port.
    pub fn local(&self) -> SocketAddr {
        canonical(
            self.socket
                .local_addr()
                .expect("a bound socket has an address"),
        )
    }

    /// Sends a datagram and waits for the answer to it, from wherever it
    /// comes.
    pub fn exchange(&self, remote: SocketAddr, payload: &[u8]) -> io::Result<UdpReply> {
        self.send(remote, payload)?;
        let reply = deadline(self.timeout, || match self.receive() {
            Ok(reply) if reply.payload == payload => Some(Ok(reply)),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        });
        reply.unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")))
    }

    /// Like [`UdpClient::exchange`], but an answer from elsewhere is an error.
    pub fn ask(&self, remote: SocketAddr, payload: &[u8]) -> io::Result<UdpReply> {
        let reply = self.exchange(remote, payload)?;
        if reply.from != remote {
            let text = format!("asked {remote}, answered from {}", reply.from);
            return Err(io::Error::other(text));
        }
        Ok(reply)
    }

    /// Like [`UdpClient::ask`], of a server that says whom it sees.
    ///
    /// # Panics
    ///
    /// When no answer comes, or another one.
    #[track_caller]
    pub fn identify(&self, remote: SocketAddr, payload: &str) -> Identity {
        let reply = self.ask(remote, payload.as_bytes());
        let reply = reply.unwrap_or_else(|error| panic!("{remote} {payload}: {error}"));
        reply.server.expect("the server says whom it sees")
    }

    /// The service at this port answers, and sees the client's own port at
    /// this address.
    #[track_caller]
    pub fn assert_served(&self, source: IpAddr, remote: SocketAddr, service: u16) {
        let server = self.identify(remote, "hello");
        assert_eq!(server.name, service.to_string(), "{remote}");
        let own = SocketAddr::new(source, self.local().port());
        assert_eq!(server.peer, own, "{remote}: the client is kept");
    }

    /// Sends a datagram.
    pub fn send(&self, remote: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let sent = match self.socket.peer_addr() {
            Ok(_) => self.socket.send(payload),
            Err(_) => self.socket.send_to(payload, remote),
        };
        sent.map(|_| ())
    }

    /// Waits a moment for a datagram.
    pub fn receive(&self) -> io::Result<UdpReply> {
        let mut buffer = vec![0; LARGEST];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        buffer.truncate(length);
        let (server, payload) = split(buffer);
        Ok(UdpReply {
            from: canonical(from),
            server,
            payload,
        })
    }

    /// Sends `count` numbered datagrams at a steady rate.
    pub fn blast(&self, remote: SocketAddr, count: u64, rate: u64) -> io::Result<Tally> {
        let (mut tally, start) = (Tally::default(), Instant::now());
        // Padded as a DNS question is.
        let mut datagram = [0; 32];
        for number in 0..count {
            let due = Duration::from_nanos(number * 1_000_000_000 / rate);
            if let Some(early) = due.checked_sub(start.elapsed())
                && early > Duration::from_millis(1)
            {
                thread::sleep(early);
            }
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            self.send(remote, &datagram)?;
            tally.add(&datagram);
        }
        Ok(tally)
    }
}

/// Cuts the identity line off an answer, if there is one.
fn split(mut datagram: Vec<u8>) -> (Option<Identity>, Vec<u8>) {
    let Some(end) = datagram.iter().position(|&byte| byte == b'\n') else {
        return (None, datagram);
    };
    let identity = str::from_utf8(&datagram[..end])
        .ok()
        .and_then(|line| line.parse().ok());
    if identity.is_some() {
        datagram.drain(..=end);
    }
    (identity, datagram)
}
