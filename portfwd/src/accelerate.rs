//! On which devices XDP forwards known flows, and why it does not on the
//! others. TC is on all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use portfwd_common::device::MAX_DEVICES;

use crate::{
    Error,
    host::{
        devices::{Device, Link, Wire},
        drivers::Driver,
        offloads::Offloads,
    },
    rule::RuleSpec,
};

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// XDP beside TC where the driver has it and a rule gains by it.
    #[default]
    Auto,
    /// XDP in the driver on the devices that are named, or an error.
    Xdp,
    /// XDP in the stack on the devices that are named, or an error.
    XdpGeneric,
    /// TC alone.
    Tc,
}

impl Mode {
    /// Is anything but XDP on the named devices an error?
    pub const fn is_forced(self) -> bool {
        matches!(self, Self::Xdp | Self::XdpGeneric)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        })
    }
}

/// Where XDP runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// In the driver, before there is a packet of the stack.
    Native,
    /// In the stack.
    Generic,
}

/// Why a device is on TC alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nobody wants XDP there, which needs no word: `lo`, or `--mode tc`.
    Plain,
    /// The mode is for the devices that are named.
    NotNamed(Mode),
    /// Its packets have no Ethernet header.
    Bare,
    /// Its index has no place in the table.
    Index,
    /// What comes from there may be whole in the stack only.
    Wire(Wire),
    /// Its driver has no XDP.
    Driver,
    /// XDP would not see the tags of a VLAN device on it.
    Vlan,
    /// The stack puts packets together first.
    Gro,
    /// A program of another is there: what is known of it.
    Taken(String),
    /// The kernel did not attach ours, and said this.
    Refused(String),
    /// None of its packets leaves by a device that XDP can send by.
    Alone,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => Ok(()),
            Self::NotNamed(mode) => write!(f, "--mode {mode} is for the devices of -i"),
            Self::Bare => f.write_str("it has no Ethernet header"),
            Self::Index => write!(f, "its index is {MAX_DEVICES} or more"),
            Self::Wire(Wire::Tap) => f.write_str("tap: XDP only with --mode xdp"),
            Self::Wire(_) => f.write_str("veth: XDP only with --mode xdp"),
            Self::Driver => f.write_str("its driver has no XDP"),
            Self::Vlan => f.write_str("a VLAN device is on it, whose tags it strips"),
            Self::Gro => f.write_str("its packets are put together first (GRO)"),
            Self::Taken(by) => write!(f, "its XDP hook is taken by {by}"),
            Self::Refused(said) => f.write_str(said),
            Self::Alone => f.write_str("XDP can send by no device that its packets leave by"),
        }
    }
}

impl Why {
    /// The error where XDP was asked for, with what to try.
    pub fn refuse(&self, mode: Mode, device: &str) -> Error {
        let advice = match self {
            Self::Vlan => format!("type `ethtool -K {device} rxvlan off`, or leave `--mode` out"),
            Self::Gro => format!("type `ethtool -K {device} gro off`, or leave `--mode` out"),
            Self::Driver => "type `--mode auto`, or `--mode xdp-generic` for a trial".to_owned(),
            Self::Taken(_) => "give `--force` to replace it, or leave `--mode` out".to_owned(),
            Self::Alone => "XDP sends by Ethernet devices whose driver can (a veth: whose other \
                 end has GRO on); leave `--mode` out"
                .to_owned(),
            _ => "leave `--mode` out".to_owned(),
        };
        Error::machine(format!(
            "`--mode {mode}` cannot work on {device}: {self}; {advice}"
        ))
    }
}

/// What is wrong with a mode from the text alone. `named` are the devices of
/// `-i`; none for `any`.
///
/// # Errors
///
/// [`Error::Text`].
pub fn check(mode: Mode, named: Option<&[String]>, rules: &[RuleSpec]) -> Result<(), Error> {
    if !mode.is_forced() {
        return Ok(());
    }
    let wrong = |what: &str| Err(Error::text(format!("`--mode {mode}` {what}")));
    let Some(named) = named else {
        return wrong(
            "does not go with every device (`any`); name those that have it, as in `-i eth0`",
        );
    };
    if named.iter().all(|name| name == "lo") {
        return wrong("has no device: `lo` stays on TC; name another, as in `-i eth0`");
    }
    let targets = rules.iter().flat_map(|spec| &spec.rule.targets);
    let mut addrs = targets.filter_map(|target| target.addr);
    if addrs.all(|addr| addr.is_loopback()) {
        return nothing_to_do(mode).map_err(Error::text);
    }
    Ok(())
}

/// The same where every target turned out to be this host.
///
/// # Errors
///
/// What is wrong, in one sentence.
pub fn nothing_to_do(mode: Mode) -> Result<(), String> {
    if !mode.is_forced() {
        return Ok(());
    }
    Err(format!(
        "`--mode {mode}` has nothing to do: no rule leads to another host, and XDP carries \
         nothing else; leave it out"
    ))
}

/// What is known of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts<'a> {
    /// The device.
    pub device: &'a Device,
    /// Traffic is taken from it.
    pub takes: bool,
    /// What its driver can do, where the kernel tells (6.3).
    pub driver: Option<Driver>,
    /// What is done to packets before XDP.
    pub offloads: Offloads,
    /// Another's program, if one is there that may not be replaced.
    pub taken: Option<String>,
    /// Ours is there.
    pub attached: bool,
    /// What the kernel said when it did not attach ours.
    pub refused: Option<String>,
}

/// The devices that XDP gets, each with where it runs, or why it does not.
/// `targets` are the interfaces that lead to targets.
///
/// What has XDP already keeps it as long as it can work: attaching may take a
/// link down for a moment.
pub fn choose(
    mode: Mode,
    devices: &[Facts<'_>],
    targets: &BTreeSet<u32>,
) -> BTreeMap<u32, Result<Hook, Why>> {
    let fit: BTreeMap<u32, Result<Hook, Why>> = devices
        .iter()
        .map(|facts| (facts.device.index, fits(mode, facts)))
        .collect();
    let is_fit = |facts: &Facts<'_>| fit.get(&facts.device.index).is_some_and(Result::is_ok);
    let may_send = |facts: &&Facts<'_>| will_send(mode, facts, is_fit(facts));
    let senders: Vec<&Facts<'_>> = devices.iter().filter(may_send).collect();
    // What is asked for may wait for a route.
    let waits = mode.is_forced() && targets.is_empty();
    let useful = |facts: &Facts<'_>| {
        let index = facts.device.index;
        let to_target = senders.iter().any(|to| targets.contains(&to.device.index));
        let to_client = senders.iter().any(|to| to.takes);
        waits || facts.takes && to_target || targets.contains(&index) && to_client
    };
    let chosen = devices.iter().map(|facts| {
        let index = facts.device.index;
        let hook = fit.get(&index).cloned().unwrap_or(Err(Why::Plain));
        match hook {
            Ok(_) if !facts.attached && !useful(facts) => (index, Err(Why::Alone)),
            hook => (index, hook),
        }
    });
    chosen.collect()
}

/// Can XDP run on the device, whatever it is of use for?
fn fits(mode: Mode, facts: &Facts<'_>) -> Result<Hook, Why> {
    let device = facts.device;
    if mode == Mode::Tc || device.loopback {
        return Err(Why::Plain);
    }
    if mode.is_forced() && !facts.takes {
        return Err(Why::NotNamed(mode));
    }
    if device.link == Link::Bare || device.mac.is_none() {
        return Err(Why::Bare);
    }
    if device.index >= MAX_DEVICES {
        return Err(Why::Index);
    }
    let hook = match mode {
        Mode::XdpGeneric => Hook::Generic,
        Mode::Auto | Mode::Xdp | Mode::Tc => Hook::Native,
    };
    let runs = match facts.driver {
        Some(driver) => driver.runs,
        // It is tried, where it may succeed.
        None => device.wire != Wire::Host,
    };
    if hook == Hook::Native && !runs {
        return Err(Why::Driver);
    }
    if mode == Mode::Auto && device.wire.is_partial() {
        return Err(Why::Wire(device.wire));
    }
    if device.under_vlan && facts.offloads.strips_vlan {
        return Err(Why::Vlan);
    }
    if hook == Hook::Generic && facts.offloads.gro {
        return Err(Why::Gro);
    }
    if let Some(by) = &facts.taken {
        return Err(Why::Taken(by.clone()));
    }
    match &facts.refused {
        Some(said) => Err(Why::Refused(said.clone())),
        None => Ok(hook),
    }
}

/// Will XDP be able to send by the device? Some drivers can once a program is
/// attached; to a veth it takes the other end.
fn will_send(mode: Mode, facts: &Facts<'_>, fit: bool) -> bool {
    match facts.driver {
        Some(_) if fit && !facts.device.wire.is_partial() => sends_ethernet(facts),
        _ => sends(mode, facts, fit),
    }
}

/// Can XDP send by the device now, where ours is attached or not?
pub fn sends(mode: Mode, facts: &Facts<'_>, attached: bool) -> bool {
    sends_ethernet(facts)
        && match (mode, facts.driver) {
            // The stack sends it.
            (Mode::XdpGeneric, _) => true,
            (_, Some(driver)) => driver.sends,
            (_, None) => attached,
        }
}

fn sends_ethernet(facts: &Facts<'_>) -> bool {
    let device = facts.device;
    let has_header = device.link == Link::Ethernet && device.mac.is_some();
    has_header && !device.loopback && device.index < MAX_DEVICES
}

#[cfg(test)]
mod tests;
