//! Checksums of every rewrite, recomputed from scratch. [`Host`] judges each
//! packet that was rewritten; these tests bring every kind before it.

mod common;

use common::{
    CLIENT, CLIENT6, DIALLED, DIALLED6, Host, addr, assert_sums, checksum, first, partial_sum,
    set_checksum, tcp, tuple, tuple_of, udp,
};
use portfwd_common::{Addr, Proto, Verdict};
use portfwd_ebpf::{host::Forward, packet::Tuple};

const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const ENDS: [(&str, &str, &str); 2] = [
    (CLIENT, DIALLED, "192.0.2.2"),
    (CLIENT6, DIALLED6, "2001:db8::2"),
];

fn forward(proto: Proto, target: Addr) -> Forward {
    let forward = match proto {
        Proto::Tcp => Forward::tcp(80..=80, 5000).rewriting(),
        _ => Forward::udp(80..=80, 5000),
    };
    forward.at(target)
}

#[test]
fn ports_and_addresses_full_and_partial_there_and_back() {
    for proto in PROTOS {
        for (client, dialled, other) in ENDS {
            for target in [Addr::UNSPECIFIED, addr(other)] {
                for partial in [false, true] {
                    there_and_back(proto, &tuple(client, dialled), target, partial);
                }
            }
        }
    }
}

fn there_and_back(proto: Proto, open: &Tuple, target: Addr, partial: bool) {
    let host = Host::new(&[forward(proto, target)]);
    let with_sum = |mut bytes: Vec<u8>| {
        if partial {
            let sum = partial_sum(&bytes);
            set_checksum(&mut bytes, sum);
        }
        assert_sums(&bytes, partial);
        let mut buffer = host.buffer(&bytes);
        buffer.partial = partial;
        buffer
    };
    let (outcome, bytes) = host.take(with_sum(first(proto, open)));
    assert_eq!(outcome.verdict, Verdict::Rewritten);
    let seen = tuple_of(&bytes);
    let dst = if target.is_unspecified() {
        open.dst
    } else {
        target
    };
    assert_eq!((seen.src, seen.sport), (open.src, open.sport));
    assert_eq!((seen.dst, seen.dport), (dst, 5000));

    let (outcome, bytes) = host.send(with_sum(common::answer(proto, &seen.reversed())));
    assert_eq!(outcome.verdict, Verdict::Restored);
    assert_eq!(tuple_of(&bytes), open.reversed());
}

#[test]
fn a_partial_checksum_covers_no_port() {
    let host = Host::new(&[forward(Proto::Udp, Addr::UNSPECIFIED)]);
    let mut packet = udp(&tuple(CLIENT, DIALLED), b"hello");
    let sum = partial_sum(&packet);
    set_checksum(&mut packet, sum);
    let mut buffer = host.buffer(&packet);
    buffer.partial = true;
    let (_, bytes) = host.take(buffer);
    assert_eq!(checksum(&bytes), sum);
}

#[test]
fn no_udp_checksum_stays_none() {
    for target in [Addr::UNSPECIFIED, addr("192.0.2.2")] {
        let host = Host::new(&[forward(Proto::Udp, target)]);
        let mut packet = udp(&tuple(CLIENT, DIALLED), b"hello");
        set_checksum(&mut packet, 0);
        let (verdict, bytes) = host.arrive(&packet);
        assert_eq!(verdict, Verdict::Rewritten);
        assert_eq!(checksum(&bytes), 0);
        let mut reply = common::answer(Proto::Udp, &tuple_of(&bytes).reversed());
        set_checksum(&mut reply, 0);
        let (verdict, bytes) = host.depart(&reply);
        assert_eq!(verdict, Verdict::Restored);
        assert_eq!(checksum(&bytes), 0);
    }
}

/// A payload of two bytes that gives the packet with `to` a sum of zero.
fn payload_summing_to_zero(proto: Proto, to: &Tuple) -> [u8; 2] {
    let with = |payload: [u8; 2]| match proto {
        Proto::Tcp => tcp(to, 2, [100, 0], &payload),
        _ => udp(to, &payload),
    };
    // The checksum of a packet with an empty payload word is what that word
    // has to be for the sum to be zero.
    let payload = checksum(&with([0, 0])).to_be_bytes();
    let computed = checksum(&with(payload));
    assert!(matches!(computed, 0 | 0xffff), "{computed:#06x}");
    payload
}

#[test]
fn a_computed_zero_is_sent_as_ones_by_udp() {
    for (client, dialled, other) in ENDS {
        for target in [Addr::UNSPECIFIED, addr(other)] {
            let open = tuple(client, dialled);
            let to = Tuple {
                dst: if target.is_unspecified() {
                    open.dst
                } else {
                    target
                },
                dport: 5000,
                ..open
            };
            let host = Host::new(&[forward(Proto::Udp, target)]);
            let payload = payload_summing_to_zero(Proto::Udp, &to);
            let (verdict, bytes) = host.arrive(&udp(&open, &payload));
            assert_eq!(verdict, Verdict::Rewritten);
            assert_eq!(checksum(&bytes), 0xffff);
        }
    }
}

#[test]
fn a_sum_of_ones_is_a_sum_like_any_other() {
    for (client, dialled, _) in ENDS {
        let open = tuple(client, dialled);
        for proto in PROTOS {
            let host = Host::new(&[forward(proto, Addr::UNSPECIFIED)]);
            let payload = payload_summing_to_zero(proto, &open);
            let mut packet = match proto {
                Proto::Tcp => tcp(&open, 2, [100, 0], &payload),
                _ => udp(&open, &payload),
            };
            for zero in [0xffff, 0] {
                if zero == 0 && proto == Proto::Udp {
                    continue;
                }
                set_checksum(&mut packet, zero);
                let (verdict, bytes) = host.arrive(&packet);
                assert_eq!(verdict, Verdict::Rewritten);
                assert_ne!(checksum(&bytes), zero);
            }
        }
    }
}

#[test]
fn another_source_port_is_summed_as_well() {
    for proto in PROTOS {
        for (client, dialled, _) in ENDS {
            let host = Host::new(&[forward(proto, Addr::UNSPECIFIED)]);
            let open = tuple(client, dialled);
            assert_eq!(host.forwarded(&first(proto, &open)).sport, open.sport);
            let direct = Tuple {
                dport: 5000,
                ..open
            };
            let (verdict, bytes) = host.arrive(&first(proto, &direct));
            assert_eq!(verdict, Verdict::Moved);
            let seen = tuple_of(&bytes);
            assert_ne!(seen.sport, open.sport);
            assert_eq!(host.answered(proto, &seen), direct.reversed());
        }
    }
}
