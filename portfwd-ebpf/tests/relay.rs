//! What is written into a packet that is sent on: addresses, ports, hops, the
//! MSS, and checksums that are right from scratch.

mod common;

use common::{
    ENDS, ETH0, Ends, Host, LAN, OWN, addr, assert_sums, checksum, first, hops, hops_of, judged,
    partial_sum, set_checksum, syn_with, tcp, tcp_with_options, tuple_of, udp, udp_with_options,
};
use portfwd_common::{Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::{self, Machine},
    packet::{ACK, FIN, RST, SYN, Tuple},
};
use proptest::prelude::*;

const PROTOS: [Proto; 2] = [Proto::Udp, Proto::Tcp];
const FLAGS: [u16; 2] = [0, TargetEntry::PRESERVE];

/// The TTL of what the tests send, less one.
const LEFT: u8 = 60;

fn packet(proto: Proto, tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    match proto {
        Proto::Tcp => tcp(tuple, SYN, [100, 0], payload),
        _ => udp(tuple, payload),
    }
}

#[test]
fn nothing_but_the_tuple_and_the_hops_changes() {
    for ends in ENDS {
        for (proto, flags) in PROTOS.into_iter().flat_map(|p| FLAGS.map(|f| (p, f))) {
            for length in [0, 1, 2, 7, 64, 1201] {
                let host = ends.host(proto, flags);
                let payload: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
                let passed = host.pass(&packet(proto, &ends.open(), &payload), ETH0);
                let seen = passed.tuple;
                let wanted = hops(packet(proto, &seen, &payload), LEFT);
                assert_eq!(passed.bytes, wanted, "{proto:?} {length}");

                let back = host.pass_back(&packet(proto, &seen.reversed(), &payload), LAN);
                let wanted = hops(packet(proto, &ends.open().reversed(), &payload), LEFT);
                assert_eq!(back.bytes, wanted, "{proto:?} {length}");
            }
        }
    }
}

#[test]
fn every_count_of_hops_goes_down_by_one() {
    for ends in ENDS {
        for proto in PROTOS {
            let host = ends.host(proto, 0);
            for left in 2..=255 {
                let passed = host.pass(&hops(first(proto, &ends.open()), left), ETH0);
                assert_eq!(passed.verdict(), Verdict::Forwarded);
                assert_eq!(hops_of(&passed.bytes), left - 1);
                assert_sums(&passed.bytes, false);
            }
        }
    }
}

#[test]
fn options_of_ipv4_go_along() {
    let ends = common::V4;
    for words in [1, 5, 10] {
        let options = vec![1; words * 4];
        let host = ends.host(Proto::Udp, 0);
        let passed = host.pass(&udp_with_options(&ends.open(), &options, b"odd"), ETH0);
        let wanted = udp_with_options(&passed.tuple, &options, b"odd");
        assert_eq!(passed.bytes, hops(wanted, LEFT));
        let host = ends.host(Proto::Tcp, 0);
        let make = |tuple: &Tuple| tcp_with_options(tuple, &options, SYN, [100, 0], b"");
        let passed = host.pass(&make(&ends.open()), ETH0);
        assert_eq!(passed.bytes, hops(make(&passed.tuple), LEFT));
    }
}

#[test]
fn a_partial_checksum_stays_the_sum_of_the_pseudo_header() {
    for ends in ENDS {
        for (proto, flags) in PROTOS.into_iter().flat_map(|p| FLAGS.map(|f| (p, f))) {
            let host = ends.host(proto, flags);
            let partial = |tuple: &Tuple| {
                let mut bytes = packet(proto, tuple, b"hello");
                let sum = partial_sum(&bytes);
                set_checksum(&mut bytes, sum);
                let mut buffer = host.buffer(&bytes);
                buffer.partial = true;
                buffer
            };
            let (outcome, buffer) = judged(partial(&ends.open()), |buffer| {
                host::arrive(buffer, &host.memory)
            });
            assert_eq!(outcome.verdict, Verdict::Forwarded);
            let seen = tuple_of(&buffer.bytes);
            let (outcome, buffer) = judged(partial(&seen.reversed()), |buffer| {
                host::arrive_back(buffer, &host.memory)
            });
            assert_eq!(outcome.verdict, Verdict::Returned);
            assert_eq!(tuple_of(&buffer.bytes), ends.open().reversed());
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    for flags in FLAGS {
        let ends = common::V4;
        let host = ends.host(Proto::Udp, flags);
        let bare = |tuple: &Tuple| {
            let mut bytes = udp(tuple, b"hello");
            set_checksum(&mut bytes, 0);
            bytes
        };
        let passed = host.pass(&bare(&ends.open()), ETH0);
        assert_eq!(passed.bytes, hops(bare(&passed.tuple), LEFT));
        let back = host.pass_back(&bare(&passed.tuple.reversed()), LAN);
        assert_eq!(back.bytes, hops(bare(&ends.open().reversed()), LEFT));
    }
}

#[test]
fn a_sum_of_zero_is_sent_as_all_ones_by_udp() {
    for ends in ENDS {
        for flags in FLAGS {
            let host = ends.host(Proto::Udp, flags);
            let seen = host.relayed(&udp(&ends.open(), b""));
            // What a payload of zeros sums to, as a payload, leaves nothing.
            let balance = |tuple: &Tuple| checksum(&udp(tuple, &[0, 0])).to_be_bytes();
            for pad in [balance(&seen), balance(&ends.open())] {
                let passed = host.pass(&udp(&ends.open(), &pad), ETH0);
                assert_eq!(passed.bytes, hops(udp(&seen, &pad), LEFT));
            }
            let zero = udp(&seen, &balance(&seen));
            assert_eq!(checksum(&zero), 0xffff);
            let back = ends.open().reversed();
            let pad = balance(&back);
            let passed = host.pass_back(&udp(&seen.reversed(), &pad), LAN);
            assert_eq!(checksum(&passed.bytes), 0xffff);
            assert_eq!(passed.bytes, hops(udp(&back, &pad), LEFT));
        }
    }
}

/// A host whose way from the client has one MTU, and to the target another; 0
/// is one that is not known.
fn with_mtus(ends: &Ends, came: u32, goes: u32) -> Host {
    let mut machine = Machine::new(&OWN.map(addr));
    for (ifindex, mtu) in [(ETH0, came), (LAN, goes)] {
        machine = machine.mtu_of(ifindex, mtu);
    }
    if came + goes == 0 {
        machine.mtus.clear();
    }
    Host::on(machine, &[ends.rule(Proto::Tcp, 0)])
}

const fn mss(value: u16) -> [u8; 4] {
    let [high, low] = value.to_be_bytes();
    [2, 4, high, low]
}

/// An MTU that leaves room for `limit` bytes of a segment.
const fn mtu(ends: &Ends, limit: u32) -> u32 {
    let headers = if matches!(ends.client.as_bytes()[0], b'[') {
        60
    } else {
        40
    };
    limit + headers
}

/// The options of a SYN before and behind, both ways, both as a SYN and as its
/// answer, with whole and with partial checksums.
#[track_caller]
fn clamps(came: u32, goes: u32, before: &[u8], behind: &[u8]) {
    for ends in ENDS {
        for partial in [false, true] {
            let [came, goes] = [came, goes].map(|limit| match limit {
                0 => 0,
                limit => mtu(&ends, limit),
            });
            let host = with_mtus(&ends, came, goes);
            let make = |tuple: &Tuple, flags, options| {
                let mut bytes = syn_with(tuple, flags, options);
                if partial {
                    let sum = partial_sum(&bytes);
                    set_checksum(&mut bytes, sum);
                }
                let mut buffer = host.buffer(&bytes);
                buffer.partial = partial;
                buffer
            };
            let open = ends.open();
            let (outcome, buffer) = judged(make(&open, SYN, before), |buffer| {
                host::arrive(buffer, &host.memory)
            });
            assert_eq!(outcome.verdict, Verdict::Forwarded);
            let seen = tuple_of(&buffer.bytes);
            let wanted = make(&seen, SYN, behind).bytes;
            assert_eq!(buffer.bytes, hops(wanted, LEFT), "{before:?}");

            let answer = make(&seen.reversed(), SYN | ACK, before).on(LAN);
            let (outcome, buffer) =
                judged(answer, |buffer| host::arrive_back(buffer, &host.memory));
            assert_eq!(outcome.verdict, Verdict::Returned);
            let wanted = make(&open.reversed(), SYN | ACK, behind).bytes;
            assert_eq!(buffer.bytes, hops(wanted, LEFT), "{before:?}");
        }
    }
}

#[test]
fn the_mss_of_a_syn_is_lowered_to_what_the_way_takes() {
    let (large, small) = (mss(1460), mss(1300));
    clamps(1460, 1300, &large, &small);
    clamps(1300, 1460, &large, &small);
    clamps(1300, 1300, &large, &small);
    clamps(9000, 1300, &mss(u16::MAX), &small);
    // After one, two and three bytes, and between other options.
    for skipped in [
        &[1][..],
        &[1, 1],
        &[1, 1, 1],
        &[3, 3, 7],
        &[4, 2],
        &[4, 2, 1],
    ] {
        let around = |mss: [u8; 4]| [skipped, &mss, &[1, 3, 3, 7]].concat();
        clamps(1460, 1300, &around(large), &around(small));
    }
    let timestamps = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    for end in [&[][..], &[0], &[1, 1]] {
        let around = |mss: [u8; 4]| [&timestamps[..], &mss, end].concat();
        clamps(1460, 1300, &around(large), &around(small));
    }
    // As late as it can stand.
    let last = |mss: [u8; 4]| [&[1; 36][..], &mss].concat();
    clamps(1460, 1300, &last(large), &last(small));
    let odd = |mss: [u8; 4]| [&[1; 35][..], &mss, &[0]].concat();
    clamps(1460, 1300, &odd(large), &odd(small));
}

#[test]
fn an_mss_that_fits_stays() {
    for value in [0, 1, 536, 1299, 1300] {
        clamps(1460, 1300, &mss(value), &mss(value));
        clamps(0, 0, &mss(value), &mss(value));
    }
    clamps(0, 0, &mss(9000), &mss(9000));
    clamps(65_535, 65_535, &mss(u16::MAX), &mss(u16::MAX));
}

#[test]
fn options_without_an_mss_stay() {
    for options in [
        &[][..],
        &[1, 1, 1, 1],
        &[0, 2, 4, 0xff],
        &[0, 0, 0, 0, 2, 4, 0xff, 0xff],
        &[8, 10, 2, 4, 0xff, 0xff, 2, 4, 0xff, 0xff],
        // It does not fit: the kind alone, and its length alone.
        &[1, 1, 1, 2],
        &[1, 1, 2, 4],
        &[1, 2, 4, 0xff],
        // An option that is longer than what is left.
        &[8, 40, 2, 4, 0xff, 0xff, 0, 0],
        &[3, 255, 2, 4, 0xff, 0xff, 0, 0],
    ] {
        clamps(1460, 1300, options, options);
    }
}

#[test]
fn an_option_that_only_begins_like_an_mss_stays() {
    // Its length is 4 and no other (RFC 9293, section 3.2).
    for length in [0, 1, 2, 3, 5, 6, 8, 255] {
        let options = [2, length, 0xff, 0xff, 0xff, 0xff, 0, 0];
        clamps(1460, 1300, &options, &options);
    }
}

#[test]
fn what_stands_behind_a_malformed_option_stays() {
    // No receiver reads on behind a length below 2.
    for length in [0, 1] {
        let options = [8, length, 2, 4, 0xff, 0xff, 0, 0];
        clamps(1460, 1300, &options, &options);
    }
}

#[test]
fn only_what_opens_a_connection_is_clamped() {
    for ends in ENDS {
        let host = with_mtus(&ends, mtu(&ends, 1300), mtu(&ends, 1300));
        let seen = host.relayed(&syn_with(&ends.open(), SYN, &mss(1460)));
        for flags in [ACK, ACK | FIN, RST, ACK | RST] {
            let change = |bytes: &mut Vec<u8>| {
                let at = common::checksum_at(bytes) - 3;
                let sum = u32::from(!checksum(bytes)) + 0xffff - u32::from(bytes[at]);
                bytes[at] = flags;
                let sum = sum + u32::from(flags);
                let folded = (sum >> 16) + (sum & 0xffff);
                set_checksum(bytes, !(folded as u16));
            };
            let make = |tuple: &Tuple| {
                let mut bytes = syn_with(tuple, SYN, &mss(1460));
                change(&mut bytes);
                assert_sums(&bytes, false);
                bytes
            };
            let passed = host.pass(&make(&ends.open()), ETH0);
            assert_eq!(passed.verdict(), Verdict::Forwarded);
            assert_eq!(passed.bytes, hops(make(&seen), LEFT));
            let passed = host.pass(&make(&seen.reversed()), LAN);
            assert_eq!(passed.verdict(), Verdict::Returned);
            assert_eq!(passed.bytes, hops(make(&ends.open().reversed()), LEFT));
        }
    }
}

proptest! {
    #[test]
    fn any_options_are_walked(
        options in prop::collection::vec(any::<u8>(), 0..=40),
        v6 in any::<bool>(),
    ) {
        let ends = ENDS[usize::from(v6)];
        let limit = 1300;
        let host = with_mtus(&ends, mtu(&ends, limit), mtu(&ends, limit));
        let packet = syn_with(&ends.open(), SYN, &options);
        let passed = host.pass(&packet, ETH0);
        prop_assert_eq!(passed.verdict(), Verdict::Forwarded);
        // Two bytes at most, which now say the limit.
        let unclamped = hops(syn_with(&passed.tuple, SYN, &options), LEFT);
        let skip = common::checksum_at(&unclamped) + 4;
        let changed: Vec<usize> = (skip..unclamped.len())
            .filter(|at| unclamped[*at] != passed.bytes[*at])
            .collect();
        prop_assert!(changed.len() <= 2, "{:?}", changed);
        if let Some(at) = changed.first() {
            let fits = |at: usize| {
                at >= skip + 2 && passed.bytes[at - 2..at] == [2, 4]
                    && u32::from(u16::from_be_bytes([passed.bytes[at], passed.bytes[at + 1]])) == limit
            };
            prop_assert!(fits(*at) || fits(*at - 1), "{:?}", options);
        }
    }
}
