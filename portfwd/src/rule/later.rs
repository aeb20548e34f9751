//! Rule forms that are read and printed but not built yet.

use super::{Proto, Rule};
use crate::Error;

/// Refuses the forms of a rule that are not built yet.
///
/// # Errors
///
/// [`Error::Text`] with the words "not yet".
pub fn not_yet(rule: &Rule) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::text(format!("rule `{rule}`: {what}")));
    if rule.protos.contains(Proto::Sctp) {
        return refuse("sctp is not yet forwarded; type `/tcp`, `/udp` or `/tcp+udp`");
    }
    if rule.targets.len() > 1 {
        return refuse("several targets are not yet served; type one target");
    }
    Ok(())
}
