//! Next hops of the short walk: learned from the very packet that TC sent, and
//! true for the second in which one left.

mod common;

use common::{
    ETH0, ETH1, Ends, Host, LAN, Passed, answer, first, judged,
    pair::{
        MTU, Pair,
        Road::{Tc, Xdp},
        Scene, accelerated, each, mac, neighbour,
    },
    second, udp,
};
use portfwd_common::{Device, Mac, Proto, TargetEntry, Verdict, device::Confirmed};
use portfwd_ebpf::{
    hook::Link,
    host::{self, Buffer},
    packet::Tuple,
    tables::Table,
};

const NOBODY: Mac = [0; 3];

/// A host that has just sent the first packet of a flow by TC, which has not
/// left yet.
struct Sent {
    host: Host,
    passed: Passed,
}

impl Sent {
    fn new(ends: Ends, proto: Proto, device: Device) -> Self {
        let host = ends.host(proto, 0);
        host.memory.devices.borrow_mut().insert(LAN, device);
        let buffer = host.buffer(&first(proto, &ends.open())).on(ETH0);
        let passed = Passed::of(judged(buffer, |buffer| host::arrive(buffer, &host.memory)));
        assert_eq!(passed.verdict(), Verdict::Forwarded);
        Self { host, passed }
    }

    /// It leaves by [`LAN`], or what a test makes of it does.
    fn leaves(&self, shape: impl Fn(&mut Buffer<'_>)) -> Verdict {
        let mut buffer = self.host.buffer(&self.passed.bytes).on(LAN);
        buffer.link.forwarded = true;
        buffer.addresses = Some(FRAME);
        shape(&mut buffer);
        host::depart(&mut buffer, &self.host.memory).verdict
    }

    /// The next hops that flows have learned, in order.
    fn hops(&self) -> Vec<(Mac, u8)> {
        let entries = self.host.entries();
        let hops = entries.iter().map(|(_, _, flow)| (flow.hop, flow.epoch));
        let mut hops: Vec<_> = hops.filter(|(_, epoch)| *epoch != 0).collect();
        hops.sort_unstable();
        hops
    }

    #[track_caller]
    fn assert_nothing_is_learned(&self) {
        assert_eq!(self.hops(), []);
        assert!(self.host.memory.confirmed.borrow().is_empty());
    }
}

/// The frame of a packet that leaves by [`LAN`].
const FRAME: Link = Link {
    dst: [0x06, 0, LAN as u16],
    src: [0x02, 0, LAN as u16],
};

fn lan() -> Device {
    Device {
        mac: mac(LAN),
        mtu: MTU,
    }
}

#[test]
fn a_packet_that_was_sent_teaches_its_flow() {
    each(|ends, proto| {
        let sent = Sent::new(ends, proto, lan());
        sent.assert_nothing_is_learned();
        assert_eq!(sent.leaves(|_| {}), Verdict::Passing);
        assert_eq!(sent.hops(), [(neighbour(LAN), 1)]);
        let now = sent.host.memory.clock.get();
        let confirmed = sent.host.memory.confirmed.borrow();
        assert!(confirmed.values().all(|hop| hop.seen == now));
        assert_eq!(confirmed.len(), 1);
    });
}

#[test]
fn the_frame_of_another_packet_teaches_nothing() {
    each(|ends, proto| {
        let other = Tuple {
            sport: 4001,
            ..ends.masked()
        };
        type Shape<'a> = Box<dyn Fn(&mut Buffer<'_>) + 'a>;
        let shapes: [(&str, Shape<'_>); 7] = [
            (
                "another flow's",
                Box::new(|buffer| buffer.bytes = first(proto, &other)),
            ),
            (
                "on another device",
                Box::new(|buffer| buffer.link.ifindex = ETH1),
            ),
            (
                "this host's own",
                Box::new(|buffer| buffer.link.forwarded = false),
            ),
            (
                "from another address",
                Box::new(|buffer| {
                    buffer.addresses = Some(Link {
                        src: mac(ETH1),
                        ..FRAME
                    });
                }),
            ),
            (
                "without a frame",
                Box::new(|buffer| buffer.addresses = None),
            ),
            (
                "not translated",
                Box::new(|buffer| buffer.bytes = first(proto, &ends.open())),
            ),
            (
                "the answer",
                Box::new(|buffer| buffer.bytes = first(proto, &ends.masked().reversed())),
            ),
        ];
        for (name, shape) in shapes {
            let sent = Sent::new(ends, proto, lan());
            let _verdict = sent.leaves(&shape);
            assert_eq!(sent.hops(), [], "{name}");
            assert!(sent.host.memory.confirmed.borrow().is_empty(), "{name}");
            // One that waited for its neighbour may be anybody's by now.
            let _verdict = sent.leaves(|_| {});
            sent.assert_nothing_is_learned();
        }
    });
}

#[test]
fn a_packet_that_leaves_twice_teaches_once() {
    each(|ends, proto| {
        let sent = Sent::new(ends, proto, lan());
        assert_eq!(sent.leaves(|_| {}), Verdict::Passing);
        let hop = |buffer: &mut Buffer<'_>| {
            buffer.addresses = Some(Link {
                dst: NOBODY,
                ..FRAME
            });
        };
        let _verdict = sent.leaves(hop);
        assert_eq!(sent.hops(), [(neighbour(LAN), 1)]);
    });
}

#[test]
fn a_packet_that_comes_in_between_leaves_nothing_to_learn() {
    each(|ends, proto| {
        for other in [
            first(proto, &ends.open().reversed()),
            udp(
                &Tuple {
                    dport: 9,
                    ..ends.open()
                },
                b"",
            ),
            vec![0x45],
        ] {
            let sent = Sent::new(ends, proto, lan());
            let _verdict = sent.host.arrive(&other);
            let _verdict = sent.leaves(|_| {});
            sent.assert_nothing_is_learned();
        }
    });
}

#[test]
fn by_a_device_that_xdp_cannot_send_by_nothing_is_learned() {
    each(|ends, proto| {
        for device in [Device::default(), Device { mtu: 0, ..lan() }] {
            let sent = Sent::new(ends, proto, device);
            assert_eq!(sent.leaves(|_| {}), Verdict::Passing);
            sent.assert_nothing_is_learned();
        }
    });
}

#[test]
fn both_directions_learn_in_both_tables() {
    each(|ends, proto| {
        let scene = Scene::open(ends, proto, 0);
        let learned = |table| {
            let entries = scene.pair.with.memory.entries(table).into_iter();
            let mut hops: Vec<_> = entries.map(|(_, flow)| (flow.epoch, flow.hop)).collect();
            hops.sort_unstable();
            hops
        };
        let (to_target, to_client) = ((1, neighbour(LAN)), (1, neighbour(ETH0)));
        assert_eq!(learned(Table::New), [(0, NOBODY), to_target]);
        scene.back(&answer(proto, &scene.seen.reversed()));
        assert_eq!(learned(Table::New), [to_client, to_target]);
        scene.there(&scene.packet());
        assert_eq!(learned(Table::New), []);
        assert_eq!(learned(Table::Flows), [(0, NOBODY), to_target]);
        scene.back(&scene.reply());
        assert_eq!(learned(Table::Flows), [to_client, to_target]);
    });
}

#[test]
fn a_next_hop_counts_for_the_second_in_which_a_packet_left_to_it() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        for _ in 0..4 {
            assert_eq!(scene.roads(), [Xdp, Xdp]);
            scene.pair.wait(1);
            assert_eq!(scene.roads(), [Tc, Tc]);
        }
    });
}

#[test]
fn one_packet_a_second_confirms_the_next_hop_for_every_flow() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let opens = [4001, 4002].map(|sport| Tuple {
            sport,
            ..scene.open
        });
        for open in opens {
            let seen = scene.there(&first(proto, &open)).passed.tuple;
            scene.back(&answer(proto, &seen.reversed()));
            scene.there(&second(proto, &open));
        }
        scene.pair.wait(1);
        assert_eq!(scene.there(&scene.packet()).road, Tc);
        for open in opens {
            assert_eq!(scene.there(&second(proto, &open)).road, Xdp);
        }
    });
}

#[test]
fn a_next_hop_that_has_another_address_is_right_within_a_second() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let other = Tuple {
            sport: 4001,
            ..scene.open
        };
        scene.there(&first(proto, &other));
        let went = |open: &Tuple| {
            let went = scene.there(&second(proto, open));
            (went.road, went.link.expect("a frame").dst)
        };
        let (old, new) = (neighbour(LAN), [0x0a, 1, 2]);
        scene.pair.hops.borrow_mut().insert(LAN, new);
        assert_eq!(went(&scene.open), (Xdp, old));
        scene.pair.wait(1);
        assert_eq!(went(&scene.open), (Tc, new));
        assert_eq!(went(&scene.open), (Xdp, new));
        // The other flow's is confirmed by nobody, whatever this one does.
        for _ in 0..3 {
            assert_eq!(went(&scene.open).1, new);
        }
        assert_eq!(went(&other), (Tc, new));
    });
}

#[test]
fn a_change_of_routes_makes_every_flow_learn_anew() {
    each(|ends, proto| {
        for epoch in [2, 255, 1] {
            let scene = Scene::warm(ends, proto, 0);
            scene.pair.with.memory.epoch.set(epoch);
            let road = if epoch == 1 { Xdp } else { Tc };
            assert_eq!(scene.roads(), [road, road], "{epoch}");
            assert_eq!(scene.roads(), [Xdp, Xdp]);
        }
    });
}

#[test]
fn a_flow_without_a_hop_does_not_take_an_epoch_of_zero_for_one() {
    each(|ends, proto| {
        let scene = Scene::open(ends, proto, 0);
        scene.pair.with.memory.epoch.set(0);
        scene.back(&answer(proto, &scene.seen.reversed()));
        for _ in 0..3 {
            assert_eq!(scene.roads(), [Tc, Tc]);
        }
    });
}

#[test]
fn what_another_next_hop_has_confirmed_counts_for_that_one() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let memory = &scene.pair.with.memory;
        let learned = memory.confirmed.borrow().clone();
        // Another tag in every slot, or another second.
        let wrong: [fn(Confirmed) -> Confirmed; 4] = [
            |hop| Confirmed {
                tag: hop.tag ^ 1,
                ..hop
            },
            |hop| Confirmed {
                seen: hop.seen - 1,
                ..hop
            },
            |hop| Confirmed {
                seen: hop.seen + 1,
                ..hop
            },
            |_| Confirmed::default(),
        ];
        for wrong in wrong {
            let slots = learned.iter().map(|(slot, hop)| (*slot, wrong(*hop)));
            *memory.confirmed.borrow_mut() = slots.collect();
            assert_eq!(scene.roads(), [Tc, Tc]);
            assert_eq!(scene.roads(), [Xdp, Xdp]);
        }
    });
}

#[test]
fn a_next_hop_is_told_from_the_same_address_on_another_device() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let same = neighbour(LAN);
        scene.pair.hops.borrow_mut().insert(ETH1, same);
        let moved = TargetEntry {
            ifindex: ETH1,
            ..scene.ends.entry(0)
        };
        scene.pair.each(|host| host.memory.set_target(0, moved));
        let went = scene.there(&scene.packet());
        assert_eq!((went.road, went.passed.ifindex()), (Tc, ETH1));
        let went = scene.there(&scene.packet());
        assert_eq!((went.road, went.passed.ifindex()), (Xdp, ETH1));
        assert_eq!(went.link.expect("a frame"), scene.pair.link(ETH1));
    });
}

#[test]
fn a_device_that_changes_its_address_sends_from_the_new_one() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        scene.pair.set_device(LAN, |device| device.mac = [9, 9, 9]);
        let went = scene.there(&scene.packet());
        assert_eq!(
            (went.road, went.link.expect("a frame").src),
            (Xdp, [9, 9, 9])
        );
    });
}

#[test]
fn what_goes_to_the_other_end_of_a_veth_pair_teaches_nothing() {
    each(|ends, proto| {
        let peer = ends.entry(TargetEntry::PEER);
        let pair = Pair::new(|| {
            let host = ends.host(proto, 0);
            host.memory.set_target(0, peer);
            host
        });
        let open = ends.open();
        for bytes in [first(proto, &open), first(proto, &open)] {
            let host = &pair.with;
            let mut buffer = host.buffer(&bytes).on(ETH0);
            assert!(accelerated(host, &mut buffer).is_none());
            let passed = host.pass(&bytes, ETH0);
            assert!(passed.sent.expect("it was sent").peer);
        }
        // The next thing that leaves there is something else.
        let mut buffer = pair.with.buffer(&first(proto, &ends.kept())).on(LAN);
        buffer.addresses = Some(FRAME);
        buffer.link.forwarded = true;
        let _verdict = host::depart(&mut buffer, &pair.with.memory);
        assert!(pair.with.memory.confirmed.borrow().is_empty());
    });
}
