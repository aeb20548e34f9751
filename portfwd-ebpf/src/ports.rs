//! The first question: does any rule name the port?

use portfwd_common::{PortEntry, Verdict};

/// Two loads, and most packets of a host are out.
#[inline(always)]
pub const fn named(entry: PortEntry) -> Result<PortEntry, Verdict> {
    if entry.0 == 0 {
        Err(Verdict::NoRule)
    } else {
        Ok(entry)
    }
}
