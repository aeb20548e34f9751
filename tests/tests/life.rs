//! How a run begins, what it says meanwhile, and that it ends without a trace.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use portfwd_tests::{
    Family, Netns, Portfwd, Services, State, Tcp, Way, World,
    bpf::{Side, programs},
    deadline,
    portfwd::{READY, binary},
    services::RULES,
    state, until,
    wait::PATIENCE,
};

#[test]
fn it_says_for_each_rule_how_and_where_it_is_carried_and_then_that_it_is_ready() {
    let world = World::direct();
    for (tcp, way) in [
        (Tcp::Steered, "tcp by steer"),
        (Tcp::Rewritten, "tcp by rewrite"),
    ] {
        let portfwd = world
            .host
            .portfwd_with(tcp, "-i eth0 80:5000 53:5353/tcp+udp");
        let printed = portfwd.stdout();
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), 4, "{printed}");
        for (line, rule) in lines.iter().zip(["80:5000 ", "53:5353/tcp+udp "]) {
            assert!(line.starts_with(rule), "{printed}");
            for words in ["tc ingress", "eth0", "lo", way] {
                assert!(line.contains(words), "{words} is missing: {printed}");
            }
        }
        assert!(!lines[0].contains("udp"), "{printed}");
        assert!(lines[1].contains("udp by rewrite"), "{printed}");
        let room = lines[2].starts_with("room for 131072 flows: ");
        assert!(room && lines[2].ends_with(" MiB"), "{printed}");
        assert!(
            lines[3].starts_with(READY) && lines[3].contains("Ctrl-C"),
            "{printed}"
        );
        assert_eq!(portfwd.stop().stderr, "");
    }
}

#[test]
fn stats_are_printed_while_it_runs() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    let portfwd = world.host.portfwd(&format!("-i eth0 --stats 1 {RULES}"));
    assert_served(&world);
    let tables = |text: &str| text.matches("connections").count();
    until("two tables", || tables(&portfwd.stdout()) >= 2);
    let printed = portfwd.stdout();
    let mut rows = printed.lines().filter(|line| line.contains("80:5000"));
    let last = rows.next_back().expect("a row for the rule");
    assert!(last.split_whitespace().any(|cell| cell == "2"), "{printed}");
    assert!(tables(&portfwd.stop().stdout) >= 3);
}

#[test]
fn verbose_prints_a_line_for_each_new_flow() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    for tcp in Tcp::BOTH {
        let portfwd = world.host.portfwd_with(tcp, &format!("-v -i eth0 {RULES}"));
        let mut flows = Vec::new();
        for way in Way::ALL {
            let mut talk = world.tcp(way, 80).open().expect("served");
            for text in ["once", "twice", "three times"] {
                assert!(talk.echoes(text));
            }
            flows.push(format!("tcp {} -> {}", talk.local, world.remote(way, 80)));
            let client = world.udp(way).connected(world.remote(way, 53));
            for _ in 0..3 {
                client
                    .ask(world.remote(way, 53), b"hello")
                    .expect("answered");
            }
            flows.push(format!(
                "udp {} -> {}",
                client.local(),
                world.remote(way, 53)
            ));
        }
        for flow in &flows {
            until(&format!("the line of {flow}"), || {
                portfwd.stderr().contains(flow)
            });
        }
        let stderr = portfwd.stop().stderr;
        for flow in &flows {
            assert_eq!(stderr.matches(flow).count(), 1, "{tcp:?} {flow}:\n{stderr}");
        }
        assert!(
            stderr.lines().all(|line| line.starts_with("portfwd: ")),
            "{stderr}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_does_not_end_it() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    let before = State::of(&world.host.ns);
    let mut command = world
        .host
        .ns
        .command(binary().to_str().expect("a path of text"));
    command
        .args(["-v", "-i", "eth0", "--stats", "1"])
        .args(RULES.split(' '));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout was asked for")).lines();
    let ready = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.starts_with(READY));
    assert!(ready, "{child:?}");
    drop(lines);
    drop(child.stderr.take());
    // It writes to both: flows at once, a table after a second.
    assert_served(&world);
    let ended = deadline(Duration::from_millis(1500), || {
        child.try_wait().expect("a child")
    });
    assert_eq!(ended, None);
    assert_served(&world);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it is alive");
    let status = deadline(PATIENCE, || child.try_wait().expect("a child"));
    let _ = child.kill();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    before.assert_unchanged(&State::of(&world.host.ns), "afterwards");
}

#[test]
fn each_end_detaches_restores_and_prints_the_counters() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    let before = State::of(&world.host.ns);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let portfwd = world
            .host
            .portfwd(&format!("-i eth0 {RULES} 54:127.0.0.1:5353/udp"));
        let opened = world
            .host
            .ns
            .read_sysctl("net.ipv4.conf.eth0.route_localnet");
        assert_eq!(opened, "1");
        assert!(
            portfwd.stdout().contains("route_localnet"),
            "{}",
            portfwd.stdout()
        );
        assert!(!state::files(&world.host.ns).is_empty());
        assert_served(&world);

        let output = portfwd.stop_by(signal);
        before.assert_unchanged(&State::of(&world.host.ns), signal.as_str());
        assert_eq!(output.stderr, "");
        for (rule, connections) in [
            ("80:5000", 2),
            ("53:5353/udp", 2),
            ("54:127.0.0.1:5353/udp", 0),
        ] {
            let counted = output.rule_counter(rule, "connections");
            assert_eq!(counted, Some(connections), "{rule}\n{output}");
        }
        assert!(output.verdict("steered") > 0, "{output}");
        let refused = world.tcp(Way::Remote(Family::V4), 80).is_refused();
        assert!(refused, "nothing is forwarded after {signal}");
    }
}

#[test]
fn rules_that_need_no_sysctl_change_none() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    let before = State::of_sysctls(&world.host.ns);
    for tcp in Tcp::BOTH {
        let rules =
            format!("{RULES} 127.0.0.1:54:127.0.0.1:5353/udp 8000-8999:18000-18999/tcp+udp");
        let portfwd = world.host.portfwd_with(tcp, &rules);
        assert_served(&world);
        before.assert_unchanged(&State::of_sysctls(&world.host.ns), "while it runs");
        portfwd.stop();
        before.assert_unchanged(&State::of_sysctls(&world.host.ns), "afterwards");
    }
}

#[test]
fn after_kill_9_the_next_start_works_at_once_and_undoes_what_was_left() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    let ns = &world.host.ns;
    let before = State::of(ns);
    let localnet = "net.ipv4.conf.eth0.route_localnet";
    for _ in 0..3 {
        world
            .host
            .portfwd("-i eth0 80:5000 53:127.0.0.1:5353/udp")
            .kill9();
        assert_eq!(
            ns.read_sysctl(localnet),
            "1",
            "nobody was there to restore it"
        );
        let next = world.host.portfwd(&format!("-i eth0 {RULES}"));
        assert_eq!(ns.read_sysctl(localnet), "0");
        assert_eq!(
            programs(ns, "eth0", Side::Egress).len(),
            1,
            "none of the dead run's"
        );
        assert_served(&world);
        next.stop();
        before.assert_unchanged(&State::of(ns), "afterwards");
    }
    // Whoever has set it since has it.
    world.host.portfwd("-i eth0 53:127.0.0.1:5353/udp").kill9();
    ns.sysctl(localnet, 2);
    world.host.portfwd("-i eth0 80:5000").stop();
    assert_eq!(ns.read_sysctl(localnet), "2");
}

#[test]
fn what_a_dead_run_left_goes_with_the_next_start_in_any_namespace() {
    let gone = Netns::new();
    let cookie = state::cookie(&gone);
    Portfwd::start(&gone, Tcp::Steered, "80:5000").kill9();
    drop(gone);
    let next = Netns::new();
    let portfwd = Portfwd::start(&next, Tcp::Steered, "80:5000");
    assert!(state::files_of(&cookie).is_empty());
    portfwd.stop();
}

#[test]
fn of_several_starts_at_once_exactly_one_wins() {
    let world = World::direct();
    let _services = Services::start(&world.host.ns);
    let before = State::of(&world.host.ns);
    for _ in 0..3 {
        let args = format!("-i eth0 {RULES}");
        let mut runs: Vec<Portfwd> = (0..4)
            .map(|_| Portfwd::spawn(&world.host.ns, Tcp::Steered, &args))
            .collect();
        let is_ready = |run: &Portfwd| run.stdout().lines().any(|line| line.starts_with(READY));
        until("each to win or lose", || {
            runs.iter()
                .all(|run| is_ready(run) || !run.stderr().is_empty())
        });
        let winner = runs.iter().position(is_ready).expect("one wins");
        let winner = runs.swap_remove(winner);
        for loser in runs {
            until("the loser to end", || has_ended(loser.pid()));
            let output = loser.kill9();
            assert_eq!(
                output.status.and_then(|status| status.code()),
                Some(1),
                "{output}"
            );
            assert!(output.stderr.contains("already forwards"), "{output}");
            assert_eq!(output.stdout, "");
        }
        assert_served(&world);
        winner.stop();
        before.assert_unchanged(&State::of(&world.host.ns), "afterwards");
    }
}

/// Is it a zombie, which its parent still has to wait for?
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}

/// Every rule works from the network, over both families.
#[track_caller]
fn assert_served(world: &World) {
    for way in Family::BOTH.map(Way::Remote) {
        let talk = world.tcp(way, 80).open().expect("served");
        assert_eq!(talk.server.name, "5000");
        let reply = world.udp(way).ask(world.remote(way, 53), b"hello");
        assert_eq!(
            reply.expect("answered").server.expect("a name").name,
            "5353"
        );
    }
}
