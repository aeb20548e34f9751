//! Rule forms that are read and printed but not built yet.

use std::net::IpAddr;

use super::{Proto, Rule};
use crate::Error;

/// Refuses the forms of a rule that are not built yet. A target is on this
/// host when it has no address, a loopback address, or one of this host's own,
/// which `is_local` tells.
///
/// # Errors
///
/// [`Error::Text`] with the words "not yet".
pub fn not_yet(rule: &Rule, is_local: impl Fn(IpAddr) -> bool) -> Result<(), Error> {
    let refuse = |what: String| Err(Error::text(format!("rule `{rule}`: {what}")));
    if rule.protos.contains(Proto::Sctp) {
        return refuse("sctp is not yet forwarded; type `/tcp`, `/udp` or `/tcp+udp`".into());
    }
    if rule.targets.len() > 1 {
        return refuse("several targets are not yet served; type one target".into());
    }
    let mut addrs = rule.targets.iter().filter_map(|target| target.addr);
    match addrs.find(|addr| !addr.is_loopback() && !is_local(*addr)) {
        Some(addr) => refuse(format!(
            "{addr} is no address of this host, and other hosts are not yet served; \
             leave the target's address out, as in `80:5000`"
        )),
        None => Ok(()),
    }
}
