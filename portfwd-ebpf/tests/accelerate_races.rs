//! XDP on one CPU and TC on another, with packets of one flow at the same time:
//! the second one's whole walk is put before each call on the flow tables that
//! the first one makes.

mod common;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use common::{ENDS, ETH0, ETH1, Ends, LAN, answer, pair::Scene, second, syn, tcp, tuple_of};
use portfwd_common::{Proto, Verdict};
use portfwd_ebpf::{
    host::{self, Buffer, Machine, Memory},
    packet::{ACK, FIN, RST, Tuple},
    tables::Table,
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
/// More calls than any walk makes.
const CALLS: u64 = 40;

/// A packet and the device that it arrives on.
type Arrival = (Vec<u8>, u32);

fn each(test: impl Fn(Ends, Proto)) {
    for ends in ENDS {
        for proto in PROTOS {
            test(ends, proto);
        }
    }
}

/// A flow whose next packet proves it, in the second of the answer, so that its
/// packets may go by XDP.
fn answered(ends: Ends, proto: Proto) -> Scene {
    let scene = Scene::open(ends, proto, 0);
    let reply = answer(proto, &scene.seen.reversed());
    scene.back(&reply);
    scene.back(&reply);
    scene
}

/// What TC on another CPU does to a flow.
fn changes(scene: &Scene) -> Vec<Arrival> {
    let (there, back) = (scene.open, scene.seen.reversed());
    let mut changes = vec![
        (second(scene.proto, &there), ETH0),
        (second(scene.proto, &there), ETH1),
        (second(scene.proto, &back), LAN),
    ];
    if scene.proto == Proto::Tcp {
        changes.extend([
            (syn(&there), ETH0),
            (tcp(&there, FIN | ACK, [101, 701], b""), ETH0),
            (tcp(&there, RST, [101, 0], b""), ETH0),
            (answer(scene.proto, &back), LAN),
            (tcp(&back, FIN | ACK, [701, 101], b""), LAN),
        ]);
    }
    changes
}

/// Lets TC on another CPU walk a packet before call `call`.
fn meanwhile_tc(scene: &Scene, call: u64, (bytes, ifindex): Arrival) {
    let machine: &'static Machine = scene.pair.with.machine;
    scene
        .pair
        .with
        .memory
        .interrupt(call, move |memory: &Memory| {
            let mut buffer = Buffer::new(machine, bytes).on(ifindex);
            let _outcome = host::arrive(&mut buffer, memory);
        });
}

/// The ways of a packet to the target and of a packet to the client.
fn ways(scene: &Scene) -> [(Arrival, Tuple); 2] {
    let (there, back) = (scene.open, scene.seen.reversed());
    [
        ((second(scene.proto, &there), ETH0), scene.seen),
        ((second(scene.proto, &back), LAN), there.reversed()),
    ]
}

#[test]
fn what_tc_does_to_a_flow_meanwhile_spoils_no_packet_at_xdp() {
    let expressed = Cell::new(0);
    each(|ends, proto| {
        for made in [answered, |ends, proto| Scene::warm(ends, proto, 0)] {
            let n_changes = changes(&made(ends, proto)).len();
            for (change, way, call) in cases(n_changes, 3) {
                let scene = made(ends, proto);
                let ((bytes, ifindex), to) = ways(&scene)[way].clone();
                meanwhile_tc(&scene, call, changes(&scene)[change].clone());
                let mut buffer = scene.pair.with.buffer(&bytes).on(ifindex);
                match host::accelerate(&mut buffer, &scene.pair.with.memory) {
                    Some(sent) => {
                        expressed.set(expressed.get() + 1);
                        common::assert_sums(&buffer.bytes, false);
                        assert_eq!(tuple_of(&buffer.bytes), to);
                        let leaves = [ETH0, ETH1, LAN].contains(&sent.ifindex);
                        assert!(leaves, "{}", sent.ifindex);
                    }
                    None => assert_eq!((buffer.bytes, buffer.rewrites), (bytes.clone(), 0)),
                }
                // TC makes the same of the next one.
                let passed = scene.pair.with.pass(&bytes, ifindex);
                assert_eq!(passed.tuple, to, "{change} {call}");
            }
        }
    });
    assert!(expressed.get() > 50, "{}", expressed.get());
}

/// Every change, way and call.
fn cases(changes: usize, calls: u64) -> impl Iterator<Item = (usize, usize, u64)> {
    (0..changes).flat_map(move |change| {
        (0..2).flat_map(move |way| (0..calls).map(move |call| (change, way, call)))
    })
}

/// What XDP on another CPU makes of a packet before call `call`: its tuple.
fn meanwhile_xdp(
    scene: &Scene,
    call: u64,
    (bytes, ifindex): Arrival,
) -> Rc<RefCell<Option<Option<Tuple>>>> {
    let made = Rc::new(RefCell::new(None));
    let (result, machine): (_, &'static Machine) = (made.clone(), scene.pair.with.machine);
    scene
        .pair
        .with
        .memory
        .interrupt(call, move |memory: &Memory| {
            let mut buffer = Buffer::new(machine, bytes.clone()).on(ifindex);
            let sent = host::accelerate(&mut buffer, memory);
            if sent.is_none() {
                assert_eq!(buffer.bytes, bytes);
            }
            *result.borrow_mut() = Some(sent.map(|_| tuple_of(&buffer.bytes)));
        });
    made
}

#[test]
fn in_the_middle_of_what_tc_does_xdp_forwards_rightly_or_not_at_all() {
    let expressed = Cell::new(0);
    each(|ends, proto| {
        for made in [answered, |ends, proto| Scene::warm(ends, proto, 0)] {
            let n_changes = changes(&made(ends, proto)).len();
            for (change, way, call) in cases(n_changes, CALLS) {
                let scene = made(ends, proto);
                let (packet, to) = ways(&scene)[way].clone();
                let xdp = meanwhile_xdp(&scene, call, packet);
                let (bytes, ifindex) = changes(&scene)[change].clone();
                let passed = scene.pair.with.pass(&bytes, ifindex);
                assert!(matches!(
                    passed.verdict(),
                    Verdict::Forwarded | Verdict::Returned
                ));
                let Some(xdp) = *xdp.borrow() else {
                    continue;
                };
                if let Some(tuple) = xdp {
                    assert_eq!(tuple, to, "{change} {call}");
                    expressed.set(expressed.get() + 1);
                }
            }
        }
    });
    assert!(expressed.get() > 100);
}

#[test]
fn a_packet_at_xdp_changes_nothing_of_a_promotion() {
    each(|ends, proto| {
        for call in 0..CALLS {
            for way in 0..2 {
                let scene = answered(ends, proto);
                let (packet, _) = ways(&scene)[way].clone();
                let _xdp = meanwhile_xdp(&scene, call, packet);
                let host = &scene.pair.with;
                let passed = host.pass(&second(proto, &scene.open), ETH0);
                assert_eq!(passed.tuple, scene.seen);
                assert_eq!(host.memory.len(Table::Flows), 2, "{call}");
                assert_eq!(host.memory.len(Table::New), 0, "{call}");
                assert_eq!(host.memory.counters(0).connections, 1, "{call}");
            }
        }
    });
}

#[test]
fn a_next_hop_that_is_learned_meanwhile_is_the_old_one_or_the_new() {
    each(|ends, proto| {
        for call in 0..3 {
            let scene = Scene::warm(ends, proto, 0);
            let old = scene.pair.link(LAN);
            scene.pair.hops.borrow_mut().insert(LAN, [0x0a, 1, 2]);
            let new = scene.pair.link(LAN);
            let host = &scene.pair.with;
            let machine: &'static Machine = host.machine;
            let (bytes, out) = (scene.packet(), new);
            host.memory.interrupt(call, move |memory: &Memory| {
                let mut buffer = Buffer::new(machine, bytes).on(ETH0);
                let _forwarded = host::arrive(&mut buffer, memory);
                let mut leaving = Buffer::new(machine, buffer.bytes).on(LAN);
                leaving.link.forwarded = true;
                leaving.addresses = Some(out);
                let _passing = host::depart(&mut leaving, memory);
            });
            let mut buffer = host.buffer(&scene.packet());
            let sent = host::accelerate(&mut buffer, &host.memory);
            if sent.is_some() {
                let link = buffer.addresses.expect("a frame");
                assert!(link == old || link == new, "{link:?}");
            }
            // What was learned counts from now on.
            let mut next = host.buffer(&scene.packet());
            if host::accelerate(&mut next, &host.memory).is_some() {
                let link = next.addresses.expect("a frame");
                assert!(link == old || link == new, "{link:?}");
            }
        }
    });
}
