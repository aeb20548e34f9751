//! What loading rules takes, in time and memory.

use std::{
    fs,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Reading, Unit},
    contestant::{Contestant, Lane, Sample},
    flood::{Generator, Load},
    forwarders::{
        Forwarder::{self, Iptables, NftMap, PortfwdTc, PortfwdXdp},
        conntrack, portfwd,
        rules::{Nat, Rules},
    },
    programs,
    site::{self, Site, host_at},
    yard::Yard,
};

pub const PART: Part = Part {
    name: "control",
    about: "time to load rules, to change one, and kernel memory",
    run,
};

const MIB: f64 = (1 << 20) as f64;

/// What portfwd has room for where nobody says otherwise.
const FLOWS: u32 = 131_072;

fn run(bench: &mut Bench) -> Result<()> {
    let all: &[Rules] = if bench.quick {
        &[Rules::Single(10_000)]
    } else {
        &[
            Rules::Single(1),
            Rules::Single(100),
            Rules::Single(10_000),
            Rules::Range,
        ]
    };
    for rules in all {
        load_time(bench, *rules)?;
    }
    change_time(bench)?;
    memory(bench)
}

fn load_time(bench: &mut Bench, rules: Rules) -> Result<()> {
    let loads =
        [NftMap, Iptables, PortfwdTc, PortfwdXdp].map(|forwarder| Loading { forwarder, rules });
    let case = Case::new(
        format!("load time, {}", rules.label()),
        Unit::Ms,
        NftMap.name(),
    )
    .compare(PortfwdTc.name(), NftMap.name(), Reading::Cost, None)
    .compare(PortfwdXdp.name(), NftMap.name(), Reading::Cost, None)
    .compare(Iptables.name(), NftMap.name(), Reading::Cost, None);
    let contestants: Vec<&dyn Contestant> = loads.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)
}

/// From the start of a process to "ready", or to its end.
struct Loading {
    forwarder: Forwarder,
    rules: Rules,
}

impl Contestant for Loading {
    fn name(&self) -> &str {
        self.forwarder.name()
    }

    fn available(&self) -> Result<(), String> {
        self.forwarder.available()
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        Ok(Box::new(LoadingLane {
            site: Site::new(),
            loading: self,
        }))
    }
}

struct LoadingLane<'a> {
    site: Site,
    loading: &'a Loading,
}

impl Lane for LoadingLane<'_> {
    fn prove(&mut self) -> Result<()> {
        // That rules work is proved where packets are measured.
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let Loading { forwarder, rules } = *self.loading;
        let began = Instant::now();
        let guard = forwarder.set_up(&self.site, rules, Nat::Kept, 0)?;
        let took = began.elapsed();
        drop(guard);
        match forwarder {
            NftMap => drop(self.site.host.sh("nft flush ruleset")),
            Iptables => drop(self.site.host.sh("iptables -t nat -F")),
            _ => {}
        }
        Ok(Sample::of(milliseconds(took)))
    }
}

fn change_time(bench: &mut Bench) -> Result<()> {
    let site = Site::new();
    NftMap.set_up(&site, Rules::Single(9_999), Nat::Kept, 0)?;
    let times: Vec<f64> = (0..bench.effort().rounds)
        .map(|_| {
            let began = Instant::now();
            site.host
                .sh("nft add element ip bench ports '{ 9999 : 10.2.0.2 . 29999 }'");
            let took = began.elapsed();
            site.host
                .sh("nft delete element ip bench ports '{ 9999 : 10.2.0.2 . 29999 }'");
            milliseconds(took)
        })
        .collect();
    let case = "change time, one more of 10,000 rules";
    bench.observe(case, Unit::Ms, NftMap.name(), &times);
    bench.skip(
        case,
        "the rules of a running portfwd do not change yet: it is started again",
    );
    Ok(())
}

fn memory(bench: &mut Bench) -> Result<()> {
    let case = "kernel memory, 131,072 flows";
    for (name, rules) in [
        ("portfwd TC, 1 rule", Rules::Single(1)),
        ("portfwd TC, 10,000 rules", Rules::Single(10_000)),
    ] {
        let site = Site::new();
        let running = portfwd::start(PortfwdTc, &site, rules, Nat::Kept, FLOWS);
        let bytes = programs::map_memory(running.pid())?;
        bench.observe(case, Unit::MiB, name, &[bytes as f64 / MIB]);
    }
    let slab = conntrack_slab()?;
    bench.observe(case, Unit::MiB, "conntrack", &[slab]);
    bench.note(
        case,
        "portfwd: what /proc/PID/fdinfo says of its maps, taken at the start whatever the number \
         of flows. conntrack: growth of the slab nf_conntrack with so many flows, without their \
         NAT extensions and the hash table",
    );
    Ok(())
}

fn conntrack_slab() -> Result<f64> {
    let _raised = conntrack::Raised::to(2 * FLOWS)?;
    let site = Rc::new(Site::new());
    NftMap.set_up(&site, Rules::Single(1), Nat::Kept, 0)?;
    let mut sink = Yard::load()?;
    sink.attach_sink(&site.target, site::END)?;
    let load = Load::flows(FLOWS, host_at(Rules::Single(1).first()));
    let mut generator = Generator::new(Rc::clone(&site), load)?;
    let before = slab("nf_conntrack")?;
    generator.send(FLOWS)?;
    Ok(slab("nf_conntrack")? - before)
}

/// MiB of a slab's live objects.
fn slab(name: &str) -> Result<f64> {
    let text = fs::read_to_string("/proc/slabinfo")?;
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))
        .with_context(|| format!("/proc/slabinfo lacks {name}"))?;
    let numbers: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    match numbers[..] {
        [live, _, size, ..] => Ok(live * size / MIB),
        _ => anyhow::bail!("/proc/slabinfo: {line}"),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
