//! One packet in, one verdict, one packet out, for targets on other hosts: the
//! programs as the kernel runs them, without a wire. That a packet is sent is
//! the program's answer here; where it goes is shown on the wire.
//!
//! Out of reach here: segments of a GSO packet that do not fit, since a packet
//! of a run has no transport header that the kernel knows (EINVAL from 6.17
//! on).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd::plan::TcpMechanism;
use portfwd_common::{RuleCounters, TargetEntry, Verdict};
use portfwd_tests::{
    Family, Frame, Lab,
    lab::{Bytes as _, ETHERNET, MECHANISMS, client_at, host_at, lan_at},
};

const FROM: u16 = 40_000;
const RULES: &str = "80:10.0.0.5:8080/tcp+udp 80:[2001:db8:2::5]:8080/tcp+udp \
                     81:10.0.0.5:8080/tcp+udp 81:[2001:db8:2::5]:8080/tcp+udp";
const ROOMY: u32 = 1500;

fn lab(flags: u16, mtu: u32) -> Lab {
    Lab::builder(TcpMechanism::Steer, RULES)
        .across(flags, mtu)
        .open()
}

/// The slot of the rule for port 80.
const fn slot(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

const fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

fn target(family: Family) -> SocketAddr {
    lan_at(family, 5, 8080)
}

/// Who the target takes the client for.
fn seen_as(family: Family, flags: u16) -> SocketAddr {
    if flags == 0 {
        lan_at(family, 1, FROM)
    } else {
        client_at(family, FROM)
    }
}

fn datagram(from: SocketAddr, to: SocketAddr) -> Frame {
    Frame::udp(from, to).payload(b"a question of odd length")
}

fn ack(from: SocketAddr, to: SocketAddr) -> Frame {
    Frame::tcp(from, to)
        .with_tcp(|header| {
            header.ack = true;
            header.acknowledgment_number = 100;
        })
        .payload(b"hello")
}

fn syn_ack(from: SocketAddr, to: SocketAddr) -> Frame {
    Frame::syn(from, to).with_tcp(|header| {
        header.ack = true;
        header.sequence_number = 99;
    })
}

const FLAGS: [u16; 3] = [0, TargetEntry::PRESERVE, TargetEntry::PRESERVE_ACROSS];

#[test]
fn a_datagram_is_sent_on_and_its_answer_returned() {
    for tcp in MECHANISMS {
        for flags in FLAGS {
            let mut lab = Lab::builder(tcp, RULES).across(flags, ROOMY).open();
            for family in Family::BOTH {
                let (client, host) = (client_at(family, FROM), host_at(family, 80));
                let (target, seen) = (target(family), seen_as(family, flags));
                let slot = slot(family);
                lab.arrives(datagram(client, host))
                    .becomes(Verdict::Forwarded, datagram(seen, target).hop_limit(63))
                    .opens(slot);
                for _ in 0..2 {
                    lab.lan()
                        .arrives(datagram(target, seen))
                        .becomes(Verdict::Returned, datagram(host, client).hop_limit(63))
                        .counts_back_for(slot);
                    lab.lan()
                        .arrives_back(datagram(target, seen))
                        .becomes(Verdict::Returned, datagram(host, client).hop_limit(63))
                        .counts_back_for(slot);
                    lab.arrives(datagram(client, host))
                        .becomes(Verdict::Forwarded, datagram(seen, target).hop_limit(63))
                        .counts_for(slot);
                }
            }
        }
    }
}

#[test]
fn a_connection_is_sent_on_and_opens_with_the_handshakes_end() {
    for tcp in MECHANISMS {
        for flags in FLAGS {
            let mut lab = Lab::builder(tcp, RULES).across(flags, ROOMY).open();
            for family in Family::BOTH {
                let (client, host) = (client_at(family, FROM), host_at(family, 80));
                let (target, seen) = (target(family), seen_as(family, flags));
                let slot = slot(family);
                lab.arrives(ack(client, host)).is(Verdict::Stray);
                lab.arrives(Frame::syn(client, host))
                    .becomes(Verdict::Forwarded, Frame::syn(seen, target).hop_limit(63))
                    .counts_for(slot);
                lab.lan()
                    .arrives_back(syn_ack(target, seen))
                    .becomes(Verdict::Returned, syn_ack(host, client).hop_limit(63))
                    .counts_back_for(slot);
                lab.arrives(ack(client, host))
                    .becomes(Verdict::Forwarded, ack(seen, target).hop_limit(63))
                    .opens(slot);
                lab.arrives(ack(client, host))
                    .becomes(Verdict::Forwarded, ack(seen, target).hop_limit(63))
                    .counts_for(slot);
            }
        }
    }
}

#[test]
fn a_client_on_the_targets_interface_and_the_target_itself_are_masqueraded() {
    for family in Family::BOTH {
        for (flags, number, kept) in [
            (TargetEntry::PRESERVE_ACROSS, 7, false),
            (TargetEntry::PRESERVE, 7, true),
            (TargetEntry::PRESERVE, 5, false),
            (0, 5, false),
        ] {
            let mut lab = lab(flags, ROOMY);
            let (client, host) = (lan_at(family, number, FROM), host_at(family, 80));
            let seen = lan_at(family, if kept { number } else { 1 }, FROM);
            let target = target(family);
            lab.lan()
                .arrives(datagram(client, host))
                .becomes(Verdict::Forwarded, datagram(seen, target).hop_limit(63));
            lab.lan()
                .arrives(datagram(target, seen))
                .becomes(Verdict::Returned, datagram(host, client).hop_limit(63));
        }
    }
}

#[test]
fn hops_run_out_there_and_back() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let (target, seen) = (target(family), seen_as(family, 0));
        for left in [0, 1] {
            lab.arrives(datagram(client, host).hop_limit(left))
                .is(Verdict::HopLimit);
            lab.arrives(Frame::syn(client, host).hop_limit(left))
                .is(Verdict::HopLimit);
        }
        for left in [2, 3, 17, 128, 255] {
            lab.arrives(datagram(client, host).hop_limit(left)).becomes(
                Verdict::Forwarded,
                datagram(seen, target).hop_limit(left - 1),
            );
            lab.lan()
                .arrives_back(datagram(target, seen).hop_limit(left))
                .becomes(
                    Verdict::Returned,
                    datagram(host, client).hop_limit(left - 1),
                );
        }
        lab.lan()
            .arrives_back(datagram(target, seen).hop_limit(1))
            .is(Verdict::HopLimit);
    }
}

#[test]
fn what_is_too_large_for_the_device_is_dropped() {
    let mut lab = lab(0, 1400);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let (target, seen) = (target(family), seen_as(family, 0));
        let sized = |from, to, size: usize| {
            Frame::udp(from, to).payload(&vec![7; size - headers(family) - 8])
        };
        lab.arrives(sized(client, host, 1401)).is(Verdict::TooLarge);
        lab.arrives(sized(client, host, 1400))
            .becomes(Verdict::Forwarded, sized(seen, target, 1400).hop_limit(63));
        lab.arrives(sized(client, host, 1401)).is(Verdict::TooLarge);
        // The way back is wider.
        lab.lan()
            .arrives_back(sized(target, seen, 1500))
            .becomes(Verdict::Returned, sized(host, client, 1500).hop_limit(63));
        lab.lan()
            .arrives_back(sized(target, seen, 1501))
            .is(Verdict::TooLarge);
    }
}

#[test]
fn a_packet_larger_than_the_device_goes_on_where_its_segments_fit() {
    let mut lab = lab(0, 1400);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let (target, seen) = (target(family), seen_as(family, 0));
        lab.arrives(Frame::syn(client, host))
            .becomes(Verdict::Forwarded, Frame::syn(seen, target).hop_limit(63));
        let segment = |from, to| ack(from, to).payload(&[7; 3000]);
        let head = headers(family) as u64 + 20;
        lab.eth0()
            .segmented(1000)
            .arrives(segment(client, host))
            .becomes(Verdict::Forwarded, segment(seen, target).hop_limit(63))
            .counted(
                slot(family),
                RuleCounters {
                    packets: 3,
                    bytes: 3 * head + 3000,
                    ..RuleCounters::default()
                },
            );
    }
}

#[test]
fn a_device_that_is_gone_is_no_way() {
    let mut lab = lab(0, ROOMY);
    lab.ns.ip("link del lan0");
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        lab.arrives(datagram(client, host)).is(Verdict::NoRoute);
        lab.arrives(Frame::syn(client, host)).is(Verdict::NoRoute);
    }
}

/// A SYN with options before and behind a clamp to 1300 bytes of an IPv4
/// segment.
#[track_caller]
fn clamps(lab: &mut Lab, mss: u16, before: &[u8], behind: &[u8]) {
    for family in Family::BOTH {
        let port = FROM + mss % 1000 + before.len() as u16 * 100;
        let (client, host) = (client_at(family, port), host_at(family, 80));
        let (target, seen) = (target(family), lan_at(family, 1, port));
        // What a header of IPv6 takes more than one of IPv4.
        let limit = 1300 - (headers(family) as u16 - 20);
        let filled = |options: &[u8], value: u16| {
            let mut options = options.to_vec();
            let at = options.windows(4).position(|four| four == [2, 4, 0, 0]);
            if let Some(at) = at {
                options[at + 2..at + 4].copy_from_slice(&value.to_be_bytes());
            }
            options
        };
        let make = |frame: Frame, options: &[u8], value| {
            frame.with_tcp(|header| {
                header
                    .set_options_raw(&filled(options, value))
                    .expect("40 bytes at most");
            })
        };
        let low = mss.min(limit);
        let seen_syn = lab.arrives(make(Frame::syn(client, host), before, mss));
        seen_syn.becomes(
            Verdict::Forwarded,
            make(Frame::syn(seen, target), behind, low).hop_limit(63),
        );
        lab.lan()
            .arrives_back(make(syn_ack(target, seen), before, mss))
            .becomes(
                Verdict::Returned,
                make(syn_ack(host, client), behind, low).hop_limit(63),
            );
    }
}

#[test]
fn the_mss_of_a_syn_is_lowered_to_what_the_way_takes() {
    // Behind a PPPoE line, say.
    let mut lab = lab(0, 1340);
    const MSS: [u8; 4] = [2, 4, 0, 0];
    for mss in [0, 536, 1279, 1280, 1281, 1300, 1301, 1460, 8960, u16::MAX] {
        clamps(&mut lab, mss, &MSS, &MSS);
    }
    for before in [
        &[1][..],
        &[1, 1],
        &[1, 1, 1],
        &[4, 2],
        &[3, 3, 7],
        &[3, 3, 7, 4, 2],
        &[1; 35],
        &[1; 36],
    ] {
        let options = [before, &MSS].concat();
        clamps(&mut lab, 1460, &options, &options);
    }
    let linux = [2, 4, 0, 0, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    clamps(&mut lab, 1460, &linux, &linux);
    // Without one, and malformed.
    for options in [
        &[][..],
        &[1, 1, 1, 1],
        &[0, 2, 4, 0xff],
        &[1, 1, 1, 2],
        &[1, 1, 2, 4],
        &[1, 2, 4, 0xff],
        &[8, 40, 2, 4, 0xff, 0xff, 1, 1],
        &[3, 255, 2, 4, 0xff, 0xff, 1, 1],
    ] {
        clamps(&mut lab, 1460, options, options);
    }
}

#[test]
fn only_what_opens_a_connection_is_clamped() {
    let mut lab = lab(0, 1340);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let (target, seen) = (target(family), seen_as(family, 0));
        let data = |from, to| {
            ack(from, to).with_tcp(|header| {
                header
                    .set_options_raw(&[2, 4, 0xff, 0xff])
                    .expect("four bytes");
            })
        };
        lab.arrives(Frame::syn(client, host))
            .becomes(Verdict::Forwarded, Frame::syn(seen, target).hop_limit(63));
        lab.arrives(data(client, host))
            .becomes(Verdict::Forwarded, data(seen, target).hop_limit(63));
        lab.lan()
            .arrives_back(data(target, seen))
            .becomes(Verdict::Returned, data(host, client).hop_limit(63));
    }
}

#[test]
fn no_checksum_stays_none_and_zero_becomes_all_ones() {
    let at = ETHERNET + 26;
    let mut lab = lab(0, ROOMY);
    let none = |frame: Frame| {
        let mut bytes = frame.to_vec();
        bytes[at..at + 2].fill(0);
        bytes
    };
    let family = Family::V4;
    let (client, host) = (client_at(family, FROM), host_at(family, 80));
    let (target, seen) = (target(family), seen_as(family, 0));
    lab.arrives(none(datagram(client, host))).becomes(
        Verdict::Forwarded,
        none(datagram(seen, target).hop_limit(63)),
    );
    lab.lan()
        .arrives_back(none(datagram(target, seen)))
        .becomes(
            Verdict::Returned,
            none(datagram(host, client).hop_limit(63)),
        );
    for family in Family::BOTH {
        let at = ETHERNET + headers(family) + 6;
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let (target, seen) = (lan_at(family, 5, 8080), seen_as(family, 0));
        let balance = |from, to| {
            let bare = Frame::udp(from, to).payload(&[0, 0]).to_vec();
            [bare[at], bare[at + 1]]
        };
        for pad in [balance(client, host), balance(seen, target)] {
            let frame = |from, to| Frame::udp(from, to).payload(&pad);
            lab.arrives(frame(client, host))
                .becomes(Verdict::Forwarded, frame(seen, target).hop_limit(63));
        }
        for pad in [balance(target, seen), balance(host, client)] {
            let frame = |from, to| Frame::udp(from, to).payload(&pad);
            lab.lan()
                .arrives_back(frame(target, seen))
                .becomes(Verdict::Returned, frame(host, client).hop_limit(63));
        }
    }
}

#[test]
fn what_is_not_the_rules_passes() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let target = target(family);
        lab.lo()
            .arrives(datagram(host_at(family, FROM), host))
            .is(Verdict::Unhooked);
        lab.arrives(datagram(client, lan_at(family, 6, 80)))
            .is(Verdict::NotLocal);
        lab.arrives(datagram(client, lan_at(family, 6, 8080)))
            .is(Verdict::NoRule);
        lab.arrives(datagram(client, target)).is(Verdict::Direct);
        lab.lan()
            .arrives_back(datagram(client, host))
            .is(Verdict::NoRule);
        lab.lan()
            .arrives_back(datagram(target, lan_at(family, 1, FROM)))
            .is(Verdict::NoRule);
        lab.lan()
            .arrives_back(syn_ack(target, lan_at(family, 1, FROM)))
            .is(Verdict::NoRule);
    }
}

#[test]
fn what_is_sent_on_makes_no_foreign_flow_as_it_leaves() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, 80), host_at(family, 80));
        let (target, seen) = (target(family), lan_at(family, 1, 80));
        lab.arrives(datagram(client, host))
            .becomes(Verdict::Forwarded, datagram(seen, target).hop_limit(63));
        lab.lan()
            .forwarded()
            .leaves(datagram(seen, target))
            .is(Verdict::Passing);
        lab.eth0()
            .forwarded()
            .leaves(datagram(host, client))
            .is(Verdict::Passing);
        lab.arrives(datagram(client, host))
            .becomes(Verdict::Forwarded, datagram(seen, target).hop_limit(63));
    }
}

/// The port of the source in a frame.
fn source_port(frame: &[u8], family: Family) -> u16 {
    let at = ETHERNET + headers(family);
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn a_connection_of_this_host_gives_way_to_a_flow_with_its_tuple() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        for make in [
            datagram as fn(SocketAddr, SocketAddr) -> Frame,
            Frame::syn as fn(SocketAddr, SocketAddr) -> Frame,
        ] {
            let (client, host) = (client_at(family, FROM), host_at(family, 80));
            let (target, own) = (target(family), lan_at(family, 1, FROM));
            lab.lan().leaves(make(own, target)).is(Verdict::NoRule);
            lab.arrives(make(client, host))
                .becomes(Verdict::Forwarded, make(own, target).hop_limit(63));
            let seen = lab.lan().leaves(make(own, target));
            let port = source_port(seen.frame(), family);
            assert_ne!(port, FROM);
            let moved = lan_at(family, 1, port);
            seen.becomes(Verdict::Moved, make(moved, target))
                .counts_for_none();
            lab.lan()
                .leaves(make(own, target))
                .becomes(Verdict::Moved, make(moved, target))
                .counts_for_none();
            lab.lan()
                .arrives_back(make(target, moved))
                .becomes(Verdict::Restored, make(target, own))
                .counts_for_none();
            lab.lan()
                .arrives_back(make(target, own))
                .becomes(Verdict::Returned, make(host, client).hop_limit(63));
        }
    }
}

#[test]
fn a_port_of_a_socket_is_not_taken() {
    let mut lab = lab(0, ROOMY);
    let _sockets = (lab.udp_service(FROM), lab.tcp_service(FROM));
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        for make in [
            datagram as fn(SocketAddr, SocketAddr) -> Frame,
            Frame::syn as fn(SocketAddr, SocketAddr) -> Frame,
        ] {
            let seen = lab.arrives(make(client, host));
            let port = source_port(seen.frame(), family);
            assert_ne!(port, FROM);
            assert!(port >= 1024 && !(32_768..=60_999).contains(&port), "{port}");
            let from = lan_at(family, 1, port);
            seen.becomes(Verdict::Forwarded, make(from, target(family)).hop_limit(63));
        }
    }
}

#[test]
fn a_second_flow_of_a_client_gets_another_port() {
    for flags in FLAGS {
        let mut lab = lab(flags, ROOMY);
        for family in Family::BOTH {
            let client = client_at(family, FROM);
            let first = seen_as(family, flags);
            lab.arrives(datagram(client, host_at(family, 80))).becomes(
                Verdict::Forwarded,
                datagram(first, target(family)).hop_limit(63),
            );
            let seen = lab.arrives(datagram(client, host_at(family, 81)));
            let port = source_port(seen.frame(), family);
            assert_ne!(port, FROM);
            let second = SocketAddr::new(first.ip(), port);
            seen.becomes(
                Verdict::Forwarded,
                datagram(second, target(family)).hop_limit(63),
            );
            for (from, dialled) in [(first, 80), (second, 81)] {
                lab.lan()
                    .arrives_back(datagram(target(family), from))
                    .becomes(
                        Verdict::Returned,
                        datagram(host_at(family, dialled), client).hop_limit(63),
                    );
            }
        }
    }
}

#[test]
fn a_reset_before_the_answer_and_an_early_end_hinder_no_proof() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), host_at(family, 80));
        let (target, seen) = (target(family), seen_as(family, 0));
        let reset = |from, to| Frame::tcp(from, to).with_tcp(|header| header.rst = true);
        lab.arrives(Frame::syn(client, host))
            .becomes(Verdict::Forwarded, Frame::syn(seen, target).hop_limit(63));
        lab.lan()
            .arrives_back(reset(target, seen))
            .becomes(Verdict::Returned, reset(host, client).hop_limit(63));
        lab.lan()
            .arrives_back(syn_ack(target, seen))
            .becomes(Verdict::Returned, syn_ack(host, client).hop_limit(63));
        lab.arrives(ack(client, host))
            .becomes(Verdict::Forwarded, ack(seen, target).hop_limit(63))
            .opens(slot(family));
    }
}

/// As in `trial.rs`: a run takes these bytes for an Ethernet header.
fn bare_client(family: Family) -> SocketAddr {
    let addr: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(8, 0, 2, 2).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 2).into(),
    };
    SocketAddr::new(addr, FROM)
}

/// The frame as a device without a link-layer header would carry it.
fn bare_frame(frame: &Frame, family: Family) -> Vec<u8> {
    let mut bytes = frame.bytes();
    if family == Family::V4 {
        bytes.splice(ETHERNET + 20..ETHERNET + 20, [1; 4]);
        bytes[ETHERNET] = 0x46;
        let length = (bytes.len() - ETHERNET) as u16;
        bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
        let sum = portfwd_tests::checksum::sum(&bytes[ETHERNET..ETHERNET + 24]);
        let sum = !portfwd_tests::checksum::fold(sum);
        bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

#[test]
fn what_comes_without_a_link_layer_header_is_sent_on_with_one() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let (client, host) = (bare_client(family), host_at(family, 80));
        let (target, seen) = (target(family), seen_as(family, 0));
        for make in [
            datagram as fn(SocketAddr, SocketAddr) -> Frame,
            Frame::syn as fn(SocketAddr, SocketAddr) -> Frame,
        ] {
            lab.bare()
                .arrives(bare_frame(&make(client, host), family))
                .becomes(
                    Verdict::Forwarded,
                    bare_frame(&make(seen, target).hop_limit(63), family),
                );
        }
    }
}

#[test]
fn the_header_that_is_put_before_it_is_not_counted() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let (client, host) = (bare_client(family), host_at(family, 80));
        let frame = Frame::udp(client, host).payload(&[7; 2000]);
        let frame = bare_frame(&frame, family);
        let headers = (frame.len() - ETHERNET - 2000) as u64;
        // The payload is a whole number of segments.
        lab.bare().segmented(1000).arrives(frame).counted(
            slot(family),
            RuleCounters {
                packets: 2,
                bytes: 2 * headers + 2000,
                connections: 1,
                ..RuleCounters::default()
            },
        );
    }
}
