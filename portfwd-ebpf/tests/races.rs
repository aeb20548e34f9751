//! Two CPUs with packets of one new flow at the same time: the second one's
//! whole walk is put before each call on the tables that the first one makes.

mod common;

use std::{cell::RefCell, rc::Rc};

use common::{CLIENT, DIALLED, Host, TARGET, answer, first, second, tuple, tuple_of};
use portfwd_common::{Flow, Proto, Verdict};
use portfwd_ebpf::hook::NEW_SYN_RECV;
use portfwd_ebpf::{
    host::{self, Buffer, Forward, Machine, Memory},
    packet::Tuple,
    tables::Table,
};

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
/// More calls than any walk makes.
const CALLS: u64 = 40;

fn forwards(proto: Proto) -> [Forward; 2] {
    match proto {
        Proto::Tcp => [80, 8080].map(|port| Forward::tcp(port..=port, 5000).rewriting()),
        _ => [80, 8080].map(|port| Forward::udp(port..=port, 5000)),
    }
}

type Walked = Rc<RefCell<Option<(Verdict, Vec<u8>)>>>;

/// What happened to a packet that another CPU walks before call `call`.
fn meanwhile(host: &Host, call: u64, bytes: Vec<u8>, leaves: bool) -> Walked {
    let walked = Walked::default();
    let (result, machine): (_, &'static Machine) = (walked.clone(), host.machine);
    host.memory.interrupt(call, move |memory: &Memory| {
        let mut buffer = Buffer::new(machine, bytes);
        let outcome = if leaves {
            host::depart(&mut buffer, memory)
        } else {
            host::arrive(&mut buffer, memory)
        };
        *result.borrow_mut() = Some((outcome.verdict, buffer.bytes));
    });
    walked
}

/// Each forward entry has its reply entry, in one table, and they agree.
fn assert_whole(host: &Host) {
    for table in [Table::New, Table::Flows] {
        let entries = host.memory.entries(table);
        assert_eq!(entries.len() % 2, 0, "{entries:?}");
        assert_eq!(host.flows(table) * 2, entries.len(), "{entries:?}");
    }
}

#[test]
fn two_first_packets_of_one_flow_get_one_translation() {
    for proto in PROTOS {
        let mut raced = 0;
        for call in 0..CALLS {
            let host = Host::new(&forwards(proto));
            let open = first(proto, &tuple(CLIENT, DIALLED));
            let other = meanwhile(&host, call, open.clone(), false);
            let seen = host.forwarded(&open);
            assert_whole(&host);
            let other = other.borrow().clone();
            if let Some((verdict, bytes)) = other {
                raced += 1;
                assert_eq!(verdict, Verdict::Rewritten, "{proto:?} call {call}");
                assert_eq!(tuple_of(&bytes), seen, "{proto:?} call {call}");
            }
            assert_eq!(host.flows(Table::New), 1);
            assert_eq!(host.answered(proto, &seen), tuple(DIALLED, CLIENT));
            let opened = u64::from(proto == Proto::Udp);
            assert_eq!(host.memory.counters(0).connections, opened, "call {call}");
        }
        assert!(raced > 4);
    }
}

#[test]
fn two_flows_that_want_one_tuple_are_told_apart() {
    let ends = [DIALLED, "192.0.2.1:8080", TARGET];
    for proto in PROTOS {
        for (one, two) in [(0, 1), (0, 2), (2, 0)] {
            let mut raced = 0;
            for call in 0..CALLS {
                let host = Host::new(&forwards(proto));
                let [a, b] = [one, two].map(|end: usize| tuple(CLIENT, ends[end]));
                let other = meanwhile(&host, call, first(proto, &b), false);
                let (_, bytes) = host.arrive(&first(proto, &a));
                let Some((_, others)) = other.borrow().clone() else {
                    continue;
                };
                raced += 1;
                let [a_seen, b_seen]: [Tuple; 2] = [tuple_of(&bytes), tuple_of(&others)];
                assert_ne!(a_seen, b_seen, "{proto:?} call {call}");
                assert_whole(&host);
                assert_eq!(host.answered(proto, &a_seen), a.reversed());
                assert_eq!(host.answered(proto, &b_seen), b.reversed());
            }
            assert!(raced > 3);
        }
    }
}

/// The target has a request socket for the connection, as after its SYN-ACK.
fn accept(host: &Host, proto: Proto, seen: &Tuple) {
    if proto == Proto::Tcp {
        host.machine
            .connections
            .borrow_mut()
            .push((*seen, NEW_SYN_RECV));
    }
}

#[test]
fn a_promotion_disturbs_no_packet_of_the_flow() {
    for proto in PROTOS {
        for leaves in [false, true] {
            for call in 0..CALLS {
                let host = Host::new(&forwards(proto));
                let open = tuple(CLIENT, DIALLED);
                let seen = host.forwarded(&first(proto, &open));
                host.answered(proto, &seen);
                accept(&host, proto, &seen);
                host.memory.wait(1);
                let packet = if leaves {
                    answer(proto, &seen.reversed())
                } else {
                    second(proto, &open)
                };
                let other = meanwhile(&host, call, packet, leaves);
                assert_eq!(host.forwarded(&second(proto, &open)), seen);
                if let Some((verdict, bytes)) = other.borrow().clone() {
                    let (wanted, to) = if leaves {
                        (Verdict::Restored, open.reversed())
                    } else {
                        (Verdict::Rewritten, seen)
                    };
                    assert_eq!(verdict, wanted, "{proto:?} call {call}");
                    assert_eq!(tuple_of(&bytes), to, "{proto:?} call {call}");
                }
                let entries = host.memory.entries(Table::Flows);
                assert_eq!(entries.len(), 2, "call {call}");
                for (_, flow) in entries {
                    assert_ne!(flow.flags & Flow::PROVEN, 0);
                }
                assert_eq!(host.answered(proto, &seen), open.reversed());
            }
        }
    }
}

#[test]
fn a_promotion_counts_one_connection_whatever_runs_beside_it() {
    for call in 0..CALLS {
        let host = Host::new(&forwards(Proto::Tcp));
        let open = tuple(CLIENT, DIALLED);
        let seen = host.forwarded(&first(Proto::Tcp, &open));
        host.answered(Proto::Tcp, &seen);
        accept(&host, Proto::Tcp, &seen);
        let _other = meanwhile(&host, call, second(Proto::Tcp, &open), false);
        host.forwarded(&second(Proto::Tcp, &open));
        assert_eq!(host.memory.counters(0).connections, 1, "call {call}");
    }
}

#[test]
fn a_second_flow_that_opens_during_a_promotion_is_told_apart() {
    for proto in PROTOS {
        for call in 0..CALLS {
            let host = Host::new(&forwards(proto));
            let (a, b) = (tuple(CLIENT, DIALLED), tuple(CLIENT, "192.0.2.1:8080"));
            let seen = host.forwarded(&first(proto, &a));
            host.answered(proto, &seen);
            let other = meanwhile(&host, call, second(proto, &a), false);
            let b_seen = host.forwarded(&first(proto, &b));
            if other.borrow().is_some() {
                assert_ne!(b_seen, seen, "{proto:?} call {call}");
                assert_eq!(host.answered(proto, &seen), a.reversed());
                assert_eq!(host.answered(proto, &b_seen), b.reversed());
            }
        }
    }
}
