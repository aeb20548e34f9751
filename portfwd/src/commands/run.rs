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
    rule::{Proto, RuleSpec},
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
        tcp: tcp()?,
        log_flows: arguments.verbose,
    };
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
    introduce(&forwarder);
    let mut ticks = stats.map(every);
    loop {
        tokio::select! {
            () = ends.next() => break,
            event = forwarder.next_event() => warn(event),
            () = tick(&mut ticks) => say(forwarder.snapshot()?),
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
fn warn(event: Result<(), Error>) {
    if let Err(error) = event {
        log::warn!("{error}");
    }
}

fn introduce(forwarder: &Forwarder) {
    for spec in forwarder.rules() {
        say(line(forwarder, spec));
    }
    let opened: Vec<String> = forwarder.opened().collect();
    if !opened.is_empty() {
        say(format_args!(
            "opened 127.0.0.0/8 on {} (route_localnet), guarded, until the end",
            opened.join(", ")
        ));
    }
    say("ready; press Ctrl-C to stop");
}

/// One line for a rule: mechanism, hook and why.
fn line(forwarder: &Forwarder, spec: &RuleSpec) -> String {
    let ways: Vec<String> = spec
        .rule
        .protos
        .iter()
        .map(|proto| way(forwarder, proto))
        .collect();
    let devices = match forwarder.devices() {
        [] => "no device yet".to_owned(),
        devices => devices.join(", "),
    };
    format!(
        "{}  on tc ingress of {devices}: {}",
        spec.rule,
        ways.join("; ")
    )
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
