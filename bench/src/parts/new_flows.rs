//! Every packet opens a flow.

use std::time::Duration;

use anyhow::Result;

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Goal, Reading, Unit},
    contestant::Contestant,
    flood::Span,
    forwarders::{
        Forwarder::{self, Iptables, NftMap, PortfwdTc, PortfwdXdp},
        conntrack,
        rules::{Nat, Rules},
    },
    remote::{Remote, Traffic},
};

pub const PART: Part = Part {
    name: "new-flows",
    about: "60-byte UDP to another host, each packet a new flow, by number of rules",
    run,
};

/// Room for all flows of a sample on this machine, four times over: portfwd
/// gives a quarter to flows that nobody has answered.
const ROOM: u32 = 1_000_000;

const SPAN: Span = Span {
    warm_up: Duration::from_millis(40),
    sample: Duration::from_millis(150),
};

fn run(bench: &mut Bench) -> Result<()> {
    let _raised = conntrack::Raised::to(2_000_000)?;
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
        one(bench, *rules)?;
    }
    Ok(())
}

fn one(bench: &mut Bench, rules: Rules) -> Result<()> {
    let traffic = Traffic {
        rules,
        nat: Nat::Kept,
        flows: None,
        room: ROOM,
        span: SPAN,
    };
    // With 10,000 rules in a chain a packet takes 160 µs, and a load of rules
    // half a second: one that is known without being measured.
    let forwarders: &[Forwarder] = match rules {
        Rules::Single(10_000) => &[NftMap, PortfwdTc, PortfwdXdp],
        _ => &[NftMap, Iptables, PortfwdTc, PortfwdXdp],
    };
    let goal = (rules == Rules::Single(10_000)).then_some(Goal::AtLeast(1.7));
    let case = Case::new(
        format!("new flows, {}", rules.label()),
        Unit::NsPerPacket,
        NftMap.name(),
    )
    .fresh_lanes()
    .compare(PortfwdTc.name(), NftMap.name(), Reading::Rate, goal)
    .compare(PortfwdXdp.name(), NftMap.name(), Reading::Rate, goal);
    let remotes: Vec<_> = forwarders
        .iter()
        .map(|one| Remote::new(*one, traffic))
        .collect();
    let contestants: Vec<&dyn Contestant> = remotes.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)
}
