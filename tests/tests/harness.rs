//! The harness proves itself, without portfwd: what it says about traffic is
//! true, it finds what is wrong, and it leaves nothing behind.

use std::{
    fs, panic,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use etherparse::IpNumber;
use portfwd_tests::{
    Bystander, Capture, Family, Frame, Keep, Listen, Manner, Netns, Packet, Portfwd, UdpListen,
    UdpManner, Watch, Way, World,
    bpf::{Side, Spoiler},
    udp::DNS_ANSWER,
    until,
};

/// A port that a service listens on.
const PORT: u16 = 5000;

/// Runs what should panic and returns what it says.
fn complaint(test: impl FnOnce() + panic::UnwindSafe) -> String {
    let cause = panic::catch_unwind(test).expect_err("it should panic");
    match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => (*cause.downcast::<&str>().expect("a panic with a message")).to_owned(),
    }
}

/// Breaks the checksum of a frame in its last byte but one.
fn broken(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let end = bytes.len();
    bytes[end - 2] ^= 1;
    bytes
}

#[test]
fn a_namespace_has_its_own_network_and_ends_with_its_owner() {
    let ns = Netns::new();
    let path = ns.path();
    assert_eq!(ns.sh("ip -br link | cut -d ' ' -f 1").trim(), "lo");
    ns.sysctl("net.ipv4.tcp_syncookies", 2);
    assert_eq!(ns.read_sysctl("net.ipv4.tcp_syncookies"), "2");
    assert!(path.exists());
    drop(ns);
    assert!(!path.exists());
}

#[test]
fn a_panic_inside_passes_through_and_removes_the_namespace() {
    let ns = Netns::new();
    let path = ns.path();
    let text = complaint(panic::AssertUnwindSafe(move || {
        ns.enter(|| panic!("inside"))
    }));
    assert_eq!(text, "inside");
    assert!(!path.exists());
}

#[test]
fn a_panic_in_a_world_removes_all_its_namespaces() {
    let mut paths: Vec<PathBuf> = Vec::new();
    let text = complaint(panic::AssertUnwindSafe(|| {
        let world = World::router();
        let _server = world.host.tcp_server(Listen::DualStack, PORT);
        paths = [&world.host, &world.client, world.behind()]
            .map(|node| node.ns.path())
            .to_vec();
        panic!("the test failed");
    }));
    assert_eq!(text, "the test failed");
    for path in paths {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn a_namespace_of_a_dead_run_is_swept() {
    // The first namespace of this process sweeps, so another one has to.
    let test = std::env::current_exe().expect("a process knows its file");
    let mut dead = Command::new("true").spawn().expect("a child starts");
    let name = format!("pf{}-1", dead.id());
    dead.wait().expect("a child is waited for");
    portfwd_tests::netns::checked(Command::new("ip").args(["netns", "add", &name]));
    let sweeper = [
        "--exact",
        "a_namespace_has_its_own_network_and_ends_with_its_owner",
    ];
    portfwd_tests::netns::checked(Command::new(test).args(sweeper));
    assert!(!fs::exists(format!("/run/netns/{name}")).expect("the folder is there"));
}

#[test]
fn a_child_ends_with_the_thread_that_started_it() {
    let ns = Netns::new();
    let pid = std::thread::scope(|scope| {
        let start = || {
            ns.command("sleep")
                .arg("60")
                .spawn()
                .expect("a child starts")
                .id()
        };
        scope.spawn(start).join().expect("the thread ends")
    });
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until("the child to be killed", || state().contains(") Z "));
}

#[test]
fn a_direct_tcp_client_is_served_on_every_way_by_every_kind_of_listener() {
    let world = World::direct();
    for listen in Listen::ALL {
        let server = world.host.tcp_server(listen, PORT);
        for way in Way::ALL {
            let dial = world.tcp(way, PORT);
            let loopback = matches!(way, Way::Loopback(_));
            if !listen.serves(way.family()) || (listen == Listen::Loopback && !loopback) {
                assert!(dial.is_refused(), "{listen:?} {way:?}");
                continue;
            }
            let mut talk = dial
                .open()
                .unwrap_or_else(|e| panic!("{listen:?} {way:?}: {e}"));
            assert!(talk.client_is_kept(), "{listen:?} {way:?}: {talk:?}");
            assert_eq!(talk.server.local, world.remote(way, PORT));
            assert!(talk.echoes("hello"));
        }
        let served = Family::BOTH.map(|family| server.served_over(family));
        let expected = match listen {
            Listen::V4Only => [3, 0],
            Listen::Loopback => [1, 1],
            _ => [3, 3],
        };
        assert_eq!(served, expected, "{listen:?}");
    }
    assert!(world.finish()[0].right > 0);
}

#[test]
fn a_server_that_closes_first_lets_the_client_return_from_its_port() {
    let world = World::direct();
    let server = world
        .host
        .tcp_server_builder(Listen::DualStack, PORT)
        .manner(Manner::CloseFirst)
        .start();
    for count in 1..=5 {
        let start = Instant::now();
        let talk = world
            .tcp(Way::Remote(Family::V4), PORT)
            .from_port(40_000)
            .open();
        let talk = talk.expect("served");
        assert_eq!(talk.server.peer.port(), 40_000);
        talk.until_closed().expect("closed");
        assert!(start.elapsed() < Duration::from_millis(200));
        server.until_served(count);
    }
}

#[test]
fn one_port_of_a_client_talks_to_several_servers() {
    let world = World::direct();
    let _servers = [5001, 5002].map(|port| world.host.tcp_server(Listen::DualStack, port));
    for family in Family::BOTH {
        let dial = |port| {
            world
                .client
                .tcp(world.host.at(family, port))
                .from_port(40_001)
        };
        let talks = [5001, 5002].map(|port| dial(port).open().expect("served"));
        assert_eq!(
            talks.each_ref().map(|talk| talk.server.name.as_str()),
            ["5001", "5002"]
        );
        talks.into_iter().for_each(|talk| talk.abort());
    }
}

#[test]
fn bulk_arrives_as_it_was_sent() {
    let world = World::direct();
    let _server = world
        .host
        .tcp_server_builder(Listen::DualStack, PORT)
        .manner(Manner::Digest)
        .start();
    for family in Family::BOTH {
        let talk = world.tcp(Way::Remote(family), PORT).open().expect("served");
        let (sent, received) = talk.send_bulk(64 << 20).expect("all is sent");
        assert_eq!(sent, received);
    }
}

#[test]
fn datagrams_are_answered_and_the_source_of_an_answer_is_told() {
    let world = World::direct();
    let server = world.host.udp_server(UdpListen::DualStack, PORT);
    for way in Way::ALL {
        let client = world.udp(way);
        let reply = client
            .ask(world.remote(way, PORT), b"hello")
            .expect("answered");
        let identity = reply.server.expect("it identifies itself");
        assert_eq!(identity.peer.port(), client.local().port());
        let again = client.connected(world.remote(way, PORT));
        assert!(again.ask(world.remote(way, PORT), b"again").is_ok());
    }
    assert_eq!(
        Family::BOTH.map(|family| server.served_over(family)),
        [6, 6]
    );
}

#[test]
fn an_answer_from_another_address_is_found_out() {
    let world = World::direct().with_second_address();
    let _server = world.host.udp_server(UdpListen::V4Only, PORT);
    let dialled = (world.second_address(Family::V4), PORT).into();
    let client = world.client.udp(Family::V4);
    let reply = client.exchange(dialled, b"hello").expect("answered");
    assert_eq!(
        reply.from,
        world.host.at(Family::V4, PORT),
        "the primary address answers"
    );
    assert!(client.ask(dialled, b"hello").is_err());
}

#[test]
fn a_refused_datagram_is_told_to_a_connected_client() {
    let world = World::direct();
    let remote = world.host.at(Family::V6, PORT);
    let client = world.client.udp(Family::V6).connected(remote);
    let error = client.ask(remote, b"hello").expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_resolver_gets_its_answer() {
    let world = World::masquerade();
    let _server = world
        .client
        .udp_server_with(UdpListen::DualStack, 53, UdpManner::Dns);
    for family in Family::BOTH {
        let line = format!(
            "dig +short +tries=1 @{} example.com",
            world.client.address(family)
        );
        for node in [&world.host, world.behind()] {
            assert_eq!(node.ns.sh(&line).trim(), DNS_ANSWER.to_string());
        }
    }
}

#[test]
fn numbered_datagrams_are_counted_once_each() {
    let world = World::direct().watching(Watch::OneOf(50));
    let server = world
        .host
        .udp_server_with(UdpListen::DualStack, PORT, UdpManner::Count);
    let client = world.client.udp(Family::V4);
    let sent = client
        .blast(world.host.at(Family::V4, PORT), 50_000, 50_000)
        .expect("sent");
    assert_eq!(server.settled(sent.count), sent);
    let report = &world.finish()[0];
    assert!(
        (500..10_000).contains(&report.right),
        "{} of 100000 were checked",
        report.right
    );
}

#[test]
fn a_router_forwards_and_a_bridge_has_a_container() {
    for world in [World::router(), World::bridge()] {
        let server = world.behind().tcp_server(Listen::DualStack, PORT);
        for family in Family::BOTH {
            let talk = world
                .client
                .tcp(world.behind().at(family, PORT))
                .open()
                .expect("served");
            assert!(talk.client_is_kept());
        }
        server.until_served(2);
    }
}

#[test]
fn the_host_masquerades_who_is_behind_it() {
    let world = World::masquerade();
    let _server = world.client.tcp_server(Listen::DualStack, PORT);
    for family in Family::BOTH {
        let talk = world
            .behind()
            .tcp(world.client.at(family, PORT))
            .open()
            .expect("served");
        assert_eq!(talk.server.peer.ip(), world.host.address(family));
    }
}

#[test]
fn a_deliberately_wrong_checksum_fails_the_test_when_the_world_ends() {
    for family in Family::BOTH {
        let text = complaint(|| {
            let world = World::direct();
            let source = world.client.at(family, 1000);
            let frame = Frame::udp(source, world.host.at(family, PORT)).payload(b"1234");
            let wire = world.wire();
            wire.send(&frame);
            wire.send_bytes(&broken(&frame));
        });
        assert!(text.contains("wrong checksums at the host"), "{text}");
        assert!(text.contains("full UDP checksum"), "{text}");
    }
}

#[test]
fn a_forgiven_one_does_not() {
    let world = World::direct();
    let host = world.host.at(Family::V4, PORT);
    world.forgive(move |packet| packet.goes_to(host));
    let frame = Frame::syn(world.client.at(Family::V4, 1000), host).payload(b"1234");
    world.wire().send_bytes(&broken(&frame));
    world.finish();
}

#[test]
fn partial_checksums_are_seen_and_proved() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    let _server = world.host.tcp_server(Listen::DualStack, PORT);
    for family in Family::BOTH {
        let host = world.host.at(family, PORT);
        let mut talk = world.client.tcp(host).open().expect("served");
        assert!(talk.echoes("offloaded"));
        let seen = capture.wait_for("a data segment", |packet| {
            packet.goes_to(host) && packet.view().is_some_and(|v| v.payload == b"offloaded")
        });
        assert!(seen.partial, "tx offload is left on");
    }
    let report = capture.finish();
    assert!(report.right > 10 && report.wrong == 0, "{report:?}");
}

/// A packet socket does not see what a program does on ingress.
#[test]
fn what_a_program_spoils_on_ingress_is_found() {
    for (device, way) in [
        ("eth0", Way::Remote(Family::V4)),
        ("lo", Way::Own(Family::V4)),
    ] {
        let text = complaint(|| {
            let world = World::direct();
            let _spoiler = Spoiler::attach(&world.host.ns, device).expect("Linux 6.6 or later");
            let arrived = Bystander::attach(&world.host.ns, device, Side::Ingress);
            let client = world.udp(way);
            client.send(world.remote(way, PORT), b"1234").expect("sent");
            until("the datagram to arrive", || arrived.seen(PORT) == 1);
        });
        assert!(
            text.contains("partial UDP checksum 0xadde"),
            "{device}: {text}"
        );
        assert!(text.contains("leaving by mirror0"), "{device}: {text}");
    }
}

#[test]
fn what_comes_in_is_mirrored() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    let _server = world.host.udp_server(UdpListen::DualStack, PORT);
    for way in Way::ALL {
        let host = world.remote(way, PORT);
        world.udp(way).ask(host, b"mirrored").expect("answered");
        capture.wait_for("the copy", |packet| {
            packet.device == portfwd_tests::world::MIRROR && packet.goes_to(host)
        });
    }
}

#[test]
fn a_bystander_counts_by_port_and_passes_everything_on() {
    let world = World::direct();
    let bystander = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
    let _server = world.host.udp_server(UdpListen::DualStack, PORT);
    for family in Family::BOTH {
        let client = world.client.udp(family);
        for _ in 0..5 {
            client
                .ask(world.host.at(family, PORT), b"counted")
                .expect("answered");
        }
    }
    assert_eq!(bystander.seen(PORT), 10);
    assert_eq!(bystander.seen(PORT + 1), 0);
}

#[test]
fn forged_syns_come_from_many_and_a_short_queue_fills() {
    let world = World::direct();
    world.host.ns.sysctl("net.ipv4.tcp_syncookies", 0);
    let bystander = Bystander::attach(&world.host.ns, "eth0", Side::Ingress);
    let _server = world
        .host
        .tcp_server_builder(Listen::DualStack, PORT)
        .backlog(8)
        .start();
    for family in Family::BOTH {
        world.forge_syns(family, PORT, 60);
    }
    until("the SYNs to arrive", || bystander.seen(PORT) == 120);
    let sockets = world.host.ns.sh("ss -Htan state syn-recv");
    assert!((6..=20).contains(&sockets.lines().count()), "{sockets}");
}

#[test]
fn a_filter_leaves_only_udp() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    capture.filter(&Watch::Udp.filter());
    let _servers = (
        world.host.tcp_server(Listen::DualStack, PORT),
        world.host.udp_server(UdpListen::DualStack, PORT),
    );
    for family in Family::BOTH {
        world.tcp(Way::Remote(family), PORT).open().expect("served");
        world
            .udp(Way::Remote(family))
            .ask(world.host.at(family, PORT), b"udp")
            .expect("answered");
    }
    let views: Vec<_> = capture
        .finish()
        .packets
        .iter()
        .filter_map(Packet::view)
        .collect();
    assert!(
        views.iter().all(|view| view.protocol == IpNumber::UDP),
        "{views:?}"
    );
    // In, the mirrored copy of that, and out.
    assert_eq!(views.len(), 6, "{views:?}");
}

#[test]
fn a_process_that_is_interrupted_leaves_its_words() {
    let ns = Netns::new();
    let mut command = ns.command("sh");
    command.args([
        "-c",
        "trap 'echo bye; exit 0' INT; echo ready; while :; do sleep 0.01; done",
    ]);
    let process = Portfwd::from_command(command).until_ready();
    assert_eq!(process.stop().stdout, "ready\nbye\n");
}

#[test]
fn a_process_that_is_never_ready_is_shown_with_its_words() {
    let ns = Netns::new();
    let mut command = ns.command("sh");
    command.args(["-c", "echo no such device >&2; exit 1"]);
    let text = complaint(panic::AssertUnwindSafe(|| {
        Portfwd::from_command(command).until_ready();
    }));
    assert!(
        text.contains("exit status: 1") && text.contains("no such device"),
        "{text}"
    );
}

#[test]
fn without_root_a_test_says_so_in_one_sentence() {
    let test = std::env::current_exe().expect("a process knows its file");
    // Where others may read it.
    let copy = std::env::temp_dir().join(format!("portfwd-harness-{}", std::process::id()));
    fs::copy(test, &copy).expect("there is room for a copy");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "--"])
        .arg(&copy)
        .args([
            "--exact",
            "a_namespace_has_its_own_network_and_ends_with_its_owner",
        ])
        .output();
    fs::remove_file(&copy).expect("the copy is there");
    let text = String::from_utf8(output.expect("util-linux is there").stdout).expect("text");
    assert!(
        text.contains("needs root: run them with `cargo xtask test`"),
        "{text}"
    );
}
