//! Who forwards TCP, ready to be measured by one load.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use portfwd_tests::{Family, Portfwd, deadline};

use super::{
    load::{Load, Order, Outcome},
    peer::{Client, Server},
    site::{DIALLED, Devices, ETH0, SERVICE, Site},
};
use crate::{
    contestant::{Contestant, Lane, Sample},
    measure::cpu::{self, Window},
    pinned,
    rivals::{Rival, Rule, Running, To},
};

/// What is the same for all contestants of a case.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Of the connections.
    pub family: Family,
    /// What the devices do for the stack.
    pub devices: Devices,
    /// Where the service is.
    pub place: Place,
    /// What is measured.
    pub load: Load,
    /// Whether connections come from ports that the server has in TIME_WAIT.
    pub again: bool,
    /// Of one sample.
    pub time: Duration,
}

/// Where the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the host that is dialled.
    Here,
    /// On another host.
    Elsewhere,
}

/// How connections get to the service.
#[derive(Clone, Debug)]
pub enum Way {
    /// The client dials the service itself; the host routes where that is
    /// another host.
    Direct,
    /// portfwd, with these options.
    Portfwd {
        /// The binary.
        binary: PathBuf,
        /// What stands before the rule.
        options: &'static str,
        /// Names and values of variables.
        variables: &'static [(&'static str, &'static str)],
    },
    /// A rival; another host sees the client's address where it can.
    Rival(Rival),
    /// A rival whose connections come from the host.
    Masquerading(Rival),
}

/// A contestant of a TCP case.
pub struct Forwarding {
    name: String,
    way: Way,
    setting: Setting,
    medians: Rc<RefCell<Vec<Duration>>>,
    /// Of a rival that has shown that it serves.
    ready: RefCell<Option<TcpLane>>,
}

impl Forwarding {
    /// A contestant of that name.
    pub fn new(name: impl Into<String>, way: Way, setting: Setting) -> Self {
        Self {
            name: name.into(),
            way,
            setting,
            medians: Rc::default(),
            ready: RefCell::default(),
        }
    }

    /// The median time of a request or connection in each sample, in
    /// microseconds.
    pub fn medians(&self) -> Vec<f64> {
        let medians = self.medians.borrow();
        medians
            .iter()
            .map(|time| time.as_nanos() as f64 / 1e3)
            .collect()
    }

    fn begin(&self, site: &Site) -> Result<Forwarder> {
        let rule = |to: To| Rule {
            listen: site.dialled(self.setting.family),
            to,
        };
        let service = site.service(self.setting.family);
        Ok(match (&self.way, self.setting.place) {
            (Way::Direct, Place::Here) => Forwarder::Nobody,
            (Way::Direct, Place::Elsewhere) => {
                site.route();
                Forwarder::Nobody
            }
            (
                Way::Portfwd {
                    binary,
                    options,
                    variables,
                },
                place,
            ) => {
                let rule = match place {
                    Place::Here => format!("{DIALLED}:{SERVICE}"),
                    Place::Elsewhere => format!("{DIALLED}:{service}"),
                };
                let mut command = pinned::command(&site.host, cpu::WATCH, text(binary)?)?;
                command.args(options.split_whitespace()).arg(rule);
                command.envs(variables.iter().copied());
                Forwarder::Portfwd(Portfwd::from_command(command).until_ready())
            }
            (Way::Rival(rival) | Way::Masquerading(rival), Place::Here) => {
                rival.start(&site.host, &rule(To::Local(SERVICE)))?.into()
            }
            (Way::Rival(rival), Place::Elsewhere) => {
                site.route();
                rival.start(&site.host, &rule(To::Remote(service)))?.into()
            }
            (Way::Masquerading(rival), Place::Elsewhere) => {
                site.route();
                let rule = rule(To::Masqueraded(service));
                rival.start(&site.host, &rule)?.into()
            }
        })
    }
}

impl Contestant for Forwarding {
    fn name(&self) -> &str {
        &self.name
    }

    fn available(&self) -> Result<(), String> {
        match &self.way {
            Way::Direct => Ok(()),
            Way::Portfwd {
                binary, options, ..
            } => accepts(binary, options, self.setting.place),
            Way::Rival(rival) | Way::Masquerading(rival) => {
                rival.available()?;
                // One that does not get along with a load must not end the case.
                let proven = self.lane().and_then(|mut lane| {
                    lane.prove()?;
                    Ok(lane)
                });
                let lane = proven.map_err(|error| format!("it does not serve: {error:#}"))?;
                self.ready.replace(Some(lane));
                Ok(())
            }
        }
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        let lane = match self.ready.take() {
            Some(lane) => lane,
            None => self.lane()?,
        };
        Ok(Box::new(lane))
    }
}

impl Forwarding {
    fn lane(&self) -> Result<TcpLane> {
        let Setting {
            family,
            devices,
            place,
            load,
            again,
            time,
        } = self.setting;
        let site = match place {
            Place::Here => Site::local(devices),
            Place::Elsewhere => Site::remote(devices),
        };
        let to = match self.way {
            Way::Direct => site.service(family),
            _ => site.dialled(family),
        };
        Ok(TcpLane {
            medians: Rc::clone(&self.medians),
            countable: !matches!(
                self.way,
                Way::Rival(rival) | Way::Masquerading(rival) if rival.forks()
            ),
            client: Client::start(&site.client)?,
            server: Server::start(site.server(), SERVICE)?,
            forwarder: self.begin(&site)?,
            by_xdp: matches!(self.way, Way::Portfwd { options, .. } if options.contains("--mode xdp")),
            order: Order {
                load,
                to,
                time,
                sources: match again {
                    true => site.few_sources(family),
                    false => site.sources(family),
                },
            },
            site,
        })
    }
}

/// Whether this portfwd knows the options: what it does not know it says before
/// it looks at the machine.
fn accepts(binary: &Path, options: &str, place: Place) -> Result<(), String> {
    let rule = match place {
        Place::Here => "80:5000",
        Place::Elsewhere => "80:192.0.2.1:5000",
    };
    let mut command = Command::new(binary);
    command.args(["--netns", "/dev/null"]);
    command.args(options.split_whitespace()).arg(rule);
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(2) => Err(said.trim().to_owned()),
        _ => Ok(()),
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}

/// Packets that XDP on the host's device towards the client has sent on.
fn redirected(site: &Site) -> u64 {
    counter(&site.host.sh(&format!("ethtool -S {ETH0}")), "xdp_redirect")
}

/// The sum over all queues of a counter that `ethtool -S` lists.
fn counter(listed: &str, name: &str) -> u64 {
    let of = |line: &str| {
        let (label, value) = line.trim().split_once(": ")?;
        value.parse::<u64>().ok().filter(|_| label.ends_with(name))
    };
    listed.lines().filter_map(of).sum()
}

enum Forwarder {
    Nobody,
    Portfwd(#[expect(dead_code, reason = "held for its end")] Portfwd),
    Rival(Running),
}

impl From<Running> for Forwarder {
    fn from(running: Running) -> Self {
        Self::Rival(running)
    }
}

impl Forwarder {
    fn check(&mut self) -> Result<()> {
        match self {
            Self::Rival(running) => running.check(),
            Self::Nobody | Self::Portfwd(_) => Ok(()),
        }
    }

    /// The process that carries bytes.
    fn pid(&self) -> Option<u32> {
        match self {
            Self::Rival(running) => running.pid(),
            Self::Nobody | Self::Portfwd(_) => None,
        }
    }
}

/// A contestant at work. What talks ends first, the namespaces last.
struct TcpLane {
    medians: Rc<RefCell<Vec<Duration>>>,
    /// Whether it is known which processes carry the bytes.
    countable: bool,
    client: Client,
    server: Server,
    forwarder: Forwarder,
    /// Whether XDP has to carry packets before anything counts.
    by_xdp: bool,
    order: Order,
    site: Site,
}

/// Of an exchange that only has to be right.
const PROOF: Duration = Duration::from_millis(5);

/// How long a rival may take until it serves.
const START: Duration = Duration::from_secs(5);

impl TcpLane {
    fn carry_out(&mut self, order: &Order) -> Result<Outcome> {
        let outcome = self.client.carry_out(order);
        self.forwarder.check()?;
        outcome
    }
}

impl Lane for TcpLane {
    fn prove(&mut self) -> Result<()> {
        let order = Order {
            time: PROOF,
            ..self.order
        };
        let mut last = None;
        let served = deadline(START, || {
            let right = self.carry_out(&order).and_then(|_| {
                let carried = !self.by_xdp || redirected(&self.site) > 0;
                ensure!(carried, "the reply was right, but XDP carried nothing");
                Ok(())
            });
            right.map_err(|error| last = Some(error)).ok()
        });
        match (served, last) {
            (None, Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn sample(&mut self) -> Result<Sample> {
        let pids: Vec<u32> = [self.client.pid(), self.server.pid()]
            .into_iter()
            .chain(self.forwarder.pid())
            .collect();
        let window = Window::open(&pids)?;
        let order = self.order;
        let outcome = self.carry_out(&order)?;
        let spent = window.close()?;

        ensure!(outcome.count > 0, "nothing was carried");
        self.medians.borrow_mut().extend(outcome.median);
        Ok(Sample {
            disturbed: if self.countable { spent.disturbed } else { 0.0 },
            ..Sample::of(outcome.rate(order.load))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn a_counter_is_summed_over_queues() {
        let listed = "NIC statistics:
     peer_ifindex: 2
     rx_queue_0_xdp_packets: 40
     rx_queue_0_xdp_redirect: 30
     rx_queue_1_xdp_redirect: 4
     rx_queue_1_xdp_redirect_errors: 7\n";
        assert_eq!(counter(listed, "xdp_redirect"), 34);
        assert_eq!(counter(listed, "xdp_drops"), 0);
    }
}
