//! Programs of this host that dial a rule for another host.

mod common;

use common::{OWN, addr};
use portfwd_common::{Addr, Peer, PortEntry, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    dial::{Socket, answer, dial},
    host::{Forward, Memory},
};

const OTHER: &str = "198.51.100.2";
const OTHER6: &str = "2001:db8:b::2";

fn peer(text: &str) -> Peer {
    let end: std::net::SocketAddr = text.parse().expect("address and port");
    Peer::new(end.ip().into(), end.port())
}

const fn socket(cookie: u64, proto: Proto) -> Socket {
    Socket {
        cookie,
        proto,
        source: Addr::UNSPECIFIED,
        connected: Addr::UNSPECIFIED,
    }
}

const TCP: Socket = socket(1, Proto::Tcp);
const UDP: Socket = socket(2, Proto::Udp);

/// A socket that has chosen its address.
fn bound(text: &str) -> Socket {
    Socket {
        source: addr(text),
        ..TCP
    }
}

/// A host whose rules are for other hosts.
fn host(forwards: &[Forward]) -> Memory {
    let memory = Memory::with(forwards);
    *memory.own.borrow_mut() = OWN.map(addr).to_vec();
    for (slot, forward) in (0..).zip(forwards) {
        let entry = TargetEntry::local(forward.target, 1);
        memory.set_target(slot, TargetEntry { flags: 0, ..entry });
        memory.mark(forward.proto, forward.to, PortEntry::REMOTE);
    }
    memory
}

/// `80:198.51.100.2:8080` and the same over IPv6, for both protocols.
fn everywhere() -> Memory {
    let rules = [Forward::tcp(80..=80, 8080), Forward::udp(80..=80, 8080)];
    let [tcp, udp] = &rules;
    host(
        &[OTHER, OTHER6]
            .map(|target| [tcp, udp].map(|rule| rule.clone().at(addr(target))))
            .concat(),
    )
}

fn told(memory: &Memory, socket: &Socket, text: &str) -> Option<Peer> {
    answer(memory, socket.cookie, socket.proto, &peer(text))
}

#[test]
fn a_socket_is_sent_to_the_target_and_told_what_it_dialled() {
    let memory = everywhere();
    for socket in [TCP, UDP] {
        for (dialled, target) in [
            ("192.0.2.1:80", "198.51.100.2:8080"),
            ("192.0.2.2:80", "198.51.100.2:8080"),
            ("127.0.0.1:80", "198.51.100.2:8080"),
            ("127.9.9.9:80", "198.51.100.2:8080"),
            ("[::ffff:192.0.2.1]:80", "198.51.100.2:8080"),
            ("[2001:db8::1]:80", "[2001:db8:b::2]:8080"),
            ("[::1]:80", "[2001:db8:b::2]:8080"),
        ] {
            let dialled = peer(dialled);
            assert_eq!(dial(&memory, &socket, &dialled), Ok(peer(target)));
            assert_eq!(told(&memory, &socket, target), Some(dialled));
        }
    }
    assert_eq!(memory.calls_with(Verdict::Dialled), 14);
    assert_eq!(memory.verdicts(Verdict::Dialled), 0);
}

#[test]
fn no_address_dials_as_the_kernel_does() {
    let memory = everywhere();
    for (source, dialled, host) in [
        ("::", "0.0.0.0:80", "127.0.0.1:80"),
        ("0.0.0.0", "0.0.0.0:80", "127.0.0.1:80"),
        ("192.0.2.2", "0.0.0.0:80", "192.0.2.2:80"),
        ("::", "[::]:80", "[::1]:80"),
        ("2001:db8::2", "[::]:80", "[::1]:80"),
        ("192.0.2.2", "[::]:80", "127.0.0.1:80"),
    ] {
        let socket = bound(source);
        let target = dial(&memory, &socket, &peer(dialled)).expect("a rule claims it");
        let told = answer(&memory, socket.cookie, socket.proto, &target);
        assert_eq!(told, Some(peer(host)), "{dialled} from {source}");
    }
}

#[test]
fn what_no_rule_for_another_host_claims_is_left_alone() {
    let memory = everywhere();
    let local = Forward::tcp(81..=81, 5000);
    memory.add(9, &local);
    memory.add(
        10,
        &Forward::udp(82..=82, 5000)
            .at(addr(OTHER))
            .on(addr("192.0.2.2")),
    );
    for (dialled, verdict) in [
        ("192.0.2.1:443", Verdict::NoRule),
        ("192.0.2.1:8080", Verdict::NoRule),
        ("198.51.100.2:8080", Verdict::NoRule),
        ("192.0.2.1:81", Verdict::NoRule),
        ("192.0.2.1:82", Verdict::NoRule),
        ("198.51.100.2:80", Verdict::NotLocal),
        ("224.0.0.1:80", Verdict::NotLocal),
        ("255.255.255.255:80", Verdict::NotLocal),
        ("[2001:db8:b::2]:80", Verdict::NotLocal),
    ] {
        assert_eq!(
            dial(&memory, &TCP, &peer(dialled)),
            Err(verdict),
            "{dialled}"
        );
    }
    assert_eq!(memory.calls_with(Verdict::Dialled), 0);
}

#[test]
fn a_range_keeps_its_offset() {
    let memory = host(&[Forward::udp(8_000..=8_999, 18_000).at(addr(OTHER))]);
    let target = dial(&memory, &UDP, &peer("127.0.0.1:8123"));
    assert_eq!(target, Ok(peer("198.51.100.2:18123")));
}

#[test]
fn a_socket_of_loopback_reaches_no_other_host() {
    let memory = everywhere();
    for (source, dialled) in [
        ("127.0.0.1", "127.0.0.1:80"),
        ("127.0.0.9", "192.0.2.1:80"),
        ("127.0.0.9", "0.0.0.0:80"),
        ("::1", "[2001:db8::1]:80"),
    ] {
        let refused = dial(&memory, &bound(source), &peer(dialled));
        assert_eq!(refused, Err(Verdict::NoRoute), "{dialled} from {source}");
    }
    let own = dial(&memory, &bound("192.0.2.2"), &peer("127.0.0.1:80"));
    assert_eq!(own, Ok(peer("198.51.100.2:8080")));
}

#[test]
fn sources_are_those_that_the_kernel_would_choose() {
    let rule = |source, bits| {
        host(&[Forward::tcp(80..=80, 8080)
            .at(addr(OTHER))
            .from(addr(source), bits)])
    };
    let (loopback, first) = (rule("127.0.0.1", 128), rule("192.0.2.1", 128));
    for (socket, dialled, by_loopback, by_first) in [
        (TCP, "127.0.0.1:80", true, false),
        (TCP, "127.0.0.9:80", true, false),
        (TCP, "192.0.2.1:80", false, true),
        (TCP, "192.0.2.2:80", false, false),
        (bound("192.0.2.1"), "192.0.2.2:80", false, true),
        (bound("192.0.2.1"), "127.0.0.1:80", false, true),
    ] {
        for (memory, listed) in [(&loopback, by_loopback), (&first, by_first)] {
            let wanted = match listed {
                true => Ok(peer("198.51.100.2:8080")),
                false => Err(Verdict::NotListed),
            };
            assert_eq!(dial(memory, &socket, &peer(dialled)), wanted, "{dialled}");
        }
    }
}

#[test]
fn a_socket_is_told_of_what_it_dialled_last() {
    let memory = everywhere();
    let target = "198.51.100.2:8080";
    assert_eq!(told(&memory, &UDP, target), None, "it dialled nothing yet");
    for dialled in ["127.0.0.1:80", "192.0.2.1:80"].map(peer) {
        let _sent = dial(&memory, &UDP, &dialled);
        assert_eq!(told(&memory, &UDP, target), Some(dialled));
    }
    let other = socket(3, Proto::Udp);
    assert_eq!(told(&memory, &other, target), None, "another socket");
    let tcp = socket(UDP.cookie, Proto::Tcp);
    assert_eq!(told(&memory, &tcp, target), None, "another protocol");
    assert_eq!(told(&memory, &UDP, "198.51.100.2:8081"), None);
    let _direct = dial(&memory, &UDP, &peer(target));
    assert_eq!(told(&memory, &UDP, target), None, "the target itself");
}

#[test]
fn what_a_connected_socket_sends_is_no_dialling() {
    let memory = everywhere();
    let (dialled, target) = (peer("127.0.0.1:80"), "198.51.100.2:8080");
    let _connected = dial(&memory, &UDP, &dialled);
    let connected = Socket {
        connected: addr(OTHER),
        ..UDP
    };
    assert_eq!(
        dial(&memory, &connected, &peer(target)),
        Err(Verdict::NoRule)
    );
    assert_eq!(told(&memory, &UDP, target), Some(dialled));
}
