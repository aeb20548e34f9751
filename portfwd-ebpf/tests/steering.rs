//! TCP to a socket of this host is given to the target's listener, and nothing
//! of it changes.

mod common;

use common::{
    CLIENT, CLIENT6, DIALLED, DIALLED6, ETH0, Host, LO, OWN, TARGET, V4, addr, second, syn, tcp,
    tuple, tuple_of,
};
use portfwd_common::{Addr, Proto, RuleCounters, Verdict};
use portfwd_ebpf::{
    hook::{NEW_SYN_RECV, SYN_SENT, TIME_WAIT},
    host::{Forward, Machine},
    packet::{ACK, FIN, RST, SYN, Tuple},
};

const ESTABLISHED: u32 = 1;

fn machine() -> Machine {
    Machine::new(&OWN.map(addr))
}

fn rule() -> [Forward; 1] {
    [Forward::tcp(80..=80, 5000)]
}

#[test]
fn a_syn_without_a_socket_meets_the_listener() {
    for (client, dialled) in [(CLIENT, DIALLED), (CLIENT6, DIALLED6)] {
        for device in [ETH0, LO] {
            let host = Host::on(machine().listen(Addr::UNSPECIFIED, 5000), &rule());
            let open = tuple(client, dialled);
            let buffer = host.buffer(&tcp(&open, SYN, [1, 1], b"")).on(device);
            let (outcome, _) = host.take(buffer);
            assert_eq!(outcome.verdict, Verdict::Steered);
            assert_eq!((outcome.slot, outcome.opens), (0, false));
            assert_eq!(host.machine.steered.borrow()[..], [(open.dst, 5000)]);
            assert!(host.memory.is_empty());
        }
    }
}

#[test]
fn what_neither_opens_nor_acknowledges_is_a_stray() {
    let host = Host::on(machine().listen(Addr::UNSPECIFIED, 5000), &rule());
    for flags in [0, FIN, ACK, ACK | FIN, RST, RST | ACK, SYN | ACK, SYN | RST] {
        let packet = tcp(&tuple(CLIENT, DIALLED), flags, [1, 1], b"");
        assert_eq!(host.arrive(&packet).0, Verdict::Stray, "{flags}");
    }
    assert!(host.machine.steered.borrow().is_empty());
}

#[test]
fn an_ack_that_completes_a_cookie_opens_a_connection() {
    let mut machine = machine().listen(Addr::UNSPECIFIED, 5000);
    machine.cookies.push(701);
    let host = Host::on(machine, &rule());
    let open = tuple(CLIENT, DIALLED);
    for (ack, opens) in [(700, false), (701, true)] {
        let packet = tcp(&open, ACK, [101, ack], b"");
        assert_eq!(host.take(host.buffer(&packet)).0.opens, opens);
    }
    assert_eq!(host.memory.counters(0).connections, 1);
}

#[test]
fn a_socket_of_its_own_keeps_a_packet() {
    let open = tuple(CLIENT, DIALLED);
    for (state, verdict, opens) in [
        (ESTABLISHED, Verdict::Connected, false),
        (SYN_SENT, Verdict::Foreign, false),
        (3, Verdict::Connected, false),
        (4, Verdict::Connected, false),
        (5, Verdict::Connected, false),
        (TIME_WAIT, Verdict::Connected, false),
        (8, Verdict::Connected, false),
        (NEW_SYN_RECV, Verdict::Connected, true),
    ] {
        let machine = machine()
            .listen(Addr::UNSPECIFIED, 5000)
            .connect(open, state);
        let host = Host::on(machine, &rule());
        for (flags, is_ack) in [(SYN, false), (ACK, true), (RST, false), (SYN | ACK, false)] {
            let (outcome, _) = host.take(host.buffer(&tcp(&open, flags, [1, 1], b"")));
            assert_eq!(outcome.verdict, verdict, "state {state} flags {flags}");
            assert_eq!(outcome.opens, opens && is_ack, "state {state}");
            assert_eq!(outcome.has_rule(), verdict == Verdict::Connected);
        }
        assert!(host.machine.steered.borrow().is_empty());
    }
}

#[test]
fn a_direct_connection_from_the_same_client_port_is_not_the_listener() {
    let machine = machine()
        .listen(Addr::UNSPECIFIED, 5000)
        .connect(tuple(CLIENT, TARGET), ESTABLISHED);
    let host = Host::on(
        machine,
        &[rule(), [Forward::tcp(8080..=8080, 5000)]].concat(),
    );
    for dialled in [DIALLED, "192.0.2.1:8080"] {
        let (verdict, _) = host.arrive(&syn(&tuple(CLIENT, dialled)));
        assert_eq!(verdict, Verdict::Steered);
    }
    assert_eq!(host.machine.steered.borrow().len(), 2);
}

#[test]
fn a_loopback_service_is_reached_by_the_rule_that_says_so_only() {
    let open = tuple(CLIENT, DIALLED);
    let service = || machine().listen(addr("127.0.0.1"), 5000);
    let closed = Host::on(service(), &rule());
    assert_eq!(closed.arrive(&syn(&open)).0, Verdict::NoListener);
    let opened = Host::on(
        service(),
        &[Forward::tcp(80..=80, 5000).at(addr("127.0.0.1"))],
    );
    assert_eq!(opened.arrive(&syn(&open)).0, Verdict::Steered);
    // A client of 127.0.0.1 reaches it either way.
    let local = syn(&tuple("127.0.0.1:4000", "127.0.0.1:80"));
    let (outcome, _) = closed.take(closed.buffer(&local).on(LO));
    assert_eq!(outcome.verdict, Verdict::Steered);
}

#[test]
fn a_listener_that_refuses_is_reached_by_rewriting() {
    let machine = machine().listen_unsteerable(Addr::UNSPECIFIED, 5000);
    let host = Host::on(machine, &rule());
    let open = tuple(CLIENT, DIALLED);
    let seen = host.forwarded(&syn(&open));
    assert_eq!(seen, tuple(CLIENT, TARGET));
    assert_eq!(host.answered(Proto::Tcp, &seen), open.reversed());
    assert_eq!(host.forwarded(&second(Proto::Tcp, &open)), seen);
    assert_eq!(host.memory.counters(0).connections, 1);
}

#[test]
fn where_nothing_is_steered_everything_is_rewritten() {
    let host = Host::on(machine().listen(Addr::UNSPECIFIED, 5000), &rule());
    host.memory.steers.set(false);
    let seen = host.forwarded(&syn(&tuple(CLIENT, DIALLED)));
    assert_eq!(seen, tuple(CLIENT, TARGET));
    assert!(host.machine.steered.borrow().is_empty());
}

#[test]
fn an_address_that_is_not_this_hosts_is_not_steered_to() {
    let host = Host::on(machine().listen(Addr::UNSPECIFIED, 5000), &rule());
    let (verdict, _) = host.arrive(&syn(&tuple(CLIENT, "203.0.113.80:80")));
    assert_eq!(verdict, Verdict::NotLocal);
}

#[test]
fn packets_of_a_steered_connection_count_both_ways() {
    let open = tuple(CLIENT, DIALLED);
    let machine = machine()
        .listen(Addr::UNSPECIFIED, 5000)
        .connect(open, ESTABLISHED);
    let host = Host::on(machine, &rule());
    let data = tcp(&open, ACK, [1, 1], b"question");
    let reply = tcp(&open.reversed(), ACK, [1, 9], b"an answer");
    assert_eq!(host.arrive(&data).0, Verdict::Connected);
    assert_eq!(host.depart(&reply).0, Verdict::Connected);
    let counters = host.memory.counters(0);
    assert_eq!((counters.packets, counters.bytes), (1, 48));
    assert_eq!((counters.packets_back, counters.bytes_back), (1, 49));
}

#[test]
fn a_connection_that_the_rule_does_not_serve_counts_neither_way() {
    // A program of this host listens on port 80 itself.
    let open = tuple(CLIENT, DIALLED);
    let of_others = Forward::tcp(80..=80, 5000).from(addr("203.0.113.0"), 96 + 24);
    let elsewhere = V4.rule(Proto::Tcp, 0);
    for (rule, verdict) in [
        (of_others, Verdict::NotListed),
        (elsewhere, Verdict::Connected),
    ] {
        let host = Host::on(machine().connect(open, ESTABLISHED), &[rule]);
        let data = tcp(&open, ACK, [1, 1], b"question");
        assert_eq!(host.arrive(&data).0, verdict);
        let reply = tcp(&open.reversed(), ACK, [1, 9], b"an answer");
        assert_eq!(host.depart(&reply).0, Verdict::NoRule);
        assert_eq!(host.memory.counters(0), RuleCounters::default());
    }
}

#[test]
fn a_rewriting_rule_leaves_a_connection_on_its_own_port_alone() {
    let open = tuple(CLIENT, DIALLED);
    let machine = machine()
        .listen(Addr::UNSPECIFIED, 5000)
        .connect(open, ESTABLISHED);
    let host = Host::on(machine, &[Forward::tcp(80..=80, 5000).rewriting()]);
    let (outcome, bytes) = host.take(host.buffer(&tcp(&open, ACK, [1, 1], b"")));
    assert_eq!(outcome.verdict, Verdict::Connected);
    assert!(!outcome.has_rule());
    assert_eq!(tuple_of(&bytes), open);
}

#[test]
fn a_rewritten_connection_that_the_tables_lost_is_proved_by_its_socket() {
    // A flood takes the flow before the handshake ends; the kernel completes
    // it by a cookie all the same.
    let open = tuple(CLIENT, DIALLED);
    let seen: Tuple = tuple(CLIENT, TARGET);
    let machine = machine()
        .listen(Addr::UNSPECIFIED, 5000)
        .connect(seen, ESTABLISHED);
    let host = Host::on(machine, &[Forward::tcp(80..=80, 5000).rewriting()]);
    for _ in 0..3 {
        assert_eq!(host.forwarded(&second(Proto::Tcp, &open)), seen);
    }
    assert_eq!(host.flows(portfwd_ebpf::tables::Table::Flows), 1);
}
