//! One packet at a time, without a wire: what is sent on to a target on another
//! host, and what is returned from there. That a packet is sent is the program's
//! answer here; where it goes is shown on the wire.

use std::net::SocketAddr;

use portfwd::plan::TcpMechanism;
use portfwd_common::{RuleCounters, TargetEntry, Verdict};
use portfwd_tests::{
    Family, Frame, Lab,
    frame::{ETHERNET, balance, ip_header},
    lab::{FROM, Hooks, MECHANISMS, Seen, bare_client, bare_frame, client_at, host_at, lan_at},
};

const RULES: &str = "80:10.0.0.5:8080/tcp+udp 80:[2001:db8:2::5]:8080/tcp+udp \
                     81:10.0.0.5:8080/tcp+udp 81:[2001:db8:2::5]:8080/tcp+udp";
const FLAGS: [u16; 3] = [0, TargetEntry::PRESERVE, TargetEntry::PRESERVE_ACROSS];
const ROOMY: u32 = 1500;
/// The option of a SYN, to be filled in.
const MSS: [u8; 4] = [2, 4, 0, 0];

fn lab(flags: u16, mtu: u32) -> Lab {
    Lab::builder(TcpMechanism::Steer, RULES)
        .across(flags, mtu)
        .open()
}

/// A flow through this host: the client dials it, and the target sees a client
/// that may be this host.
#[derive(Clone, Copy)]
struct Flow {
    client: SocketAddr,
    host: SocketAddr,
    seen: SocketAddr,
    target: SocketAddr,
    slot: usize,
}

impl Flow {
    /// By the rule for port 80, as a target with these flags sees it.
    fn new(family: Family, flags: u16) -> Self {
        let client = client_at(family, FROM);
        Self {
            client,
            host: host_at(family, 80),
            seen: match flags {
                0 => lan_at(family, 1, FROM),
                _ => client,
            },
            target: lan_at(family, 5, 8080),
            slot: match family {
                Family::V4 => 0,
                Family::V6 => 1,
            },
        }
    }

    /// The same from another port of the client.
    fn with_port(mut self, port: u16) -> Self {
        self.client.set_port(port);
        self.seen.set_port(port);
        self
    }

    /// What the client sends is sent on to the target.
    #[track_caller]
    fn goes_on(&self, hooks: Hooks<'_>, make: impl Fn(SocketAddr, SocketAddr) -> Frame) -> Seen {
        hooks.arrives(make(self.client, self.host)).becomes(
            Verdict::Forwarded,
            make(self.seen, self.target).one_hop_on(),
        )
    }

    /// What the target answers is returned to the client.
    #[track_caller]
    fn returns(&self, hooks: Hooks<'_>, make: impl Fn(SocketAddr, SocketAddr) -> Frame) -> Seen {
        hooks
            .arrives(make(self.target, self.seen))
            .becomes(Verdict::Returned, make(self.host, self.client).one_hop_on())
    }
}

#[test]
fn a_datagram_is_sent_on_and_its_answer_returned() {
    for tcp in MECHANISMS {
        for flags in FLAGS {
            let mut lab = Lab::builder(tcp, RULES).across(flags, ROOMY).open();
            for family in Family::BOTH {
                let flow = Flow::new(family, flags);
                flow.goes_on(lab.eth0(), Frame::datagram).opens(flow.slot);
                for _ in 0..2 {
                    flow.returns(lab.lan(), Frame::datagram)
                        .counts_back_for(flow.slot);
                    flow.returns(lab.lan().back(), Frame::datagram)
                        .counts_back_for(flow.slot);
                    flow.goes_on(lab.eth0(), Frame::datagram)
                        .counts_for(flow.slot);
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
                let flow = Flow::new(family, flags);
                lab.arrives(Frame::ack(flow.client, flow.host))
                    .is(Verdict::Stray);
                flow.goes_on(lab.eth0(), Frame::syn).counts_for(flow.slot);
                flow.returns(lab.lan().back(), Frame::syn_ack)
                    .counts_back_for(flow.slot);
                flow.goes_on(lab.eth0(), Frame::ack).opens(flow.slot);
                flow.goes_on(lab.eth0(), Frame::ack).counts_for(flow.slot);
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
            let flow = Flow {
                client: lan_at(family, number, FROM),
                seen: lan_at(family, if kept { number } else { 1 }, FROM),
                ..Flow::new(family, flags)
            };
            flow.goes_on(lab.lan(), Frame::datagram);
            flow.returns(lab.lan(), Frame::datagram);
        }
    }
}

#[test]
fn hops_run_out_there_and_back() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        for left in [0, 1] {
            for make in [Frame::datagram, Frame::syn] {
                lab.arrives(make(flow.client, flow.host).hop_limit(left))
                    .is(Verdict::HopLimit);
            }
        }
        for left in [2, 3, 17, 128, 255] {
            let datagram = |from, to| Frame::datagram(from, to).hop_limit(left);
            flow.goes_on(lab.eth0(), datagram);
            flow.returns(lab.lan().back(), datagram);
        }
        lab.lan()
            .back()
            .arrives(Frame::datagram(flow.target, flow.seen).hop_limit(1))
            .is(Verdict::HopLimit);
    }
}

#[test]
fn what_is_too_large_for_the_device_is_dropped() {
    let mut lab = lab(0, 1400);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        let sized = |size: usize| {
            let payload = vec![7; size - ip_header(family) - 8];
            move |from, to| Frame::udp(from, to).payload(&payload)
        };
        let too_large = sized(1401)(flow.client, flow.host);
        lab.arrives(&too_large).is(Verdict::TooLarge);
        flow.goes_on(lab.eth0(), sized(1400));
        lab.arrives(&too_large).is(Verdict::TooLarge);
        // The way back is wider.
        flow.returns(lab.lan().back(), sized(1500));
        lab.lan()
            .back()
            .arrives(sized(1501)(flow.target, flow.seen))
            .is(Verdict::TooLarge);
    }
}

#[test]
fn a_packet_larger_than_the_device_goes_on_where_its_segments_fit() {
    let mut lab = lab(0, 1400);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        flow.goes_on(lab.eth0(), Frame::syn);
        let large = |from, to| Frame::ack(from, to).payload(&[7; 3000]);
        let headers = ip_header(family) as u64 + 20;
        flow.goes_on(lab.eth0().segmented(1000), large).counted(
            flow.slot,
            RuleCounters {
                packets: 3,
                bytes: 3 * headers + 3000,
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
        let flow = Flow::new(family, 0);
        for make in [Frame::datagram, Frame::syn] {
            lab.arrives(make(flow.client, flow.host))
                .is(Verdict::NoRoute);
        }
    }
}

/// A SYN with these options is clamped to 1300 bytes of an IPv4 segment.
#[track_caller]
fn clamps(lab: &mut Lab, mss: u16, options: &[u8]) {
    for family in Family::BOTH {
        let port = FROM + mss % 1000 + options.len() as u16 * 100;
        let flow = Flow::new(family, 0).with_port(port);
        // What a header of IPv6 takes more than one of IPv4.
        let limit = 1300 - (ip_header(family) as u16 - 20);
        let sized = |frame: Frame, mss: u16| {
            let mut options = options.to_vec();
            let at = options.windows(4).position(|four| four == MSS);
            if let Some(at) = at {
                options[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes());
            }
            frame.with_tcp(|header| {
                header.set_options_raw(&options).expect("40 bytes at most");
            })
        };
        let low = mss.min(limit);
        lab.arrives(sized(Frame::syn(flow.client, flow.host), mss))
            .becomes(
                Verdict::Forwarded,
                sized(Frame::syn(flow.seen, flow.target), low).one_hop_on(),
            );
        lab.lan()
            .back()
            .arrives(sized(Frame::syn_ack(flow.target, flow.seen), mss))
            .becomes(
                Verdict::Returned,
                sized(Frame::syn_ack(flow.host, flow.client), low).one_hop_on(),
            );
    }
}

#[test]
fn the_mss_of_a_syn_is_lowered_to_what_the_way_takes() {
    // Behind a PPPoE line, say.
    let mut lab = lab(0, 1340);
    for mss in [0, 536, 1279, 1280, 1281, 1300, 1301, 1460, 8960, u16::MAX] {
        clamps(&mut lab, mss, &MSS);
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
        clamps(&mut lab, 1460, &[before, &MSS].concat());
    }
    let linux = [2, 4, 0, 0, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    clamps(&mut lab, 1460, &linux);
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
        clamps(&mut lab, 1460, options);
    }
}

#[test]
fn only_what_opens_a_connection_is_clamped() {
    let mut lab = lab(0, 1340);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        let data = |from, to| {
            Frame::ack(from, to).with_tcp(|header| {
                header
                    .set_options_raw(&[2, 4, 0xff, 0xff])
                    .expect("four bytes");
            })
        };
        flow.goes_on(lab.eth0(), Frame::syn);
        flow.goes_on(lab.eth0(), data);
        flow.returns(lab.lan().back(), data);
    }
}

#[test]
fn no_checksum_stays_none_and_zero_becomes_all_ones() {
    let mut lab = lab(0, ROOMY);
    let flow = Flow::new(Family::V4, 0);
    let unsummed = |from, to| Frame::datagram(from, to).unsummed();
    flow.goes_on(lab.eth0(), unsummed);
    flow.returns(lab.lan().back(), unsummed);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        for pad in [
            balance(flow.client, flow.host),
            balance(flow.seen, flow.target),
        ] {
            let padded = |from, to| Frame::udp(from, to).payload(&pad);
            flow.goes_on(lab.eth0(), padded);
        }
        for pad in [
            balance(flow.target, flow.seen),
            balance(flow.host, flow.client),
        ] {
            let padded = |from, to| Frame::udp(from, to).payload(&pad);
            flow.returns(lab.lan().back(), padded);
        }
    }
}

#[test]
fn what_is_not_the_rules_passes() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        lab.lo()
            .arrives(Frame::datagram(host_at(family, FROM), flow.host))
            .is(Verdict::Unhooked);
        for (to, verdict) in [
            (lan_at(family, 6, 80), Verdict::NotLocal),
            (lan_at(family, 6, 8080), Verdict::NoRule),
            (flow.target, Verdict::Direct),
        ] {
            lab.arrives(Frame::datagram(flow.client, to)).is(verdict);
        }
        for frame in [
            Frame::datagram(flow.client, flow.host),
            Frame::datagram(flow.target, flow.seen),
            Frame::syn_ack(flow.target, flow.seen),
        ] {
            lab.lan().back().arrives(frame).is(Verdict::NoRule);
        }
    }
}

#[test]
fn what_is_sent_on_makes_no_foreign_flow_as_it_leaves() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0).with_port(80);
        flow.goes_on(lab.eth0(), Frame::datagram);
        lab.lan()
            .forwarded()
            .leaves(Frame::datagram(flow.seen, flow.target))
            .is(Verdict::Passing);
        lab.eth0()
            .forwarded()
            .leaves(Frame::datagram(flow.host, flow.client))
            .is(Verdict::Passing);
        flow.goes_on(lab.eth0(), Frame::datagram);
    }
}

#[test]
fn a_connection_of_this_host_gives_way_to_a_flow_with_its_tuple() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        for make in [Frame::datagram, Frame::syn] {
            let flow = Flow::new(family, 0);
            let (own, target) = (flow.seen, flow.target);
            lab.lan().leaves(make(own, target)).is(Verdict::NoRule);
            flow.goes_on(lab.eth0(), make);
            let seen = lab.lan().leaves(make(own, target));
            let moved = lan_at(family, 1, seen.source_port());
            assert_ne!(moved, own);
            seen.becomes(Verdict::Moved, make(moved, target))
                .counts_for_none();
            lab.lan()
                .leaves(make(own, target))
                .becomes(Verdict::Moved, make(moved, target))
                .counts_for_none();
            lab.lan()
                .back()
                .arrives(make(target, moved))
                .becomes(Verdict::Restored, make(target, own))
                .counts_for_none();
            flow.returns(lab.lan().back(), make);
        }
    }
}

#[test]
fn a_port_of_a_socket_is_not_taken() {
    let mut lab = lab(0, ROOMY);
    let _sockets = lab.services(FROM);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        for make in [Frame::datagram, Frame::syn] {
            let seen = lab.arrives(make(flow.client, flow.host));
            let port = seen.source_port();
            assert_ne!(port, FROM);
            assert!(port >= 1024 && !(32_768..=60_999).contains(&port), "{port}");
            let from = lan_at(family, 1, port);
            seen.becomes(Verdict::Forwarded, make(from, flow.target).one_hop_on());
        }
    }
}

#[test]
fn a_second_flow_of_a_client_gets_another_port() {
    for flags in FLAGS {
        let mut lab = lab(flags, ROOMY);
        for family in Family::BOTH {
            let first = Flow::new(family, flags);
            first.goes_on(lab.eth0(), Frame::datagram);
            let mut second = Flow {
                host: host_at(family, 81),
                ..first
            };
            let seen = lab.arrives(Frame::datagram(second.client, second.host));
            second.seen.set_port(seen.source_port());
            assert_ne!(second.seen, first.seen);
            seen.becomes(
                Verdict::Forwarded,
                Frame::datagram(second.seen, second.target).one_hop_on(),
            );
            for flow in [first, second] {
                flow.returns(lab.lan().back(), Frame::datagram);
            }
        }
    }
}

#[test]
fn a_reset_before_the_answer_and_an_early_end_hinder_no_proof() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let flow = Flow::new(family, 0);
        let reset = |from, to| Frame::tcp(from, to).with_tcp(|header| header.rst = true);
        flow.goes_on(lab.eth0(), Frame::syn);
        flow.returns(lab.lan().back(), reset);
        flow.returns(lab.lan().back(), Frame::syn_ack);
        flow.goes_on(lab.eth0(), Frame::ack).opens(flow.slot);
    }
}

#[test]
fn what_comes_without_a_link_layer_header_is_sent_on_with_one() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let flow = Flow {
            client: bare_client(family),
            ..Flow::new(family, 0)
        };
        for make in [Frame::datagram, Frame::syn] {
            flow.goes_on(lab.bare(), |from, to| bare_frame(make(from, to)));
        }
    }
}

#[test]
fn the_header_that_is_put_before_it_is_not_counted() {
    let mut lab = lab(0, ROOMY);
    for family in Family::BOTH {
        let flow = Flow {
            client: bare_client(family),
            ..Flow::new(family, 0)
        };
        let frame = Frame::udp(flow.client, flow.host).payload(&[7; 2000]);
        let frame = bare_frame(frame).to_vec();
        let headers = (frame.len() - ETHERNET - 2000) as u64;
        // The payload is a whole number of segments.
        lab.bare().segmented(1000).arrives(frame).counted(
            flow.slot,
            RuleCounters {
                packets: 2,
                bytes: 2 * headers + 2000,
                connections: 1,
                ..RuleCounters::default()
            },
        );
    }
}
