//! One packet at a time, without a wire: what it costs, in instructions that the
//! verifier walks and in time, and how many packets and bytes it counts as.

use std::net::{SocketAddr, TcpStream};

use portfwd::{dataplane::Side, host::devices::Link, plan::TcpMechanism};
use portfwd_common::{RuleCounters, Verdict};
use portfwd_tests::{
    Family, Frame, Lab,
    frame::{ETHERNET, ip_header},
    lab::{FROM, MECHANISMS, client_at, host_at, syn, to_host},
};

/// Most instructions that the verifier may walk in a program: the kernel
/// refuses at a million.
const MOST_INSTRUCTIONS: u32 = 300_000;

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
fn what_a_packet_costs() {
    // With more passes the printed times mean something.
    let long = std::env::var_os("PORTFWD_TEST_LONG").is_some();
    let passes = if long { 1_000_000 } else { 1_000 };
    // A datagram goes to and fro between the two ports, a flow each.
    let mut lab = Lab::new(
        TcpMechanism::Steer,
        "80:5000/tcp 5000:5001/udp 5001:5000/udp",
    );
    let _services = (lab.services(5000), lab.udp_service(5001));
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

#[test]
fn a_segmented_packet_counts_as_its_segments() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000/tcp+udp");
    let _services = lab.services(5000);
    for family in Family::BOTH {
        let client = client_at(family, FROM);
        let segment = syn(family, 80).payload(&[7; 2500]);
        let headers = ip_header(family) as u64 + 20;
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
        let headers = ip_header(family) as u64 + 8;
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
