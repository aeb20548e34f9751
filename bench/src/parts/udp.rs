//! 60-byte UDP to another host.

use std::time::Duration;

use anyhow::Result;

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Goal, Reading, Unit},
    contestant::Contestant,
    flood::Span,
    forwarders::{
        Forwarder::{
            self, Direct, Iptables, NftChain, NftMap, Plain, PortfwdTc, PortfwdXdp, YardstickTc,
            YardstickXdp,
        },
        conntrack,
        rules::{Nat, Rules},
    },
    remote::{Remote, Traffic},
    report::table::number,
};

pub const PART: Part = Part {
    name: "udp-remote",
    about: "60-byte UDP to another host, by number of flows",
    run,
};

const ALL: &[Forwarder] = &[
    Direct,
    Plain,
    YardstickXdp,
    YardstickTc,
    NftMap,
    NftChain,
    Iptables,
    PortfwdTc,
    PortfwdXdp,
];
const FEW: &[Forwarder] = &[Plain, YardstickXdp, NftMap, PortfwdTc, PortfwdXdp];
const TRANSLATE: &[Forwarder] = &[Plain, NftMap, Iptables, PortfwdTc, PortfwdXdp];

fn run(bench: &mut Bench) -> Result<()> {
    let _raised = conntrack::Raised::to(2_000_000)?;
    one(bench, 1_000, Nat::Kept, ALL)?;
    if !bench.quick {
        one(bench, 1, Nat::Kept, FEW)?;
        one(bench, 1_000, Nat::Masquerade, TRANSLATE)?;
        one(bench, 100_000, Nat::Kept, FEW)?;
        one(bench, 1_000_000, Nat::Kept, FEW)?;
    }
    Ok(())
}

fn one(bench: &mut Bench, flows: u32, nat: Nat, forwarders: &[Forwarder]) -> Result<()> {
    let traffic = Traffic {
        rules: Rules::Single(1),
        nat,
        flows: Some(flows),
        room: flows,
        span: span(bench, flows),
    };
    let name = format!("{}, {}", flows_label(flows), nat.label());
    let mut case = Case::new(name, Unit::NsPerPacket, NftMap.name())
        .compare(
            PortfwdXdp.name(),
            YardstickXdp.name(),
            Reading::Cost,
            (flows == 1_000 && nat == Nat::Kept).then_some(Goal::AtMost(1.45)),
        )
        .compare(PortfwdTc.name(), YardstickTc.name(), Reading::Cost, None)
        .compare(
            PortfwdTc.name(),
            Plain.name(),
            Reading::Rate,
            (flows == 1_000 && nat == Nat::Kept).then_some(Goal::AtLeast(1.0)),
        );
    let against_nft = match flows {
        1_000 => Some(4.0),
        1_000_000 => Some(2.5),
        _ => None,
    };
    if let Some(bound) = against_nft
        && nat == Nat::Kept
    {
        case = case.compare(
            PortfwdXdp.name(),
            NftMap.name(),
            Reading::Rate,
            Some(Goal::AtLeast(bound)),
        );
    }
    let remotes: Vec<_> = forwarders
        .iter()
        .map(|one| Remote::new(*one, traffic))
        .collect();
    let contestants: Vec<&dyn Contestant> = remotes.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)
}

fn flows_label(flows: u32) -> String {
    match flows {
        1 => "1 flow".into(),
        more => format!("{} flows", number(more.into())),
    }
}

/// Long enough to meet flows before and during a sample, every one where a
/// packet takes a microsecond.
pub fn span(bench: &Bench, flows: u32) -> Span {
    let pass = Duration::from_nanos(1_000) * flows;
    let sample = Duration::from_millis(if bench.quick { 300 } else { 500 });
    Span {
        warm_up: Duration::from_millis(100) + pass,
        sample: sample.max(pass),
    }
}
