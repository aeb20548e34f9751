//! How a lab comes to be: its rules, its programs, its host.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use portfwd::{
    dataplane::{Dataplane, Features, Settings},
    host::{bpffs, kernel::Release},
    plan::{self, TcpMechanism},
    reach::Reach,
    rule::{Nat, RuleSpec, Target},
};
use portfwd_common::{Timeouts, settings::LOCAL_PORTS_DEFAULT};

use super::{
    Lab,
    host::{Across, Lan, host},
    host_at, lan_at,
};
use crate::Family;

const ROOM: u32 = 1024;

/// A lab to be opened.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    tcp: TcpMechanism,
    max_flows: u32,
    rules: Vec<RuleSpec>,
    across: Option<Across>,
}

impl LabBuilder {
    pub(super) fn new(tcp: TcpMechanism) -> Self {
        Self {
            tcp,
            max_flows: ROOM,
            rules: Vec::new(),
            across: None,
        }
    }

    /// Targets of 10.0.0.0/24 and 2001:db8:2::/64 are other hosts behind
    /// `lan0`, where this host is number 1; with these flags of
    /// [`TargetEntry`](portfwd_common::TargetEntry).
    pub fn across(mut self, flags: u16, mtu: u32) -> Self {
        self.across = Some(Across { flags, mtu });
        self
    }

    /// Rules that only these sources may use.
    #[track_caller]
    pub fn rules_from(mut self, rules: &str, from: &str) -> Self {
        let from = from
            .split_whitespace()
            .map(|prefix| prefix.parse().expect("a prefix"))
            .collect::<Vec<_>>();
        for text in rules.split_whitespace() {
            let rule = text.parse().unwrap_or_else(|error| panic!("{error}"));
            self.rules.push(RuleSpec {
                rule,
                name: None,
                from: from.clone(),
                nat: Nat::default(),
            });
        }
        self
    }

    /// Flows that the tables hold, 1024 unless told.
    pub fn max_flows(mut self, flows: u32) -> Self {
        self.max_flows = flows;
        self
    }

    /// Loads the programs with these rules.
    #[track_caller]
    pub fn open(self) -> Lab {
        plan::check(&self.rules).expect("rules that can stand beside each other");
        let settings = Settings {
            timeouts: Timeouts::DEFAULT,
            max_flows: self.max_flows,
            local_ports: LOCAL_PORTS_DEFAULT,
            log_flows: false,
        };
        let ns = host();
        let lan = self.across.map(|across| Lan::add(&ns, across));
        let pins = Pins::new();
        let mut plane = Dataplane::load(&settings, features(self.tcp), &pins.0)
            .unwrap_or_else(|error| panic!("{error}"));
        let place = |rule: &RuleSpec, target: &Target| {
            let across = lan
                .zip(target.addr)
                .and_then(|(lan, addr)| lan.target(addr));
            across.unwrap_or_else(|| Reach::Local.entry(target, rule.nat))
        };
        plane
            .install(&plan::plan(&self.rules, self.tcp, place))
            .unwrap_or_else(|error| panic!("{error}"));
        let eth0 = ns.ifindex("eth0");
        let mut own = Vec::from(Family::BOTH.map(|family| (host_at(family, 0).ip(), eth0)));
        if let Some(lan) = lan {
            own.extend(Family::BOTH.map(|family| (lan_at(family, 1, 0).ip(), lan.ifindex)));
        }
        plane.set_locals(&own).expect("these addresses fit");
        Lab {
            ns,
            plane,
            rules: self.rules.len() as u32,
            _pins: pins,
        }
    }
}

/// What the running kernel has, less what the mechanism does without.
fn features(tcp: TcpMechanism) -> Features {
    let release = Release::running().expect("a kernel has a release");
    let probed = Features::probe(release).expect("root loads programs");
    assert!(probed.steer_all, "these tests are for kernels from 6.6 on");
    match tcp {
        TcpMechanism::Steer => probed,
        TcpMechanism::SteerOrRewrite => Features {
            steer_all: false,
            ..probed
        },
        TcpMechanism::Rewrite => probed.without_steering(),
    }
}

/// A folder for the pins of one lab, removed with what is in it.
#[derive(Debug)]
pub(super) struct Pins(PathBuf);

impl Pins {
    #[track_caller]
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let bpffs = bpffs::mounted().unwrap_or_else(|error| panic!("{error}"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = bpffs.join(format!("portfwd-lab-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        Self(folder)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} was not removed: {error}", self.0.display());
        }
    }
}
