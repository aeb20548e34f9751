//! Two CPUs with packets of one flow to another host at the same time: the
//! second one's whole walk is put before each call on the tables that the first
//! one makes.

mod common;

use std::{cell::RefCell, rc::Rc};

use common::{ENDS, ETH0, ETH1, Ends, Host, LAN, V4, answer, first, second, tcp, tuple_of};
use portfwd_common::{Flow, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::{self, Buffer, Machine, Memory},
    packet::{ACK, FIN, Tuple},
    tables::Table,
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
const FLAGS: [u16; 2] = [0, TargetEntry::PRESERVE];
/// More calls than any walk makes.
const CALLS: u64 = 40;

#[derive(Clone, Copy, Debug)]
enum How {
    Arrives(u32),
    ArrivesBack(u32),
    Leaves,
}

type Walked = Rc<RefCell<Option<(Verdict, Tuple, Option<u32>)>>>;

/// What happened to a packet that another CPU walks before call `call`.
fn meanwhile(host: &Host, call: u64, bytes: Vec<u8>, how: How) -> Walked {
    let walked = Walked::default();
    let (result, machine): (_, &'static Machine) = (walked.clone(), host.machine);
    host.memory.interrupt(call, move |memory: &Memory| {
        let mut buffer = Buffer::new(machine, bytes);
        let outcome = match how {
            How::Arrives(ifindex) => {
                buffer.link.ifindex = ifindex;
                host::arrive(&mut buffer, memory)
            }
            How::ArrivesBack(ifindex) => {
                buffer.link.ifindex = ifindex;
                host::arrive_back(&mut buffer, memory)
            }
            How::Leaves => {
                buffer.link.ifindex = LAN;
                host::depart(&mut buffer, memory)
            }
        };
        let way = buffer.sent.map(|way| way.ifindex);
        *result.borrow_mut() = Some((outcome.verdict, tuple_of(&buffer.bytes), way));
    });
    walked
}

/// Each client's entry has its reply entry, in one table, and they agree.
#[track_caller]
fn assert_whole(host: &Host) {
    for table in [Table::New, Table::Flows] {
        let entries = host.memory.entries(table);
        assert_eq!(entries.len() % 2, 0, "{entries:?}");
        assert_eq!(host.flows(table) * 2, entries.len(), "{entries:?}");
    }
}

fn each(test: impl Fn(Ends, Proto, u16, u64)) {
    for (ends, proto) in ENDS.into_iter().flat_map(|e| PROTOS.map(|p| (e, p))) {
        for flags in FLAGS {
            for call in 0..CALLS {
                test(ends, proto, flags, call);
            }
        }
    }
}

#[test]
fn two_first_packets_of_one_flow_get_one_translation() {
    each(|ends, proto, flags, call| {
        let host = ends.host(proto, flags);
        let open = first(proto, &ends.open());
        let other = meanwhile(&host, call, open.clone(), How::Arrives(ETH0));
        let seen = host.relayed(&open);
        assert_whole(&host);
        assert_eq!(host.flows(Table::New), 1);
        if let Some(other) = *other.borrow() {
            assert_eq!(other, (Verdict::Forwarded, seen, Some(LAN)), "call {call}");
        }
        let back = host.returned(&answer(proto, &seen.reversed()));
        assert_eq!(back, ends.open().reversed());
        let opened = u64::from(proto == Proto::Udp);
        assert_eq!(host.memory.counters(0).connections, opened, "call {call}");
    });
}

#[test]
fn two_flows_that_want_one_tuple_are_told_apart() {
    for (ends, proto) in ENDS.into_iter().flat_map(|e| PROTOS.map(|p| (e, p))) {
        for flags in FLAGS {
            let mut raced = 0;
            for call in 0..CALLS {
                let rules = [80, 81].map(|port| ends.rule_on(proto, port, flags));
                let host = Host::without_sockets(&rules);
                let a = ends.open();
                let b = Tuple { dport: 81, ..a };
                let other = meanwhile(&host, call, first(proto, &b), How::Arrives(ETH0));
                let seen = host.relayed(&first(proto, &a));
                let Some((verdict, other, _)) = *other.borrow() else {
                    continue;
                };
                raced += 1;
                assert_eq!(verdict, Verdict::Forwarded);
                assert_ne!(seen, other, "{proto:?} call {call}");
                assert_whole(&host);
                for (open, seen) in [(a, seen), (b, other)] {
                    let back = host.returned(&answer(proto, &seen.reversed()));
                    assert_eq!(back, open.reversed());
                }
            }
            assert!(raced > 3);
        }
    }
}

#[test]
fn a_promotion_disturbs_no_packet_of_the_flow() {
    each(|ends, proto, flags, call| {
        for back in [false, true] {
            let host = ends.host(proto, flags);
            let open = ends.open();
            let seen = host.relayed(&first(proto, &open));
            host.returned(&answer(proto, &seen.reversed()));
            host.memory.wait(1);
            let (packet, how) = if back {
                (second(proto, &seen.reversed()), How::ArrivesBack(LAN))
            } else {
                (second(proto, &open), How::Arrives(ETH0))
            };
            let other = meanwhile(&host, call, packet, how);
            assert_eq!(host.relayed(&second(proto, &open)), seen);
            if let Some(other) = *other.borrow() {
                let wanted = if back {
                    (Verdict::Returned, open.reversed(), Some(ETH0))
                } else {
                    (Verdict::Forwarded, seen, Some(LAN))
                };
                assert_eq!(other, wanted, "{proto:?} call {call}");
            }
            assert_eq!(host.memory.len(Table::Flows), 2, "call {call}");
            for (_, flow) in host.memory.entries(Table::Flows) {
                assert_ne!(flow.flags & Flow::PROVEN, 0);
            }
            assert_eq!(host.memory.counters(0).connections, 1, "call {call}");
            let reply = second(proto, &seen.reversed());
            assert_eq!(host.returned(&reply), open.reversed());
        }
    });
}

/// Both entries of the flow have the flags, wherever they are.
#[track_caller]
fn assert_flags(host: &Host, flags: u16, call: u64) {
    let entries = host.entries();
    assert_eq!(entries.len(), 2, "call {call}");
    for (_, _, flow) in entries {
        assert_eq!(flow.flags & flags, flags, "call {call}");
    }
}

#[test]
fn both_ends_close_at_once() {
    const CLOSED: u16 = Flow::FIN_CLIENT | Flow::FIN_TARGET;
    for ends in ENDS {
        for call in 0..CALLS {
            let host = ends.host(Proto::Tcp, 0);
            let open = ends.open();
            let seen = host.prove(Proto::Tcp, &open);
            host.memory.wait(1);
            let ours = tcp(&seen.reversed(), ACK | FIN, [701, 102], b"");
            let other = meanwhile(&host, call, ours, How::ArrivesBack(LAN));
            host.relayed(&tcp(&open, ACK | FIN, [102, 701], b""));
            if other.borrow().is_some() {
                assert_flags(&host, CLOSED, call);
            }
        }
    }
}

#[test]
fn a_target_closes_while_the_client_proves_itself() {
    for ends in ENDS {
        for call in 0..CALLS {
            let host = ends.host(Proto::Tcp, 0);
            let open = ends.open();
            let seen = host.relayed(&first(Proto::Tcp, &open));
            host.returned(&answer(Proto::Tcp, &seen.reversed()));
            let proof = second(Proto::Tcp, &open);
            let other = meanwhile(&host, call, proof, How::Arrives(ETH0));
            host.returned(&tcp(&seen.reversed(), ACK | FIN, [701, 102], b""));
            if other.borrow().is_some() {
                assert_flags(&host, Flow::PROVEN, call);
                // A move between the two writes takes one of them back.
                let entries = host.entries();
                let mut flags = entries.iter().map(|(_, _, flow)| flow.flags);
                assert!(
                    flags.any(|flags| flags & Flow::FIN_TARGET != 0),
                    "call {call}"
                );
            }
        }
    }
}

#[test]
fn an_answer_beside_the_first_packet_finds_the_client_or_nothing() {
    each(|ends, proto, flags, call| {
        let host = ends.host(proto, flags);
        let open = ends.open();
        let seen = if flags == 0 {
            ends.masked()
        } else {
            ends.kept()
        };
        let reply = answer(proto, &seen.reversed());
        let other = meanwhile(&host, call, reply, How::ArrivesBack(LAN));
        assert_eq!(host.relayed(&first(proto, &open)), seen);
        if let Some((verdict, tuple, way)) = *other.borrow() {
            match verdict {
                Verdict::Returned => assert_eq!((tuple, way), (open.reversed(), Some(ETH0))),
                verdict => assert_eq!(verdict, Verdict::NoRule),
            }
        }
        host.memory.wait(1);
        assert_eq!(host.relayed(&first(proto, &open)), seen);
        assert_whole(&host);
        let back = host.returned(&second(proto, &seen.reversed()));
        assert_eq!(back, open.reversed());
    });
}

#[test]
fn a_client_that_changes_its_interface_meanwhile_is_answered_there() {
    each(|ends, proto, flags, call| {
        let host = ends.host(proto, flags);
        let open = ends.open();
        let seen = host.prove(proto, &open);
        host.memory.wait(1);
        let packet = second(proto, &open);
        let other = meanwhile(&host, call, packet, How::Arrives(ETH1));
        let reply = second(proto, &seen.reversed());
        let passed = host.pass_back(&reply, LAN);
        assert_eq!(passed.verdict(), Verdict::Returned);
        if other.borrow().is_none() {
            return;
        }
        host.memory.wait(1);
        let passed = host.pass(&second(proto, &open), ETH1);
        assert_eq!(passed.verdict(), Verdict::Forwarded);
        assert_whole(&host);
        assert_eq!(host.pass_back(&reply, LAN).ifindex(), ETH1, "call {call}");
    });
}

#[test]
fn a_connection_of_this_host_and_a_flow_that_want_one_tuple_are_told_apart() {
    for proto in PROTOS {
        for call in 0..CALLS {
            // The connection has no flow and no clash yet: its socket tells.
            let host = V4.host(proto, 0);
            let own = first(proto, &V4.masked());
            let other = meanwhile(&host, call, own, How::Leaves);
            let seen = host.relayed(&first(proto, &V4.open()));
            let Some((verdict, tuple, _)) = *other.borrow() else {
                continue;
            };
            assert_whole(&host);
            match verdict {
                Verdict::Moved => {
                    assert_ne!(tuple, seen, "call {call}");
                    let passed = host.pass_back(&answer(proto, &tuple.reversed()), LAN);
                    assert_eq!(passed.verdict(), Verdict::Restored);
                    assert_eq!(passed.tuple, V4.masked().reversed());
                }
                verdict => assert_eq!(verdict, Verdict::NoRule),
            }
            let back = host.returned(&answer(proto, &seen.reversed()));
            assert_eq!(back, V4.open().reversed());
        }
    }
}

#[test]
fn a_packet_to_the_target_itself_and_a_flow_that_want_one_tuple_are_told_apart() {
    for ends in ENDS {
        for proto in PROTOS {
            for call in 0..CALLS {
                let host = ends.host(proto, TargetEntry::PRESERVE);
                let direct = first(proto, &ends.kept());
                let other = meanwhile(&host, call, direct, How::Arrives(ETH0));
                let seen = host.relayed(&first(proto, &ends.open()));
                let Some((verdict, tuple, _)) = *other.borrow() else {
                    continue;
                };
                assert!(matches!(verdict, Verdict::Direct | Verdict::Moved));
                assert_ne!(tuple, seen, "{proto:?} call {call}");
                assert_whole(&host);
                let back = host.returned(&answer(proto, &seen.reversed()));
                assert_eq!(back, ends.open().reversed());
                let passed = host.pass_back(&answer(proto, &tuple.reversed()), LAN);
                assert_eq!(passed.tuple, ends.kept().reversed());
            }
        }
    }
}
