//! One packet in, one verdict, one packet out: the programs as the kernel runs
//! them, without a wire.
//!
//! Out of reach here, and shown on the wire: `vlan`, since a run cannot carry
//! a stripped tag, and `cannot-steer`, since a run refuses every assignment in
//! the same way. `table-full` would take an LRU that cannot make room. A frame
//! that ends within its IP header is refused by the kernel (EINVAL).

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use portfwd::{dataplane::Side, host::devices::Link, plan::TcpMechanism};
use portfwd_common::{RuleCounters, Verdict};
use portfwd_tests::{
    Capture, Family, Frame, Keep, Lab, Wire, checksum,
    lab::{Bytes as _, ETHERNET, MECHANISMS, client_at, host_at, stranger_at},
};
use socket2::{Domain, Protocol, Socket, Type};

/// The client's port where a test needs no other.
const FROM: u16 = 40_000;

/// Most instructions that the verifier may walk in a program: the kernel
/// refuses at a million.
const MOST_INSTRUCTIONS: u32 = 300_000;

/// A datagram from the client to a port of the host.
fn to_host(family: Family, port: u16) -> Frame {
    datagram(client_at(family, FROM), host_at(family, port))
}

/// A datagram from a port of the host to the client.
fn to_client(family: Family, port: u16) -> Frame {
    datagram(host_at(family, port), client_at(family, FROM))
}

fn datagram(from: SocketAddr, to: SocketAddr) -> Frame {
    Frame::udp(from, to).payload(b"a question of odd length")
}

/// An opening segment from the client to a port of the host.
fn syn(family: Family, port: u16) -> Frame {
    Frame::syn(client_at(family, FROM), host_at(family, port))
}

/// A segment that acknowledges, from the client to a port of the host.
fn ack(family: Family, port: u16) -> Frame {
    Frame::tcp(client_at(family, FROM), host_at(family, port))
        .with_tcp(|header| {
            header.ack = true;
            header.acknowledgment_number = 7;
        })
        .payload(b"hello")
}

/// The frame with other bytes at an offset from its IP header.
fn patched(frame: &Frame, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[ETHERNET + at..ETHERNET + at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The frame with another EtherType.
fn typed(frame: &Frame, ether_type: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    frame
}

/// The IPv4 frame with so many words of options, all `No Operation`, between
/// its headers.
fn with_options(frame: &Frame, words: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (ip, transport) = (ETHERNET, ETHERNET + 20);
    let options = vec![1; usize::from(words) * 4];
    frame.splice(transport..transport, options);
    frame[ip] = 0x45 + words;
    let length = (frame.len() - ip) as u16;
    frame[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
    summed_v4(frame)
}

/// The IPv4 frame with its header checksum made anew.
fn summed_v4(mut frame: Vec<u8>) -> Vec<u8> {
    let end = ETHERNET + usize::from(frame[ETHERNET] & 0x0f) * 4;
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = !checksum::fold(checksum::sum(&frame[ETHERNET..end]));
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Where the UDP checksum stands, from the IP header.
fn udp_checksum(family: Family) -> usize {
    6 + match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

fn transport(family: Family) -> usize {
    udp_checksum(family) - 6
}

#[test]
fn every_program_passes_the_verifier() {
    for tcp in MECHANISMS {
        let mut lab = Lab::new(tcp, "80:5000");
        for side in [Side::Ingress, Side::Back, Side::Egress] {
            for link in [Link::Ethernet, Link::Bare] {
                let count = lab.verified_instructions(side, link);
                println!("{tcp:?} {side:?} {link:?}: {count} instructions");
                assert!(
                    count <= MOST_INSTRUCTIONS,
                    "{tcp:?} {side:?} {link:?}: {count}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_packet_for_this_host_passes() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    let (_tcp, _udp) = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        let frame = to_host(family, 80);
        // ARP, LLDP, a VLAN tag inside the frame, PPPoE, an 802.3 length.
        for ether_type in [0x0806, 0x88cc, 0x8100, 0x8864, 0x0040] {
            lab.arrives(typed(&frame, ether_type)).is(Verdict::NotIp);
            lab.leaves(typed(&frame, ether_type)).is(Verdict::NotIp);
        }
        let macs = |mac| to_host(family, 80).macs([2, 0, 0, 0, 0, 2], mac);
        for mac in [[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            lab.arrives(macs(mac)).is(Verdict::NotForHost);
        }
    }
    let from = client_at(Family::V4, FROM);
    for group in ["224.0.0.251:80", "255.255.255.255:80"] {
        let to = group.parse().expect("an address");
        lab.arrives(datagram(from, to)).is(Verdict::NotForHost);
    }
    let to = "[ff02::fb]:80".parse().expect("an address");
    lab.arrives(datagram(client_at(Family::V6, FROM), to))
        .is(Verdict::NotForHost);
}

#[test]
fn what_no_rule_names_passes() {
    let mut lab = Lab::new(
        TcpMechanism::Steer,
        "192.0.2.1:80:5000/tcp+udp 2000-2999:443/udp",
    );
    let _services = (
        lab.tcp_service(5000),
        lab.udp_service(5000),
        lab.udp_service(443),
    );
    for family in Family::BOTH {
        for port in [79, 81, 1999, 3000] {
            lab.arrives(to_host(family, port)).is(Verdict::NoRule);
            lab.arrives(syn(family, port)).is(Verdict::NoRule);
            lab.leaves(to_client(family, port)).is(Verdict::NoRule);
        }
    }
    // Another family, and another address of the host.
    lab.arrives(to_host(Family::V6, 80)).is(Verdict::NoRule);
    lab.arrives(syn(Family::V6, 80)).is(Verdict::NoRule);
    lab.lo()
        .arrives(datagram(
            "127.0.0.1:40000".parse().expect("an address"),
            "127.0.0.1:80".parse().expect("an address"),
        ))
        .is(Verdict::NoRule);
    lab.arrives(to_host(Family::V4, 80))
        .becomes(Verdict::Rewritten, to_host(Family::V4, 5000))
        .opens(0);
}

#[test]
fn what_is_neither_tcp_nor_udp_passes() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000/tcp+udp");
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    let v4 = to_host(Family::V4, 80);
    // Hop-by-hop, ICMP, GRE, AH, SCTP, UDP-Lite.
    for protocol in [0, 1, 47, 51, 132, 136] {
        let frame = summed_v4(patched(&v4, 9, &[protocol]));
        lab.arrives(&frame).is(Verdict::OtherProtocol);
        lab.leaves(&frame).is(Verdict::OtherProtocol);
    }
    let v6 = to_host(Family::V6, 80);
    for protocol in [1, 47, 50, 58, 59, 132, 136] {
        lab.arrives(patched(&v6, 6, &[protocol]))
            .is(Verdict::OtherProtocol);
    }
    for extension in [0, 43, 51, 60, 135, 139, 140] {
        let frame = patched(&v6, 6, &[extension]);
        lab.arrives(&frame).is(Verdict::Extension);
        lab.leaves(&frame).is(Verdict::Extension);
    }
}

#[test]
fn fragments_pass() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000/tcp+udp");
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for frame in [to_host(Family::V4, 80), syn(Family::V4, 80)] {
        // The first, one between and the last, with and without DF.
        for word in [0x2000_u16, 0x2001, 0x0001, 0x1fff, 0x6000, 0x4010] {
            let fragment = summed_v4(patched(&frame, 6, &word.to_be_bytes()));
            lab.arrives(&fragment).is(Verdict::Fragment);
            lab.leaves(&fragment).is(Verdict::Fragment);
        }
    }
    lab.arrives(patched(&to_host(Family::V6, 80), 6, &[44]))
        .is(Verdict::Fragment);
    // Neither DF nor the reserved bit makes a fragment.
    for (word, service) in [(0x0000_u16, 80), (0x4000, 80), (0x8000, 80)] {
        let bits = |port| {
            let frame = to_host(Family::V4, port);
            summed_v4(patched(&frame, 6, &word.to_be_bytes()))
        };
        let seen = lab.arrives(bits(service));
        seen.becomes(Verdict::Rewritten, bits(5000));
    }
}

#[test]
fn headers_that_contradict_themselves_pass() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000/tcp+udp");
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        let (udp, tcp) = (to_host(family, 80), syn(family, 80));
        let at = transport(family);
        for version in (0..16).filter(|version| *version != if at == 20 { 4 } else { 6 }) {
            let byte = version << 4 | 5;
            lab.arrives(patched(&udp, 0, &[byte]))
                .is(Verdict::Malformed);
        }
        let whole = (udp.to_vec().len() - ETHERNET - at) as u16;
        for length in [0, 7, whole + 1, 0xffff] {
            lab.arrives(patched(&udp, at + 4, &length.to_be_bytes()))
                .is(Verdict::Malformed);
        }
        for offset in (0..5).chain(6..16) {
            lab.arrives(patched(&tcp, at + 12, &[offset << 4]))
                .is(Verdict::Malformed);
        }
    }
    for length in 0..5 {
        lab.arrives(patched(&to_host(Family::V4, 80), 0, &[0x40 | length]))
            .is(Verdict::Malformed);
    }
}

#[test]
fn a_packet_cut_anywhere_is_never_half_rewritten() {
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, "80:5000/tcp+udp");
        let _services = (lab.tcp_service(5000), lab.udp_service(5000));
        for family in Family::BOTH {
            let mut frames = vec![to_host(family, 80).to_vec(), syn(family, 80).to_vec()];
            if family == Family::V4 {
                frames.push(with_options(&to_host(family, 80), 10));
                frames.push(with_options(&syn(family, 80), 10));
            }
            for frame in frames {
                for length in ETHERNET + transport(family)..frame.len() {
                    let cut = frame[..length].to_vec();
                    lab.arrives(&cut).is(Verdict::Malformed);
                    lab.leaves(&cut).is(Verdict::Malformed);
                }
            }
        }
    }
}

#[test]
fn options_move_the_transport_header() {
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, "80:5000/tcp+udp");
        let _services = (lab.tcp_service(5000), lab.udp_service(5000));
        for words in 0..=10 {
            let from = client_at(Family::V4, FROM + u16::from(words));
            let host = |port| host_at(Family::V4, port);
            let seen = lab.arrives(with_options(&datagram(from, host(80)), words));
            seen.becomes(
                Verdict::Rewritten,
                with_options(&datagram(from, host(5000)), words),
            )
            .opens(0);
            lab.leaves(with_options(&datagram(host(5000), from), words))
                .becomes(
                    Verdict::Restored,
                    with_options(&datagram(host(80), from), words),
                )
                .counts_back_for(0);
            let seen = lab.arrives(with_options(&Frame::syn(from, host(80)), words));
            match tcp {
                TcpMechanism::Rewrite => seen.becomes(
                    Verdict::Rewritten,
                    with_options(&Frame::syn(from, host(5000)), words),
                ),
                _ => seen.stays(Verdict::Steered),
            }
            .counts_for(0);
        }
    }
}

#[test]
fn a_datagram_is_rewritten_and_its_answer_restored() {
    for tcp in MECHANISMS {
        let mut lab = Lab::new(tcp, "53:5353/udp");
        let _service = lab.udp_service(5353);
        for family in Family::BOTH {
            lab.arrives(to_host(family, 53))
                .becomes(Verdict::Rewritten, to_host(family, 5353))
                .opens(0);
            lab.arrives(to_host(family, 53))
                .becomes(Verdict::Rewritten, to_host(family, 5353))
                .counts_for(0);
            lab.leaves(to_client(family, 5353))
                .becomes(Verdict::Restored, to_client(family, 53))
                .counts_back_for(0);
            // Proof that the client receives, and all goes on.
            lab.arrives(to_host(family, 53))
                .becomes(Verdict::Rewritten, to_host(family, 5353))
                .counts_for(0);
            lab.leaves(to_client(family, 5353))
                .becomes(Verdict::Restored, to_client(family, 53))
                .counts_back_for(0);
        }
    }
}

#[test]
fn an_answer_from_another_address_gets_the_one_that_was_dialled() {
    let mut lab = Lab::new(TcpMechanism::Steer, "53:5353/udp");
    lab.ns
        .ip("address add 192.0.2.77/24 dev eth0\naddress add 2001:db8::77/64 dev eth0 nodad");
    let _service = lab.udp_service(5353);
    for family in Family::BOTH {
        let second = |port| {
            let addr: IpAddr = match family {
                Family::V4 => Ipv4Addr::new(192, 0, 2, 77).into(),
                Family::V6 => "2001:db8::77".parse().expect("an address"),
            };
            SocketAddr::new(addr, port)
        };
        let client = client_at(family, FROM);
        lab.arrives(datagram(client, second(53)))
            .becomes(Verdict::Rewritten, datagram(client, second(5353)))
            .opens(0);
        lab.leaves(to_client(family, 5353))
            .becomes(Verdict::Restored, datagram(second(53), client))
            .counts_back_for(0);
    }
}

#[test]
fn a_target_on_a_named_address_gets_it() {
    let rules = "80:192.0.2.77:5000/tcp+udp 80:[2001:db8::77]:5000/tcp+udp";
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, rules);
        lab.ns
            .ip("address add 192.0.2.77/24 dev eth0\naddress add 2001:db8::77/64 dev eth0 nodad");
        let _services = (lab.tcp_service(5000), lab.udp_service(5000));
        for (slot, family, addr) in [
            (0, Family::V4, "192.0.2.77"),
            (1, Family::V6, "2001:db8::77"),
        ] {
            let target = SocketAddr::new(addr.parse().expect("an address"), 5000);
            let client = client_at(family, FROM);
            lab.arrives(to_host(family, 80))
                .becomes(Verdict::Rewritten, datagram(client, target))
                .opens(slot);
            lab.leaves(datagram(target, client))
                .becomes(Verdict::Restored, to_client(family, 80))
                .counts_back_for(slot);
            let seen = lab.arrives(syn(family, 80));
            match tcp {
                TcpMechanism::Rewrite => {
                    seen.becomes(Verdict::Rewritten, Frame::syn(client, target))
                }
                _ => seen.stays(Verdict::Steered),
            }
            .counts_for(slot);
        }
    }
}

#[test]
fn a_range_keeps_the_offset_or_goes_to_one_port() {
    let mut lab = Lab::new(
        TcpMechanism::Steer,
        "8000-8999:18000-18999/udp 20000-50000:443/udp 1-65535:9/tcp",
    );
    let services = [18000, 18123, 18999, 443];
    let _services = services.map(|port| lab.udp_service(port));
    let _discard = lab.tcp_service(9);
    for family in Family::BOTH {
        for (dialled, target, slot) in [
            (8000, 18000, 0),
            (8123, 18123, 0),
            (8999, 18999, 0),
            (20000, 443, 1),
            (35000, 443, 1),
            (50000, 443, 1),
        ] {
            let client = client_at(family, dialled);
            let host = |port| host_at(family, port);
            lab.arrives(datagram(client, host(dialled)))
                .becomes(Verdict::Rewritten, datagram(client, host(target)))
                .opens(slot);
            lab.leaves(datagram(host(target), client))
                .becomes(Verdict::Restored, datagram(host(dialled), client))
                .counts_back_for(slot);
        }
        // Nothing listens on this port of the range.
        lab.arrives(to_host(family, 8001)).is(Verdict::NoListener);
        for port in [1, 80, 65535] {
            lab.arrives(syn(family, port))
                .stays(Verdict::Steered)
                .counts_for(2);
        }
    }
}

#[test]
fn tcp_is_steered_without_a_changed_byte() {
    for tcp in [TcpMechanism::Steer, TcpMechanism::SteerOrRewrite] {
        let mut lab = Lab::new(tcp, "80:5000 81:5001");
        let _service = lab.tcp_service(5000);
        for family in Family::BOTH {
            lab.arrives(syn(family, 80))
                .stays(Verdict::Steered)
                .counts_for(0);
            // It completes no handshake.
            lab.arrives(ack(family, 80)).is(Verdict::Stray);
            lab.arrives(syn(family, 81)).is(Verdict::NoListener);
            lab.arrives(ack(family, 81)).is(Verdict::NoListener);
            strays(&mut lab, family);
        }
    }
}

#[test]
fn an_acknowledged_syn_cookie_is_steered_and_opens_the_connection() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000");
    lab.ns.sysctl("net.ipv4.tcp_syncookies", 2);
    // A run cannot send a cookie: the socket that does has the dialled port,
    // and the target has sent one lately.
    let _services = (lab.tcp_service(80), lab.tcp_service(5000));
    let capture = Capture::start(&lab.ns, Keep::Everything);
    let wire = Wire::new(&lab.ns, "wire", [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    for family in Family::BOTH {
        for port in [5000, 80] {
            wire.send(&syn(family, port));
        }
        let cookie = |port| {
            let answer = capture.wait_for("a SYN-ACK", |packet| {
                packet.comes_from(host_at(family, port))
            });
            let at = transport(family) + 4;
            let [a, b, c, d] = answer.bytes[at..at + 4] else {
                unreachable!("four bytes");
            };
            u32::from_be_bytes([a, b, c, d])
        };
        cookie(5000);
        let acknowledging = |number: u32| {
            ack(family, 80).with_tcp(|header| {
                header.sequence_number = 1001;
                header.acknowledgment_number = number;
            })
        };
        let next = cookie(80).wrapping_add(1);
        lab.arrives(acknowledging(next))
            .stays(Verdict::Steered)
            .opens(0);
        lab.arrives(acknowledging(next ^ 0x8000_0000))
            .is(Verdict::Stray);
    }
}

#[test]
fn tcp_is_rewritten_where_the_kernel_cannot_steer() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000 81:5001");
    let _service = lab.tcp_service(5000);
    for family in Family::BOTH {
        strays(&mut lab, family);
        // It opens with the handshake's end, and only the right one.
        lab.arrives(syn(family, 80))
            .becomes(Verdict::Rewritten, syn(family, 5000))
            .counts_for(0);
        let answer = |port| {
            Frame::syn(host_at(family, port), client_at(family, FROM)).with_tcp(|header| {
                header.ack = true;
                header.sequence_number = 99;
            })
        };
        lab.leaves(answer(5000))
            .becomes(Verdict::Restored, answer(80))
            .counts_back_for(0);
        let acknowledging = |port, number| {
            ack(family, port).with_tcp(|header| header.acknowledgment_number = number)
        };
        lab.arrives(acknowledging(80, 99))
            .becomes(Verdict::Rewritten, acknowledging(5000, 99))
            .counts_for(0);
        lab.arrives(acknowledging(80, 100))
            .becomes(Verdict::Rewritten, acknowledging(5000, 100))
            .opens(0);
        lab.arrives(acknowledging(80, 100))
            .becomes(Verdict::Rewritten, acknowledging(5000, 100))
            .counts_for(0);
        // A reset of a flow goes with it.
        let reset = |port| ack(family, port).with_tcp(|header| header.rst = true);
        lab.arrives(reset(80))
            .becomes(Verdict::Rewritten, reset(5000))
            .counts_for(0);
        lab.arrives(syn(family, 81)).is(Verdict::NoListener);
    }
}

/// Segments of no connection that open none.
fn strays(lab: &mut Lab, family: Family) {
    let bare = || Frame::tcp(client_at(family, FROM), host_at(family, 80));
    let frames = [
        bare(),
        bare().with_tcp(|header| header.rst = true),
        bare().with_tcp(|header| header.fin = true),
        syn(family, 80).with_tcp(|header| header.ack = true),
        ack(family, 80).with_tcp(|header| header.rst = true),
    ];
    for frame in frames {
        lab.arrives(frame).is(Verdict::Stray);
    }
}

#[test]
fn a_connection_that_the_kernel_knows_is_left_alone() {
    for tcp in MECHANISMS {
        let mut lab = Lab::new(tcp, "80:5000");
        let _target = lab.tcp_service(5000);
        let steered = tcp != TcpMechanism::Rewrite;
        // In place of a steered one: the socket has the dialled port too.
        let listener = lab.tcp_service(80);
        for family in Family::BOTH {
            let end = SocketAddr::new(family.loopback(), 80);
            let client = lab
                .ns
                .enter(|| TcpStream::connect(end))
                .expect("it listens");
            let (server, _) = listener.accept().expect("a connection");
            let from = client.local_addr().expect("its address");
            let data = |from, to| Frame::tcp(from, to).with_tcp(|header| header.ack = true);

            let arriving = lab.lo().arrives(data(from, end)).stays(Verdict::Connected);
            if steered {
                arriving.counts_for(0);
                lab.lo()
                    .leaves(data(end, from))
                    .stays(Verdict::Connected)
                    .counts_back_for(0);
            } else {
                arriving.counts_for_none();
                lab.lo().leaves(data(end, from)).is(Verdict::NoRule);
            }
            // TIME_WAIT is on the side that closes first, which is the server's.
            drop(server);
            drained(&client);
            drop(client);
            let seen = lab.lo().arrives(data(from, end)).stays(Verdict::Connected);
            if steered {
                seen.counts_for(0);
            } else {
                seen.counts_for_none();
            }
        }
    }
}

/// Reads to the end of the stream.
fn drained(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end of a stream");
    let _closed = stream.write(b"");
}

#[test]
fn the_acknowledgement_of_a_half_open_connection_opens_it() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000");
    let _listener = lab.tcp_service(80);
    let wire = Wire::new(&lab.ns, "wire", [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    for family in Family::BOTH {
        // Nobody has the client's address, so nothing disturbs the handshake.
        wire.send(&syn(family, 80));
        portfwd_tests::until("the listener to see the SYN", || {
            lab.arrives(syn(family, 80)).verdict() == Verdict::Connected
        });
        lab.arrives(syn(family, 80))
            .stays(Verdict::Connected)
            .counts_for(0);
        lab.arrives(ack(family, 80))
            .stays(Verdict::Connected)
            .opens(0);
    }
}

#[test]
fn an_answer_to_this_host_is_not_taken() {
    let mut lab = Lab::new(TcpMechanism::Steer, "20000-50000:443/tcp+udp 80:5000");
    let _services = (
        lab.udp_service(443),
        lab.tcp_service(443),
        lab.tcp_service(5000),
    );
    for family in Family::BOTH {
        let server = client_at(family, 53);
        let own = |port| host_at(family, port);
        lab.leaves(datagram(own(30000), server))
            .is(Verdict::Foreign);
        lab.arrives(datagram(server, own(30000)))
            .is(Verdict::Foreign);
        // Another server's datagram is no answer.
        let other = client_at(family, 54);
        lab.arrives(datagram(other, own(30000)))
            .becomes(Verdict::Rewritten, datagram(other, own(443)))
            .opens(0);

        lab.leaves(Frame::syn(own(30001), server))
            .is(Verdict::Foreign);
        let answer = Frame::syn(server, own(30001)).with_tcp(|header| header.ack = true);
        lab.arrives(answer).is(Verdict::Foreign);
        // But whoever opens is a client.
        lab.arrives(Frame::syn(server, own(30001)))
            .stays(Verdict::Steered)
            .counts_for(0);

        // NAT behind this host: its address, though it only forwards.
        lab.eth0()
            .forwarded()
            .leaves(datagram(own(30002), server))
            .is(Verdict::Foreign);
        lab.arrives(datagram(server, own(30002)))
            .is(Verdict::Foreign);
        let stranger = stranger_at(family, 30003);
        lab.eth0()
            .forwarded()
            .leaves(datagram(stranger, server))
            .is(Verdict::NoRule);
        lab.arrives(datagram(server, stranger)).becomes(
            Verdict::Rewritten,
            datagram(server, stranger_at(family, 443)),
        );
    }
}

#[test]
fn a_connection_that_this_host_opens_is_not_taken() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000");
    let _service = lab.tcp_service(5000);
    for family in Family::BOTH {
        let server = client_at(family, 443);
        // Nobody answers, so it stays as it is.
        let _opening = lab
            .ns
            .enter(|| {
                let domain = Domain::for_address(server);
                let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
                socket.set_nonblocking(true)?;
                socket.bind(&host_at(family, 80).into())?;
                let begun = socket.connect(&server.into());
                begun
                    .or_else(|error| match error.raw_os_error() {
                        Some(libc::EINPROGRESS) => Ok(()),
                        _ => Err(error),
                    })
                    .map(|()| socket)
            })
            .expect("a socket that connects");
        let reset = Frame::tcp(server, host_at(family, 80)).with_tcp(|header| {
            header.rst = true;
            header.ack = true;
        });
        lab.arrives(reset).is(Verdict::Foreign);
    }
}

#[test]
fn a_direct_packet_stays_unless_its_tuple_is_in_use() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000/tcp+udp 8080:5000/tcp+udp");
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        for make in [
            datagram as fn(SocketAddr, SocketAddr) -> Frame,
            Frame::syn as fn(SocketAddr, SocketAddr) -> Frame,
        ] {
            three_at_once(&mut lab, family, make);
        }
    }
}

/// One client port to `80`, `8080` and `5000`: three source ports.
#[track_caller]
fn three_at_once(lab: &mut Lab, family: Family, make: fn(SocketAddr, SocketAddr) -> Frame) {
    let host = |port| host_at(family, port);
    let client = client_at(family, FROM);
    lab.arrives(make(client, host(80)))
        .becomes(Verdict::Rewritten, make(client, host(5000)));

    let seen = lab.arrives(make(client, host(8080)));
    let second = source_of(seen.frame(), family);
    assert_ne!(second.port(), FROM);
    seen.becomes(Verdict::Rewritten, make(second, host(5000)));

    let seen = lab.arrives(make(client, host(5000)));
    let third = source_of(seen.frame(), family);
    assert!(third.port() != FROM && third != second, "{third}");
    seen.becomes(Verdict::Moved, make(third, host(5000)))
        .counts_for_none();

    for (source, dialled) in [(client, 80), (second, 8080)] {
        lab.leaves(make(host(5000), source))
            .becomes(Verdict::Restored, make(host(dialled), client));
    }
    lab.leaves(make(host(5000), third))
        .becomes(Verdict::Restored, make(host(5000), client));

    // Without a clash nothing changes, both ways.
    let other = client_at(family, FROM + 1);
    lab.arrives(make(other, host(5000))).is(Verdict::Direct);
    lab.leaves(make(host(5000), other)).is(Verdict::Direct);
    // The direct flow keeps its tuple from others.
    let seen = lab.arrives(make(other, host(80)));
    let fourth = source_of(seen.frame(), family);
    assert_ne!(fourth, other);
    seen.becomes(Verdict::Rewritten, make(fourth, host(5000)));
}

/// Where a frame says that it comes from.
fn source_of(frame: &[u8], family: Family) -> SocketAddr {
    let at = ETHERNET + transport(family);
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    SocketAddr::new(client_at(family, 0).ip(), port)
}

#[test]
fn a_client_with_every_port_in_use_is_told_from_nobody() {
    const FIRST: u16 = 1024;
    let mut lab = Lab::builder(TcpMechanism::Steer, "80:5000/udp 81:5000/udp")
        .max_flows(240_000)
        .open();
    let _service = lab.udp_service(5000);
    let clients = || (FIRST..=u16::MAX).map(|port| client_at(Family::V4, port));
    let (listen, service) = (host_at(Family::V4, 80), host_at(Family::V4, 5000));
    let questions = clients().map(|client| datagram(client, listen).to_vec());
    lab.eth0().all_arrive(questions);
    // A flow without an answer gives its port up after two seconds.
    let answers = clients().map(|client| datagram(service, client).to_vec());
    lab.eth0().all_leave(answers);
    lab.arrives(to_host(Family::V4, 81)).is(Verdict::NoPort);
    // The flows that are there go on, and other clients are served.
    lab.arrives(to_host(Family::V4, 80))
        .becomes(Verdict::Rewritten, to_host(Family::V4, 5000))
        .counts_for(0);
    lab.arrives(to_host(Family::V6, 81))
        .becomes(Verdict::Rewritten, to_host(Family::V6, 5000))
        .opens(1);
}

#[test]
fn only_listed_sources_are_served() {
    let mut lab = Lab::builder(TcpMechanism::Steer, "90:5000")
        .rules_from(
            "80:5000/tcp+udp",
            "192.0.2.0/30 198.51.100.9/32 2001:db8::2/127",
        )
        .open();
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        lab.arrives(syn(family, 80))
            .stays(Verdict::Steered)
            .counts_for(1);
        lab.arrives(to_host(family, 80))
            .becomes(Verdict::Rewritten, to_host(family, 5000))
            .opens(1);
        let mut other = client_at(family, FROM);
        other.set_ip(match family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 4).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 4).into(),
        });
        let host = |port| host_at(family, port);
        lab.arrives(Frame::syn(other, host(80)))
            .is(Verdict::NotListed);
        lab.arrives(datagram(other, host(80)))
            .is(Verdict::NotListed);
        // The list is of that rule alone.
        lab.arrives(Frame::syn(other, host(90)))
            .stays(Verdict::Steered)
            .counts_for(0);
    }
    let stranger = stranger_at(Family::V4, FROM);
    lab.arrives(Frame::syn(stranger, host_at(Family::V4, 80)))
        .stays(Verdict::Steered)
        .counts_for(1);
}

#[test]
fn a_router_leaves_other_hosts_their_packets() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    lab.forwards();
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        let client = client_at(family, FROM);
        for to in [stranger_at(family, 80), client_at(family, 80)] {
            lab.arrives(Frame::syn(client, to)).is(Verdict::NotLocal);
            lab.arrives(datagram(client, to)).is(Verdict::NotLocal);
        }
        // A target port of another host is no target of ours.
        lab.arrives(datagram(client, stranger_at(family, 5000)))
            .is(Verdict::Direct);
        lab.arrives(syn(family, 80))
            .stays(Verdict::Steered)
            .counts_for(0);
        lab.arrives(to_host(family, 80))
            .becomes(Verdict::Rewritten, to_host(family, 5000))
            .opens(0);
    }
}

#[test]
fn no_loopback_address_crosses_a_device() {
    let mut lab = Lab::new(
        TcpMechanism::Steer,
        "80:127.0.0.1:5000/tcp+udp 81:5000/tcp+udp",
    );
    let _tcp = lab.tcp_service_on(Ipv4Addr::LOCALHOST.into(), 5000);
    let _udp = lab.udp_service(5000);
    let loopback = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let client = client_at(Family::V4, FROM);
    let spoofed = [
        datagram(client, loopback(81)),
        datagram(client, loopback(5000)),
        datagram(loopback(FROM), host_at(Family::V4, 81)),
        Frame::syn(client, loopback(81)),
    ];
    for frame in &spoofed {
        lab.arrives(frame).is(Verdict::NotLocal);
    }
    // The rule that says 127.0.0.1 reaches it; the other one does not.
    lab.arrives(syn(Family::V4, 80))
        .stays(Verdict::Steered)
        .counts_for(0);
    lab.arrives(syn(Family::V4, 81)).is(Verdict::NoListener);

    lab.guard_eth0();
    for frame in &spoofed {
        lab.arrives(frame).is(Verdict::Guarded);
    }
    // The rule's own datagrams pass the guard, both ways; others do not.
    lab.arrives(to_host(Family::V4, 80))
        .becomes(Verdict::Rewritten, datagram(client, loopback(5000)))
        .opens(0);
    lab.leaves(datagram(loopback(5000), client))
        .becomes(Verdict::Restored, to_client(Family::V4, 80))
        .counts_back_for(0);
    lab.leaves(datagram(loopback(5001), client))
        .is(Verdict::Guarded);
    lab.leaves(datagram(loopback(80), client))
        .is(Verdict::Guarded);
    let other = client_at(Family::V4, FROM + 1);
    lab.leaves(datagram(loopback(5000), other))
        .is(Verdict::Guarded);
    // On `lo` they are at home.
    lab.lo()
        .arrives(datagram(loopback(FROM), loopback(5001)))
        .is(Verdict::NoRule);
    lab.lo()
        .arrives(datagram(loopback(FROM), loopback(81)))
        .becomes(Verdict::Rewritten, datagram(loopback(FROM), loopback(5000)))
        .opens(1);
}

#[test]
fn clients_on_this_host_are_served() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        let loopback = |port| SocketAddr::new(family.loopback(), port);
        let own = |port| host_at(family, port);
        for at in [&loopback as &dyn Fn(u16) -> SocketAddr, &own] {
            lab.lo()
                .arrives(Frame::syn(at(FROM), at(80)))
                .stays(Verdict::Steered)
                .counts_for(0);
            lab.lo()
                .arrives(datagram(at(FROM), at(80)))
                .becomes(Verdict::Rewritten, datagram(at(FROM), at(5000)))
                .opens(0);
            lab.lo()
                .leaves(datagram(at(5000), at(FROM)))
                .becomes(Verdict::Restored, datagram(at(80), at(FROM)))
                .counts_back_for(0);
            // Once more on the way in: it has its port back and no rule more.
            lab.lo()
                .arrives(datagram(at(80), at(FROM)))
                .is(Verdict::NoRule);
        }
    }
}

#[test]
fn no_checksum_stays_none() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/udp 81:127.0.0.1:5000/udp");
    let _service = lab.udp_service(5000);
    let none = |frame: Frame| patched(&frame, udp_checksum(Family::V4), &[0, 0]);
    lab.arrives(none(to_host(Family::V4, 80)))
        .becomes(Verdict::Rewritten, none(to_host(Family::V4, 5000)))
        .opens(0);
    lab.leaves(none(to_client(Family::V4, 5000)))
        .becomes(Verdict::Restored, none(to_client(Family::V4, 80)))
        .counts_back_for(0);
    // Where the address changes too.
    let other = client_at(Family::V4, FROM + 1);
    let target = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 5000);
    lab.arrives(none(datagram(other, host_at(Family::V4, 81))))
        .becomes(Verdict::Rewritten, none(datagram(other, target)))
        .opens(1);
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/udp");
    let _service = lab.udp_service(5000);
    for family in Family::BOTH {
        let at = ETHERNET + udp_checksum(family);
        let frame = |port, pad: [u8; 2]| {
            Frame::udp(client_at(family, FROM), host_at(family, port)).payload(&pad)
        };
        // The sum over everything else, as a pad, leaves nothing.
        let zero_at = |port| {
            let bare = frame(port, [0, 0]).to_vec();
            [bare[at], bare[at + 1]]
        };
        for pad in [zero_at(5000), zero_at(80)] {
            let (from, to) = (frame(80, pad), frame(5000, pad));
            let sums = [&from, &to].map(|frame| frame.to_vec()[at..at + 2].to_vec());
            assert!(sums.contains(&vec![0xff, 0xff]), "{sums:x?}");
            lab.arrives(&from).becomes(Verdict::Rewritten, &to);
        }
        // The other way round as well.
        let back = |port, pad: [u8; 2]| {
            Frame::udp(host_at(family, port), client_at(family, FROM)).payload(&pad)
        };
        let bare = back(80, [0, 0]).to_vec();
        let pad = [bare[at], bare[at + 1]];
        lab.leaves(back(5000, pad))
            .becomes(Verdict::Restored, back(80, pad));
    }
}

#[test]
fn a_segmented_packet_counts_as_its_segments() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    let _services = (lab.tcp_service(5000), lab.udp_service(5000));
    for family in Family::BOTH {
        let client = client_at(family, FROM);
        let segment = syn(family, 80).payload(&[7; 2500]);
        let headers = transport(family) as u64 + 20;
        lab.eth0()
            .segmented(1000)
            .arrives(segment)
            .stays(Verdict::Steered)
            .counted(
                0,
                RuleCounters {
                    packets: 3,
                    bytes: 3 * headers + 2500,
                    ..RuleCounters::default()
                },
            );
        let datagram = |port| Frame::udp(client, host_at(family, port)).payload(&[7; 2000]);
        let headers = transport(family) as u64 + 8;
        lab.eth0()
            .segmented(1000)
            .arrives(datagram(80))
            .becomes(Verdict::Rewritten, datagram(5000))
            .counted(
                0,
                RuleCounters {
                    packets: 2,
                    bytes: 2 * headers + 2000,
                    connections: 1,
                    ..RuleCounters::default()
                },
            );
    }
}

#[test]
fn what_a_link_appends_to_a_short_frame_is_not_counted() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000");
    let _service = lab.tcp_service(5000);
    for family in Family::BOTH {
        let frame = syn(family, 80).to_vec();
        let length = (frame.len() - ETHERNET) as u64;
        let mut padded = frame;
        padded.resize(96, 0);
        lab.arrives(padded).stays(Verdict::Steered).counted(
            0,
            RuleCounters {
                packets: 1,
                bytes: length,
                ..RuleCounters::default()
            },
        );
    }
}

/// A run reads a packet without a link-layer header as if it had one: the
/// source of these clients has an EtherType in it, and their IPv4 header an
/// option, without which its first byte would be a multicast address's.
fn bare_client(family: Family) -> SocketAddr {
    let addr: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(8, 0, 2, 2).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 2).into(),
    };
    SocketAddr::new(addr, FROM)
}

/// The frame as a device without a link-layer header would carry it.
fn bare_frame(frame: &Frame, family: Family) -> Vec<u8> {
    match family {
        Family::V4 => with_options(frame, 1),
        Family::V6 => frame.bytes(),
    }
}

#[test]
fn devices_without_a_link_layer_header_are_served() {
    let rules = "80:5000/tcp+udp";
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, rules);
        let _services = (lab.tcp_service(5000), lab.udp_service(5000));
        for family in Family::BOTH {
            let client = bare_client(family);
            let host = |port| host_at(family, port);
            let udp = |port| bare_frame(&datagram(client, host(port)), family);
            let tcp_syn = |port| bare_frame(&Frame::syn(client, host(port)), family);
            lab.bare().arrives(udp(81)).is(Verdict::NoRule);
            lab.bare()
                .arrives(udp(80))
                .becomes(Verdict::Rewritten, udp(5000))
                .opens(0);
            let seen = lab.bare().arrives(tcp_syn(80));
            match tcp {
                TcpMechanism::Rewrite => seen.becomes(Verdict::Rewritten, tcp_syn(5000)),
                _ => seen.stays(Verdict::Steered),
            }
            .counts_for(0);
            for length in 2 * ETHERNET + transport(family)..udp(80).len() {
                let seen = lab.bare().arrives(udp(80)[..length].to_vec());
                seen.is(Verdict::Malformed);
            }
        }
    }
}

#[test]
fn answers_leave_by_devices_without_a_link_layer_header() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/udp");
    // The source of an answer is the host's address, which has to look like an
    // EtherType here.
    lab.ns
        .ip("address add 8.0.2.1/24 dev bare0\naddress add 2001:db8:86dd::1/64 dev bare0 nodad");
    let _service = lab.udp_service(5000);
    for family in Family::BOTH {
        let addr: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(8, 0, 2, 1).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 1).into(),
        };
        let host = |port| SocketAddr::new(addr, port);
        let client = client_at(family, FROM);
        lab.arrives(datagram(client, host(80)))
            .becomes(Verdict::Rewritten, datagram(client, host(5000)))
            .opens(0);
        lab.bare()
            .leaves(datagram(host(5000), client))
            .becomes(Verdict::Restored, datagram(host(80), client))
            .counts_back_for(0);
        lab.bare()
            .leaves(datagram(host(81), client))
            .is(Verdict::NoRule);
    }
}

#[test]
fn what_a_packet_costs() {
    // With more passes the printed times mean something.
    let long = std::env::var_os("PORTFWD_TEST_LONG").is_some();
    let passes = if long { 1_000_000 } else { 1_000 };
    // A datagram goes to and fro between the two ports, a flow each.
    let mut lab = Lab::new(
        TcpMechanism::Steer,
        "80:5000/tcp 5000:5001/udp 5001:5000/udp",
    );
    let _services = (
        lab.tcp_service(5000),
        lab.udp_service(5000),
        lab.udp_service(5001),
    );
    // In place of a steered one: the socket has the dialled port too.
    let listener = lab.tcp_service(80);
    for family in Family::BOTH {
        let end = SocketAddr::new(family.loopback(), 80);
        let client = lab.ns.enter(|| TcpStream::connect(end));
        let client = client.expect("it listens");
        let _server = listener.accept().expect("a connection");
        let from = client.local_addr().expect("its address");
        let data = Frame::tcp(from, end).with_tcp(|header| header.ack = true);
        let established = lab.lo().takes(Verdict::Connected, data, passes);
        println!("{family:?} established TCP: {established:?}");

        for port in [5000, 5001] {
            lab.eth0()
                .all_arrive([to_host(family, port).to_vec()].into_iter());
        }
        let rows = [
            ("no rule, UDP", Verdict::NoRule, to_host(family, 99)),
            ("no rule, TCP", Verdict::NoRule, syn(family, 99)),
            ("UDP of a flow", Verdict::Rewritten, to_host(family, 5000)),
            ("SYN, steered", Verdict::Steered, syn(family, 80)),
        ];
        for (what, verdict, frame) in rows {
            let time = lab.eth0().takes(verdict, frame, passes);
            println!("{family:?} {what}: {time:?}");
        }
    }
}
