//! One forwarder: rules, the devices it is attached to, and what it changed on
//! the host.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use portfwd_common::{TargetEntry, Timeouts, settings};
use rtnetlink::Handle;
use tokio::time::{Instant, sleep_until};

use crate::{
    Error,
    accelerate::{self, Mode},
    accelerator::{Accelerator, DeviceMode, Scene},
    counters::Snapshot,
    dataplane::{Dataplane, Features, FlowTables, Settings, Side},
    host::{
        bpffs, cgroup,
        devices::{self, Device},
        journal::{Journal, Sysctl},
        kernel,
        lock::Lock,
        netlink, netns, routes,
        watch::{self, News, Scope, Watch},
    },
    plan::{self, TcpMechanism},
    reach::{Reach, Ways},
    rule::{Proto, Rule, RuleSpec, Target, not_yet},
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
    /// Whether XDP forwards beside TC; [`accelerate::check`] must accept it.
    pub mode: Mode,
    /// Where it does, it replaces XDP programs of others, until it stops.
    pub force: bool,
    /// Flows that the tables hold, from 1 to [`settings::MOST_FLOWS`].
    pub max_flows: u32,
    /// The control group whose programs are sent to other hosts; the root of
    /// cgroup2 where none is named.
    pub cgroup: Option<PathBuf>,
    /// New flows are logged, see [`Forwarder::wait`].
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
    /// What has changed and is not followed yet.
    news: Option<News>,
    /// How often in a row it could not be followed.
    failures: u32,
    /// When that is tried again, unless something changes before.
    again: Option<Instant>,
    ways: Ways,
    /// XDP, where there is something for it to do.
    accelerator: Option<Accelerator>,
    /// The targets as they were written last.
    targets: Vec<TargetEntry>,
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
        options.check_mode()?;
        options
            .rules
            .iter()
            .try_for_each(|spec| not_yet(&spec.rule))?;
        let handle = netlink::connect()?;
        let release = kernel::Release::running()?;
        kernel::require_floor(release)?;
        kernel::require_root()?;
        options.interfaces = resolve(&handle, options.interfaces).await?;
        // A wrong one is told, whether or not a rule needs it.
        let named = options.cgroup.as_deref().map(cgroup::at).transpose()?;

        let cookie = netns::cookie()?;
        let lock = Lock::acquire(&cookie)?;
        let journal = Journal::recover(&cookie)?;
        bpffs::mounted()?;
        bpffs::remove_dead(&cookie)?;
        let ways = Ways::find(&handle, &options.rules).await?;
        // Before the first listing, so that no change is missed.
        let mut watch = watch::watch(match ways.is_empty() {
            true => Scope::Devices,
            false => Scope::Routes,
        })?;
        let accelerator = accelerator(&options, &ways)?;
        if let Some(group) = accelerator.as_ref().and_then(Accelerator::changes) {
            watch.hear_of_drivers(group)?;
        }

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
            news: None,
            failures: 0,
            again: None,
            ways,
            accelerator,
            targets: Vec::new(),
            chosen: Vec::new(),
            opened: BTreeSet::new(),
            stopped: false,
            cookie,
            _lock: lock,
        };
        forwarder.install().await?;
        forwarder.follow_host().await?;
        if forwarder.options.local && !forwarder.ways.is_empty() {
            // Programs of this host reach other hosts by the hooks of a cgroup.
            let cgroup = named.map_or_else(cgroup::root, Ok)?;
            forwarder.dataplane.attach_hooks(&cgroup)?;
        }
        Ok(forwarder)
    }

    /// Fills the maps. Nothing is attached yet.
    async fn install(&mut self) -> Result<(), Error> {
        let present = devices::list(&self.handle).await?;
        self.ways.look_around(&self.handle, present).await?;
        let plan = plan::plan(&self.options.rules, self.mechanism, |spec, target| {
            self.ways.reach(target).entry(target, spec.nat)
        });
        self.dataplane.install(&plan)?;
        self.targets = plan.targets;
        self.write_ways()
    }

    /// Waits until the host's devices, addresses, routes or neighbours change,
    /// until what failed is to be tried again, or until new flows were logged.
    /// Safe to cancel.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where news or new flows cannot be read. News are read
    /// again, later each time; new flows are not.
    pub async fn wait(&mut self) -> Result<(), Error> {
        if self.due().is_some() {
            return Ok(());
        }
        tokio::select! {
            news = self.watch.changed() => {
                // Nobody knows what was missed where they cannot be read.
                let heard = news.as_ref().map_or(News::Any, |news| *news);
                self.news = self.news.max(Some(heard));
                self.again = None;
                news.map(drop)
            }
            () = until(self.again) => {
                self.again = None;
                Ok(())
            }
            logged = self.dataplane.log_flows() => logged,
        }
    }

    /// Follows what [`Forwarder::wait`] has heard of, if anything. Each call
    /// begins anew, so it is for the end of a run only to cancel it; what was
    /// not followed to the end is followed at the next call. What failed is
    /// tried again, later each time.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]; the forwarder goes on as it was.
    pub async fn follow(&mut self) -> Result<(), Error> {
        let followed = match self.due() {
            Some(News::Any) => self.follow_host().await,
            Some(News::Routes) => self.follow_routes().await,
            Some(News::Neighbours) => self.follow_neighbours().await,
            None => return Ok(()),
        };
        if followed.is_ok() {
            self.news = None;
            self.failures = 0;
        } else {
            self.again = Some(Instant::now() + watch::pause(self.failures));
            self.failures = self.failures.saturating_add(1);
            // The one that was asked on may have ended.
            if let Ok(handle) = netlink::connect() {
                self.handle = handle;
            }
        }
        followed
    }

    /// What is to be followed now.
    fn due(&self) -> Option<News> {
        self.news.filter(|_| self.again.is_none())
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

    /// Where a target of one of the rules is now.
    pub fn reach(&self, target: &Target) -> Reach {
        self.ways.reach(target)
    }

    /// Which devices have XDP beside TC, and why others have not; empty where
    /// there is nothing for it to do, or nobody asked.
    pub fn modes(&self) -> &[DeviceMode] {
        self.accelerator.as_ref().map_or(&[], Accelerator::modes)
    }

    /// The tables of flows, as they were sized at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where the number of CPUs is not known.
    pub fn flow_tables(&self) -> Result<FlowTables, Error> {
        FlowTables::new(self.options.max_flows)
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
        let put_back = self.accelerator.as_mut().map_or(Ok(()), Accelerator::undo);
        bpffs::remove(&self.cookie).and(restored).and(put_back)
    }

    /// Makes LOCALS, the attached devices and the ways to other hosts what the
    /// host has now.
    async fn follow_host(&mut self) -> Result<(), Error> {
        let addresses = devices::addresses(&self.handle).await?;
        self.dataplane.set_locals(&addresses)?;
        let present = devices::list(&self.handle).await?;
        let detached = self.detach_gone(&present);
        let attached = self.attach_all(&present);
        self.chosen = present
            .iter()
            .filter(|device| self.takes(device))
            .map(|d| d.name.clone())
            .collect();
        self.ways.look_around(&self.handle, present.clone()).await?;
        let accelerated = self.accelerate(&present);
        detached
            .and(attached)
            .and(accelerated)
            .and(self.write_ways())
    }

    async fn follow_routes(&mut self) -> Result<(), Error> {
        let before = self.ways.devices();
        self.ways.look_at_routes(&self.handle).await?;
        if self.accelerator.is_some() && self.ways.devices() != before {
            return self.follow_host().await;
        }
        self.write_ways()
    }

    /// TC is there already, and takes what XDP leaves.
    fn accelerate(&mut self, present: &[Device]) -> Result<(), Error> {
        let Some(mut accelerator) = self.accelerator.take() else {
            return Ok(());
        };
        let taken = present.iter().filter(|device| self.takes(device));
        let scene = Scene {
            present,
            taken_from: &taken.map(|device| device.index).collect(),
            targets: &self.ways.devices(),
        };
        let followed = accelerator.follow(&mut self.dataplane, &scene);
        self.ways.express(&accelerator.senders);
        self.accelerator = Some(accelerator);
        followed
    }

    async fn follow_neighbours(&mut self) -> Result<(), Error> {
        // Every neighbour of the host is news, ten times a second at most.
        if !self.ways.may_peer() {
            return Ok(());
        }
        self.ways.look_at_neighbours(&self.handle).await?;
        self.write_targets()
    }

    fn write_ways(&mut self) -> Result<(), Error> {
        let Self {
            ways, dataplane, ..
        } = self;
        let next_hops = &mut ways.next_hops.table;
        next_hops.write(|entries| dataplane.set_next_hops(entries))?;
        let homes = &mut ways.homes.table;
        homes.write(|entries| dataplane.set_homes(entries))?;
        self.write_targets()?;
        // Where packets go from now on is learned anew.
        match self.dataplane.accelerated()[..] {
            [] => Ok(()),
            _ => self.dataplane.next_epoch(),
        }
    }

    /// Writes the targets where they are not what was written last.
    fn write_targets(&mut self) -> Result<(), Error> {
        let mut targets = Vec::with_capacity(self.targets.len());
        for RuleSpec { rule, nat, .. } in &self.options.rules {
            let reached = rule.targets.iter();
            targets.extend(reached.map(|target| self.ways.reach(target).entry(target, *nat)));
        }
        if targets != self.targets {
            self.dataplane.set_targets(&targets)?;
            self.targets = targets;
        }
        Ok(())
    }

    fn detach_gone(&mut self, present: &[Device]) -> Result<(), Error> {
        let indexes: BTreeSet<u32> = present.iter().map(|device| device.index).collect();
        let mut slowed = Ok(());
        for ifindex in self.dataplane.accelerated() {
            if !indexes.contains(&ifindex) {
                slowed = slowed.and(self.dataplane.slow_down(ifindex));
            }
        }
        self.dataplane
            .retain(|ifindex, _| indexes.contains(&ifindex));
        self.opened.retain(|ifindex| indexes.contains(ifindex));
        slowed
    }

    /// A device that refuses keeps no other from being served; the first error
    /// is the one to tell.
    fn attach_all(&mut self, devices: &[Device]) -> Result<(), Error> {
        let mut all = Ok(());
        for device in devices {
            let attached = self.attach(device);
            all = all.and(attached);
        }
        all
    }

    /// The way back first: no reply may leave before it can be restored.
    fn attach(&mut self, device: &Device) -> Result<(), Error> {
        if !device.loopback || self.options.local || self.takes(device) {
            gone_is_fine(device, self.dataplane.attach(device, Side::Egress))?;
        }
        if self.takes(device) {
            // A device that has got the name: before 6.6 both want one place.
            self.dataplane
                .retain(|ifindex, side| (ifindex, side) != (device.index, Side::Back));
            gone_is_fine(device, self.dataplane.attach(device, Side::Ingress))?;
            if !device.loopback && self.options.rules.iter().any(|spec| self.opens(&spec.rule)) {
                self.open_loopback(device)?;
            }
        } else if self.meets_replies(device) {
            gone_is_fine(device, self.dataplane.attach(device, Side::Back))?;
        }
        Ok(())
    }

    /// Replies of other hosts come in by any device; one that was renamed may
    /// still have the program that takes network traffic.
    fn meets_replies(&self, device: &Device) -> bool {
        let taken = self.dataplane.is_attached(device.index, Side::Ingress);
        !self.ways.is_empty() && !device.loopback && !taken
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

impl Options {
    /// Whether the mode fits the rules and the interfaces.
    ///
    /// # Errors
    ///
    /// [`Error::Text`].
    pub fn check_mode(&self) -> Result<(), Error> {
        let named = match &self.interfaces {
            Interfaces::Any => None,
            Interfaces::Named(names) => Some(&names[..]),
        };
        accelerate::check(self.mode, named, &self.rules)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            log::error!("{error}");
        }
    }
}

/// Never, where there is no such time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
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
    let (first, last) = routes::local_port_range()?;
    let settings = Settings {
        timeouts: Timeouts::DEFAULT,
        max_flows: options.max_flows,
        local_ports: settings::local_ports(first, last),
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

/// XDP, where a rule leads to another host and XDP is not turned down.
fn accelerator(options: &Options, ways: &Ways) -> Result<Option<Accelerator>, Error> {
    if ways.is_empty() {
        return accelerate::nothing_to_do(options.mode)
            .map_err(Error::machine)
            .map(|()| None);
    }
    match options.mode {
        Mode::Tc => Ok(None),
        mode => Accelerator::new(mode, options.force).map(Some),
    }
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
