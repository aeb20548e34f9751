//! Much traffic to another host, and traffic while the way changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use portfwd_tests::{
    Capture, Conversation, Crowd, Family, Identity, Keep, Listen, Nat, Node, Packet, Place, Site,
    UdpListen, Watch, Who, World, deadline, long,
    relay::{DIALLED, SERVICE, rule_to, rules},
    world::{Network, THIRD},
};

#[test]
fn bulk_arrives_whole_in_both_directions() {
    let length = if long() { 1 << 30 } else { 64 << 20 };
    for nat in Nat::FORCED {
        let world = World::forwarder().watching(Watch::OneOf(64));
        let _service = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let portfwd = world.relay(nat);
        for family in Family::BOTH {
            let start = Instant::now();
            let talk = world.client.tcp(world.host.at(family, DIALLED)).open();
            let talk = talk.expect("served");
            let (sent, received) = talk.exchange(length).expect("echoed to the end");
            assert_eq!(sent, received, "{nat:?} {family:?}");
            let rate = (length >> 20) as f64 / start.elapsed().as_secs_f64();
            println!("{nat:?} {family:?}: {rate:.0} MiB/s each way at once");
        }
        portfwd.stop_without_loss();
    }
}

/// The largest packet of the devices, less what is merged.
const MTU: usize = 1500;

#[test]
fn merged_segments_stay_whole_in_both_directions() {
    for place in Place::ALL {
        for nat in Nat::FORCED {
            let site = Site::new(place);
            let portfwd = site.portfwd(nat);
            for family in Family::BOTH {
                let ends = [&site.target, &site.remote];
                let captures = ends.map(|end| Capture::start(&end.ns, Keep::Everything));
                let talk = site.remote.tcp(site.host.at(family, DIALLED)).open();
                let (sent, received) = talk.expect("served").exchange(4 << 20).expect("echoed");
                assert_eq!(sent, received, "{place:?} {nat:?} {family:?}");
                let merged = |packet: &Packet| !packet.outgoing && packet.bytes.len() > MTU;
                let counts = || captures.each_ref().map(|c| c.packets(merged).len());
                // Half of what an end gets at the least comes in merged packets;
                // a capture may be behind.
                let whole = || counts().iter().all(|count| *count > 32).then_some(());
                let case = format!("{place:?} {nat:?} {family:?}");
                assert!(
                    deadline(5 * RECOVERY, whole).is_some(),
                    "{case}: {:?}",
                    counts()
                );
            }
            portfwd.stop_without_loss();
        }
    }
}

#[test]
fn a_hundred_clients_are_served_in_parallel() {
    for nat in Nat::FORCED {
        let world = World::forwarder().watching(Watch::OneOf(8));
        let _service = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let portfwd = world.relay(nat);
        thread::scope(|scope| {
            for family in Family::BOTH.into_iter().cycle().take(100) {
                let world = &world;
                scope.spawn(move || {
                    let dial = world.client.tcp(world.host.at(family, DIALLED));
                    let talk = dial.timeout(Duration::from_secs(20)).open();
                    let talk = talk.unwrap_or_else(|error| panic!("{nat:?} {family:?}: {error}"));
                    let bulk = talk.exchange(512 << 10);
                    let (sent, received) =
                        bulk.unwrap_or_else(|error| panic!("{nat:?} {family:?}: {error}"));
                    assert_eq!(sent, received, "{nat:?} {family:?}");
                });
            }
        });
        let output = portfwd.stop();
        for family in Family::BOTH {
            let rule = world.behind().rule(family);
            let connections = output.rule_counter(&rule, "connections");
            assert_eq!(connections, Some(50), "{output}");
        }
    }
}

#[test]
fn thirty_thousand_masqueraded_flows_live_side_by_side() {
    for family in Family::BOTH {
        let world = World::forwarder().watching(Watch::OneOf(16));
        let _service = world.behind().udp_server(UdpListen::DualStack, SERVICE);
        let portfwd = world.relay(Nat::Masquerade);
        // Two of three find their own port taken.
        let crowd = Crowd::new(&world, family, 3, 10_000..20_000);
        let remote = world.host.at(family, DIALLED);
        let first = crowd.ask(remote);
        assert_eq!(first.len(), crowd.len(), "answered over {family:?}");
        let peers: BTreeSet<SocketAddr> = first.values().map(|server| server.peer).collect();
        assert_eq!(peers.len(), crowd.len(), "a port for each");
        let masquerade = world.inside_address(family);
        assert!(peers.iter().all(|peer| peer.ip() == masquerade));
        all_keep_their_ports(&crowd, remote, &first);
        portfwd.stop_without_loss();
    }
}

/// Those who were answered at first are answered again, and seen as before.
#[track_caller]
fn all_keep_their_ports(crowd: &Crowd, remote: SocketAddr, first: &BTreeMap<SocketAddr, Identity>) {
    let again = crowd.ask(remote);
    let differing = first
        .iter()
        .filter(|(who, server)| again.get(who) != Some(server));
    assert_eq!(differing.count(), 0, "lost or moved, of those at {remote}");
}

#[test]
fn where_no_port_is_left_it_is_counted_and_those_who_have_one_keep_it() {
    let world = World::forwarder().watching(Watch::OneOf(16));
    let _service = world.behind().udp_server(UdpListen::DualStack, SERVICE);
    let family = Family::V4;
    let rule = format!("{DIALLED}:{}/udp", world.behind().at(family, SERVICE));
    let args = format!("--max-flows 400000 {rule}");
    let portfwd = world.host.relay(Nat::Masquerade, &args);
    // More than there are ports.
    let crowd = Crowd::new(&world, family, 22, 20_000..23_000);
    let crowd = crowd.patience(Duration::from_millis(200));
    let remote = world.host.at(family, DIALLED);
    let first = crowd.ask(remote);
    println!("{} of {} have a port", first.len(), crowd.len());
    assert!((50_000..=65_535).contains(&first.len()), "{}", first.len());
    all_keep_their_ports(&crowd, remote, &first);
    let output = portfwd.stop();
    assert!(output.verdict("no-port") > 0, "{output}");
    assert_eq!(output.verdict("table-full"), 0, "{output}");
}

/// The longest that traffic may stand still.
const RECOVERY: Duration = Duration::from_secs(1);

/// Talks over TCP and UDP while something happens, and goes on with both
/// until each was answered often enough afterwards. Complains when one of
/// them has waited for too long.
#[track_caller]
fn survives(client: &Node, remote: SocketAddr, case: &str, event: impl FnOnce()) {
    let (stop, answers) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
    let talk = client.tcp(remote).open();
    let mut talk = talk.unwrap_or_else(|error| panic!("{case}: {error}"));
    let asker = client.udp(Family::of(remote.ip()));
    let asker = asker.timeout(Duration::from_millis(20));
    let longest = thread::scope(|scope| {
        let (stop, answers) = (&stop, &answers);
        // Also when the event panics.
        let end = Stop(stop);
        let tcp = scope.spawn(move || longest_gap(stop, &answers[0], || talk.echoes("tick")));
        let udp = scope
            .spawn(move || longest_gap(stop, &answers[1], || asker.ask(remote, b"tick").is_ok()));
        let more = |count: u32| {
            let before = answers
                .each_ref()
                .map(|answers| answers.load(Ordering::Relaxed));
            deadline(4 * RECOVERY, || {
                let now = answers
                    .iter()
                    .map(|answers| answers.load(Ordering::Relaxed));
                let enough = now.zip(before).all(|(now, before)| now >= before + count);
                enough.then_some(())
            })
        };
        let (began, _) = (more(20), event());
        let went_on = more(20);
        drop(end);
        let longest = [tcp, udp].map(|thread| thread.join().expect("the talkers do not panic"));
        assert!(began.is_some(), "{case}: nothing was answered at all");
        assert!(went_on.is_some(), "{case}: it did not go on, {longest:?}");
        longest
    });
    println!("{case}: longest wait {longest:?}");
    assert!(
        longest.into_iter().all(|gap| gap < RECOVERY),
        "{case}: {longest:?}"
    );
}

/// Raises a flag when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Repeats what may fail, and tells how long it once took to succeed again.
fn longest_gap(stop: &AtomicBool, answers: &AtomicU32, mut ask: impl FnMut() -> bool) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        if ask() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            answers.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(2));
    }
    longest.max(last.elapsed())
}

#[test]
fn traffic_goes_on_when_the_hardware_address_of_the_target_changes() {
    for nat in Nat::FORCED {
        let world = World::forwarder();
        let target = world.behind();
        let _services = target.services(SERVICE);
        let portfwd = world.relay(nat);
        let case = format!("{nat:?}, a pair");
        survives_new_hardware_addresses(&world.client, &world.host, target, &case);
        portfwd.stop_without_loss();
        for place in Place::ALL {
            let site = Site::new(place);
            let portfwd = site.portfwd(nat);
            let case = format!("{nat:?} {place:?}");
            survives_new_hardware_addresses(&site.remote, &site.host, &site.target, &case);
            portfwd.stop_without_loss();
        }
    }
}

/// The target tells of each address as machines that move do.
#[track_caller]
fn survives_new_hardware_addresses(client: &Node, host: &Node, target: &Node, case: &str) {
    target.ns.sysctl("net.ipv4.conf.eth0.arp_notify", 1);
    target.ns.sysctl("net.ipv6.conf.eth0.ndisc_notify", 1);
    for (last, family) in (1..).zip(Family::BOTH) {
        let case = format!("{case} {family:?}");
        let change = format!("link set eth0 address 02:00:00:00:cc:{last:02x}");
        let remote = host.at(family, DIALLED);
        survives(client, remote, &case, || target.ns.ip(&change));
    }
}

#[test]
fn traffic_goes_on_when_the_neighbours_are_forgotten() {
    for place in Place::ALL {
        let site = Site::new(place);
        let portfwd = site.portfwd(Nat::Auto);
        for family in Family::BOTH {
            for who in [Who::Remote, Who::Neighbour] {
                let case = format!("{place:?} {family:?} {who:?}");
                survives(site.node(who), site.host.at(family, DIALLED), &case, || {
                    for _ in 0..20 {
                        site.host.ns.ip("neigh flush all");
                    }
                });
            }
        }
        portfwd.stop_without_loss();
    }
}

/// Where both ways lead.
const BEYOND: Network = Network {
    v4: [203, 0, 113],
    v6: 0xd,
};

/// Two ways from the host to an address of the machine behind it.
struct TwoWays {
    world: World,
}

impl TwoWays {
    /// By `eth1`, the network of the world, at first; by `eth2` later.
    #[track_caller]
    fn new() -> Self {
        let world = World::forwarder();
        let (host, behind) = (&world.host.ns, world.behind());
        THIRD.join(host, "eth2", &behind.ns, "eth1");
        THIRD.assign(host, "eth2", 1);
        for family in Family::BOTH {
            let (target, next) = (Self::target(family).ip(), behind.address(family));
            behind.add_address(target);
            host.ip(&format!("route add {target} via {next}"));
        }
        Self { world }
    }

    fn target(family: Family) -> SocketAddr {
        SocketAddr::new(BEYOND.address(family, 9), SERVICE)
    }

    #[track_caller]
    fn move_route(&self, family: Family) {
        let target = Self::target(family).ip();
        let [host, next] = [1, 2].map(|number| THIRD.address(family, number));
        self.world
            .behind()
            .ns
            .ip(&format!("route replace default via {host}"));
        self.world
            .host
            .ns
            .ip(&format!("route replace {target} via {next} dev eth2"));
    }
}

#[test]
fn traffic_goes_on_when_the_route_moves_to_another_interface() {
    for nat in Nat::ALL {
        let ways = TwoWays::new();
        let world = &ways.world;
        let _tcp = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let _udp = Family::BOTH.map(|family| {
            let address = TwoWays::target(family).ip();
            world
                .behind()
                .udp_server(UdpListen::Address(address), SERVICE)
        });
        let rules = rules(|family| rule_to(TwoWays::target(family)));
        let portfwd = world.host.relay(nat, &rules);
        for family in Family::BOTH {
            let capture = Capture::start(&world.behind().ns, Keep::Everything);
            let remote = world.host.at(family, DIALLED);
            let case = format!("{nat:?} {family:?}");
            let by_new = |packet: &Packet| {
                let arrives = packet.device == "eth1" && !packet.outgoing;
                arrives && packet.goes_to(TwoWays::target(family))
            };
            survives(&world.client, remote, &case, || {
                ways.move_route(family);
                let came = deadline(RECOVERY, || capture.packets(by_new).pop());
                assert!(came.is_some(), "{case}: nothing came the new way");
            });
            let talk = world.client.tcp(remote).open();
            assert!(
                talk.is_ok_and(|mut talk| talk.echoes("new")),
                "{case}: a new connection"
            );
        }
        portfwd.stop_without_loss();
    }
}

/// Forged sources of a flood.
fn flood_size() -> u32 {
    if long() { 1_000_000 } else { 200_000 }
}

/// More SYNs than the forwarder keeps half-open connections.
const UNDER_WAY: u32 = 40_000;

/// SYNs that are sent in one go.
const VOLLEY: u32 = 500;

#[test]
fn connections_live_and_begin_during_a_flood_of_syns() {
    let cells = [
        (Nat::Masquerade, Family::V4),
        (Nat::Preserve, Family::V6),
        (Nat::Preserve, Family::V4),
        (Nat::Masquerade, Family::V6),
    ];
    let count = if long() { cells.len() } else { 2 };
    for (nat, family) in cells.into_iter().take(count) {
        // The flood itself is made here; its packets say nothing new.
        let world = World::forwarder().watching(Watch::OneOf(512));
        let _service = world.behind().tcp_server(Listen::DualStack, SERVICE);
        let portfwd = world.relay(nat);
        let dial = || world.client.tcp(world.host.at(family, DIALLED)).open();
        let mut talks: Vec<_> = (0..100)
            .map(|_| dial().expect("served before the flood"))
            .collect();
        assert!(talks.iter_mut().all(|talk| talk.echoes("before")));

        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let (world, begun, done) = (&world, &begun, &done);
            let end = Stop(done);
            let flood = scope.spawn(move || {
                let mut sent = 0;
                // To the end of the list, and on for a while if others still try.
                let goes_on = |sent| sent < 4 * flood_size() && !done.load(Ordering::Relaxed);
                while sent < flood_size() || goes_on(sent) {
                    let end = sent + VOLLEY;
                    world.forge_syns_from(family, DIALLED, sent..end);
                    sent = end;
                    begun.store(sent > UNDER_WAY, Ordering::Relaxed);
                }
                sent
            });
            let under_way = deadline(RECOVERY * 60, || {
                let under_way = begun.load(Ordering::Relaxed) || flood.is_finished();
                under_way.then_some(())
            });
            assert!(under_way.is_some(), "the flood does not get under way");
            let opened: Vec<_> = (0..100).map(|_| dial()).collect();
            let lost = lost(&mut talks, "during");
            drop(end);
            let sent = flood.join().expect("the flood is sent");
            println!("{nat:?} {family:?}: {sent} SYNs");
            let failed = opened.iter().filter_map(|talk| talk.as_ref().err());
            let failed: Vec<&io::Error> = failed.collect();
            assert!(
                failed.is_empty(),
                "{nat:?} {family:?}: {} {failed:?}",
                failed.len()
            );
            assert_eq!(lost, 0, "{nat:?} {family:?}: established connections");
            talks.extend(opened.into_iter().flatten());
        });
        let lost = lost(&mut talks, "after");
        assert_eq!(lost, 0, "{nat:?} {family:?}: after the flood");
        // What it left half-open keeps no port from those who come after it.
        let late = deadline(RECOVERY * 5, || dial().ok());
        let late = late.unwrap_or_else(|| panic!("{nat:?} {family:?}: nobody after the flood"));
        let later: Vec<_> = (0..30).map(|_| dial()).collect();
        let failed = later.iter().filter(|talk| talk.is_err()).count();
        assert_eq!(failed, 0, "{nat:?} {family:?}: of 30 after the flood");
        drop((late, later));
        let output = portfwd.stop();
        let rule = world.behind().rule(family);
        let connections = output.rule_counter(&rule, "connections");
        assert_eq!(connections, Some(231), "a SYN alone is none\n{output}");
    }
}

/// How many echo nothing.
fn lost(talks: &mut [Conversation], text: &str) -> usize {
    let silent = |talk: &mut Conversation| (!talk.echoes(text)).then_some(());
    talks.iter_mut().filter_map(silent).count()
}
