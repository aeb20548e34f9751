//! Packets that nobody thought of: the corridor never panics, and changes
//! nothing but what a verdict says it changed.

mod common;

use common::{ENDS, Host, LO, addr, assert_sums, hops_of, tcp, tuple_of, udp};
use portfwd_common::{Action, Addr, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    host::{self, Forward},
    packet::{ETH_P_IP, ETH_P_IPV6, Tuple},
};
use proptest::prelude::*;

fn forwards() -> Vec<Forward> {
    let mut forwards = vec![
        Forward::udp(80..=80, 5000),
        Forward::udp(8080..=8080, 5000),
        Forward::udp(90..=99, 9000).on(addr("192.0.2.2")),
        Forward::udp(5000..=5000, 6000).from(addr("198.51.100.0"), 120),
        Forward::tcp(80..=80, 5000),
        Forward::tcp(8080..=8080, 5000).rewriting(),
        Forward::tcp(8081..=8081, 5000).rewriting(),
    ];
    for ends in ENDS {
        for proto in [Proto::Udp, Proto::Tcp] {
            // The second one listens on its target port.
            forwards.push(ends.rule_on(proto, 70, 0));
            forwards.push(ends.rule_on(proto, 8080, TargetEntry::PRESERVE));
        }
    }
    forwards
}

fn any_host() -> Host {
    let host = Host::new(&forwards());
    host.memory.guarded.borrow_mut().push(3);
    host
}

/// What else the link may say.
#[derive(Clone, Copy, Debug)]
struct Link {
    ifindex: u32,
    forwarded: bool,
    partial: bool,
    gso_size: u32,
    leaves: bool,
    back: bool,
}

fn link() -> impl Strategy<Value = Link> {
    let gso_size = prop_oneof![Just(0), 1..2_000_u32];
    (1..4_u32, any::<[bool; 4]>(), gso_size).prop_map(|(ifindex, flags, gso_size)| Link {
        ifindex,
        forwarded: flags[0] && ifindex != LO,
        partial: flags[1],
        gso_size,
        leaves: flags[2],
        back: flags[3],
    })
}

fn walk(host: &Host, bytes: &[u8], ethertype: u16, link: Link) -> (Verdict, Vec<u8>) {
    let mut buffer = host.buffer(bytes).on(link.ifindex);
    buffer.link.ethertype = ethertype;
    buffer.link.forwarded = link.leaves && link.forwarded;
    buffer.link.gso_size = link.gso_size;
    buffer.partial = link.partial;
    let outcome = if link.leaves {
        host::depart(&mut buffer, &host.memory)
    } else if link.back {
        host::arrive_back(&mut buffer, &host.memory)
    } else {
        host::arrive(&mut buffer, &host.memory)
    };
    let sends = outcome.verdict.action() == Action::Send;
    assert_eq!(buffer.sent.is_some(), sends);
    (outcome.verdict, buffer.bytes)
}

const fn changes(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Rewritten
            | Verdict::Restored
            | Verdict::Moved
            | Verdict::Forwarded
            | Verdict::Returned
    )
}

fn ends() -> impl Strategy<Value = (Addr, Addr)> {
    let v4 = prop::sample::select(vec![
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.7",
        "10.0.0.1",
        "10.0.0.5",
        "203.0.113.9",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
    ]);
    let v6 = prop::sample::select(vec![
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:1::7",
        "2001:db8:2::1",
        "2001:db8:2::5",
        "::1",
        "::",
        "ff02::1",
    ]);
    prop_oneof![
        (v4.clone(), v4).prop_map(|(src, dst)| (addr(src), addr(dst))),
        (v6.clone(), v6).prop_map(|(src, dst)| (addr(src), addr(dst))),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(vec![
            70, 80, 8080, 8081, 5000, 6000, 90, 99, 9000, 4000, 4001, 0
        ]),
        any::<u16>(),
    ]
}

/// A packet that is sound as it arrives.
fn packet() -> impl Strategy<Value = (Proto, Vec<u8>)> {
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    (
        ends(),
        port(),
        port(),
        any::<u8>(),
        any::<[bool; 1]>(),
        payload,
    )
        .prop_map(|((src, dst), sport, dport, flags, [is_tcp], payload)| {
            let tuple = Tuple {
                src,
                dst,
                sport,
                dport,
            };
            if is_tcp {
                (Proto::Tcp, tcp(&tuple, flags, [700, 701], &payload))
            } else {
                (Proto::Udp, udp(&tuple, &payload))
            }
        })
}

const fn ethertype(bytes: &[u8]) -> u16 {
    match bytes[0] >> 4 {
        4 => ETH_P_IP,
        _ => ETH_P_IPV6,
    }
}

proptest! {
    #[test]
    fn any_bytes_are_walked(
        bytes in prop::collection::vec(any::<u8>(), 0..160),
        ethertype in prop_oneof![Just(ETH_P_IP), Just(ETH_P_IPV6), any::<u16>()],
        link in link(),
    ) {
        let host = any_host();
        let (verdict, after) = walk(&host, &bytes, ethertype, link);
        prop_assert!(changes(verdict) || after == bytes);
    }

    #[test]
    fn sound_packets_stay_sound(packets in prop::collection::vec((packet(), link()), 1..24)) {
        let host = any_host();
        for ((_, bytes), mut link) in packets {
            link.partial = false;
            let (verdict, after) = walk(&host, &bytes, ethertype(&bytes), link);
            if changes(verdict) {
                assert_sums(&after, false);
                prop_assert_eq!(bytes.len(), after.len());
                let sends = verdict.action() == Action::Send;
                prop_assert_eq!(hops_of(&bytes) - u8::from(sends), hops_of(&after));
            } else {
                prop_assert_eq!(bytes, after, "{:?}", verdict);
            }
        }
    }

    #[test]
    fn a_spoilt_packet_is_changed_as_the_verdict_says(
        (_, bytes) in packet(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
        cut in any::<prop::sample::Index>(),
        link in link(),
    ) {
        let host = any_host();
        let kind = ethertype(&bytes);
        let mut spoilt = bytes[..=cut.index(bytes.len())].to_vec();
        let at = at.index(spoilt.len());
        spoilt[at] = with;
        let (verdict, after) = walk(&host, &spoilt, kind, link);
        prop_assert!(changes(verdict) || after == spoilt, "{:?}", verdict);
        prop_assert_eq!(after.len(), spoilt.len());
    }

    #[test]
    fn every_forwarded_datagram_is_answered_from_where_it_was_dialled(
        dials in prop::collection::vec(
            (0..3_u8, 4_000..4_003_u16, prop::sample::select(vec![80_u16, 8080, 5001])),
            1..40,
        ),
    ) {
        let host = Host::new(&forwards()[..2]);
        for (client, sport, dport) in dials {
            let dialled = Tuple {
                src: addr(&format!("198.51.100.{client}")),
                dst: addr("192.0.2.1"),
                sport,
                dport,
            };
            let (verdict, bytes) = host.arrive(&udp(&dialled, b"hello"));
            if verdict == Verdict::NoRule {
                continue;
            }
            let seen = tuple_of(&bytes);
            let (verdict, bytes) = host.depart(&udp(&seen.reversed(), b"world"));
            prop_assert_eq!(verdict, Verdict::Restored);
            prop_assert_eq!(tuple_of(&bytes), dialled.reversed());
        }
    }
}
