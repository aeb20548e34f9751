//! `portfwd run`: forward until Ctrl-C.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use portfwd::{
    Error, Forwarder, Options, Tcp,
    host::netns,
    plan::{self, TcpMechanism},
    reach::{Reach, Way},
    rule::{Nat, Proto, Rule, RuleSpec, Target, proto_name},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval_at},
};

use crate::cli::Run;

/// Names the way TCP is carried: `rewrite`, or nothing for what the kernel can
/// do best. For tests, and for hosts where steering is in the way.
const TCP: &str = "PORTFWD_TCP";

/// Runs the command.
pub fn run(arguments: &Run) -> anyhow::Result<()> {
    let rules = arguments.specs()?;
    plan::check(&rules)?;
    let options = Options {
        rules,
        interfaces: arguments.interfaces(),
        local: !arguments.no_local,
        cgroup: arguments.cgroup.clone(),
        tcp: tcp()?,
        mode: arguments.mode(),
        force: arguments.force,
        max_flows: arguments.max_flows,
        log_flows: arguments.verbose,
    };
    options.check_mode()?;
    if let Some(namespace) = &arguments.netns {
        // Before the runtime: a thread that exists stays where it is.
        netns::enter(namespace)?;
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(forward(options, arguments.stats))
}

fn tcp() -> Result<Tcp, Error> {
    match std::env::var_os(TCP) {
        None => Ok(Tcp::Auto),
        Some(value) if value.is_empty() || value == "auto" => Ok(Tcp::Auto),
        Some(value) if value == "rewrite" => Ok(Tcp::Rewrite),
        Some(value) => Err(Error::text(format!(
            "{TCP}={} names no way to carry TCP; set it to `auto` or `rewrite`",
            value.display()
        ))),
    }
}

async fn forward(options: Options, stats: Option<u32>) -> anyhow::Result<()> {
    // Asked for before anything is attached, so that an early Ctrl-C waits
    // until it can be undone.
    let mut ends = Ends::new().context("cannot listen for signals")?;
    let mut forwarder = Forwarder::start(options).await?;
    introduce(&forwarder)?;
    let mut ticks = stats.map(every);
    loop {
        tokio::select! {
            () = ends.next() => break,
            waited = forwarder.wait() => warn(waited),
            () = tick(&mut ticks) => say(forwarder.snapshot()?),
        }
        // A tick waits until it is done: each of them would make it begin anew.
        tokio::select! {
            () = ends.next() => break,
            followed = forwarder.follow() => warn(followed),
        }
    }
    let counters = forwarder.snapshot();
    let stopped = forwarder.stop();
    say(counters?);
    Ok(stopped?)
}

/// The signals that end a run.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> io::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

fn every(seconds: u32) -> Interval {
    let period = Duration::from_secs(seconds.into());
    let mut interval = interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// A change that could not be followed is told; forwarding goes on.
fn warn(result: Result<(), Error>) {
    if let Err(error) = result {
        log::warn!("{error}");
    }
}

fn introduce(forwarder: &Forwarder) -> Result<(), Error> {
    for spec in forwarder.rules() {
        say(line(forwarder, spec));
        for line in spec.rule.targets.iter().filter_map(|target| {
            let reach = forwarder.reach(target);
            nat(&reach, spec.nat)
        }) {
            say(format_args!("  {line}"));
        }
    }
    forwarder.modes().iter().for_each(say);
    let opened: Vec<String> = forwarder.opened().collect();
    if !opened.is_empty() {
        say(format_args!(
            "opened 127.0.0.0/8 on {} (route_localnet), guarded, until the end",
            opened.join(", ")
        ));
    }
    let tables = forwarder.flow_tables()?;
    say(format_args!(
        "room for {} flows: {}",
        tables.flows(),
        tables.memory()
    ));
    say("ready; press Ctrl-C to stop");
    Ok(())
}

/// One line for a rule: hook, mechanism and why.
fn line(forwarder: &Forwarder, spec: &RuleSpec) -> String {
    let mut devices: Vec<&str> = forwarder.devices().iter().map(String::as_str).collect();
    let mut ways = Vec::new();
    for target in &spec.rule.targets {
        match forwarder.reach(target) {
            Reach::Local => ways.extend(spec.rule.protos.iter().map(|p| way(forwarder, p))),
            Reach::Remote(way) => {
                ways.push(way_out(&spec.rule, target, way.as_ref()));
                // There is no way across lo: who dials there is hooked.
                let all = devices.len();
                devices.retain(|device| *device != "lo");
                if devices.len() < all {
                    ways.push("programs on this host by connect".to_owned());
                }
            }
        }
    }
    let devices = match devices[..] {
        [] => "no device yet".to_owned(),
        _ => devices.join(", "),
    };
    format!(
        "{}  on tc ingress of {devices}: {}",
        spec.rule,
        ways.join("; ")
    )
}

/// How packets go to another host.
fn way_out(rule: &Rule, target: &Target, way: Option<&Way>) -> String {
    let protos: Vec<&str> = rule.protos.iter().map(proto_name).collect();
    let protos = protos.join(" and ");
    let addr = target.addr.map(|addr| addr.to_string()).unwrap_or_default();
    let Some(way) = way else {
        return format!("{protos} to {addr}, to which no route leads yet (dropped as no-route)");
    };
    let by = match (way.may_peer(), way.express) {
        (true, _) => "redirect-peer",
        (false, true) => "redirect, known flows by xdp,",
        (false, false) => "redirect",
    };
    let via = match way.gateway {
        Some(gateway) => format!(" via {gateway}"),
        None => String::new(),
    };
    format!("{protos} by {by} to {addr}{via} on {}", way.device)
}

/// What becomes of the client's address, where there is something to say.
fn nat(reach: &Reach, nat: Nat) -> Option<String> {
    match (reach, nat) {
        (Reach::Remote(Some(way)), nat) => Some(way.nat(nat)),
        (Reach::Local, Nat::Masquerade) => Some(
            "the client's address is kept: --nat masquerade is for targets on other hosts".into(),
        ),
        (Reach::Remote(None), _) | (Reach::Local, Nat::Auto | Nat::Preserve) => None,
    }
}

fn way(forwarder: &Forwarder, proto: Proto) -> String {
    let text = match (proto, forwarder.tcp()) {
        (Proto::Udp | Proto::Sctp, _) => {
            "udp by rewrite, restored on tc egress (no UDP packet can be given to another port)"
        }
        (Proto::Tcp, (TcpMechanism::Steer, _)) => {
            "tcp by steer (a socket of this host: nothing is rewritten)"
        }
        (Proto::Tcp, (TcpMechanism::SteerOrRewrite, _)) => {
            "tcp by steer, by rewrite to SO_REUSEPORT listeners (this kernel steers to no such one)"
        }
        (Proto::Tcp, (TcpMechanism::Rewrite, Tcp::Rewrite)) => {
            "tcp by rewrite, restored on tc egress (PORTFWD_TCP says so)"
        }
        (Proto::Tcp, (TcpMechanism::Rewrite, Tcp::Auto)) => {
            "tcp by rewrite, restored on tc egress (this kernel cannot steer)"
        }
    };
    text.to_owned()
}

/// Prints a line; who closed the other end does not stop the forwarding.
fn say(text: impl Display) {
    let mut out = io::stdout().lock();
    let _closed = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use portfwd::host::devices::Link;

    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn out(text: &str, way: Option<&Way>) -> String {
        let rule = rule(text);
        way_out(&rule, &rule.targets[0], way)
    }

    #[test]
    fn the_way_to_another_host_is_told() {
        let mut way = Way {
            ifindex: 3,
            device: "br0".to_owned(),
            source: None,
            gateway: None,
            default: false,
            kind: Some(Link::Ethernet),
            pair: None,
            neighbour: None,
            express: false,
        };
        let text = "80:10.0.0.5:8080";
        assert_eq!(out(text, Some(&way)), "tcp by redirect to 10.0.0.5 on br0");
        way.pair = Some([2; 6]);
        assert_eq!(
            out("53:10.0.0.5/tcp+udp", Some(&way)),
            "tcp and udp by redirect-peer to 10.0.0.5 on br0"
        );
        way.express = true;
        assert_eq!(
            out(text, Some(&way)),
            "tcp by redirect, known flows by xdp, to 10.0.0.5 on br0"
        );
        way.express = false;
        way.gateway = "10.0.0.254".parse().ok();
        assert_eq!(
            out(text, Some(&way)),
            "tcp by redirect to 10.0.0.5 via 10.0.0.254 on br0"
        );
        assert!(out(text, None).ends_with("no route leads yet (dropped as no-route)"));
    }

    #[test]
    fn masquerading_for_this_host_is_said_to_be_none() {
        assert_eq!(nat(&Reach::Local, Nat::Auto), None);
        let line = nat(&Reach::Local, Nat::Masquerade).expect("something to say");
        assert!(line.contains("kept"), "{line}");
    }
}
