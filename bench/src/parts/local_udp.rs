//! UDP to one port of the host, served on another one of it.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use portfwd_tests::{Portfwd, Tcp};

use super::{Part, udp::span};
use crate::{
    bench::Bench,
    case::{Case, Goal, Reading, Unit},
    contestant::{Contestant, Lane, Sample},
    flood::{Generator, Load, Span},
    forwarders::rivals,
    site::{self, Site, host_at},
    yard::Yard,
};

pub const PART: Part = Part {
    name: "local-udp",
    about: "60-byte UDP to port 80, served on port 5000 of the host",
    run,
};

const LISTEN: u16 = 80;
const TARGET: u16 = 5000;
const FLOWS: u32 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirect {
    Direct,
    Nft,
    Iptables,
    Portfwd,
}

impl Redirect {
    const fn dialled(self) -> u16 {
        match self {
            Self::Direct => TARGET,
            _ => LISTEN,
        }
    }
}

fn run(bench: &mut Bench) -> Result<()> {
    let span = span(bench, FLOWS);
    let all = [
        ("direct", Redirect::Direct),
        ("nft redirect", Redirect::Nft),
        ("iptables REDIRECT", Redirect::Iptables),
        ("portfwd TC", Redirect::Portfwd),
    ]
    .map(|(name, redirect)| Local {
        name,
        redirect,
        span,
    });
    let case = Case::new("1,000 flows", Unit::NsPerPacket, "direct")
        .compare(
            "portfwd TC",
            "direct",
            Reading::Rate,
            Some(Goal::AtLeast(0.8)),
        )
        .compare("portfwd TC", "nft redirect", Reading::Rate, None);
    let contestants: Vec<&dyn Contestant> = all.iter().map(|one| one as _).collect();
    bench.race(&case, &contestants)
}

struct Local {
    name: &'static str,
    redirect: Redirect,
    span: Span,
}

impl Contestant for Local {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        let site = Rc::new(Site::new());
        let mut portfwd = None;
        match self.redirect {
            Redirect::Direct => {}
            Redirect::Nft => site.host.nft(&format!(
                "table ip bench {{ chain to {{ type nat hook prerouting priority dstnat;
                   udp dport {LISTEN} redirect to :{TARGET};\n }}\n }}"
            )),
            Redirect::Iptables => rivals::restore(
                &site.host,
                &format!(
                    "*nat\n-A PREROUTING -p udp --dport {LISTEN} -j REDIRECT --to-ports {TARGET}\nCOMMIT\n"
                ),
            ),
            Redirect::Portfwd => {
                let args = format!(
                    "run --mode tc --iface {} --no-local {LISTEN}:{TARGET}/udp",
                    site::NET
                );
                portfwd = Some(Portfwd::start(&site.host, Tcp::Steered, &args));
            }
        }
        let service = site.host.enter(|| UdpSocket::bind(("0.0.0.0", TARGET)))?;
        service.set_nonblocking(true)?;
        // Room for one datagram of each flow.
        setsockopt(&service, sockopt::RcvBufForce, &(16 << 20))?;
        Ok(Box::new(LocalLane {
            load: None,
            service,
            _portfwd: portfwd,
            site,
            local: self,
        }))
    }
}

struct LocalLane<'a> {
    load: Option<(Generator, Yard)>,
    service: UdpSocket,
    _portfwd: Option<Portfwd>,
    site: Rc<Site>,
    local: &'a Local,
}

impl Lane for LocalLane<'_> {
    fn prove(&mut self) -> Result<()> {
        let port = self.local.redirect.dialled();
        let client = self.site.client.enter(|| -> std::io::Result<_> {
            let client = UdpSocket::bind((site::CLIENT, 0))?;
            client.connect(host_at(port))?;
            Ok(client)
        })?;
        client.set_read_timeout(Some(Duration::from_secs(2)))?;
        client.send(b"a question")?;
        ensure!(self.answer(1)? == 1, "the service got nothing");
        client.recv(&mut [0; 64]).context("no answer")?;

        let mut generator =
            Generator::new(Rc::clone(&self.site), Load::flows(FLOWS, host_at(port)))?;
        // Twice there and back: then every flow is two-way.
        for _ in 0..2 {
            let before = generator.back.count()?;
            generator.send(FLOWS)?;
            let answered = self.answer(FLOWS)?;
            let back = generator.back.count()? - before;
            ensure!(
                answered == FLOWS && back == u64::from(FLOWS),
                "{answered} of {FLOWS} datagrams were served, {back} answers came back"
            );
        }
        // From here on the socket counts what it is given, and takes nothing.
        let mut sink = Yard::load()?;
        sink.socket_sink()?.attach(&self.service)?;
        self.load = Some((generator, sink));
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let (generator, sink) = self.load.as_mut().context("not proved")?;
        generator.sample(self.local.span, sink)
    }
}

impl LocalLane<'_> {
    /// Answers so many datagrams; fewer if they do not come for a while.
    fn answer(&self, count: u32) -> Result<u32> {
        let mut buffer = [0; 64];
        let mut latest = Instant::now() + Duration::from_secs(1);
        let mut answered = 0;
        while answered < count && Instant::now() < latest {
            match self.service.recv_from(&mut buffer) {
                Ok((length, peer)) => {
                    self.service.send_to(&buffer[..length], peer)?;
                    answered += 1;
                    latest = Instant::now() + Duration::from_secs(1);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(answered)
    }
}
