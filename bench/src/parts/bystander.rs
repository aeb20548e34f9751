//! Packets that are no rule's business, on a host that forwards.

use std::{rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use portfwd_tests::{Portfwd, UdpListen, UdpManner, UdpServer};
use portfwd_yardstick::names;

use super::{Part, udp::span};
use crate::{
    bench::Bench,
    case::{Case, Reading, Unit},
    contestant::{Contestant, Lane, Sample},
    flood::{Generator, Load, Span},
    forwarders::{
        Forwarder, portfwd,
        rules::{Nat, Rules},
    },
    site::{self, Site, target_at},
    yard::Yard,
};

pub const PART: Part = Part {
    name: "bystander",
    about: "60-byte UDP that no rule is for, merely routed by the host",
    run,
};

/// No rule names it, and no target has it.
const PORT: u16 = 9;
const FLOWS: u32 = 1_000;

/// What stands on the host's devices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    None,
    EmptyTc,
    EmptyXdp,
    Portfwd(Forwarder, Rules),
}

fn run(bench: &mut Bench) -> Result<()> {
    let span = span(bench, FLOWS);
    let (one, many) = (Rules::Single(1), Rules::Single(10_000));
    let tc = Forwarder::PortfwdTc;
    let xdp = Forwarder::PortfwdXdp;
    let all = [
        ("nothing", Presence::None),
        ("empty TC", Presence::EmptyTc),
        ("empty XDP", Presence::EmptyXdp),
        ("portfwd TC, 1 rule", Presence::Portfwd(tc, one)),
        ("portfwd TC, 10,000 rules", Presence::Portfwd(tc, many)),
        ("portfwd XDP, 1 rule", Presence::Portfwd(xdp, one)),
        ("portfwd XDP, 10,000 rules", Presence::Portfwd(xdp, many)),
    ]
    .map(|(name, presence)| Bystander {
        name,
        presence,
        span,
    });
    let mut case = Case::new("routed packets", Unit::NsPerPacket, "nothing");
    for bystander in &all[1..] {
        case = case.compare(bystander.name, "nothing", Reading::Difference, None);
    }
    case = case
        .compare("portfwd TC, 1 rule", "empty TC", Reading::Difference, None)
        .compare(
            "portfwd TC, 10,000 rules",
            "portfwd TC, 1 rule",
            Reading::Difference,
            None,
        )
        .compare(
            "portfwd XDP, 10,000 rules",
            "portfwd XDP, 1 rule",
            Reading::Difference,
            None,
        );
    let contestants: Vec<&dyn Contestant> = all.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)
}

struct Bystander {
    name: &'static str,
    presence: Presence,
    span: Span,
}

impl Contestant for Bystander {
    fn name(&self) -> &str {
        self.name
    }

    fn available(&self) -> Result<(), String> {
        match self.presence {
            Presence::Portfwd(forwarder, _) => forwarder.available(),
            _ => Ok(()),
        }
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        let site = Rc::new(Site::new());
        site.route();
        let mut lane = BystanderLane {
            load: None,
            _portfwd: None,
            _empty: None,
            site,
            span: self.span,
        };
        let host = &lane.site.host;
        match self.presence {
            Presence::None => {}
            Presence::EmptyTc => {
                let mut yard = Yard::load()?;
                for device in [site::NET, site::LAN] {
                    yard.attach_tc(names::EMPTY_TC, host, device)?;
                    yard.attach_tc_out(names::EMPTY_TC, host, device)?;
                }
                lane._empty = Some(yard);
            }
            Presence::EmptyXdp => {
                let mut yard = Yard::load()?;
                yard.attach_xdp(names::EMPTY_XDP, host, site::NET)?;
                lane._empty = Some(yard);
            }
            Presence::Portfwd(forwarder, rules) => {
                lane._portfwd = Some(portfwd::start(forwarder, &lane.site, rules, Nat::Kept, 0));
            }
        }
        Ok(Box::new(lane))
    }
}

struct BystanderLane {
    load: Option<(Generator, Yard)>,
    _portfwd: Option<Portfwd>,
    _empty: Option<Yard>,
    site: Rc<Site>,
    span: Span,
}

impl Lane for BystanderLane {
    fn prove(&mut self) -> Result<()> {
        let server = UdpServer::start(&self.site.target, UdpListen::V4Only, PORT, UdpManner::Echo);
        let socket = self.site.client.enter(|| -> std::io::Result<_> {
            let socket = std::net::UdpSocket::bind((site::CLIENT, 0))?;
            socket.connect(target_at(PORT))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send(b"a question")?;
        socket.recv(&mut [0; 64]).context("no answer")?;
        drop(server);
        let mut sink = Yard::load()?;
        sink.attach_sink(&self.site.target, site::END)?;
        let load = Load::flows(FLOWS, target_at(PORT));
        self.load = Some((Generator::new(Rc::clone(&self.site), load)?, sink));
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let (generator, sink) = self.load.as_mut().context("not proved")?;
        generator.sample(self.span, sink)
    }
}
