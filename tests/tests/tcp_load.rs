//! Many clients, forged ones too, and bulk over TCP: nothing is lost.

use std::{
    thread,
    time::{Duration, Instant},
};

use portfwd_tests::{Bystander, Family, Listen, Tcp, Watch, Way, World, bpf::Side, long, until};

/// How long a client waits for an answer that may not come.
const IMPATIENT: Duration = Duration::from_millis(400);

#[test]
fn clients_are_served_while_forged_syns_fill_a_short_queue_as_a_direct_connection_is() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _portfwd = world.host.portfwd_with(tcp, "80:5000");
        // Behind ours: sees the target port where the packet was rewritten.
        let arrived = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
        let forged = tcp.accepted_port(80, 5000);
        for syncookies in 0..=2 {
            world.host.ns.sysctl("net.ipv4.tcp_syncookies", syncookies);
            for family in Family::BOTH {
                let _servers = [5000, 5001].map(|port| {
                    let server = world.host.tcp_server_builder(Listen::DualStack, port);
                    server.backlog(8).start()
                });
                let before = arrived.seen(forged) + arrived.seen(5001);
                world.forge_syns(family, 80, 60);
                world.forge_syns(family, 5001, 60);
                until("the SYNs to arrive", || {
                    arrived.seen(forged) + arrived.seen(5001) >= before + 120
                });
                let clients = if syncookies == 0 { 1 } else { 10 };
                for _ in 0..clients {
                    let [forwarded, direct] = [80, 5001].map(|port| {
                        let dial = world.tcp(Way::Remote(family), port);
                        dial.timeout(IMPATIENT).open().is_ok()
                    });
                    assert_eq!(forwarded, direct, "{tcp:?} {family:?} {syncookies}");
                    assert!(
                        forwarded || syncookies == 0,
                        "{tcp:?} {family:?} {syncookies}"
                    );
                }
            }
        }
    }
}

#[test]
fn fifty_clients_are_served_in_parallel() {
    for tcp in Tcp::BOTH {
        let world = World::direct().watching(Watch::OneOf(4));
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        thread::scope(|scope| {
            for way in Way::ALL.into_iter().cycle().take(50) {
                let world = &world;
                scope.spawn(move || {
                    let dial = world.tcp(way, 80).timeout(Duration::from_secs(10));
                    let talk = dial
                        .open()
                        .unwrap_or_else(|e| panic!("{tcp:?} {way:?}: {e}"));
                    assert!(talk.client_is_kept(), "{tcp:?} {way:?}");
                    let bulk = talk.exchange(1 << 20);
                    let (sent, received) = bulk.unwrap_or_else(|e| panic!("{tcp:?} {way:?}: {e}"));
                    assert_eq!(sent, received, "{tcp:?} {way:?}");
                });
            }
        });
        let output = portfwd.stop();
        assert_eq!(
            output.rule_counter("80:5000", "connections"),
            Some(50),
            "{output}"
        );
    }
}

#[test]
fn bulk_arrives_whole_in_both_directions() {
    let length = if long() { 1 << 30 } else { 64 << 20 };
    for tcp in Tcp::BOTH {
        let world = World::direct().watching(Watch::OneOf(64));
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        for way in [
            Way::Remote(Family::V4),
            Way::Remote(Family::V6),
            Way::Loopback(Family::V4),
        ] {
            let start = Instant::now();
            let talk = world.tcp(way, 80).open().expect("served");
            let (sent, received) = talk.exchange(length).expect("echoed to the end");
            assert_eq!(sent, received, "{tcp:?} {way:?}");
            let rate = (length >> 20) as f64 / start.elapsed().as_secs_f64();
            println!("{tcp:?} {way:?}: {rate:.0} MiB/s each way at once");
        }
        let output = portfwd.stop_without_loss();
        for label in ["guarded", "cannot-steer"] {
            assert_eq!(output.verdict(label), 0, "{tcp:?}\n{output}");
        }
    }
}
