//! More flows than the tables hold.

use std::time::Duration;

use anyhow::Result;

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Unit},
    contestant::Contestant,
    flood::Span,
    forwarders::{
        Forwarder::{NftMap, PortfwdTc, PortfwdXdp},
        conntrack,
        rules::{Nat, Rules},
    },
    remote::{Remote, Traffic, survivors},
};

pub const PART: Part = Part {
    name: "full-tables",
    about: "new flows where the tables are full, and what becomes of those that live",
    run,
};

/// What the tables hold, and the two-way flows that live in them.
const ROOM: u32 = 10_000;
const LIVE: u32 = 9_500;

const SPAN: Span = Span {
    warm_up: Duration::from_millis(100),
    sample: Duration::from_millis(200),
};

fn run(bench: &mut Bench) -> Result<()> {
    let _lowered = conntrack::Raised::to(ROOM)?;
    let traffic = Traffic {
        rules: Rules::Single(1),
        nat: Nat::Kept,
        flows: Some(LIVE),
        room: ROOM,
        span: SPAN,
    };
    let all = [NftMap, PortfwdTc, PortfwdXdp].map(|forwarder| Remote::flooded(forwarder, traffic));
    let case = Case::new(
        "new flows, beside 9,500 two-way ones in tables of 10,000",
        Unit::NsPerPacket,
        NftMap.name(),
    );
    let contestants: Vec<&dyn Contestant> = all.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)?;
    for remote in all {
        if remote.available().is_ok() {
            let told = survivors(&remote)?;
            bench.note(remote.name(), &told);
        }
    }
    Ok(())
}
