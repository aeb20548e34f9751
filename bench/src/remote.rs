//! UDP through a host to another one, by each forwarder.

use std::{
    net::{IpAddr, UdpSocket},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use portfwd_tests::{UdpListen, UdpManner, UdpServer, bpf::Pinned};

use crate::{
    contestant::{Contestant, Lane, Sample},
    flood::{Generator, Load, Span},
    forwarders::{
        Forwarder, Guard,
        rules::{Nat, Rules},
    },
    site::{self, Site, host_at, target_at},
    yard::Yard,
};

/// The traffic of a case.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// What is forwarded; the load goes to all ports in turn.
    pub rules: Rules,
    /// What becomes of the client's address.
    pub nat: Nat,
    /// Flows in turn; `None`: each frame a new one.
    pub flows: Option<u32>,
    /// Room for so many flows.
    pub room: u32,
    /// How long a sample lasts.
    pub span: Span,
}

/// One forwarder under the traffic.
pub struct Remote {
    name: String,
    forwarder: Forwarder,
    traffic: Traffic,
    /// What is timed are new flows, beside those of the traffic.
    flooded: bool,
}

impl Remote {
    /// One forwarder under the traffic.
    pub fn new(forwarder: Forwarder, traffic: Traffic) -> Self {
        Self::called(forwarder.name(), forwarder, traffic)
    }

    /// The same, by a name of its own.
    pub fn called(name: impl Into<String>, forwarder: Forwarder, traffic: Traffic) -> Self {
        Self {
            name: name.into(),
            forwarder,
            traffic,
            flooded: false,
        }
    }

    /// Times new flows where the traffic's live already, and where the tables
    /// hold exactly the traffic's room.
    pub fn flooded(forwarder: Forwarder, traffic: Traffic) -> Self {
        Self {
            flooded: true,
            ..Self::new(forwarder, traffic)
        }
    }

    fn lane(&self) -> Result<RemoteLane<'_>> {
        let Traffic {
            rules, nat, room, ..
        } = self.traffic;
        let site = Rc::new(Site::new());
        let guard = if self.flooded {
            self.forwarder.set_up_exactly(&site, self.traffic)?
        } else {
            self.forwarder.set_up(&site, rules, nat, room)?
        };
        Ok(RemoteLane {
            load: None,
            _guard: guard,
            site,
            remote: self,
        })
    }
}

impl Contestant for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn available(&self) -> Result<(), String> {
        self.forwarder.available()
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        Ok(Box::new(self.lane()?))
    }
}

struct RemoteLane<'a> {
    load: Option<(Generator, Yard)>,
    _guard: Guard,
    site: Rc<Site>,
    remote: &'a Remote,
}

impl Lane for RemoteLane<'_> {
    fn prove(&mut self) -> Result<()> {
        let Remote {
            forwarder, traffic, ..
        } = *self.remote;
        exchange(&self.site, forwarder, traffic)?;
        let (mut generator, mut sink) = self.prepare()?;
        if self.remote.flooded {
            // Connection tracking takes UDP for two-way if it goes on for two
            // seconds (nf_conntrack_proto_udp.c).
            std::thread::sleep(Duration::from_millis(2_100));
            generator.prime(&mut sink, traffic.room)?;
            generator.aim(Load {
                flows: None,
                // Not one of the flows that live.
                first_client: site::OTHERS,
                ..*generator.load()
            })?;
        }
        self.load = Some((generator, sink));
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let (generator, sink) = self.load.as_mut().context("not proved")?;
        let Traffic { flows, span, .. } = self.remote.traffic;
        if let Some(flows) = flows.filter(|_| !self.remote.flooded) {
            // What idled while others had their turn takes the slow way once.
            generator.send(flows)?;
        }
        generator.sample(span, sink)
    }
}

impl RemoteLane<'_> {
    /// The load and its sink, with all flows two-way.
    fn prepare(&self) -> Result<(Generator, Yard)> {
        let Remote {
            forwarder, traffic, ..
        } = *self.remote;
        let (ns, device) = match forwarder {
            Forwarder::Direct => (&self.site.host, site::NET),
            _ => (&self.site.target, site::END),
        };
        let mut sink = Yard::load()?;
        sink.attach_sink(ns, device)?;
        let load = Load {
            flows: traffic.flows,
            to: dialled(forwarder, traffic.rules, traffic.rules.first()),
            // All ports in turn, as far as the flows go.
            ports: match traffic.flows {
                Some(flows) if flows < traffic.rules.count().into() => flows as u16,
                _ => traffic.rules.count(),
            },
            first_client: site::CLIENTS,
        };
        let mut generator = Generator::new(Rc::clone(&self.site), load)?;
        if let Some(flows) = traffic.flows
            && forwarder.remembers()
        {
            generator.prime(&mut sink, traffic.room)?;
            if forwarder.is_portfwd() {
                // An entry for each direction.
                let held = Pinned::of_forwarder(&self.site.host, "FLOWS").entries() as u32 / 2;
                ensure!(held >= flows, "only {held} of {flows} flows are two-way");
            }
        }
        Ok((generator, sink))
    }
}

/// Where clients send to for a port.
const fn dialled(forwarder: Forwarder, rules: Rules, port: u16) -> std::net::SocketAddrV4 {
    if forwarder.translates() {
        return host_at(port);
    }
    match forwarder {
        Forwarder::Direct => host_at(port),
        _ => target_at(rules.target_port(port)),
    }
}

/// A datagram and its answer, by real sockets; the target sees the source that
/// it should.
fn exchange(site: &Site, forwarder: Forwarder, traffic: Traffic) -> Result<()> {
    let rules = traffic.rules;
    // The yardsticks know the first port only.
    let port = match forwarder {
        Forwarder::YardstickXdp | Forwarder::YardstickTc => rules.first(),
        _ => rules.last(),
    };
    let (ns, served) = match forwarder {
        Forwarder::Direct => (&site.host, port),
        _ => (&site.target, rules.target_port(port)),
    };
    let server = UdpServer::start(ns, UdpListen::V4Only, served, UdpManner::Echo);
    let socket = site.client.enter(|| -> std::io::Result<_> {
        let socket = UdpSocket::bind((site::CLIENT, 0))?;
        socket.connect(dialled(forwarder, rules, port))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    // As long as a frame of the load: the yardsticks take no shorter one.
    let question = b"a question, 18 lon";
    socket.send(question)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).context("no answer")?;
    ensure!(&answer[..length] == question, "a wrong answer");
    let source = match (forwarder.remembers(), traffic.nat) {
        (true, Nat::Masquerade) => site::HOST_LAN,
        _ => site::CLIENT,
    };
    let seen = server.served();
    ensure!(
        seen.last()
            .is_some_and(|peer| peer.ip().to_canonical() == IpAddr::from(source)),
        "the target saw {seen:?} instead of {source}"
    );
    Ok(())
}

/// What became of flows that lived when others flooded the tables.
///
/// # Errors
///
/// See [`Lane::sample`].
pub fn survivors(remote: &Remote) -> Result<String> {
    let mut lane = remote.lane()?;
    lane.prove()?;
    let sample = lane.sample()?;
    let lost = sample.traffic.map_or(0.0, crate::contestant::Traffic::lost);
    let host = &lane.site.host;
    let living: u32 = if remote.forwarder.is_portfwd() {
        Pinned::of_forwarder(host, "FLOWS").entries() as u32 / 2
    } else {
        host.sh("conntrack -L -p udp 2>/dev/null | grep -c ASSURED || true")
            .trim()
            .parse()?
    };
    let before = remote.traffic.flows.unwrap_or(0);
    Ok(format!(
        "{:.0} % of the new flows' packets lost; {} of {before} two-way flows live on",
        lost * 100.0,
        living.min(before),
    ))
}
