//! Captures: every packet of a namespace, its checksums recomputed.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use etherparse::{IpNumber, LaxIpSlice, TcpHeaderSlice};
use nix::{
    net::if_::if_indextoname,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    Netns,
    checksum::{Sums, check},
    packet_socket::{Meta, PacketSocket},
    wait::until_some,
};

/// Faults that are kept whole; more are counted.
const FAULTS_KEPT: usize = 8;

/// The largest packet a device hands over, GSO included.
const LARGEST: usize = 1 << 17;

/// A packet as a capture saw it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The device it was seen on.
    pub device: String,
    /// Leaves by the device, else it came in. A tap sees a leaving packet
    /// behind TC egress, and a coming one before TC ingress.
    pub outgoing: bool,
    /// The layer-4 checksum is still to be completed by a device.
    pub partial: bool,
    /// EtherType.
    pub protocol: u16,
    /// The bytes, from the IP header on.
    pub bytes: Vec<u8>,
}

/// What an IP packet with ports says, as far as tests ask.
#[derive(Clone, Debug)]
pub struct View {
    /// The protocol.
    pub protocol: IpNumber,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The bytes after the layer-4 header.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Addresses and ports, or none for a packet without ports.
    pub fn view(&self) -> Option<View> {
        let (ip, _) = LaxIpSlice::from_slice(&self.bytes).ok()?;
        let body = ip.payload();
        let segment = body.payload;
        let header = match body.ip_number {
            IpNumber::UDP => 8,
            IpNumber::TCP => usize::from(segment.get(12)? >> 4) * 4,
            _ => return None,
        };
        if body.fragmented {
            return None;
        }
        let port = |at: usize| {
            Some(u16::from_be_bytes([
                *segment.get(at)?,
                *segment.get(at + 1)?,
            ]))
        };
        Some(View {
            protocol: body.ip_number,
            source: SocketAddr::new(ip.source_addr(), port(0)?),
            destination: SocketAddr::new(ip.destination_addr(), port(2)?),
            hop_limit: self.bytes[if ip.ipv4().is_some() { 8 } else { 7 }],
            payload: segment.get(header..)?.to_vec(),
        })
    }

    /// Is it TCP or UDP to this address and port?
    pub fn goes_to(&self, destination: SocketAddr) -> bool {
        self.view()
            .is_some_and(|view| view.destination == destination)
    }

    /// Is it TCP or UDP from this address and port?
    pub fn comes_from(&self, source: SocketAddr) -> bool {
        self.view().is_some_and(|view| view.source == source)
    }

    /// Did it come in by this device?
    pub fn came_by(&self, device: &str) -> bool {
        !self.outgoing && self.device == device
    }

    /// Is it a TCP segment with the RST flag?
    pub fn is_reset(&self) -> bool {
        let Ok((ip, _)) = LaxIpSlice::from_slice(&self.bytes) else {
            return false;
        };
        ip.payload_ip_number() == IpNumber::TCP
            && TcpHeaderSlice::from_slice(ip.payload().payload).is_ok_and(|header| header.rst())
    }
}

/// A packet with a wrong checksum.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The packet.
    pub packet: Packet,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet {
            device,
            outgoing,
            bytes,
            ..
        } = &self.packet;
        let way = if *outgoing {
            "leaving by"
        } else {
            "coming in by"
        };
        write!(f, "{}, {} bytes {way} {device}", self.why, bytes.len())?;
        if let Some(view) = self.packet.view() {
            write!(f, ", {} to {}", view.source, view.destination)?;
        }
        for line in bytes[..bytes.len().min(128)].chunks(16) {
            write!(f, "\n   ")?;
            line.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        Ok(())
    }
}

/// What a capture found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// IP packets whose checksums are all right.
    pub right: u64,
    /// IP packets that prove nothing: fragments, other protocols.
    pub unproved: u64,
    /// Packets with a wrong checksum.
    pub wrong: u64,
    /// The first of the wrong ones.
    pub faults: Vec<Fault>,
    /// Packets that the capture was too slow for.
    pub dropped: u64,
    /// Packets that were kept.
    pub packets: Vec<Packet>,
}

/// Which packets a capture keeps for the test to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All of them.
    Everything,
    /// None: only checksums are of interest.
    Nothing,
}

type Forgiven = Box<dyn Fn(&Packet) -> bool + Send>;

#[derive(Default)]
struct State {
    report: Report,
    forgiven: Option<Forgiven>,
}

/// A thread that looks at every packet of every device of a namespace.
pub struct Capture {
    state: Arc<Mutex<State>>,
    socket: Arc<PacketSocket>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts; a packet that is sent after this call is seen.
    #[track_caller]
    pub fn start(ns: &Netns, keep: Keep) -> Self {
        let socket = Arc::new(
            ns.enter(PacketSocket::tap)
                .expect("root opens packet sockets"),
        );
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("a descriptor"));
        let state = Arc::new(Mutex::new(State::default()));
        let reader = Reader {
            state: Arc::clone(&state),
            socket: Arc::clone(&socket),
            keep,
            devices: HashMap::new(),
            buffer: vec![0; LARGEST],
        };
        let (namespace, stopped) = (ns.path(), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name(format!("capture {}", ns.name()))
            .spawn(move || {
                // Only to learn the devices' names.
                let file = std::fs::File::open(namespace).expect("the namespace is still there");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("a live namespace is entered");
                reader.run(&stopped);
            })
            .expect("a thread starts");
        Self {
            state,
            socket,
            stop,
            thread: Some(thread),
        }
    }

    /// Lets only those packets in that a classic filter over the layer-3
    /// packet accepts.
    #[track_caller]
    pub fn filter(&self, filter: &[libc::sock_filter]) {
        self.socket
            .filter(filter)
            .expect("the kernel takes the filter");
    }

    /// Forgives wrong checksums that the test itself sends.
    pub fn forgive(&self, forgiven: impl Fn(&Packet) -> bool + Send + 'static) {
        self.state().forgiven = Some(Box::new(forgiven));
    }

    /// The packets that were kept so far and meet the condition.
    pub fn packets(&self, condition: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        self.state()
            .report
            .packets
            .iter()
            .filter(|packet| condition(packet))
            .cloned()
            .collect()
    }

    /// Waits for a packet that meets the condition.
    #[track_caller]
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Packet) -> bool) -> Packet {
        until_some(what, || {
            self.state()
                .report
                .packets
                .iter()
                .find(|&p| condition(p))
                .cloned()
        })
    }

    /// Looks at what has arrived until now, stops and tells what was found.
    pub fn finish(mut self) -> Report {
        self.halt();
        std::mem::take(&mut self.state().report)
    }

    fn halt(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.write(1).expect("the capture thread listens");
        thread.join().expect("the capture thread does not panic");
        self.state().report.dropped = self.socket.drops().unwrap_or_default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.halt();
    }
}

struct Reader {
    state: Arc<Mutex<State>>,
    socket: Arc<PacketSocket>,
    keep: Keep,
    devices: HashMap<u32, String>,
    buffer: Vec<u8>,
}

impl Reader {
    fn run(mut self, stop: &EventFd) {
        loop {
            let mut ready = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            // An interrupted poll only means another round.
            let _ = poll(&mut ready, PollTimeout::NONE);
            let stopped = ready[1].any() == Some(true);
            self.drain();
            if stopped {
                return;
            }
        }
    }

    fn drain(&mut self) {
        loop {
            match self.socket.receive(&mut self.buffer) {
                Ok(Some(meta)) => self.look(meta),
                Ok(None) => return,
                // A device that went down is reported once on the socket.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => panic!("capture: {error}"),
            }
        }
    }

    fn look(&mut self, meta: Meta) {
        let bytes = &self.buffer[..meta.length];
        let ip = matches!(i32::from(meta.protocol), libc::ETH_P_IP | libc::ETH_P_IPV6);
        let sums = if ip {
            check(bytes, meta.partial)
        } else {
            Sums::Unproved("not IP")
        };
        if self.keep == Keep::Nothing && !matches!(sums, Sums::Wrong(_)) {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            return count(&mut state.report, &sums);
        }
        let device = self
            .devices
            .entry(meta.ifindex)
            .or_insert_with(|| name(meta.ifindex));
        let packet = Packet {
            device: device.clone(),
            outgoing: meta.outgoing,
            partial: meta.partial,
            protocol: meta.protocol,
            bytes: bytes.to_vec(),
        };

        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let forgiven = state
            .forgiven
            .as_ref()
            .is_some_and(|forgiven| forgiven(&packet));
        if !forgiven {
            count(&mut state.report, &sums);
        }
        if let Sums::Wrong(why) = sums
            && !forgiven
            && state.report.faults.len() < FAULTS_KEPT
        {
            state.report.faults.push(Fault {
                packet: packet.clone(),
                why,
            });
        }
        if self.keep == Keep::Everything {
            state.report.packets.push(packet);
        }
    }
}

fn count(report: &mut Report, sums: &Sums) {
    match sums {
        Sums::Right => report.right += 1,
        Sums::Unproved(_) => report.unproved += 1,
        Sums::Wrong(_) => report.wrong += 1,
    }
}

fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex)
        .ok()
        .and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("device {ifindex}"))
}
