//! What the parts of a rule must have in common.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
};

use super::{Proto, Rule, Target, print::Bracketed, text::Read};

/// Refuses a rule whose parts do not fit each other.
pub(super) fn check(rule: &Rule) -> Read<()> {
    one_family(rule)?;
    for target in &rule.targets {
        same_length(rule, target)?;
    }
    if rule.targets.len() > 1 {
        all_remote(rule)?;
        none_twice(rule)?;
    }
    udp_to_loopback(rule)
}

fn one_family(rule: &Rule) -> Read<()> {
    let mut addrs = rule.addrs();
    let Some(first) = addrs.next() else {
        return Ok(());
    };
    match addrs.find(|addr| addr.is_ipv4() != first.is_ipv4()) {
        Some(other) => Err(format!(
            "`{}` and `{}` are of different families; type addresses of one family, \
             or a rule for each",
            Bracketed(first),
            Bracketed(other)
        )),
        None => Ok(()),
    }
}

fn same_length(rule: &Rule, target: &Target) -> Read<()> {
    let listen = rule.ports;
    let Some(ports) = target.ports else {
        return Ok(());
    };
    if ports.count() == 1 || ports.count() == listen.count() {
        return Ok(());
    }
    let last = u32::from(ports.first) + listen.count() - 1;
    let fitting = match u16::try_from(last) {
        Ok(last) if last != ports.first => format!("`{}-{last}` or ", ports.first),
        _ => String::new(),
    };
    Err(format!(
        "`{listen}` is {} long and `{ports}` is {}, but a range goes to one of the same length \
         or to one port; type {fitting}`{}` as target",
        listen.count(),
        ports.count(),
        ports.first
    ))
}

fn all_remote(rule: &Rule) -> Read<()> {
    let local = |target: &&Target| target.addr.is_none_or(|addr| addr.is_loopback());
    match rule.targets.iter().find(local) {
        Some(target) => Err(format!(
            "the target `{target}` is on this host, and several targets must all be on other \
             hosts; type one target, or the addresses of other hosts only"
        )),
        None => Ok(()),
    }
}

fn none_twice(rule: &Rule) -> Read<()> {
    let mut seen = HashSet::new();
    let place = |target: &Target| (target.addr, target.ports.unwrap_or(rule.ports));
    match rule
        .targets
        .iter()
        .find(|target| !seen.insert(place(target)))
    {
        Some(target) => Err(format!(
            "the target `{target}` is there twice; \
             type it once, with a weight such as `*2` for a larger share"
        )),
        None => Ok(()),
    }
}

/// Linux drops what the network sends to ::1 and has no switch for it, as
/// `route_localnet` is one for 127.0.0.0/8.
fn udp_to_loopback(rule: &Rule) -> Read<()> {
    let loopback = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));
    let to_loopback = rule.targets.iter().any(|target| target.addr == loopback);
    if !to_loopback || rule.listen == loopback || !rule.protos.contains(Proto::Udp) {
        return Ok(());
    }
    Err(format!(
        "UDP from the network cannot reach `[::1]` on Linux; \
         leave the target's address out, or listen on `[::1]:{}` for clients on this host",
        rule.ports
    ))
}
