//! Two hosts that get the same packets, one with the accelerator and one
//! without: whatever they make of a packet, it is the same.

use std::{cell::RefCell, collections::HashMap};

use portfwd_common::{
    Device, Flow, FlowKey, Mac, Proto, TargetEntry, Verdict, settings::UNWRITTEN,
};
use portfwd_ebpf::{
    accelerate::Sent,
    hook::Link,
    host::{self, Buffer},
    packet::{ACK, Tuple},
    tables::Table,
};

use super::{
    ENDS, ETH0, ETH1, Ends, Host, LAN, Passed, answer, assert_sums, first, hops_of, judged, second,
    tcp, udp,
};

/// The MTU of every device.
pub const MTU: u16 = 1500;

/// The address of a device.
pub fn mac(ifindex: u32) -> Mac {
    [0x02, 0, ifindex as u16]
}

/// The next hop behind a device, unless a test says otherwise.
pub fn neighbour(ifindex: u32) -> Mac {
    [0x06, 0, ifindex as u16]
}

/// Which walk a packet took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Road {
    /// The short one.
    Xdp,
    /// The long one.
    Tc,
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub struct Went {
    pub road: Road,
    /// What TC alone made of it, and the accelerated host too.
    pub passed: Passed,
    /// The addresses of the frame that it left in.
    pub link: Option<Link>,
}

/// The two hosts.
pub struct Pair {
    pub with: Host,
    pub without: Host,
    /// Next hops by device.
    pub hops: RefCell<HashMap<u32, Mac>>,
    /// Devices whose clients are not served.
    pub back: Vec<u32>,
}

impl Pair {
    /// Hosts that `make` makes, whose devices all can be sent by at XDP.
    pub fn new(make: impl Fn() -> Host) -> Self {
        let (with, without) = (make(), make());
        let mut devices = with.memory.devices.borrow_mut();
        let mut hops = HashMap::new();
        for ifindex in [ETH0, ETH1, LAN] {
            let mac = mac(ifindex);
            devices.insert(ifindex, Device { mac, mtu: MTU });
            hops.insert(ifindex, neighbour(ifindex));
        }
        drop(devices);
        Self {
            with,
            without,
            hops: RefCell::new(hops),
            back: Vec::new(),
        }
    }

    pub fn each(&self, change: impl Fn(&Host)) {
        change(&self.with);
        change(&self.without);
    }

    pub fn wait(&self, seconds: u32) {
        self.each(|host| host.memory.wait(seconds));
    }

    /// Changes what the accelerator knows of a device.
    pub fn set_device(&self, ifindex: u32, change: impl Fn(&mut Device)) {
        let mut devices = self.with.memory.devices.borrow_mut();
        change(devices.entry(ifindex).or_default());
    }

    /// The frame that TC's packets leave by a device in.
    pub fn link(&self, ifindex: u32) -> Link {
        Link {
            dst: self.hops.borrow()[&ifindex],
            src: mac(ifindex),
        }
    }

    /// A packet arrives at both.
    #[track_caller]
    pub fn pass(&self, bytes: &[u8], ifindex: u32) -> Went {
        self.pass_as(bytes, ifindex, |_| {})
    }

    /// The same with more to say of its frame.
    #[track_caller]
    pub fn pass_as(
        &self,
        bytes: &[u8],
        ifindex: u32,
        shape: impl Fn(&mut Buffer<'static>),
    ) -> Went {
        let buffer = |host: &Host| {
            let mut buffer = host.buffer(bytes).on(ifindex);
            shape(&mut buffer);
            buffer
        };
        let wanted = self.by_tc(&self.without, buffer(&self.without));
        let mut express = buffer(&self.with);
        let went = match accelerated(&self.with, &mut express) {
            Some(sent) => {
                assert_eq!(express.bytes, wanted.bytes);
                assert_eq!(sent.outcome, wanted.outcome);
                assert_eq!(sent.ifindex, wanted.ifindex());
                Went {
                    road: Road::Xdp,
                    passed: wanted,
                    link: express.addresses,
                }
            }
            None => {
                let passed = self.by_tc(&self.with, buffer(&self.with));
                assert_eq!(passed.bytes, wanted.bytes);
                assert_eq!(passed.outcome, wanted.outcome);
                assert_eq!(passed.sent, wanted.sent);
                let link = passed.sent.map(|way| self.link(way.ifindex));
                Went {
                    road: Road::Tc,
                    passed,
                    link,
                }
            }
        };
        self.assert_alike();
        went
    }

    fn by_tc(&self, host: &Host, buffer: Buffer<'static>) -> Passed {
        let walk = if self.back.contains(&buffer.link.ifindex) {
            host::arrive_back
        } else {
            host::arrive
        };
        let passed = Passed::of(judged(buffer, |buffer| walk(buffer, &host.memory)));
        if let Some(way) = passed.sent {
            let link = Some(self.link(way.ifindex));
            assert_eq!(host.forward(&passed, link), Verdict::Passing);
        }
        passed
    }

    /// Both have counted the same for their rules, and remember the same, but
    /// for the time of the last packet.
    #[track_caller]
    pub fn assert_alike(&self) {
        for slot in 0..16 {
            let counters = |host: &Host| host.memory.counters(slot);
            assert_eq!(counters(&self.with), counters(&self.without), "rule {slot}");
        }
        let (with, without) = (remembered(&self.with), remembered(&self.without));
        assert_eq!(with.len(), without.len());
        for ((at, flow, seen), (of, other, latest)) in with.into_iter().zip(without) {
            assert_eq!((at, flow), (of, other));
            assert!(seen <= latest && latest - seen <= UNWRITTEN, "{flow:?}");
        }
    }
}

/// The flow entries in order, without what only the accelerator needs.
fn remembered(host: &Host) -> Vec<((Table, FlowKey), Flow, u32)> {
    let bare = |flow: Flow| Flow {
        hop: [0; 3],
        epoch: 0,
        seen: 0,
        ..flow
    };
    let entries = host.entries().into_iter();
    entries
        .map(|(table, key, flow)| ((table, key), bare(flow), flow.seen))
        .collect()
}

/// Walks a packet at XDP: it is forwarded completely, or nothing has changed.
#[track_caller]
pub fn accelerated(host: &Host, buffer: &mut Buffer<'_>) -> Option<Sent> {
    let before = (buffer.clone(), host.entries());
    let counters = || (0..16).map(|slot| host.memory.counters(slot));
    let counted: Vec<_> = counters().collect();
    let verdicts = |verdict| host.memory.verdicts(verdict);
    let all: Vec<u64> = Verdict::ALL.iter().copied().map(verdicts).collect();

    let sent = host::accelerate(buffer, &host.memory);

    let verdict = sent.map_or(Verdict::Deferred, |sent| sent.outcome.verdict);
    for (of, count) in Verdict::ALL.iter().zip(all) {
        assert_eq!(verdicts(*of), count + u64::from(*of == verdict), "{of:?}");
    }
    let (was, entries) = before;
    host.assert_entries(&entries);
    if let Some(sent) = sent {
        assert!(matches!(verdict, Verdict::Forwarded | Verdict::Returned));
        assert_eq!(buffer.rewrites, 1);
        assert_eq!(buffer.bytes.len(), was.bytes.len());
        assert_eq!(hops_of(&buffer.bytes), hops_of(&was.bytes) - 1);
        let len = sent.packet.len as usize;
        if len > usize::from(sent.packet.transport) {
            assert_sums(&buffer.bytes[..len], false);
        }
        assert_eq!(
            buffer.bytes[len..],
            was.bytes[len..],
            "what the link padded"
        );
        let device = host.memory.devices.borrow()[&sent.ifindex];
        let link = buffer.addresses.expect("it left in a frame");
        assert_eq!(link.src, device.mac);
    } else {
        assert_eq!(buffer.bytes, was.bytes);
        assert_eq!((buffer.rewrites, buffer.addresses), (0, None));
        assert!(counters().eq(counted));
    }
    sent
}

/// A flow on two hosts.
pub struct Scene {
    pub pair: Pair,
    pub ends: Ends,
    pub proto: Proto,
    /// What the client sends, and what the target sees of it.
    pub open: Tuple,
    pub seen: Tuple,
}

impl Scene {
    /// A flow that is proved, whose next hops are known both ways, in this
    /// second.
    #[track_caller]
    pub fn warm(ends: Ends, proto: Proto, flags: u16) -> Self {
        let scene = Self::open(ends, proto, flags);
        scene.back(&answer(proto, &scene.seen.reversed()));
        assert_eq!(scene.there(&scene.packet()).road, Road::Tc);
        assert_eq!(scene.back(&scene.reply()).road, Road::Tc);
        scene
    }

    /// A flow of one packet.
    #[track_caller]
    pub fn open(ends: Ends, proto: Proto, flags: u16) -> Self {
        Self::on(Pair::new(|| ends.host(proto, flags)), ends, proto)
    }

    /// The same on hosts of one's own.
    #[track_caller]
    pub fn on(pair: Pair, ends: Ends, proto: Proto) -> Self {
        let open = ends.open();
        let went = pair.pass(&first(proto, &open), ETH0);
        assert_eq!(went.passed.verdict(), Verdict::Forwarded);
        assert_eq!(went.road, Road::Tc);
        Self {
            pair,
            ends,
            proto,
            open,
            seen: went.passed.tuple,
        }
    }

    /// A packet of the client that changes nothing of the flow.
    pub fn packet(&self) -> Vec<u8> {
        second(self.proto, &self.open)
    }

    /// The same of the target.
    pub fn reply(&self) -> Vec<u8> {
        second(self.proto, &self.seen.reversed())
    }

    #[track_caller]
    pub fn there(&self, bytes: &[u8]) -> Went {
        self.pair.pass(bytes, ETH0)
    }

    #[track_caller]
    pub fn back(&self, bytes: &[u8]) -> Went {
        self.pair.pass(bytes, LAN)
    }

    /// The walks of the client's next packet and of the target's.
    #[track_caller]
    pub fn roads(&self) -> [Road; 2] {
        [
            self.there(&self.packet()).road,
            self.back(&self.reply()).road,
        ]
    }
}

/// The protocols of flows.
pub const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
/// Masquerade, and the client's address kept.
pub const FLAGS: [u16; 2] = [0, TargetEntry::PRESERVE];

/// A test for each family and protocol.
pub fn each(test: impl Fn(Ends, Proto)) {
    for ends in ENDS {
        for proto in PROTOS {
            test(ends, proto);
        }
    }
}

/// The same for flows that are proved and warm, with and without masquerade.
pub fn each_warm(test: impl Fn(Scene)) {
    each(|ends, proto| {
        for flags in FLAGS {
            test(Scene::warm(ends, proto, flags));
        }
    });
}

/// A packet of `proto` that changes nothing of a flow.
pub fn packet_of(proto: Proto, tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    match proto {
        Proto::Tcp => tcp(tuple, ACK, [101, 701], payload),
        _ => udp(tuple, payload),
    }
}
