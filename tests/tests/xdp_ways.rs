//! XDP while the way changes: neighbours, routes and devices. What it sends is
//! right again within two seconds, and by XDP.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use portfwd_tests::{
    Capture, Family, Keep, Listen, Nat, Node, Packet, Stack, State, UdpClient, UdpListen, World,
    bpf::{Side, programs, xdp_program},
    deadline,
    express::EXPRESS,
    relay::{DIALLED, SERVICE, rule_to},
    world::{Network, THIRD},
};

/// The longest that anything may be wrong.
const SOON: Duration = Duration::from_secs(2);

/// An answer that is not there by then never comes, on a busy machine too.
const LATE: Duration = Duration::from_millis(150);

/// A client and its flow, of which XDP carries every packet but a few.
struct Talk<'a> {
    stack: &'a Stack,
    node: &'a Node,
    socket: UdpClient,
    remote: SocketAddr,
}

impl<'a> Talk<'a> {
    #[track_caller]
    fn new(stack: &'a Stack, node: &'a Node, socket: UdpClient, remote: SocketAddr) -> Self {
        let socket = socket.timeout(LATE);
        Self {
            stack,
            node,
            socket,
            remote,
        }
    }

    fn is_answered(&self, text: &str) -> bool {
        self.socket.ask(self.remote, text.as_bytes()).is_ok()
    }

    /// XDP carries it both ways.
    #[track_caller]
    fn is_express(&self, case: &str) {
        self.stack
            .is_passed_by(self.node, self.remote, case, |text| {
                // One that is lost does not prove it.
                let asked = deadline(SOON, || self.is_answered(text).then_some(()));
                assert!(asked.is_some(), "{case}: no answer");
            });
    }

    /// Something happens, and soon it is answered again, and is XDP's.
    #[track_caller]
    fn survives(&self, case: &str, event: impl FnOnce()) {
        self.is_express(&format!("{case}, before"));
        let start = Instant::now();
        event();
        let again = deadline(SOON, || self.is_answered("again").then_some(()));
        let took = start.elapsed();
        println!("{case}: right again after {took:?}");
        assert!(again.is_some(), "{case}: no answer within {took:?}");
        self.is_express(&format!("{case}, afterwards"));
    }
}

impl Talk<'_> {
    /// Goes on for as long; how many were not answered, and when the last was.
    fn goes_on(&self, for_so_long: Duration) -> (u32, Duration) {
        let (mut lost, mut last) = (0, Duration::ZERO);
        let start = Instant::now();
        while start.elapsed() < for_so_long {
            let asked = start.elapsed();
            if !self.is_answered("on and on") {
                lost += 1;
                last = asked;
            }
        }
        (lost, last)
    }

    /// It goes on over the end of a second, and nothing is lost.
    #[track_caller]
    fn stays_so(&self, case: &str) {
        let (lost, last) = self.goes_on(Duration::from_millis(1_050));
        assert_eq!(lost, 0, "{case}: the last after {last:?}");
    }
}

/// Tells of each new hardware address as machines that move do.
#[track_caller]
fn tells_of_moves(node: &Node) {
    node.ns.sysctl("net.ipv4.conf.eth0.arp_notify", 1);
    node.ns.sysctl("net.ipv6.conf.eth0.ndisc_notify", 1);
}

#[test]
fn a_target_that_has_another_hardware_address_is_found() {
    for (nat, family) in Nat::FORCED.into_iter().zip(Family::BOTH) {
        let world = World::forwarder().wired();
        let target = world.behind();
        let _services = target.services(SERVICE);
        let portfwd = world.express(nat);
        let stack = Stack::of(&world.host);
        tells_of_moves(target);
        let socket = world.client.udp(family);
        let remote = world.host.at(family, DIALLED);
        let talk = Talk::new(&stack, &world.client, socket, remote);
        talk.survives(&format!("{nat:?} {family:?}"), || {
            target.ns.ip("link set eth0 address 02:00:00:00:cc:01");
        });
        talk.stays_so(&format!("{nat:?} {family:?}"));
        portfwd.stop_without_loss();
    }
}

/// Where the client lives beyond its router.
const BEYOND: Network = Network {
    v4: [203, 0, 113],
    v6: 0xd,
};

#[test]
fn a_router_of_the_client_that_has_another_hardware_address_is_found() {
    for (nat, family) in Nat::FORCED.into_iter().rev().zip(Family::BOTH) {
        let world = World::forwarder().wired();
        let _services = world.behind().services(SERVICE);
        let portfwd = world.express(nat);
        let stack = Stack::of(&world.host);
        tells_of_moves(&world.client);
        // Its `eth0` is the router, and the client an address behind it.
        let address = BEYOND.address(family, 9);
        world.client.add_address(address);
        let socket = UdpClient::bound(&world.client.ns, SocketAddr::new(address, 0));
        let remote = world.host.at(family, DIALLED);
        let talk = Talk::new(&stack, &world.client, socket, remote);
        talk.survives(&format!("{nat:?} {family:?}"), || {
            world
                .client
                .ns
                .ip("link set eth0 address 02:00:00:00:cc:02");
        });
        talk.stays_so(&format!("{nat:?} {family:?}"));
        portfwd.stop_without_loss();
    }
}

/// Where the target is, beyond two gateways by two interfaces.
const FAR: u8 = 7;

#[test]
fn a_route_that_moves_takes_xdp_along() {
    for (nat, family) in Nat::FORCED.into_iter().zip(Family::BOTH) {
        let world = World::forwarder().wired();
        let (host, behind) = (&world.host.ns, world.behind());
        THIRD.join(host, "eth2", &behind.ns, "eth1");
        THIRD.assign(host, "eth2", 1);
        let other = behind.address(family).to_string();
        // Another gateway on the link: it has an address of its own.
        behind.ns.ip(
            "link add gate link eth0 address 02:00:00:00:cc:03 type macvlan mode bridge
             link set gate up",
        );
        behind
            .ns
            .sh("for d in eth1 gate; do ethtool -K $d tx off gro on >/dev/null; done");
        // The other device keeps quiet of its address.
        behind.ns.sysctl("net.ipv4.conf.all.arp_ignore", 1);
        let gate = THIRD_GATE.address(family, 2);
        THIRD_GATE.assign(&behind.ns, "gate", 2);
        THIRD_GATE.assign(host, "eth1", 1);
        let far = BEYOND.address(family, FAR);
        behind.add_address(far);
        host.ip(&format!("route add {far} via {other}"));
        let _tcp = behind.tcp_server(Listen::DualStack, SERVICE);
        let _udp = behind.udp_server(UdpListen::Address(far), SERVICE);

        let rule = rule_to(SocketAddr::new(far, SERVICE));
        let portfwd = world.host.relay(nat, &format!("{EXPRESS} -i eth2 {rule}"));
        let stack = Stack::of(&world.host);
        let capture = Capture::start(&behind.ns, Keep::Everything);
        let remote = world.host.at(family, DIALLED);
        let talk = Talk::new(&stack, &world.client, world.client.udp(family), remote);
        let third = THIRD.address(family, 2);
        for (device, route) in [
            ("gate", format!("route replace {far} via {gate} dev eth1")),
            ("eth1", format!("route replace {far} via {third} dev eth2")),
            ("eth0", format!("route replace {far} via {other} dev eth1")),
        ] {
            let case = format!("{nat:?} {family:?} to {device}");
            let came = |packet: &Packet| packet.came_by(device);
            talk.survives(&case, || {
                host.ip(&route);
                let text = format!("by {device}");
                let by_new = |packet: &Packet| {
                    let view = packet.view();
                    came(packet) && view.is_some_and(|view| view.payload == text.as_bytes())
                };
                let came = deadline(SOON, || {
                    talk.is_answered(&text);
                    capture.packets(by_new).pop()
                });
                assert!(came.is_some(), "{case}: nothing came the new way");
            });
        }
        portfwd.stop();
    }
}

/// A second network on the host's `eth1`.
const THIRD_GATE: Network = Network {
    v4: [10, 8, 0],
    v6: 8,
};

#[test]
fn without_gro_at_the_other_end_packets_go_by_tc_at_once() {
    for (nat, family) in Nat::FORCED.into_iter().zip(Family::BOTH) {
        for far in [true, false] {
            let world = World::forwarder().wired();
            let _services = world.behind().services(SERVICE);
            let portfwd = world.express(nat);
            let stack = Stack::of(&world.host);
            let remote = world.host.at(family, DIALLED);
            let talk = Talk::new(&stack, &world.client, world.client.udp(family), remote);
            let node = if far { world.behind() } else { &world.client };
            let case = format!(
                "{nat:?} {family:?}, at the {}",
                if far { "target" } else { "client" }
            );
            talk.is_express(&case);
            node.ns.sh("ethtool -K eth0 gro off >/dev/null");
            // What was under way until the forwarder heard of it.
            let (lost, last) = talk.goes_on(Duration::from_millis(900));
            println!("{case}: {lost} lost, the last sent after {last:?}");
            assert!(
                last < Duration::from_millis(600),
                "{case}: {lost} until {last:?}"
            );
            node.ns.sh("ethtool -K eth0 gro on >/dev/null");
            talk.is_express(&format!("{case}, and on again"));
            portfwd.stop_without_loss();
        }
    }
}

#[test]
fn a_device_that_goes_down_and_comes_back_carries_again() {
    // Of IPv6 the addresses go with the device.
    let family = Family::V4;
    for (nat, device) in Nat::FORCED.into_iter().zip(["eth1", "eth0"]) {
        let world = World::forwarder().wired();
        let _services = world.behind().services(SERVICE);
        let portfwd = world.express(nat);
        let stack = Stack::of(&world.host);
        let remote = world.host.at(family, DIALLED);
        let talk = Talk::new(&stack, &world.client, world.client.udp(family), remote);
        let client = world.client.v4;
        talk.survives(&format!("{nat:?}, {device} down"), || {
            world.host.ns.ip(&format!("link set {device} down"));
            assert!(!talk.is_answered("nobody"));
            world.host.ns.ip(&format!("link set {device} up"));
            // The default route went with the device.
            world
                .host
                .ns
                .ip(&format!("route replace default via {client}"));
        });
        portfwd.stop();
    }
}

#[test]
fn kill_9_while_traffic_runs_leaves_nothing_on_a_device() {
    let world = World::forwarder().wired();
    let _services = world.behind().services(SERVICE);
    let before = State::of(&world.host.ns);
    for family in Family::BOTH {
        let portfwd = world.express(Nat::Auto);
        let stack = Stack::of(&world.host);
        let remote = world.host.at(family, DIALLED);
        let talk = Talk::new(&stack, &world.client, world.client.udp(family), remote);
        talk.is_express("before");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let flood = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Nobody may be there.
                    let _refused = talk.socket.send(remote, b"flood");
                }
            });
            portfwd.kill9();
            for device in ["eth0", "eth1"] {
                assert_eq!(xdp_program(&world.host.ns, device), None, "{device}");
                for side in [Side::Ingress, Side::Egress] {
                    let ours = programs(&world.host.ns, device, side);
                    // The mirror of the world's captures is on ingress.
                    assert!(ours.len() <= usize::from(side == Side::Ingress), "{ours:?}");
                }
            }
            stop.store(true, Ordering::Relaxed);
            flood.join().expect("the sender does not panic");
        });
        assert!(!talk.is_answered("nobody"), "{family:?}");
        let next = world.express(Nat::Auto);
        Talk::new(&stack, &world.client, world.client.udp(family), remote).is_express("the next");
        next.stop_without_loss();
        before.assert_unchanged(&State::of(&world.host.ns), "afterwards");
    }
}

/// TCP both ways, and what is carried is whole.
#[test]
fn bulk_goes_by_xdp_and_arrives_whole_in_both_directions() {
    let length = if portfwd_tests::long() {
        1 << 30
    } else {
        64 << 20
    };
    let cells = [
        (Nat::Masquerade, Family::V4),
        (Nat::Preserve, Family::V6),
        (Nat::Preserve, Family::V4),
        (Nat::Masquerade, Family::V6),
    ];
    let count = if portfwd_tests::long() {
        cells.len()
    } else {
        2
    };
    for (nat, family) in cells.into_iter().take(count) {
        let world = World::forwarder()
            .wired()
            .watching(portfwd_tests::Watch::OneOf(64));
        let _service = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let portfwd = world.express(nat);
        let start = Instant::now();
        let talk = world.client.tcp(world.host.at(family, DIALLED)).open();
        let (sent, received) = talk.expect("served").exchange(length).expect("echoed");
        assert_eq!(sent, received, "{nat:?} {family:?}");
        let rate = (length >> 20) as f64 / start.elapsed().as_secs_f64();
        let output = portfwd.stop_without_loss();
        let sent = output.verdict("forwarded") + output.verdict("returned");
        let express = output.express();
        println!(
            "{nat:?} {family:?}: {rate:.0} MiB/s each way at once, {express} of {sent} by XDP"
        );
        assert!(express * 10 > sent * 9, "{nat:?} {family:?}\n{output}");
    }
}
