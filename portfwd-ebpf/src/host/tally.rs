//! What a packet asks of the kernel.

use std::{cell::RefCell, collections::BTreeMap, fmt};

/// A helper that a program calls, and the map that it calls it for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Call {
    helper: &'static str,
    map: &'static str,
}

/// Helper calls as `tc` and `maps` make them, of a packet whose headers are
/// readable as it comes. Lookups in arrays count too, though the kernel does
/// them in line.
#[derive(Clone, Debug, Default)]
pub struct Tally(RefCell<Option<BTreeMap<Call, u32>>>);

impl Tally {
    /// Counts from now on: nothing is counted for those who do not ask.
    pub fn start(&self) {
        *self.0.borrow_mut() = Some(BTreeMap::new());
    }

    /// What was called since the start, and how often. Ends the count.
    pub fn take(&self) -> BTreeMap<Call, u32> {
        self.0.take().unwrap_or_default()
    }

    pub(super) fn helper(&self, helper: &'static str) {
        self.add(Call { helper, map: "" });
    }

    pub(super) fn lookup(&self, map: &'static str) {
        self.on("lookup", map);
    }

    pub(super) fn on(&self, helper: &'static str, map: &'static str) {
        self.add(Call { helper, map });
    }

    fn add(&self, call: Call) {
        if let Some(calls) = self.0.borrow_mut().as_mut() {
            *calls.entry(call).or_default() += 1;
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { helper, map } = self;
        match *map {
            "" => f.write_str(helper),
            map => write!(f, "{helper} {map}"),
        }
    }
}
