//! Walks each kind of packet and prints, as JSON, the helpers that its program
//! calls, by path and name. `cargo xtask verify` compares them with their budgets.

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{ENDS, ETH0, Ends, Host, LAN, OWN, addr, answer, first, second};
use portfwd_common::{Addr, Device, Mac, PortEntry, Proto, TargetEntry, Verdict};
use portfwd_ebpf::{
    hook::{ESTABLISHED, Link, Readable as _},
    host::{self, Forward, Machine},
    packet::Tuple,
};

fn main() {
    let mut paths = BTreeMap::new();
    for (family, ends) in ["IPv4", "IPv6"].into_iter().zip(ENDS) {
        let mut family = Family {
            name: family,
            ends,
            paths: &mut paths,
        };
        family.bystander();
        family.steered();
        family.here();
        family.without_listener();
        family.direct();
        family.of_this_host();
        for proto in [Proto::Udp, Proto::Tcp] {
            family.across(proto, "masquerade", 0);
            family.across(proto, "preserve", TargetEntry::PRESERVE);
            family.accelerated(proto);
        }
    }
    println!("{}", serde_json::json!(paths));
}

/// The paths of one family.
struct Family<'a> {
    name: &'static str,
    ends: Ends,
    paths: &'a mut BTreeMap<String, BTreeMap<String, u32>>,
}

impl Family<'_> {
    /// A packet that takes a path: what it called, once its verdict is the one that
    /// makes it that path.
    #[track_caller]
    fn takes(&mut self, path: &str, host: &Host, verdict: Verdict, walk: Walk<'_>) {
        let tallies = [&host.memory.tally, &host.machine.tally];
        for tally in tallies {
            tally.start();
        }
        assert_eq!(walk.over(host), verdict, "{} {path}", self.name);
        let mut calls = BTreeMap::new();
        for (call, count) in tallies.into_iter().flat_map(|tally| tally.take()) {
            *calls.entry(call.to_string()).or_default() += count;
        }
        let before = self.paths.insert(format!("{} {path}", self.name), calls);
        assert_eq!(before, None, "{path} is one path");
    }

    fn bystander(&mut self) {
        let open = self.ends.open();
        let to = |port| Tuple {
            dport: port,
            ..open
        };
        let from = |port| Tuple {
            sport: port,
            ..to(99)
        };
        for proto in [Proto::Udp, Proto::Tcp] {
            let host = self.ends.host(proto, TargetEntry::PRESERVE);
            for (whose, tuple) in [
                ("bystander", to(99)),
                ("bystander to a target's port", to(8080)),
                ("bystander from a target's port", from(8080)),
            ] {
                let packet = second(proto, &tuple);
                let path = format!("{whose}, {} in", word(proto));
                self.takes(&path, &host, Verdict::NoRule, Walk::Arrives(&packet));
            }
            let packet = second(proto, &to(99).reversed());
            let path = format!("bystander, {} out", word(proto));
            self.takes(&path, &host, Verdict::NoRule, Walk::Leaves(&packet));
        }
    }

    fn steered(&mut self) {
        let open = self.ends.open();
        let host = |machine: Machine| {
            let machine = machine.listen(Addr::UNSPECIFIED, 5000);
            let host = Host::on(machine, &[Forward::tcp(80..=80, 5000)]);
            // As it is from 6.6 on: no TCP to this host has a flow.
            host.memory.tracks_tcp.set(false);
            host.memory.unmark(Proto::Tcp, 80, PortEntry::TRACKED);
            host
        };
        let machine = || Machine::new(&OWN.map(addr));
        let new = host(machine());
        let packet = first(Proto::Tcp, &open);
        let arrives = Walk::Arrives(&packet);
        self.takes("steered, SYN in", &new, Verdict::Steered, arrives);
        let known = host(machine().connect(open, ESTABLISHED));
        let packet = second(Proto::Tcp, &open);
        let arrives = Walk::Arrives(&packet);
        self.takes("steered, in", &known, Verdict::Connected, arrives);
        let packet = second(Proto::Tcp, &open.reversed());
        let leaves = Walk::Leaves(&packet);
        self.takes("steered, out", &known, Verdict::Connected, leaves);
    }

    fn here(&mut self) {
        let host = Host::new(&[Forward::udp(80..=80, 5000)]);
        let open = self.ends.open();
        let packet = second(Proto::Udp, &open);
        let reply = answer(
            Proto::Udp,
            &Tuple {
                dport: 5000,
                ..open
            }
            .reversed(),
        );
        for (path, verdict, walk) in [
            ("first in", Verdict::Rewritten, Walk::Arrives(&packet)),
            ("first out", Verdict::Restored, Walk::Leaves(&reply)),
            ("second in", Verdict::Rewritten, Walk::Arrives(&packet)),
            ("in", Verdict::Rewritten, Walk::Arrives(&packet)),
            ("out", Verdict::Restored, Walk::Leaves(&reply)),
        ] {
            self.takes(&format!("to this host, UDP {path}"), &host, verdict, walk);
        }
        host.memory.wait(1);
        let arrives = Walk::Arrives(&packet);
        self.takes(
            "to this host, UDP in, a new second",
            &host,
            Verdict::Rewritten,
            arrives,
        );
    }

    fn without_listener(&mut self) {
        let host = Host::without_sockets(&[Forward::udp(80..=80, 5000)]);
        let packet = first(Proto::Udp, &self.ends.open());
        let arrives = Walk::Arrives(&packet);
        self.takes("no listener, UDP in", &host, Verdict::NoListener, arrives);
    }

    /// A client that dials the target itself.
    fn direct(&mut self) {
        let host = Host::new(&[Forward::udp(80..=80, 5000)]);
        let open = Tuple {
            dport: 5000,
            ..self.ends.open()
        };
        let packet = first(Proto::Udp, &open);
        let reply = answer(Proto::Udp, &open.reversed());
        for (path, walk) in [
            ("first in", Walk::Arrives(&packet)),
            ("first out", Walk::Leaves(&reply)),
            ("second in", Walk::Arrives(&packet)),
            ("in", Walk::Arrives(&packet)),
            ("out", Walk::Leaves(&reply)),
        ] {
            self.takes(&format!("direct, UDP {path}"), &host, Verdict::Direct, walk);
        }
    }

    /// What this host starts itself, from a port that a rule names.
    fn of_this_host(&mut self) {
        let host = Host::new(&[Forward::udp(80..=80, 5000)]);
        let open = self.ends.open();
        let packet = first(Proto::Udp, &open.reversed());
        let reply = answer(Proto::Udp, &open);
        for (path, walk) in [
            ("first out", Walk::Leaves(&packet)),
            ("in", Walk::Arrives(&reply)),
            ("out", Walk::Leaves(&packet)),
        ] {
            let path = format!("foreign, UDP {path}");
            self.takes(&path, &host, Verdict::Foreign, walk);
        }
    }

    /// A flow to another host; what is sent on walks egress as well.
    fn across(&mut self, proto: Proto, nat: &str, flags: u16) {
        let host = self.ends.host(proto, flags);
        let open = self.ends.open();
        let seen = match flags {
            0 => self.ends.masked(),
            _ => self.ends.kept(),
        };
        let [opening, packet] = [first(proto, &open), second(proto, &open)];
        let [opening_on, packet_on] = [first(proto, &seen), second(proto, &seen)];
        let [accepting, reply] = [answer, second].map(|reply| reply(proto, &seen.reversed()));
        let [accepting_on, reply_on] = [answer, second].map(|reply| reply(proto, &open.reversed()));
        use Verdict::{Forwarded, Passing, Returned};
        for (path, verdict, walk) in [
            ("first in", Forwarded, Walk::Arrives(&opening)),
            ("first sent on", Passing, Walk::SentOn(&opening_on, LAN)),
            ("first back", Returned, Walk::Returns(&accepting)),
            (
                "first back, sent on",
                Passing,
                Walk::SentOn(&accepting_on, ETH0),
            ),
            ("second in", Forwarded, Walk::Arrives(&packet)),
            ("in", Forwarded, Walk::Arrives(&packet)),
            ("sent on", Passing, Walk::SentOn(&packet_on, LAN)),
            ("back", Returned, Walk::Returns(&reply)),
            ("back, sent on", Passing, Walk::SentOn(&reply_on, ETH0)),
        ] {
            self.takes(
                &format!("{nat}, {} {path}", word(proto)),
                &host,
                verdict,
                walk,
            );
        }
        host.memory.wait(1);
        let path = format!("{nat}, {} in, a new second", word(proto));
        self.takes(&path, &host, Forwarded, Walk::Arrives(&packet));
    }
}

impl Family<'_> {
    /// The same where XDP takes the packets of known flows.
    fn accelerated(&mut self, proto: Proto) {
        let host = self.ends.host(proto, TargetEntry::PRESERVE);
        for ifindex in [ETH0, LAN] {
            let device = Device {
                mac: HARDWARE,
                mtu: 1500,
            };
            host.memory.devices.borrow_mut().insert(ifindex, device);
        }
        let (open, seen) = (self.ends.open(), self.ends.kept());
        let [opening, packet] = [first(proto, &open), second(proto, &open)];
        let packet_on = second(proto, &seen);
        let [accepting, reply] = [answer, second].map(|reply| reply(proto, &seen.reversed()));
        let reply_on = second(proto, &open.reversed());
        use Verdict::{Deferred, Forwarded, Passing, Returned};
        let expressed = |packet, ifindex| Walk::Expressed(packet, ifindex);
        for (path, verdict, walk) in [
            ("first at XDP", Deferred, expressed(&opening, ETH0)),
            ("", Forwarded, Walk::Arrives(&opening)),
            ("", Returned, Walk::Returns(&accepting)),
            ("", Forwarded, Walk::Arrives(&packet)),
            ("in, by TC", Forwarded, Walk::Arrives(&packet)),
            ("learned, sent on", Passing, Walk::SentOn(&packet_on, LAN)),
            ("in", Forwarded, expressed(&packet, ETH0)),
            ("", Returned, Walk::Returns(&reply)),
            ("", Passing, Walk::SentOn(&reply_on, ETH0)),
            ("back", Returned, expressed(&reply, LAN)),
        ] {
            if path.is_empty() {
                assert_eq!(walk.over(&host), verdict);
                continue;
            }
            let path = format!("XDP, {} {path}", word(proto));
            self.takes(&path, &host, verdict, walk);
        }
    }
}

/// The hardware address of every device of the host, and that of a neighbour.
const HARDWARE: Mac = [1; 3];
const NEIGHBOUR: Mac = [2; 3];

const fn word(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "TCP",
        _ => "UDP",
    }
}

/// Where a packet meets the programs.
#[derive(Clone, Copy)]
enum Walk<'a> {
    /// From the network.
    Arrives(&'a [u8]),
    /// From another host, where no client is served.
    Returns(&'a [u8]),
    /// From a socket of this host.
    Leaves(&'a [u8]),
    /// From the program that sent it on, by a device.
    SentOn(&'a [u8], u32),
    /// From the network, at XDP of a device.
    Expressed(&'a [u8], u32),
}

impl Walk<'_> {
    fn over(self, host: &Host) -> Verdict {
        match self {
            Self::Arrives(packet) => {
                let mut buffer = host.buffer(packet);
                host::arrive(&mut buffer, &host.memory).verdict
            }
            Self::Returns(packet) => {
                let mut buffer = host.buffer(packet).on(LAN);
                host::arrive_back(&mut buffer, &host.memory).verdict
            }
            Self::Leaves(packet) => host.depart(packet).0,
            Self::SentOn(packet, ifindex) => {
                let mut buffer = host.buffer(packet).on(ifindex);
                buffer.link.forwarded = true;
                buffer.addresses = Some(Link {
                    dst: NEIGHBOUR,
                    src: HARDWARE,
                });
                host.send(buffer).0.verdict
            }
            Self::Expressed(packet, ifindex) => {
                let mut buffer = host.buffer(packet).on(ifindex);
                buffer.pull(packet.len());
                host::accelerate(&mut buffer, &host.memory)
                    .map_or(Verdict::Deferred, |sent| sent.outcome.verdict)
            }
        }
    }
}
