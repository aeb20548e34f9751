//! One packet at a time, without a wire: what passes as it came, since it is not
//! for this host, no rule names it, it contradicts itself, or it belongs to what
//! this host began.

use portfwd::plan::TcpMechanism;
use portfwd_common::Verdict;
use portfwd_tests::{
    Family, Frame, Lab,
    frame::{ETHERNET, ip_header, summed_v4},
    lab::{FROM, client_at, host_at, stranger_at, syn, to_client, to_host},
};
use socket2::{Domain, Protocol, Socket, Type};

/// The frame with another EtherType.
fn typed(frame: &Frame, ether_type: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    frame
}

/// The frame with other bytes at an offset from its IP header.
fn patched(frame: &Frame, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[ETHERNET + at..ETHERNET + at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn what_is_no_packet_for_this_host_passes() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    let _services = lab.services(5000);
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
        lab.arrives(Frame::datagram(from, to))
            .is(Verdict::NotForHost);
    }
    let to = "[ff02::fb]:80".parse().expect("an address");
    lab.arrives(Frame::datagram(client_at(Family::V6, FROM), to))
        .is(Verdict::NotForHost);
}

#[test]
fn what_no_rule_names_passes() {
    let mut lab = Lab::new(
        TcpMechanism::Steer,
        "192.0.2.1:80:5000/tcp+udp 2000-2999:443/udp",
    );
    let _services = (lab.services(5000), lab.udp_service(443));
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
        .arrives(Frame::datagram(
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
    let _services = lab.services(5000);
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
    let _services = lab.services(5000);
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
    let _services = lab.services(5000);
    for family in Family::BOTH {
        let (udp, tcp) = (to_host(family, 80), syn(family, 80));
        let at = ip_header(family);
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
        let _services = lab.services(5000);
        for family in Family::BOTH {
            let mut frames = vec![to_host(family, 80).to_vec(), syn(family, 80).to_vec()];
            if family == Family::V4 {
                frames.push(to_host(family, 80).options(&[1; 40]).to_vec());
                frames.push(syn(family, 80).options(&[1; 40]).to_vec());
            }
            for frame in frames {
                for length in ETHERNET + ip_header(family)..frame.len() {
                    let cut = frame[..length].to_vec();
                    lab.arrives(&cut).is(Verdict::Malformed);
                    lab.leaves(&cut).is(Verdict::Malformed);
                }
            }
        }
    }
}

#[test]
fn an_answer_to_this_host_is_not_taken() {
    let mut lab = Lab::new(TcpMechanism::Steer, "20000-50000:443/tcp+udp 80:5000");
    let _services = (lab.services(443), lab.tcp_service(5000));
    for family in Family::BOTH {
        let server = client_at(family, 53);
        let own = |port| host_at(family, port);
        lab.leaves(Frame::datagram(own(30000), server))
            .is(Verdict::Foreign);
        lab.arrives(Frame::datagram(server, own(30000)))
            .is(Verdict::Foreign);
        // Another server's datagram is no answer.
        let other = client_at(family, 54);
        lab.arrives(Frame::datagram(other, own(30000)))
            .becomes(Verdict::Rewritten, Frame::datagram(other, own(443)))
            .opens(0);

        lab.leaves(Frame::syn(own(30001), server))
            .is(Verdict::Foreign);
        lab.arrives(Frame::syn_ack(server, own(30001)))
            .is(Verdict::Foreign);
        // But whoever opens is a client.
        lab.arrives(Frame::syn(server, own(30001)))
            .stays(Verdict::Steered)
            .counts_for(0);

        // NAT behind this host: its address, though it only forwards.
        lab.eth0()
            .forwarded()
            .leaves(Frame::datagram(own(30002), server))
            .is(Verdict::Foreign);
        lab.arrives(Frame::datagram(server, own(30002)))
            .is(Verdict::Foreign);
        let stranger = stranger_at(family, 30003);
        lab.eth0()
            .forwarded()
            .leaves(Frame::datagram(stranger, server))
            .is(Verdict::NoRule);
        lab.arrives(Frame::datagram(server, stranger)).becomes(
            Verdict::Rewritten,
            Frame::datagram(server, stranger_at(family, 443)),
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
fn a_router_leaves_other_hosts_their_packets() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    lab.forwards();
    let _services = lab.services(5000);
    for family in Family::BOTH {
        let client = client_at(family, FROM);
        for to in [stranger_at(family, 80), client_at(family, 80)] {
            lab.arrives(Frame::syn(client, to)).is(Verdict::NotLocal);
            lab.arrives(Frame::datagram(client, to))
                .is(Verdict::NotLocal);
        }
        // A target port of another host is no target of ours.
        lab.arrives(Frame::datagram(client, stranger_at(family, 5000)))
            .is(Verdict::Direct);
        lab.arrives(syn(family, 80))
            .stays(Verdict::Steered)
            .counts_for(0);
        lab.arrives(to_host(family, 80))
            .becomes(Verdict::Rewritten, to_host(family, 5000))
            .opens(0);
    }
}
