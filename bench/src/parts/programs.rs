//! What one run of a program costs, by path: `BPF_PROG_TEST_RUN` with a fresh
//! packet each time.

use std::{net::SocketAddrV4, rc::Rc};

use anyhow::{Context as _, Result};
use aya::programs::TestRun as _;
use portfwd_tests::Portfwd;
use portfwd_yardstick::names;

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Goal, Reading, Unit},
    contestant::{Contestant, Lane, Sample},
    flood::{Generator, Load, frame},
    forwarders::{
        Forwarder, portfwd,
        rules::{Nat, Rules},
    },
    measure::cpu,
    programs::{self, Runnable},
    site::{self, Site, host_at, target_at},
    yard::Yard,
};

pub const PART: Part = Part {
    name: "programs",
    about: "one run of each program, by path, and its size",
    run,
};

const RUNS: usize = 4_000;

/// TC_ACT_UNSPEC, TC_ACT_REDIRECT, XDP_PASS and XDP_REDIRECT.
const UNSPEC: u32 = u32::MAX;
const TC_REDIRECT: u32 = 7;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

const ONE: Rules = Rules::Single(1);
const MANY: Rules = Rules::Single(10_000);

/// No rule names it, and no target has it.
const NOBODYS: u16 = 9;

/// What a program is run on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packet {
    /// From a client, of a flow that is known.
    Known,
    /// The answer to it.
    Answer,
    /// Of no rule.
    Stranger,
}

impl Packet {
    /// The device, source and destination, and the MACs of source and
    /// destination.
    fn ends(self) -> (&'static str, SocketAddrV4, SocketAddrV4, [[u8; 6]; 2]) {
        let client = SocketAddrV4::new(site::CLIENTS, crate::flood::FIRST_SPORT);
        let to_host = [site::MAC_NET, site::MAC_CLIENT];
        let from_target = [site::MAC_LAN, site::MAC_TARGET];
        let target = target_at(ONE.target_port(ONE.first()));
        match self {
            Self::Known => (site::NET, client, host_at(ONE.first()), to_host),
            Self::Answer => (site::LAN, target, client, from_target),
            Self::Stranger => (site::NET, client, target_at(NOBODYS), to_host),
        }
    }
}

fn run(bench: &mut Bench) -> Result<()> {
    let (tc, xdp) = (Forwarder::PortfwdTc, Forwarder::PortfwdXdp);
    let path = |name, forwarder, rules, program, packet, returns| Path {
        name,
        forwarder,
        rules,
        program,
        packet,
        returns,
    };
    use Packet::{Answer, Known, Stranger};
    let empty = [
        ("empty TC", names::EMPTY_TC),
        ("empty XDP", names::EMPTY_XDP),
    ]
    .map(|(name, program)| Empty { name, program });
    let on_tc = [
        path("no rule, 1 rule", tc, ONE, "portfwd_in", Stranger, UNSPEC),
        path(
            "no rule, 10,000 rules",
            tc,
            MANY,
            "portfwd_in",
            Stranger,
            UNSPEC,
        ),
        path(
            "no rule, where no client is served",
            tc,
            ONE,
            "portfwd_back",
            Stranger,
            UNSPEC,
        ),
        path("no rule, leaving", tc, ONE, "portfwd_out", Stranger, UNSPEC),
        path(
            "known flow to another host",
            tc,
            ONE,
            "portfwd_in",
            Known,
            TC_REDIRECT,
        ),
        path(
            "answer of another host",
            tc,
            ONE,
            "portfwd_back",
            Answer,
            TC_REDIRECT,
        ),
    ];
    let on_xdp = [
        path(
            "no rule, 1 rule",
            xdp,
            ONE,
            "portfwd_xdp",
            Stranger,
            XDP_PASS,
        ),
        path(
            "no rule, 10,000 rules",
            xdp,
            MANY,
            "portfwd_xdp",
            Stranger,
            XDP_PASS,
        ),
        path(
            "known flow to another host",
            xdp,
            ONE,
            "portfwd_xdp",
            Known,
            XDP_REDIRECT,
        ),
    ];
    race(bench, "TC, one run", &empty[0], &on_tc)?;
    race(bench, "XDP, one run", &empty[1], &on_xdp)?;
    for forwarder in [tc, xdp] {
        if forwarder.available().is_ok() {
            sizes(bench, forwarder)?;
        }
    }
    Ok(())
}

fn race(bench: &mut Bench, name: &str, empty: &Empty, paths: &[Path]) -> Result<()> {
    let mut case = Case::new(name, Unit::Ns, empty.name);
    for path in paths {
        let goal = path
            .name
            .starts_with("no rule")
            .then_some(Goal::AtMost(40.0));
        case = case.compare(path.name, empty.name, Reading::Difference, goal);
    }
    case = case.compare(
        "no rule, 10,000 rules",
        "no rule, 1 rule",
        Reading::Difference,
        Some(Goal::AtMost(5.0)),
    );
    let mut contestants: Vec<&dyn Contestant> = vec![empty];
    contestants.extend(paths.iter().map(|path| path as &dyn Contestant));
    bench.race(&case, &contestants)
}

/// How large each program is.
fn sizes(bench: &mut Bench, forwarder: Forwarder) -> Result<()> {
    let site = Site::new();
    let portfwd = portfwd::start(forwarder, &site, ONE, Nat::Kept, 0);
    for facts in programs::of_process(portfwd.pid())? {
        let verified = f64::from(facts.verified);
        let jitted = f64::from(facts.jitted);
        bench.observe(
            &format!("verified instructions, {}", forwarder.name()),
            Unit::Count,
            &facts.name,
            &[verified],
        );
        bench.observe(
            &format!("bytes of machine code, {}", forwarder.name()),
            Unit::Count,
            &facts.name,
            &[jitted],
        );
    }
    Ok(())
}

/// A program that does nothing, on the packet of no rule.
struct Empty {
    name: &'static str,
    program: &'static str,
}

impl Contestant for Empty {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        let mut yard = Yard::load()?;
        match self.program {
            names::EMPTY_XDP => drop(yard.xdp(self.program)?),
            _ => drop(yard.tc(self.program)?),
        }
        Ok(Box::new(EmptyLane(yard, self.program)))
    }
}

struct EmptyLane(Yard, &'static str);

impl Lane for EmptyLane {
    fn prove(&mut self) -> Result<()> {
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let Self(yard, name) = self;
        let (_, from, to, macs) = Packet::Stranger.ends();
        let frame = frame(from, to, macs);
        let time = on_work(|| match *name {
            names::EMPTY_XDP => {
                let program = yard.xdp(name)?;
                program.test_run(aya::programs::TestRunOptions {
                    data_in: Some(&frame),
                    ..Default::default()
                })?;
                let context = programs::xdp_context(1, frame.len() as u32);
                programs::time(program, &context, &frame, RUNS, XDP_PASS)
            }
            _ => programs::time(
                yard.tc(name)?,
                &programs::tc_context(1),
                &frame,
                RUNS,
                UNSPEC,
            ),
        })?;
        Ok(Sample::of(time))
    }
}

/// A path through a program of portfwd.
struct Path {
    name: &'static str,
    forwarder: Forwarder,
    rules: Rules,
    program: &'static str,
    packet: Packet,
    returns: u32,
}

impl Contestant for Path {
    fn name(&self) -> &str {
        self.name
    }

    fn available(&self) -> Result<(), String> {
        self.forwarder.available()
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        let site = Rc::new(Site::new());
        let portfwd = portfwd::start(self.forwarder, &site, self.rules, Nat::Kept, 0);
        Ok(Box::new(PathLane {
            load: None,
            portfwd,
            site,
            path: self,
        }))
    }
}

struct PathLane<'a> {
    load: Option<(Generator, Yard)>,
    portfwd: Portfwd,
    site: Rc<Site>,
    path: &'a Path,
}

impl Lane for PathLane<'_> {
    fn prove(&mut self) -> Result<()> {
        let mut sink = Yard::load()?;
        sink.attach_sink(&self.site.target, site::END)?;
        let load = Load::flows(64, host_at(ONE.first()));
        let mut generator = Generator::new(Rc::clone(&self.site), load)?;
        generator.prime(&mut sink, 0)?;
        self.load = Some((generator, sink));
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let (generator, _) = self.load.as_mut().context("not proved")?;
        // XDP sends where TC has sent in the same second.
        generator.send(256)?;
        let program = Runnable::of_process(self.portfwd.pid(), self.path.program)?;
        let (device, from, to, macs) = self.path.packet.ends();
        let ifindex = self.site.host.ifindex(device);
        let frame = frame(from, to, macs);
        let returns = self.path.returns;
        let time = self
            .site
            .host
            .enter(|| on_work(|| program.time(ifindex, &frame, RUNS, returns)))?;
        Ok(Sample::of(time))
    }
}

/// On the CPU that is measured, from a thread of its own.
fn on_work<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            cpu::pin(cpu::WORK)?;
            work()
        });
        working.join().expect("it does not panic")
    })
}
