//! TCP to sockets of this host: who is served, who is refused, and that the
//! server sees the client itself.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
};

use portfwd_tests::{Family, Listen, Portfwd, Tcp, Way, World, until};

#[test]
fn every_way_to_every_kind_of_listener_is_served_or_refused_as_designed() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let listeners: Vec<_> = (0..)
            .zip(Listen::ALL)
            .map(|(n, listen)| (listen, 80 + n, 5000 + n))
            .map(|(listen, port, target)| {
                (listen, port, target, world.host.tcp_server(listen, target))
            })
            .collect();
        let _portfwd = world
            .host
            .portfwd_with(tcp, "80:5000 81:5001 82:5002 83:5003 84:5004");
        let mut refusals = [0, 0];
        for syncookies in 0..=2 {
            let sysctl = "net.ipv4.tcp_syncookies";
            world.host.ns.sysctl(sysctl, syncookies);
            for forwarding in [false, true] {
                world.host.forwarding(forwarding);
                for way in Way::ALL {
                    for &(listen, port, target, _) in &listeners {
                        let cell = format!("{tcp:?} {syncookies} {forwarding} {way:?} {listen:?}");
                        if !is_served(listen, way) {
                            assert!(world.tcp(way, port).is_refused(), "{cell}");
                            refusals[usize::from(way.family() == Family::V6)] += 1;
                            continue;
                        }
                        let dial = world.tcp(way, port);
                        let mut talk = dial.open().unwrap_or_else(|e| panic!("{cell}: {e}"));
                        assert!(talk.echoes("hello"), "{cell}");
                        assert!(talk.client_is_kept(), "{cell}: {talk:?}");
                        let accepted = world.remote(way, tcp.accepted_port(port, target));
                        assert_eq!(talk.server.local, accepted, "{cell}");
                    }
                }
            }
        }
        let counts = Family::BOTH.map(|family| {
            let counts = listeners
                .iter()
                .map(|(.., server)| server.served_over(family));
            counts.sum::<usize>()
        });
        println!(
            "{tcp:?}: v4 {} served, {} refused; v6 {} served, {} refused",
            counts[0], refusals[0], counts[1], refusals[1],
        );
        // Six settings; of 3 ways a loopback-only service has 1, and a
        // v4-only one has none over v6.
        assert_eq!(counts, [6 * (3 * 4 + 1), 6 * (3 * 3 + 1)], "{tcp:?}");
    }
}

/// A loopback-only service is nobody's but those who dial a loopback address.
fn is_served(listen: Listen, way: Way) -> bool {
    let loopback = matches!(way, Way::Loopback(_));
    listen.serves(way.family()) && (listen != Listen::Loopback || loopback)
}

#[test]
fn the_address_on_a_bridge_is_served_and_its_port_is_refused_as_interface() {
    for tcp in Tcp::BOTH {
        let world = World::bridge();
        let _service = world.host.tcp_server(Listen::DualStack, 5000);
        for interfaces in ["-i br0", "-i eth0 -i br0", "-i any"] {
            let _portfwd = world
                .host
                .portfwd_with(tcp, &format!("{interfaces} 80:5000"));
            for family in Family::BOTH {
                let bridge = SocketAddr::new(world.inside_address(family), 80);
                let mut talk = world
                    .behind()
                    .tcp(bridge)
                    .open()
                    .expect("the container is served");
                assert!(talk.client_is_kept());
                assert!(talk.echoes("from the container"));
                let remote = world.tcp(Way::Remote(family), 80);
                assert_eq!(remote.is_refused(), interfaces == "-i br0", "{interfaces}");
            }
        }
    }
    let world = World::bridge();
    let refusal = Portfwd::refused(&world.host.ns, &["-i", "veth0", "80:5000"]);
    assert_eq!(refusal.code, Some(1), "{refusal:?}");
    assert!(refusal.stderr.contains("veth0"), "{refusal:?}");
    assert!(refusal.stderr.contains("br0"), "{refusal:?}");
}

#[test]
fn a_service_that_comes_and_goes_needs_no_restart() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let portfwd = world.host.portfwd_with(tcp, "80:5000");
        let all_refused = || {
            Way::ALL
                .into_iter()
                .for_each(|way| world.tcp(way, 80).assert_refused())
        };
        all_refused();
        for listen in [Listen::DualStack, Listen::Mptcp] {
            let service = world.host.tcp_server(listen, 5000);
            for way in Way::ALL {
                world.tcp(way, 80).assert_served_by("5000");
            }
            drop(service);
            all_refused();
        }
        let output = portfwd.stop();
        assert!(output.verdict("no-listener") >= 18, "{tcp:?}\n{output}");
        assert_eq!(
            output.rule_counter("80:5000", "connections"),
            Some(12),
            "{output}"
        );
    }
}

#[test]
fn curl_fetches_a_page_from_a_web_server() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(folder.join("Cargo.toml")).expect("the manifest");
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let _web = Web::start(&world, folder, 5000);
        let _portfwd = world.host.portfwd_with(tcp, "-i eth0 80:5000");
        for way in Way::ALL {
            let url = format!("http://{}/Cargo.toml", world.remote(way, 80));
            let client = &world.dialler(way).ns;
            let fetched = client.sh(&format!("curl -gsS --noproxy '*' --max-time 5 '{url}'"));
            assert_eq!(fetched, page, "{tcp:?} {url}");
        }
    }
}

/// Python's web server over a folder, killed on drop.
struct Web(Child);

impl Web {
    #[track_caller]
    fn start(world: &World, folder: &Path, port: u16) -> Self {
        let mut command = world.host.ns.command("python3");
        let port_text = port.to_string();
        command.args([
            "-m",
            "http.server",
            &port_text,
            "--bind",
            "::",
            "--directory",
        ]);
        command
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let web = Self(command.spawn().expect("python3 is installed"));
        until("the web server to listen", || {
            world.tcp(Way::Loopback(Family::V4), port).connect().is_ok()
        });
        web
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.0.kill().expect("a child that was not waited for");
        self.0.wait().expect("a child is waited for");
    }
}
