//! What the short walk makes of frames: plain packets it forwards with right
//! checksums, and all others are left as they came. The judge is TC
//! (`common/pair.rs`).

mod common;

use common::{
    ETH0, LAN, V4, checksum, hops,
    pair::{
        FLAGS, MTU, PROTOS,
        Road::{Tc, Xdp},
        Scene, accelerated, each, each_warm, packet_of,
    },
    set_checksum, tcp_with_options, udp_with_options,
};
use portfwd_common::{Proto, Verdict};
use portfwd_ebpf::packet::{ACK, Tuple};

/// The IPv4 packet with other bits beside its fragment offset, or the IPv6
/// packet with another next header.
fn patched(mut bytes: Vec<u8>, bits: u16, next: u8) -> Vec<u8> {
    if bytes[0] >> 4 == 6 {
        bytes[6] = next;
        return bytes;
    }
    bytes[6..8].copy_from_slice(&bits.to_be_bytes());
    let ttl = bytes[8];
    hops(bytes, ttl)
}

#[test]
fn fragments_and_extension_headers_go_by_tc() {
    each_warm(|scene| {
        for (bits, next) in [(0x2000, 44), (0x2001, 0), (0x0001, 43), (0x1fff, 60)] {
            for (bytes, ifindex) in [(scene.packet(), ETH0), (scene.reply(), LAN)] {
                let bytes = patched(bytes, bits, next);
                assert_eq!(scene.pair.pass(&bytes, ifindex).road, Tc, "{bits:#x}");
            }
        }
    });
}

#[test]
fn do_not_fragment_and_the_reserved_bit_are_no_fragments() {
    for proto in PROTOS {
        let scene = Scene::warm(V4, proto, 0);
        for bits in [0x4000, 0x8000, 0xc000] {
            let bytes = patched(scene.packet(), bits, 0);
            assert_eq!(scene.there(&bytes).road, Xdp, "{bits:#x}");
        }
    }
}

#[test]
fn a_packet_with_ipv4_options_goes_by_tc() {
    for proto in PROTOS {
        let scene = Scene::warm(V4, proto, 0);
        for words in 1..=10 {
            let options = vec![1; words * 4];
            let packet = |tuple: &Tuple| match proto {
                Proto::Tcp => tcp_with_options(tuple, &options, ACK, [101, 701], b"data"),
                _ => udp_with_options(tuple, &options, b"again"),
            };
            assert_eq!(scene.there(&packet(&scene.open)).road, Tc, "{words}");
            let back = packet(&scene.seen.reversed());
            assert_eq!(scene.back(&back).road, Tc, "{words}");
        }
    }
}

#[test]
fn a_packet_whose_hops_run_out_goes_by_tc() {
    each_warm(|scene| {
        for (left, road) in [(0, Tc), (1, Tc), (2, Xdp), (255, Xdp)] {
            let there = scene.there(&hops(scene.packet(), left));
            let back = scene.back(&hops(scene.reply(), left));
            assert_eq!([there.road, back.road], [road, road], "{left}");
        }
    });
}

#[test]
fn a_packet_larger_than_the_way_goes_by_tc() {
    each_warm(|scene| {
        let headers = packet_of(scene.proto, &scene.open, b"").len();
        for (over, road) in [(0, Xdp), (1, Tc), (500, Tc)] {
            let payload = vec![7; usize::from(MTU) - headers + over];
            for (tuple, ifindex) in [(scene.open, ETH0), (scene.seen.reversed(), LAN)] {
                let bytes = packet_of(scene.proto, &tuple, &payload);
                let went = scene.pair.pass(&bytes, ifindex);
                assert_eq!(went.road, road, "{over} {ifindex}");
            }
        }
    });
}

/// What the link may say of a frame that is none of ours.
#[test]
fn a_frame_that_is_not_for_this_host_goes_by_tc() {
    each_warm(|scene| {
        for (bytes, ifindex) in [(scene.packet(), ETH0), (scene.reply(), LAN)] {
            let went = scene.pair.pass_as(&bytes, ifindex, |buffer| {
                buffer.link.for_host = false;
            });
            assert_eq!(went.passed.verdict(), Verdict::NotForHost);
            assert_eq!(went.road, Tc);
            for ethertype in [0x0806, 0x88a8, 0x8847, 0] {
                let went = scene.pair.pass_as(&bytes, ifindex, |buffer| {
                    buffer.link.ethertype = ethertype;
                });
                assert_eq!(went.passed.verdict(), Verdict::NotIp);
                assert_eq!(went.road, Tc);
            }
        }
    });
}

#[test]
fn a_tag_that_is_in_the_frame_goes_by_tc() {
    each_warm(|scene| {
        let host = &scene.pair.with;
        for (bytes, ifindex) in [(scene.packet(), ETH0), (scene.reply(), LAN)] {
            for ethertype in [0x8100, 0x88a8] {
                let inner = if bytes[0] >> 4 == 6 {
                    0x86dd
                } else {
                    0x0800_u16
                };
                let tagged = [&[0, 5], &inner.to_be_bytes()[..], &bytes].concat();
                let mut buffer = host.buffer(&tagged).on(ifindex);
                buffer.link.ethertype = ethertype;
                assert!(accelerated(host, &mut buffer).is_none());
            }
        }
    });
}

#[test]
fn a_frame_cut_at_any_byte_goes_by_tc() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let host = &scene.pair.with;
        for (bytes, ifindex) in [(scene.packet(), ETH0), (scene.reply(), LAN)] {
            let kind = if bytes[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
            for len in 0..bytes.len() {
                let mut buffer = host.buffer(&bytes[..len]).on(ifindex);
                buffer.link.ethertype = kind;
                assert!(accelerated(host, &mut buffer).is_none(), "{len}");
            }
            assert_eq!(scene.pair.pass(&bytes, ifindex).road, Xdp);
        }
    });
}

#[test]
fn what_the_link_padded_stays_as_it_is() {
    each_warm(|scene| {
        for (mut bytes, ifindex) in [(scene.packet(), ETH0), (scene.reply(), LAN)] {
            bytes.extend([0, 0, 0, 0, 0, 0xff]);
            let host = &scene.pair.with;
            let mut buffer = host.buffer(&bytes).on(ifindex);
            let sent = accelerated(host, &mut buffer).expect("it is forwarded");
            assert_eq!(sent.packet.len as usize, bytes.len() - 6);
        }
    });
}

#[test]
fn a_length_that_contradicts_the_packet_goes_by_tc() {
    each(|ends, proto| {
        let scene = Scene::warm(ends, proto, 0);
        let packet = scene.packet();
        let at = if packet[0] >> 4 == 6 { 4 } else { 2 };
        for more in [1_u16, 2, 1_000] {
            let mut long = packet.clone();
            let len = u16::from_be_bytes([long[at], long[at + 1]]) + more;
            long[at..at + 2].copy_from_slice(&len.to_be_bytes());
            let long = patched(long, 0, packet[6]);
            let host = &scene.pair.with;
            assert!(accelerated(host, &mut host.buffer(&long)).is_none());
        }
        let transport = if at == 4 { 40 } else { 20 };
        let lengths: &[(usize, u8)] = match proto {
            Proto::Tcp => &[(12, 0), (12, 0x40), (12, 0xf0)],
            _ => &[(5, 0), (5, 7), (5, 200)],
        };
        for (field, value) in lengths {
            let mut wrong = packet.clone();
            wrong[transport + field] = *value;
            assert_eq!(scene.there(&wrong).road, Tc, "{field} {value}");
        }
    });
}

#[test]
fn no_checksum_stays_none() {
    for flags in FLAGS {
        let scene = Scene::warm(V4, Proto::Udp, flags);
        for (mut bytes, ifindex) in [(scene.packet(), ETH0), (scene.reply(), LAN)] {
            set_checksum(&mut bytes, 0);
            let went = scene.pair.pass(&bytes, ifindex);
            assert_eq!(went.road, Xdp);
            assert_eq!(checksum(&went.passed.bytes), 0);
        }
    }
}

#[test]
fn every_checksum_comes_out_right() {
    // A word of the payload takes the sum around.
    each_warm(|scene| {
        for word in (0..=u16::MAX).step_by(1_021) {
            let bytes = packet_of(scene.proto, &scene.open, &word.to_be_bytes());
            assert_eq!(scene.there(&bytes).road, Xdp, "{word:#x}");
        }
    });
}

#[test]
fn a_computed_sum_of_zero_is_sent_as_ones() {
    each_warm(|scene| {
        let sent = |word: u16| {
            let bytes = packet_of(scene.proto, &scene.open, &word.to_be_bytes());
            let went = scene.there(&bytes);
            assert_eq!(went.road, Xdp);
            checksum(&went.passed.bytes)
        };
        // What the sum lacks goes into the payload.
        let lacks = sent(0);
        let wanted = if scene.proto == Proto::Tcp { 0 } else { 0xffff };
        assert_eq!(sent(lacks), wanted, "{:?}", scene.proto);
    });
}
