//! One packet at a time, without a wire: what is rewritten on the way in and
//! restored on the way out, to the byte, and which source port a flow gets where
//! two clash.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd::plan::TcpMechanism;
use portfwd_common::Verdict;
use portfwd_tests::{
    Family, Frame, Lab,
    frame::{ETHERNET, balance, ip_header},
    lab::{FROM, MECHANISMS, client_at, host_at, syn, to_client, to_host},
};

#[test]
fn a_datagram_is_rewritten_and_its_answer_restored() {
    for tcp in MECHANISMS {
        let mut lab = Lab::new(tcp, "53:5353/udp");
        let _service = lab.udp_service(5353);
        for family in Family::BOTH {
            lab.arrives(to_host(family, 53))
                .becomes(Verdict::Rewritten, to_host(family, 5353))
                .opens(0);
            // The first answer is proof that the client receives, and all goes on.
            for _ in 0..2 {
                lab.arrives(to_host(family, 53))
                    .becomes(Verdict::Rewritten, to_host(family, 5353))
                    .counts_for(0);
                lab.leaves(to_client(family, 5353))
                    .becomes(Verdict::Restored, to_client(family, 53))
                    .counts_back_for(0);
            }
        }
    }
}

#[test]
fn an_answer_from_another_address_gets_the_one_that_was_dialled() {
    let mut lab = Lab::new(TcpMechanism::Steer, "53:5353/udp");
    add_second(&lab);
    let _service = lab.udp_service(5353);
    for family in Family::BOTH {
        let second = |port| second_at(family, port);
        let client = client_at(family, FROM);
        lab.arrives(Frame::datagram(client, second(53)))
            .becomes(Verdict::Rewritten, Frame::datagram(client, second(5353)))
            .opens(0);
        lab.leaves(to_client(family, 5353))
            .becomes(Verdict::Restored, Frame::datagram(second(53), client))
            .counts_back_for(0);
    }
}

#[test]
fn a_target_on_a_named_address_gets_it() {
    let rules = "80:192.0.2.77:5000/tcp+udp 80:[2001:db8::77]:5000/tcp+udp";
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, rules);
        add_second(&lab);
        let _services = lab.services(5000);
        for (slot, family) in [(0, Family::V4), (1, Family::V6)] {
            let target = second_at(family, 5000);
            let client = client_at(family, FROM);
            lab.arrives(to_host(family, 80))
                .becomes(Verdict::Rewritten, Frame::datagram(client, target))
                .opens(slot);
            lab.leaves(Frame::datagram(target, client))
                .becomes(Verdict::Restored, to_client(family, 80))
                .counts_back_for(slot);
            lab.arrives(syn(family, 80))
                .is_carried(tcp, Frame::syn(client, target))
                .counts_for(slot);
        }
    }
}

/// Gives the host a second address of each family.
fn add_second(lab: &Lab) {
    lab.ns
        .ip("address add 192.0.2.77/24 dev eth0\naddress add 2001:db8::77/64 dev eth0 nodad");
}

/// The host's second address on `eth0`.
const fn second_at(family: Family, port: u16) -> SocketAddr {
    let addr = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77)),
    };
    SocketAddr::new(addr, port)
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
            lab.arrives(Frame::datagram(client, host(dialled)))
                .becomes(Verdict::Rewritten, Frame::datagram(client, host(target)))
                .opens(slot);
            lab.leaves(Frame::datagram(host(target), client))
                .becomes(Verdict::Restored, Frame::datagram(host(dialled), client))
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
fn options_move_the_transport_header() {
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, "80:5000/tcp+udp");
        let _services = lab.services(5000);
        for words in 0..=10 {
            let from = client_at(Family::V4, FROM + words as u16);
            let host = |port| host_at(Family::V4, port);
            let optioned = |frame: Frame| frame.options(&vec![1; words * 4]);
            lab.arrives(optioned(Frame::datagram(from, host(80))))
                .becomes(
                    Verdict::Rewritten,
                    optioned(Frame::datagram(from, host(5000))),
                )
                .opens(0);
            lab.leaves(optioned(Frame::datagram(host(5000), from)))
                .becomes(Verdict::Restored, optioned(Frame::datagram(host(80), from)))
                .counts_back_for(0);
            lab.arrives(optioned(Frame::syn(from, host(80))))
                .is_carried(tcp, optioned(Frame::syn(from, host(5000))))
                .counts_for(0);
        }
    }
}

#[test]
fn no_checksum_stays_none() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/udp 81:127.0.0.1:5000/udp");
    let _service = lab.udp_service(5000);
    lab.arrives(to_host(Family::V4, 80).unsummed())
        .becomes(Verdict::Rewritten, to_host(Family::V4, 5000).unsummed())
        .opens(0);
    lab.leaves(to_client(Family::V4, 5000).unsummed())
        .becomes(Verdict::Restored, to_client(Family::V4, 80).unsummed())
        .counts_back_for(0);
    // Where the address changes too.
    let other = client_at(Family::V4, FROM + 1);
    let target = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 5000);
    lab.arrives(Frame::datagram(other, host_at(Family::V4, 81)).unsummed())
        .becomes(
            Verdict::Rewritten,
            Frame::datagram(other, target).unsummed(),
        )
        .opens(1);
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/udp");
    let _service = lab.udp_service(5000);
    for family in Family::BOTH {
        let (client, host) = (client_at(family, FROM), |port| host_at(family, port));
        let (listen, service) = (host(80), host(5000));
        let at = ETHERNET + ip_header(family) + 6;
        for pad in [balance(client, service), balance(client, listen)] {
            let frame = |to| Frame::udp(client, to).payload(&pad);
            let sums = [listen, service].map(|to| frame(to).to_vec()[at..at + 2].to_vec());
            assert!(sums.contains(&vec![0xff, 0xff]), "{sums:x?}");
            lab.arrives(frame(listen))
                .becomes(Verdict::Rewritten, frame(service));
        }
        // The other way round as well.
        let pad = balance(listen, client);
        let back = |from| Frame::udp(from, client).payload(&pad);
        lab.leaves(back(service))
            .becomes(Verdict::Restored, back(listen));
    }
}

#[test]
fn a_direct_packet_stays_unless_its_tuple_is_in_use() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000/tcp+udp 8080:5000/tcp+udp");
    let _services = lab.services(5000);
    for family in Family::BOTH {
        for make in [Frame::datagram, Frame::syn] {
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
    let second = client_at(family, seen.source_port());
    assert_ne!(second.port(), FROM);
    seen.becomes(Verdict::Rewritten, make(second, host(5000)));

    let seen = lab.arrives(make(client, host(5000)));
    let third = client_at(family, seen.source_port());
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
    let fourth = client_at(family, seen.source_port());
    assert_ne!(fourth, other);
    seen.becomes(Verdict::Rewritten, make(fourth, host(5000)));
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
    let questions = clients().map(|client| Frame::datagram(client, listen).to_vec());
    lab.eth0().all_arrive(questions);
    // A flow without an answer gives its port up after two seconds.
    let answers = clients().map(|client| Frame::datagram(service, client).to_vec());
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
