//! XDP beside TC: where it is attached, that it follows its devices, and that it
//! ends without a trace. The veth pairs stand for NICs.

use std::net::SocketAddr;

use portfwd_tests::{
    Netns, Portfwd, Refusal, Services, State, Tcp, UdpClient,
    bpf::{Pinned, Side, XdpPass, programs, xdp_program},
    portfwd::READY,
    until,
};

/// Both devices with XDP, and a service on the other host.
const ARGS: &str = "-i eth0 -i eth1 --mode xdp 53:198.51.100.2:5353/udp";

const HOST: &str = "192.0.2.1:53";

/// A host between a client, on its `eth0`, and a target, on its `eth1`, whose
/// ends of the pairs do as wires do.
struct Yard {
    host: Netns,
    client: Netns,
    target: Netns,
    _services: Services,
}

impl Yard {
    #[track_caller]
    fn new() -> Self {
        let (host, client, target) = (Netns::new(), Netns::new(), Netns::new());
        let yard = Self {
            _services: Services::start(&target),
            host,
            client,
            target,
        };
        yard.join("eth0", &yard.client, "192.0.2");
        yard.join("eth1", &yard.target, "198.51.100");
        yard
    }

    #[track_caller]
    fn join(&self, device: &str, other: &Netns, network: &str) {
        self.host.ip(&format!(
            "link add {device} type veth peer name eth0 netns {}
             link set {device} up
             address add {network}.1/24 dev {device}",
            other.name()
        ));
        other.ip(&format!(
            "link set eth0 up
             address add {network}.2/24 dev eth0
             route add default via {network}.1"
        ));
        other.sh("ethtool -K eth0 gro on tx off >/dev/null");
        self.host.until_running(device);
        other.until_running("eth0");
    }

    #[track_caller]
    fn start(&self, args: &str) -> Portfwd {
        Portfwd::start(&self.host, Tcp::Steered, args)
    }

    #[track_caller]
    fn refused(&self, args: &str) -> Refusal {
        let words: Vec<&str> = args.split(' ').collect();
        Portfwd::refused(&self.host, &words)
    }

    /// Asks the service through the host so many times, by one flow.
    #[track_caller]
    fn ask(&self, times: usize) {
        let host: SocketAddr = HOST.parse().expect("an address");
        let client = UdpClient::bound(&self.client, "0.0.0.0:0".parse().expect("an address"));
        for _ in 0..times {
            let reply = client.ask(host, b"hello").expect("answered");
            assert_eq!(reply.server.expect("a name").name, "5353");
        }
    }

    fn has_xdp(&self, device: &str) -> bool {
        xdp_program(&self.host, device).is_some()
    }

    /// What XDP knows of a device: its address, and the MTU of what it sends by
    /// it.
    #[track_caller]
    fn known(&self, ifindex: u32) -> ([u8; 6], u16) {
        let map = Pinned::of_forwarder(&self.host, "DEVICES");
        let value = map.value(&ifindex.to_ne_bytes()).expect("an array");
        let mac = value[..6].try_into().expect("six bytes");
        (mac, u16::from_ne_bytes([value[6], value[7]]))
    }

    fn epoch(&self) -> u32 {
        let map = Pinned::of_forwarder(&self.host, "FORWARDER");
        let value = map.value(&0u32.to_ne_bytes()).expect("an array");
        u32::from_ne_bytes(value[8..12].try_into().expect("four bytes"))
    }
}

const NOTHING: ([u8; 6], u16) = ([0; 6], 0);

#[track_caller]
fn assert_refused(refusal: &Refusal, words: &[&str]) {
    assert_eq!(refusal.code, Some(1), "{}", refusal.stderr);
    let error = refusal.stderr.lines().last().unwrap_or_default();
    for word in words {
        assert!(error.contains(word), "{word} is missing: {error}");
    }
    assert_eq!(refusal.stdout, "");
}

#[test]
fn it_is_said_for_each_device_what_it_got_and_why() {
    let yard = Yard::new();
    let lines = |args: &str| -> Vec<String> {
        let portfwd = yard.start(args);
        let printed = portfwd.stdout();
        portfwd.stop();
        let devices = ["lo: ", "eth0: ", "eth1: "];
        let of_device = |line: &&str| devices.iter().any(|start| line.starts_with(start));
        let before = printed.lines().take_while(|line| !line.starts_with(READY));
        before.filter(of_device).map(str::to_owned).collect()
    };
    let rule = "53:198.51.100.2:5353/udp";
    assert_eq!(
        lines(ARGS),
        [
            "lo: tc",
            "eth0: xdp (native) and tc",
            "eth1: xdp (native) and tc"
        ]
    );
    assert_eq!(
        lines(&format!("-i eth0 --mode xdp-generic {rule}")),
        [
            "lo: tc",
            "eth0: xdp (generic) and tc",
            "eth1: tc (--mode xdp-generic is for the devices of -i)"
        ]
    );
    assert_eq!(
        lines(rule),
        [
            "lo: tc",
            "eth0: tc (veth: XDP only with --mode xdp)",
            "eth1: tc (veth: XDP only with --mode xdp)"
        ]
    );
    for words in ["53:5353/udp", &format!("--mode tc {rule}")] {
        assert!(lines(words).is_empty(), "{words} needs no word");
    }
}

#[test]
fn known_flows_go_by_xdp_and_ctrl_c_leaves_nothing() {
    let yard = Yard::new();
    let before = State::of(&yard.host);
    let sysctls = State::of_sysctls(&yard.host);
    let portfwd = yard.start(ARGS);
    for device in ["eth0", "eth1"] {
        assert!(yard.has_xdp(device), "{device}");
        assert_eq!(programs(&yard.host, device, Side::Ingress).len(), 1);
        let warning = format!("XDP on {device} needs");
        let stderr = portfwd.stderr();
        let line = stderr.lines().find(|line| line.contains(&warning));
        let line = line.unwrap_or_else(|| panic!("no warning of {device}: {stderr}"));
        assert!(line.contains("tx off") && line.contains("gro on"), "{line}");
    }
    // A link: nobody takes it off by the device.
    let off = yard
        .host
        .command("ip")
        .args("link set dev eth0 xdp off".split(' '))
        .output();
    assert!(!off.expect("ip starts").status.success());
    assert!(yard.has_xdp("eth0"));
    yard.ask(100);
    sysctls.assert_unchanged(&State::of_sysctls(&yard.host), "while it runs");
    let output = portfwd.stop_without_loss();
    before.assert_unchanged(&State::of(&yard.host), "afterwards");
    for verdict in ["forwarded", "returned"] {
        assert_eq!(output.verdict(verdict), 100, "{output}");
    }
    // What TC sends on is met again as it leaves.
    assert!(output.verdict("passing") < 100, "{output}");
    let counted = |column| output.rule_counter("53:198.51.100.2:5353/udp", column);
    assert_eq!(counted("packets"), Some(100), "{output}");
    assert_eq!(counted("packets back"), Some(100), "{output}");
}

#[test]
fn after_kill_9_nothing_stays_on_a_device_and_the_next_start_works() {
    let yard = Yard::new();
    let before = State::of(&yard.host);
    for _ in 0..2 {
        let dead = yard.start(ARGS);
        yard.ask(5);
        dead.kill9();
        assert!(!yard.has_xdp("eth0") && !yard.has_xdp("eth1"));
        let next = yard.start(ARGS);
        yard.ask(5);
        next.stop_without_loss();
        before.assert_unchanged(&State::of(&yard.host), "afterwards");
    }
}

#[test]
fn a_hook_that_is_taken_is_reported_and_replaced_by_force_only() {
    let yard = Yard::new();
    XdpPass::leave_on(&yard.host, "eth0");
    let other = xdp_program(&yard.host, "eth0").expect("it is attached");
    let before = State::of(&yard.host);
    let id = format!("program {other}");
    let words = [
        "`--mode xdp`",
        "eth0",
        "taken by portfwd_test",
        &id,
        "`--force`",
    ];
    assert_refused(&yard.refused(ARGS), &words);
    before.assert_unchanged(&State::of(&yard.host), "after the refusal");

    let portfwd = yard.start(&format!("--force {ARGS}"));
    assert_ne!(xdp_program(&yard.host, "eth0"), Some(other));
    yard.ask(20);
    portfwd.stop_without_loss();
    assert_eq!(xdp_program(&yard.host, "eth0"), Some(other));
    before.assert_unchanged(&State::of(&yard.host), "afterwards");
}

#[test]
fn a_hook_that_a_link_holds_is_its_owners() {
    let yard = Yard::new();
    let link = XdpPass::link(&yard.host, "eth0");
    let other = xdp_program(&yard.host, "eth0");
    assert!(other.is_some());
    let before = State::of(&yard.host);
    let words = ["eth0", "`--force` cannot replace", "portfwd_test", "owner"];
    assert_refused(&yard.refused(&format!("--force {ARGS}")), &words);
    before.assert_unchanged(&State::of(&yard.host), "after the refusal");
    assert_eq!(xdp_program(&yard.host, "eth0"), other);
    drop(link);
    yard.start(ARGS).stop();
}

#[test]
fn what_xdp_knows_of_a_device_follows_it() {
    let yard = Yard::new();
    let portfwd = yard.start(ARGS);
    let (eth0, eth1) = (yard.host.ifindex("eth0"), yard.host.ifindex("eth1"));
    assert_eq!(yard.known(eth1).1, 1500);

    let epoch = yard.epoch();
    yard.host.ip("link set eth1 mtu 1400");
    until("the MTU", || yard.known(eth1).1 == 1400);
    until("another epoch", || yard.epoch() != epoch);
    yard.host.ip("link set eth1 address 02:00:00:00:00:77");
    until("the address", || {
        yard.known(eth1).0 == [2, 0, 0, 0, 0, 0x77]
    });
    yard.ask(20);

    // To a veth whose other end has no GRO, nothing can be sent.
    yard.target.sh("ethtool -K eth0 gro off >/dev/null");
    until("no MTU", || yard.known(eth1).1 == 0);
    assert!(yard.has_xdp("eth1"));
    yard.ask(5);
    yard.target.sh("ethtool -K eth0 gro on >/dev/null");
    until("the MTU again", || yard.known(eth1).1 == 1400);

    // Under another name it is no device of -i.
    yard.host
        .ip("link set eth0 down\nlink set eth0 name lan0\nlink set lan0 up");
    until("XDP to go with the name", || !yard.has_xdp("lan0"));
    assert_eq!(yard.known(eth0).1, 1500, "it is sent by all the same");
    yard.host
        .ip("link set lan0 down\nlink set lan0 name eth0\nlink set eth0 up");
    until("XDP to come back", || yard.has_xdp("eth0"));
    yard.ask(5);

    yard.host.ip("link del eth0");
    until("nothing to be known", || yard.known(eth0) == NOTHING);
    yard.join("eth0", &yard.client, "192.0.2");
    until("XDP on the new one", || yard.has_xdp("eth0"));
    yard.ask(5);
    portfwd.stop();
    assert!(!yard.has_xdp("eth0") && !yard.has_xdp("eth1"));
}

#[test]
fn a_route_that_comes_later_begins_another_epoch() {
    let yard = Yard::new();
    let portfwd = yard.start("-i eth0 -i eth1 --mode xdp 53:203.0.113.2:5353/udp");
    assert!(yard.has_xdp("eth0"), "it waits for a route");
    // It answers from that address.
    yard.target.ip("address add 203.0.113.2/32 dev eth0
         route replace 198.51.100.0/24 dev eth0 src 203.0.113.2");
    let epoch = yard.epoch();
    yard.host.ip("route add 203.0.113.0/24 via 198.51.100.2");
    until("another epoch", || yard.epoch() != epoch);
    yard.ask(20);
    portfwd.stop();
}
