//! Whether the number of rules matters to flows that are known.

use anyhow::Result;

use super::{Part, udp::span};
use crate::{
    bench::Bench,
    case::{Case, Reading, Unit},
    contestant::Contestant,
    forwarders::{
        Forwarder::{self, NftMap, PortfwdTc, PortfwdXdp},
        conntrack,
        rules::{Nat, Rules},
    },
    remote::{Remote, Traffic},
};

pub const PART: Part = Part {
    name: "rules",
    about: "60-byte UDP of known flows to another host, by number of rules",
    run,
};

const FLOWS: u32 = 10_000;

const ALL: &[Rules] = &[
    Rules::Single(1),
    Rules::Single(100),
    Rules::Single(10_000),
    Rules::Range,
];
const FEW: &[Rules] = &[Rules::Single(1), Rules::Single(10_000)];

fn run(bench: &mut Bench) -> Result<()> {
    let _raised = conntrack::Raised::to(2_000_000)?;
    let forwarders: &[Forwarder] = if bench.quick {
        &[PortfwdXdp]
    } else {
        &[PortfwdTc, PortfwdXdp, NftMap]
    };
    for forwarder in forwarders {
        if let Err(why) = forwarder.available() {
            bench.skip(forwarder.name(), &why);
            continue;
        }
        one(bench, *forwarder)?;
    }
    Ok(())
}

fn one(bench: &mut Bench, forwarder: Forwarder) -> Result<()> {
    let span = span(bench, FLOWS);
    let all = if bench.quick { FEW } else { ALL };
    let remotes: Vec<_> = all
        .iter()
        .map(|rules| {
            let traffic = Traffic {
                rules: *rules,
                nat: Nat::Kept,
                flows: Some(FLOWS),
                room: FLOWS,
                span,
            };
            Remote::called(rules.label(), forwarder, traffic)
        })
        .collect();
    let few = all[0].label();
    let name = format!("10,000 known flows, {}", forwarder.name());
    let mut case = Case::new(name, Unit::NsPerPacket, few);
    for rules in &all[1..] {
        case = case.compare(rules.label(), few, Reading::Cost, None);
    }
    let contestants: Vec<&dyn Contestant> = remotes.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)
}
