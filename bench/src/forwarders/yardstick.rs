//! Forwarders that do the least possible: a rewrite by constants, without
//! tables, to a device that is known.

use anyhow::Result;
use portfwd_yardstick::names;

use super::{Forwarder, rules::Rules};
use crate::{
    site::{self, Site, host_at, target_at},
    yard::{End, Yard},
};

/// Both ways of the first rule.
///
/// # Errors
///
/// The kernel refuses a program.
pub fn set_up(kind: Forwarder, site: &Site, rules: Rules) -> Result<[Yard; 2]> {
    let listen = host_at(rules.first());
    let target = target_at(rules.target_port(rules.first()));
    let there = End {
        from: listen,
        to: target,
        source: false,
        ifindex: site.host.ifindex(site::LAN),
        macs: [site::MAC_TARGET, site::MAC_LAN],
    };
    let back = End {
        from: target,
        to: listen,
        source: true,
        ifindex: site.host.ifindex(site::NET),
        macs: [site::MAC_CLIENT, site::MAC_NET],
    };
    let attach = |end: End, device| -> Result<Yard> {
        let mut yard = Yard::with(&end.into())?;
        if kind == Forwarder::YardstickXdp {
            yard.attach_xdp(names::FIXED_XDP, &site.host, device)?;
        } else {
            yard.attach_tc(names::FIXED_TC, &site.host, device)?;
        }
        Ok(yard)
    };
    Ok([attach(there, site::NET)?, attach(back, site::LAN)?])
}
