//! One forwarder: rules, the devices it is attached to, and what it changed on
//! the host.

use std::{collections::BTreeSet, net::IpAddr};

use portfwd_common::{Timeouts, settings::DEFAULT_MAX_FLOWS};
use rtnetlink::Handle;

use crate::{
    Error,
    counters::Snapshot,
    dataplane::{Dataplane, Features, Settings, Side},
    host::{
        bpffs,
        devices::{self, Device, Watch},
        journal::{Journal, Sysctl},
        kernel,
        lock::Lock,
        netns,
    },
    plan::{self, TcpMechanism},
    rule::{Proto, Rule, RuleSpec, not_yet},
};

/// From which devices network traffic is taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interfaces {
    /// Every layer-3 device, those that come later too.
    Any,
    /// These.
    Named(Vec<String>),
}

/// How TCP to a socket on this host is carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tcp {
    /// Steered where the kernel can.
    #[default]
    Auto,
    /// Always rewritten, as UDP is.
    Rewrite,
}

/// What a forwarder is made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The rules; [`plan::check`] must accept them.
    pub rules: Vec<RuleSpec>,
    /// Where network traffic is taken.
    pub interfaces: Interfaces,
    /// Clients on this host are served too.
    pub local: bool,
    /// How TCP is carried.
    pub tcp: Tcp,
    /// New flows are logged, see [`Forwarder::next_event`].
    pub log_flows: bool,
}

/// A forwarder that runs in the current network namespace until it is stopped.
/// Dropping it detaches and undoes its changes as far as it can.
pub struct Forwarder {
    options: Options,
    mechanism: TcpMechanism,
    dataplane: Dataplane,
    journal: Journal,
    handle: Handle,
    watch: Watch,
    chosen: Vec<String>,
    opened: BTreeSet<u32>,
    stopped: bool,
    cookie: String,
    // Last, so that it is given up last.
    _lock: Lock,
}

impl Forwarder {
    /// Loads, fills the maps and attaches. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// One sentence; nothing is left attached or changed.
    pub async fn start(mut options: Options) -> Result<Self, Error> {
        plan::check(&options.rules)?;
        let handle = devices::connect()?;
        refuse_what_comes_later(&handle, &options.rules).await?;
        let release = kernel::Release::running()?;
        kernel::require_floor(release)?;
        kernel::require_root()?;
        options.interfaces = resolve(&handle, options.interfaces).await?;

        let cookie = netns::cookie()?;
        let lock = Lock::acquire(&cookie)?;
        let journal = Journal::recover(&cookie)?;
        bpffs::mounted()?;
        bpffs::remove_dead(&cookie)?;
        // Before the first listing, so that no change is missed.
        let watch = devices::watch()?;

        let features = match options.tcp {
            Tcp::Auto => Features::probe(release)?,
            Tcp::Rewrite => Features::probe(release)?.without_steering(),
        };
        let mechanism = mechanism(features);
        refuse_rewriting_to_loopback(&options.rules, mechanism)?;
        let dataplane = load(&options, features, &cookie)?;
        let mut forwarder = Self {
            options,
            mechanism,
            dataplane,
            journal,
            handle,
            watch,
            chosen: Vec::new(),
            opened: BTreeSet::new(),
            stopped: false,
            cookie,
            _lock: lock,
        };
        forwarder
            .dataplane
            .install(&plan::plan(&forwarder.options.rules, mechanism))?;
        forwarder.follow_host().await?;
        Ok(forwarder)
    }

    /// Waits until the host's devices or addresses change and follows them, or
    /// until new flows were logged. Safe to cancel while it waits.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]; the forwarder goes on as it was.
    pub async fn next_event(&mut self) -> Result<(), Error> {
        let changed = tokio::select! {
            changed = self.watch.changed() => changed.map(|()| true),
            logged = self.dataplane.log_flows() => logged.map(|()| false),
        };
        if changed? {
            self.follow_host().await?;
        }
        Ok(())
    }

    /// Devices whose network traffic is taken now, by name, `lo` for the
    /// clients on this host.
    pub fn devices(&self) -> &[String] {
        &self.chosen
    }

    /// The rules, each at the index that is its slot.
    pub fn rules(&self) -> &[RuleSpec] {
        &self.options.rules
    }

    /// How TCP is carried, and whether that was asked for.
    pub const fn tcp(&self) -> (TcpMechanism, Tcp) {
        (self.mechanism, self.options.tcp)
    }

    /// Devices on which this forwarder opened 127.0.0.0/8.
    pub fn opened(&self) -> impl Iterator<Item = String> {
        self.opened
            .iter()
            .filter_map(|ifindex| devices::name_of(*ifindex))
    }

    /// Reads every counter.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when a map cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let rules = self
            .dataplane
            .rule_counters(self.options.rules.len() as u32)?;
        Ok(Snapshot::new(
            &self.options.rules,
            rules,
            self.dataplane.verdicts()?,
        ))
    }

    /// Detaches, restores what was changed and removes the pins. What cannot
    /// be undone is in the error; the rest is undone all the same.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] with the first thing that could not be undone.
    pub fn stop(mut self) -> Result<(), Error> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), Error> {
        if self.stopped {
            return Ok(());
        }
        self.stopped = true;
        // The sysctls first: as long as one is set, the programs guard it.
        let restored = self.journal.undo();
        self.dataplane.detach();
        bpffs::remove(&self.cookie).and(restored)
    }

    /// Makes LOCALS and the attached devices what the host has now.
    async fn follow_host(&mut self) -> Result<(), Error> {
        let addresses = devices::addresses(&self.handle).await?;
        self.dataplane.set_locals(&addresses)?;
        let present = devices::list(&self.handle).await?;
        self.detach_gone(&present);
        for device in &present {
            self.attach(device)?;
        }
        self.chosen = present
            .iter()
            .filter(|device| self.takes(device))
            .map(|d| d.name.clone())
            .collect();
        Ok(())
    }

    fn detach_gone(&mut self, present: &[Device]) {
        let indexes: BTreeSet<u32> = present.iter().map(|device| device.index).collect();
        self.dataplane
            .retain(|ifindex, _| indexes.contains(&ifindex));
        self.opened.retain(|ifindex| indexes.contains(ifindex));
    }

    /// The way back first: no reply may leave before it can be restored.
    fn attach(&mut self, device: &Device) -> Result<(), Error> {
        if !device.loopback || self.options.local || self.takes(device) {
            gone_is_fine(device, self.dataplane.attach(device, Side::Egress))?;
        }
        if self.takes(device) {
            gone_is_fine(device, self.dataplane.attach(device, Side::Ingress))?;
            if !device.loopback && self.options.rules.iter().any(|spec| self.opens(&spec.rule)) {
                self.open_loopback(device)?;
            }
        }
        Ok(())
    }

    /// Is traffic that arrives on the device forwarded?
    fn takes(&self, device: &Device) -> bool {
        if device.loopback && self.options.local {
            return true;
        }
        match &self.options.interfaces {
            Interfaces::Any => !device.loopback,
            Interfaces::Named(names) => names.contains(&device.name),
        }
    }

    /// Does the rule rewrite network traffic to 127.0.0.0/8?
    fn opens(&self, rule: &Rule) -> bool {
        let rewrites = rule.protos.contains(Proto::Udp)
            || rule.protos.contains(Proto::Tcp) && self.mechanism == TcpMechanism::Rewrite;
        let from_network = !rule.listen.is_some_and(|addr| addr.is_loopback());
        rewrites && from_network && targets_loopback(rule).is_some_and(|addr| addr.is_ipv4())
    }

    /// Lets packets to 127.0.0.0/8 pass a device, guarded by the programs,
    /// which are attached already. Where the host has it open, it is the
    /// host's matter.
    fn open_loopback(&mut self, device: &Device) -> Result<(), Error> {
        if self.opened.contains(&device.index) {
            return Ok(());
        }
        let sysctl = Sysctl::ipv4(device.index, "route_localnet");
        if self.journal.is_on(&sysctl)? {
            return Ok(());
        }
        self.dataplane.guard(device.index)?;
        if self.journal.set(&sysctl, "1")? {
            self.opened.insert(device.index);
        }
        Ok(())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            log::error!("{error}");
        }
    }
}

/// A device that went away between the listing and now is no error.
fn gone_is_fine(device: &Device, result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(_) if devices::name_of(device.index).is_none() => Ok(()),
        result => result,
    }
}

const fn mechanism(features: Features) -> TcpMechanism {
    match features {
        Features { steer: false, .. } => TcpMechanism::Rewrite,
        Features {
            steer_all: false, ..
        } => TcpMechanism::SteerOrRewrite,
        Features { .. } => TcpMechanism::Steer,
    }
}

fn load(options: &Options, features: Features, cookie: &str) -> Result<Dataplane, Error> {
    let settings = Settings {
        timeouts: Timeouts::DEFAULT,
        max_flows: DEFAULT_MAX_FLOWS,
        log_flows: options.log_flows,
    };
    let pins = bpffs::map_dir(cookie);
    let loaded =
        bpffs::make_map_dir(cookie).and_then(|()| Dataplane::load(&settings, features, &pins));
    if loaded.is_err() {
        // The error of the load is the one to tell.
        let _ = bpffs::remove(cookie);
    }
    loaded
}

async fn refuse_what_comes_later(handle: &Handle, rules: &[RuleSpec]) -> Result<(), Error> {
    let own = devices::addresses(handle).await?;
    let is_local = |addr: IpAddr| own.iter().any(|(own, _)| *own == addr);
    rules
        .iter()
        .try_for_each(|spec| not_yet(&spec.rule, is_local))
}

/// The interfaces by the names that they have, should others have been typed.
async fn resolve(handle: &Handle, interfaces: Interfaces) -> Result<Interfaces, Error> {
    let Interfaces::Named(typed) = interfaces else {
        return Ok(interfaces);
    };
    let mut names = Vec::with_capacity(typed.len());
    for name in &typed {
        names.push(devices::named(handle, name).await?.name);
    }
    Ok(Interfaces::Named(names))
}

/// `::1` is never reached across a device, other than by steering.
fn refuse_rewriting_to_loopback(rules: &[RuleSpec], tcp: TcpMechanism) -> Result<(), Error> {
    let rewritten = |rule: &&Rule| {
        tcp == TcpMechanism::Rewrite
            && rule.protos.contains(Proto::Tcp)
            && !rule.listen.is_some_and(|addr| addr.is_loopback())
            && targets_loopback(rule).is_some_and(|addr| addr.is_ipv6())
    };
    match rules.iter().map(|spec| &spec.rule).find(rewritten) {
        None => Ok(()),
        Some(rule) => Err(Error::machine(format!(
            "rule `{rule}`: where TCP is rewritten, no packet from the network reaches ::1; \
             listen on `[::1]`, or let the service listen on another address"
        ))),
    }
}

fn targets_loopback(rule: &Rule) -> Option<IpAddr> {
    rule.targets
        .iter()
        .filter_map(|target| target.addr)
        .find(IpAddr::is_loopback)
}
