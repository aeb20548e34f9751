//! Packets and events in any order: two hosts, one with the accelerator and one
//! without, make the same of each packet.

mod common;

use common::{
    ENDS, ETH0, ETH1, Ends, Host, LAN, addr, hops,
    pair::{MTU, Pair, Road},
    set_checksum, tcp, udp,
};
use portfwd_common::{Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::Machine,
    packet::{ACK, FIN, RST, SYN, Tuple},
};
use proptest::prelude::*;

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
/// Clients' ports.
const CLIENTS: usize = 3;
/// Flows that clients may have: families, protocols, rules, clients.
const FLOWS: usize = 2 * 2 * 2 * CLIENTS;
/// What the rules of a family and a protocol do with the client's address.
const NATS: [u16; 2] = [0, TargetEntry::PRESERVE];

/// A packet of a flow.
#[derive(Clone, Debug)]
struct Segment {
    flow: usize,
    back: bool,
    ifindex: u32,
    flags: u8,
    /// Adds to the number that acknowledges the other end's SYN.
    ack: u32,
    hops: u8,
    payload: Vec<u8>,
    unsummed: bool,
    cut: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Packet(Segment),
    Waits(u32),
    NextHop(u32, u16),
    Epoch,
    Mtu(u32, u16),
    Generation(usize, u32),
    Home(usize, u32),
}

fn segment() -> impl Strategy<Value = Segment> {
    let flags = prop_oneof![
        6 => Just(ACK),
        2 => Just(SYN),
        2 => Just(SYN | ACK),
        1 => Just(FIN | ACK),
        1 => Just(RST),
        1 => any::<u8>(),
    ];
    let ifindex = prop_oneof![8 => Just(None), 1 => Just(Some(ETH1)), 1 => Just(Some(LAN))];
    let hops = prop_oneof![8 => Just(61_u8), 1 => 0..3_u8];
    let len = prop_oneof![4 => 0..40_usize, 1 => 1_400..1_500_usize];
    let ack = prop_oneof![6 => Just(0_u32), 1 => Just(1_u32)];
    // Few flows get far, many do not.
    let flow = prop_oneof![3 => 0..4_usize, 1 => 0..FLOWS];
    let odds = prop_oneof![12 => Just((false, false)), 1 => any::<(bool, bool)>()];
    (
        flow,
        any::<(bool, u8)>(),
        ifindex,
        flags,
        (ack, hops, len, odds),
    )
        .prop_map(
            |(flow, (back, fill), ifindex, flags, (ack, hops, len, (unsummed, cut)))| Segment {
                flow,
                back,
                ifindex: ifindex.unwrap_or(if back { LAN } else { ETH0 }),
                flags,
                ack,
                hops,
                payload: vec![fill; len],
                unsummed,
                cut,
            },
        )
}

fn event() -> impl Strategy<Value = Event> {
    let device = || prop::sample::select(vec![ETH0, ETH1, LAN]);
    let mtu = prop::sample::select(vec![0, 576, MTU]);
    prop_oneof![
        40 => segment().prop_map(Event::Packet),
        3 => prop_oneof![8 => 1..3_u32, 1 => 7..11_u32].prop_map(Event::Waits),
        1 => Just(Event::Waits(100_000)),
        1 => (device(), 0..4_u16).prop_map(|(device, mac)| Event::NextHop(device, mac)),
        1 => Just(Event::Epoch),
        1 => (device(), mtu).prop_map(|(device, mtu)| Event::Mtu(device, mtu)),
        1 => (0..8_usize, 1..3_u32).prop_map(|(rule, number)| Event::Generation(rule, number)),
        1 => (0..2_usize, device()).prop_map(|(family, device)| Event::Home(family, device)),
    ]
}

/// Family, protocol and NAT of a rule.
fn rule(number: usize) -> (Ends, Proto, u16) {
    (
        ENDS[number & 1],
        PROTOS[number >> 1 & 1],
        NATS[number >> 2 & 1],
    )
}

/// Both NATs of a family and protocol share the target, so that they meet.
fn listen_port(number: usize) -> u16 {
    80 + (number >> 2) as u16
}

fn pair() -> Pair {
    let mut pair = Pair::new(|| {
        let mut machine = Machine::new(&common::OWN.map(addr));
        for ifindex in [ETH0, ETH1, LAN] {
            machine = machine.mtu_of(ifindex, MTU.into());
        }
        let rules: Vec<_> = (0..8).map(|number| forward(number, 1)).collect();
        Host::on(machine, &rules)
    });
    pair.back.push(LAN);
    pair
}

fn forward(number: usize, generation: u32) -> portfwd_ebpf::host::Forward {
    let (ends, proto, nat) = rule(number);
    let mut forward = ends.rule_on(proto, listen_port(number), nat);
    forward.generation = generation;
    forward
}

/// What the target has seen of each flow.
type Seen = Vec<Option<Tuple>>;

fn bytes(segment: &Segment, seen: &Seen) -> Vec<u8> {
    let (ends, proto, _) = rule(segment.flow);
    let open = Tuple {
        sport: 4_000 + (segment.flow / 8) as u16,
        dport: listen_port(segment.flow % 8),
        ..ends.open()
    };
    let (tuple, numbers) = if segment.back {
        let target = seen[segment.flow].unwrap_or(ends.masked());
        (target.reversed(), [700, 101])
    } else {
        (open, [100, 701 + segment.ack])
    };
    let mut bytes = match proto {
        Proto::Tcp => tcp(&tuple, segment.flags, numbers, &segment.payload),
        _ => udp(&tuple, &segment.payload),
    };
    if segment.unsummed && proto == Proto::Udp && bytes[0] >> 4 == 4 {
        set_checksum(&mut bytes, 0);
    }
    bytes = hops(bytes, segment.hops);
    // The sum of TCP covers what would be missing.
    if segment.cut && proto == Proto::Udp {
        bytes.truncate(bytes.len() - 1);
    }
    bytes
}

/// How many packets took which walk.
fn run(events: &[Event]) -> [u32; 2] {
    let pair = pair();
    let mut seen: Seen = vec![None; FLOWS];
    let mut roads = [0; 2];
    for event in events {
        match event {
            Event::Packet(segment) => {
                let bytes = bytes(segment, &seen);
                let went = pair.pass(&bytes, segment.ifindex);
                roads[usize::from(went.road == Road::Tc)] += 1;
                if went.passed.verdict() == Verdict::Forwarded {
                    seen[segment.flow] = Some(went.passed.tuple);
                }
            }
            Event::Waits(seconds) => pair.wait(*seconds),
            Event::NextHop(device, mac) => {
                pair.hops.borrow_mut().insert(*device, [6, *mac, 0]);
            }
            Event::Epoch => begin_epoch(&pair),
            Event::Mtu(device, mtu) => pair.set_device(*device, |device| device.mtu = *mtu),
            Event::Home(family, device) => {
                let home = (ENDS[*family].open().src, *device);
                pair.each(|host| *host.memory.homes.borrow_mut() = vec![home]);
                // A change of routes begins another epoch.
                let epoch = &pair.with.memory.epoch;
                epoch.set(epoch.get().wrapping_add(1).max(1));
            }
            Event::Generation(number, generation) => {
                let slot = *number as u32;
                let forward = forward(*number, *generation);
                pair.each(|host| host.memory.add(slot, &forward));
                begin_epoch(&pair);
            }
        }
    }
    roads
}

/// What was learned before counts no more.
fn begin_epoch(pair: &Pair) {
    let epoch = &pair.with.memory.epoch;
    epoch.set(epoch.get() % 255 + 1);
}

proptest! {
    #[test]
    fn with_the_accelerator_and_without_everything_is_the_same(
        events in prop::collection::vec(event(), 1..120),
    ) {
        run(&events);
    }
}

#[test]
fn the_random_packets_do_take_the_short_walk() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let events = prop::collection::vec(event(), 4_000);
    let events = events.new_tree(&mut runner).expect("events").current();
    let [express, by_tc] = run(&events);
    assert!(express > 100, "{express} of {}", express + by_tc);
}
