//! One packet at a time, without a wire: who is served and who is not, by address
//! and by device.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd::plan::TcpMechanism;
use portfwd_common::Verdict;
use portfwd_tests::{
    Family, Frame, Lab,
    frame::{ETHERNET, ip_header},
    lab::{
        FROM, bare_client, bare_frame, client_at, host_at, stranger_at, syn, to_client, to_host,
    },
};

#[test]
fn only_listed_sources_are_served() {
    let mut lab = Lab::builder(TcpMechanism::Steer, "90:5000")
        .rules_from(
            "80:5000/tcp+udp",
            "192.0.2.0/30 198.51.100.9/32 2001:db8::2/127",
        )
        .open();
    let _services = lab.services(5000);
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
        lab.arrives(Frame::datagram(other, host(80)))
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
fn clients_on_this_host_are_served() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    let _services = lab.services(5000);
    for family in Family::BOTH {
        let loopback = |port| SocketAddr::new(family.loopback(), port);
        let own = |port| host_at(family, port);
        for at in [&loopback as &dyn Fn(u16) -> SocketAddr, &own] {
            lab.lo()
                .arrives(Frame::syn(at(FROM), at(80)))
                .stays(Verdict::Steered)
                .counts_for(0);
            lab.lo()
                .arrives(Frame::datagram(at(FROM), at(80)))
                .becomes(Verdict::Rewritten, Frame::datagram(at(FROM), at(5000)))
                .opens(0);
            lab.lo()
                .leaves(Frame::datagram(at(5000), at(FROM)))
                .becomes(Verdict::Restored, Frame::datagram(at(80), at(FROM)))
                .counts_back_for(0);
            // Once more on the way in: it has its port back and no rule more.
            lab.lo()
                .arrives(Frame::datagram(at(80), at(FROM)))
                .is(Verdict::NoRule);
        }
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
        Frame::datagram(client, loopback(81)),
        Frame::datagram(client, loopback(5000)),
        Frame::datagram(loopback(FROM), host_at(Family::V4, 81)),
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
        .becomes(Verdict::Rewritten, Frame::datagram(client, loopback(5000)))
        .opens(0);
    lab.leaves(Frame::datagram(loopback(5000), client))
        .becomes(Verdict::Restored, to_client(Family::V4, 80))
        .counts_back_for(0);
    lab.leaves(Frame::datagram(loopback(5001), client))
        .is(Verdict::Guarded);
    lab.leaves(Frame::datagram(loopback(80), client))
        .is(Verdict::Guarded);
    let other = client_at(Family::V4, FROM + 1);
    lab.leaves(Frame::datagram(loopback(5000), other))
        .is(Verdict::Guarded);
    // On `lo` they are at home.
    lab.lo()
        .arrives(Frame::datagram(loopback(FROM), loopback(5001)))
        .is(Verdict::NoRule);
    lab.lo()
        .arrives(Frame::datagram(loopback(FROM), loopback(81)))
        .becomes(
            Verdict::Rewritten,
            Frame::datagram(loopback(FROM), loopback(5000)),
        )
        .opens(1);
}

#[test]
fn devices_without_a_link_layer_header_are_served() {
    let rules = "80:5000/tcp+udp";
    for tcp in [TcpMechanism::Steer, TcpMechanism::Rewrite] {
        let mut lab = Lab::new(tcp, rules);
        let _services = lab.services(5000);
        for family in Family::BOTH {
            let client = bare_client(family);
            let host = |port| host_at(family, port);
            let udp = |port| bare_frame(Frame::datagram(client, host(port)));
            let tcp_syn = |port| bare_frame(Frame::syn(client, host(port)));
            lab.bare().arrives(udp(81)).is(Verdict::NoRule);
            lab.bare()
                .arrives(udp(80))
                .becomes(Verdict::Rewritten, udp(5000))
                .opens(0);
            lab.bare()
                .arrives(tcp_syn(80))
                .is_carried(tcp, tcp_syn(5000))
                .counts_for(0);
            let whole = udp(80).to_vec();
            for length in 2 * ETHERNET + ip_header(family)..whole.len() {
                let seen = lab.bare().arrives(whole[..length].to_vec());
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
        lab.arrives(Frame::datagram(client, host(80)))
            .becomes(Verdict::Rewritten, Frame::datagram(client, host(5000)))
            .opens(0);
        lab.bare()
            .leaves(Frame::datagram(host(5000), client))
            .becomes(Verdict::Restored, Frame::datagram(host(80), client))
            .counts_back_for(0);
        lab.bare()
            .leaves(Frame::datagram(host(81), client))
            .is(Verdict::NoRule);
    }
}
