//! One client port opens connections again and again, and several at once.

use std::time::{Duration, Instant};

use portfwd_tests::{Conversation, Identity, Listen, Manner, Tcp, Way, World, until};

#[test]
fn a_port_is_used_again_at_once_after_the_server_closed_first() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let server = world
            .host
            .tcp_server_builder(Listen::DualStack, 5000)
            .manner(Manner::CloseFirst)
            .start();
        let _portfwd = world.host.portfwd_with(tcp, "80:5000");
        for (way, first_port) in Way::ALL.into_iter().zip((40_000..).step_by(10)) {
            let mut slowest = Duration::ZERO;
            for port in (first_port..first_port + 5).cycle().take(50) {
                let start = Instant::now();
                let talk = world.tcp(way, 80).from_port(port).open();
                let talk = talk.unwrap_or_else(|e| panic!("{tcp:?} {way:?} from {port}: {e}"));
                slowest = slowest.max(start.elapsed());
                talk.until_closed().expect("closed in order");
            }
            assert!(
                slowest < Duration::from_millis(200),
                "{tcp:?} {way:?}: {slowest:?}"
            );
        }
        assert_eq!(server.served().len(), 50 * Way::ALL.len());
    }
}

#[test]
fn one_client_port_talks_to_two_rules_and_their_target_at_once_and_again() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        let _portfwd = world.host.portfwd_with(tcp, "80:5000 8080:5000");
        let mut port = 41_000;
        for way in Way::ALL {
            for order in [[80, 8080, 5000], [5000, 8080, 80], [80, 5000, 8080]] {
                port += 1;
                talk_at_once(&world, tcp, way, port, order);
            }
        }
    }
}

/// Three connections from one port, each of them opened twice.
fn talk_at_once(world: &World, tcp: Tcp, way: Way, port: u16, order: [u16; 3]) {
    let case = format!("{tcp:?} {way:?} from {port} to {order:?}");
    let open = |dialled| {
        let dial = world.tcp(way, dialled).from_port(port).ending_with_reset();
        let talk = dial.open();
        let talk = talk.unwrap_or_else(|error| panic!("{case}, {dialled}: {error}"));
        assert_eq!(talk.local.port(), port);
        assert_eq!(talk.server.local.port(), tcp.accepted_port(dialled, 5000));
        // The address is the client's own; the port too, where the server can
        // tell the connections apart.
        assert_eq!(talk.server.peer.ip(), talk.local.ip(), "{case}, {dialled}");
        assert!(
            tcp == Tcp::Rewritten || talk.client_is_kept(),
            "{case}, {dialled}"
        );
        talk
    };
    let mut talks = order.map(|dialled| Some(open(dialled)));
    let first = talks[0].as_ref().expect("just opened");
    assert!(first.client_is_kept(), "{case}: it came alone");
    let all_echo = |talks: &mut [Option<Conversation>; 3]| {
        for (talk, dialled) in talks.iter_mut().zip(order) {
            let talk = talk.as_mut().expect("open");
            assert!(talk.echoes(&format!("to {dialled}")), "{case}, {dialled}");
        }
    };
    all_echo(&mut talks);
    for (index, dialled) in order.into_iter().enumerate() {
        let old = talks[index].take().expect("open").server;
        until("the server to see the end", || !is_open(world, &old));
        talks[index] = Some(open(dialled));
        all_echo(&mut talks);
    }
}

/// Does the server's end of the connection still stand?
fn is_open(world: &World, end: &Identity) -> bool {
    let ports = [end.local, end.peer].map(|end| format!(":{}", end.port()));
    let sockets = world.host.ns.sh("ss -Htan state established");
    sockets.lines().any(|line| {
        let mut ends = line.split_whitespace().skip(2).zip(&ports);
        ends.all(|(end, port)| end.ends_with(port))
    })
}
