//! TCP: bytes, requests and connections a second, one connection at a time.

use std::{path::Path, time::Duration};

use anyhow::Result;
use portfwd_tests::Family;

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Goal, Reading, Unit},
    contestant::Contestant,
    rivals::Rival,
    tcp::{
        contestant::{Forwarding, Place, Setting, Way},
        load::Load,
        site::Devices,
    },
};

pub const STREAM: Part = Part {
    name: "tcp-stream",
    about: "bytes of one TCP connection to another host, against plain forwarding",
    run: |bench| elsewhere(bench, Load::Stream),
};

pub const REQUESTS: Part = Part {
    name: "requests",
    about: "requests of one TCP connection to another host, against plain forwarding",
    run: |bench| elsewhere(bench, Load::Requests),
};

pub const CONNECTIONS: Part = Part {
    name: "connections",
    about: "TCP connections to another host, against plain forwarding",
    run: |bench| elsewhere(bench, Load::Connections),
};

pub const LOCAL: Part = Part {
    name: "local-tcp",
    about: "port 80 redirected to port 5000 of the host, against dialling 5000",
    run: here,
};

const PLAIN: &str = "plain forwarding";
const DIRECT: &str = "direct to 5000";

fn elsewhere(bench: &mut Bench, load: Load) -> Result<()> {
    let setting = Setting {
        family: Family::V4,
        devices: Devices::Cards,
        place: Place::Elsewhere,
        load,
        again: false,
        time: time(bench),
    };
    let mut all = ours(&bench.portfwd, TC);
    all.extend(ours(&bench.portfwd, XDP));
    all.extend(rivals(&Rival::ALL));
    all.insert(6, masquerading(Rival::NftMap));
    race(bench, "devices as network cards", PLAIN, all, setting)?;
    if load == Load::Stream {
        bench.note(
            "devices as network cards",
            "plain forwarding and TC forward what GRO has merged; XDP comes before GRO and forwards \
             packets of 1,500 bytes, and a veth first copies each of them to where XDP may write",
        );
    }

    let setting = Setting {
        devices: Devices::Containers,
        ..setting
    };
    let mut all = ours(&bench.portfwd, TC);
    all.extend(rivals(&[Rival::NftMap]));
    race(bench, "devices as containers", PLAIN, all, setting)?;
    if bench.quick {
        return Ok(());
    }

    let setting = Setting {
        family: Family::V6,
        devices: Devices::Cards,
        ..setting
    };
    let mut all = ours(&bench.portfwd, TC);
    all.extend(ours(&bench.portfwd, XDP));
    race(bench, "IPv6, devices as network cards", PLAIN, all, setting)
}

fn here(bench: &mut Bench) -> Result<()> {
    for load in Load::ALL {
        let setting = Setting {
            family: Family::V4,
            devices: Devices::Cards,
            place: Place::Here,
            load,
            again: false,
            time: time(bench),
        };
        let mut all = ours(&bench.portfwd, HERE);
        all.extend(rivals(&Rival::ALL));
        race(bench, load.name(), DIRECT, all, setting)?;
        if bench.quick {
            continue;
        }
        let setting = Setting {
            family: Family::V6,
            ..setting
        };
        let name = format!("{}, IPv6", load.name());
        race(bench, &name, DIRECT, ours(&bench.portfwd, HERE), setting)?;
    }
    let setting = Setting {
        family: Family::V4,
        devices: Devices::Cards,
        place: Place::Here,
        load: Load::Connections,
        again: true,
        time: time(bench),
    };
    let mut all = ours(&bench.portfwd, HERE);
    all.extend(rivals(&[Rival::NftMap]));
    race(
        bench,
        "connections, from ports in TIME_WAIT",
        DIRECT,
        all,
        setting,
    )
}

/// Of one sample.
fn time(bench: &Bench) -> Duration {
    Duration::from_millis(if bench.quick { 100 } else { 250 })
}

type Named = (String, Way);

/// Name, options and variables of a portfwd.
type Ours = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

// Without programs of the host itself: their hooks see the programs of every
// namespace, so each portfwd that is ready would slow all others down.
const TC: &[Ours] = &[
    (
        "portfwd TC, address kept",
        "--mode tc --no-local -i eth0 --nat preserve",
        &[],
    ),
    (
        "portfwd TC, masquerade",
        "--mode tc --no-local -i eth0 --nat masquerade",
        &[],
    ),
];

const XDP: &[Ours] = &[
    (
        "portfwd XDP, address kept",
        "--mode xdp --no-local -i eth0 -i eth1 --nat preserve",
        &[],
    ),
    (
        "portfwd XDP, masquerade",
        "--mode xdp --no-local -i eth0 -i eth1 --nat masquerade",
        &[],
    ),
];

const HERE: &[Ours] = &[
    ("portfwd", "-i eth0", &[]),
    (
        "portfwd, rewriting",
        "-i eth0",
        &[("PORTFWD_TCP", "rewrite")],
    ),
];

fn ours(binary: &Path, all: &[Ours]) -> Vec<Named> {
    let way = |(name, options, variables): &Ours| {
        let way = Way::Portfwd {
            binary: binary.to_owned(),
            options,
            variables,
        };
        ((*name).to_owned(), way)
    };
    all.iter().map(way).collect()
}

fn rivals(all: &[Rival]) -> Vec<Named> {
    all.iter()
        .map(|rival| (rival.name().to_owned(), Way::Rival(*rival)))
        .collect()
}

fn masquerading(rival: Rival) -> Named {
    let name = format!("{}, masquerade", rival.name());
    (name, Way::Masquerading(rival))
}

fn race(
    bench: &mut Bench,
    name: &str,
    reference: &str,
    others: Vec<Named>,
    setting: Setting,
) -> Result<()> {
    let (unit, goal) = match (setting.load, setting.place) {
        (Load::Stream, Place::Elsewhere) => (Unit::GbitPerSecond, 1.0),
        (Load::Requests, Place::Elsewhere) => (Unit::RequestsPerSecond, 1.0),
        (Load::Connections, Place::Elsewhere) => (Unit::ConnectionsPerSecond, 0.95),
        (Load::Stream, Place::Here) => (Unit::GbitPerSecond, 0.95),
        (Load::Requests, Place::Here) => (Unit::RequestsPerSecond, 0.95),
        (Load::Connections, Place::Here) => (Unit::ConnectionsPerSecond, 0.95),
    };
    let mut case = Case::new(name, unit, reference);
    for (ours, way) in &others {
        if matches!(way, Way::Portfwd { .. }) {
            let goal = Some(Goal::AtLeast(goal));
            case = case.compare(ours.as_str(), reference, Reading::Rate, goal);
        }
    }
    let direct = (reference.to_owned(), Way::Direct);
    let all: Vec<Forwarding> = [direct]
        .into_iter()
        .chain(others)
        .map(|(name, way)| Forwarding::new(name, way, setting))
        .collect();
    let contestants: Vec<&dyn Contestant> = all.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)?;
    if setting.load == Load::Requests {
        observe_medians(bench, name, &all);
    }
    Ok(())
}

/// For information: rates decide.
fn observe_medians(bench: &mut Bench, name: &str, all: &[Forwarding]) {
    let case = format!("{name}: median time");
    for one in all {
        let medians = one.medians();
        if !medians.is_empty() {
            bench.observe(&case, Unit::Us, one.name(), &medians);
        }
    }
}
