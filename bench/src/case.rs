//! What is compared: a case, its unit, and what a comparison should come to.

use serde::{Deserialize, Serialize};

/// One comparison of contestants under the same traffic.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique within its part; what is printed.
    pub name: String,
    /// What a sample's value is.
    pub unit: Unit,
    /// Everybody is compared with this contestant.
    pub reference: String,
    /// Whether a lane lives as long as the case or only for one sample.
    pub lanes: Lanes,
    /// Further comparisons, and goals.
    pub comparisons: Vec<Comparison>,
}

impl Case {
    /// A case whose contestants are compared with `reference`.
    pub fn new(name: impl Into<String>, unit: Unit, reference: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            unit,
            reference: reference.into(),
            lanes: Lanes::Kept,
            comparisons: Vec::new(),
        }
    }

    /// Each sample gets a lane of its own, built anew.
    pub fn fresh_lanes(mut self) -> Self {
        self.lanes = Lanes::Fresh;
        self
    }

    /// One more comparison.
    pub fn compare(
        mut self,
        contestant: impl Into<String>,
        reference: impl Into<String>,
        reading: Reading,
        goal: Option<Goal>,
    ) -> Self {
        self.comparisons.push(Comparison {
            contestant: contestant.into(),
            reference: reference.into(),
            reading,
            goal,
        });
        self
    }
}

/// How long a lane lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// From the first sample to the last of the case.
    Kept,
    /// For one sample.
    Fresh,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Nanoseconds of CPU for one packet.
    #[serde(rename = "ns/packet")]
    NsPerPacket,
    /// Nanoseconds of one run of a program.
    #[serde(rename = "ns")]
    Ns,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Ms,
    /// Microseconds.
    #[serde(rename = "µs")]
    Us,
    /// Gigabits of payload in a second.
    #[serde(rename = "Gbit/s")]
    GbitPerSecond,
    /// Requests in a second.
    #[serde(rename = "requests/s")]
    RequestsPerSecond,
    /// Connections in a second.
    #[serde(rename = "connections/s")]
    ConnectionsPerSecond,
    /// Mebibytes of kernel memory.
    #[serde(rename = "MiB")]
    MiB,
    /// A number, of instructions for example.
    #[serde(rename = "count")]
    Count,
}

impl Unit {
    /// As it is printed behind a number.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NsPerPacket => "ns/packet",
            Self::Ns => "ns",
            Self::Ms => "ms",
            Self::Us => "µs",
            Self::GbitPerSecond => "Gbit/s",
            Self::RequestsPerSecond => "requests/s",
            Self::ConnectionsPerSecond => "connections/s",
            Self::MiB => "MiB",
            Self::Count => "count",
        }
    }

    /// Whether more is better: then a value is a rate, else a cost.
    pub const fn is_rate(self) -> bool {
        matches!(
            self,
            Self::GbitPerSecond | Self::RequestsPerSecond | Self::ConnectionsPerSecond
        )
    }
}

/// One contestant against another of the same case.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Who is judged.
    pub contestant: String,
    /// By whom.
    pub reference: String,
    /// How the two values become one number.
    pub reading: Reading,
    /// What it should come to.
    pub goal: Option<Goal>,
}

/// How the values of a pair, taken in the same round, become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// How many times the work in the same time.
    Rate,
    /// How many times the cost of the same work.
    Cost,
    /// The contestant's value less the reference's, in the unit of the case.
    Difference,
}

impl Reading {
    /// The number for one pair.
    pub fn of(self, unit: Unit, contestant: f64, reference: f64) -> f64 {
        match (self, unit.is_rate()) {
            (Self::Rate, true) | (Self::Cost, false) => contestant / reference,
            (Self::Rate, false) | (Self::Cost, true) => reference / contestant,
            (Self::Difference, _) => contestant - reference,
        }
    }
}

/// What a comparison should come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
}

impl Goal {
    /// Whether this number meets it.
    pub fn is_met(self, number: f64) -> bool {
        match self {
            Self::AtLeast(bound) => number >= bound,
            Self::AtMost(bound) => number <= bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_reads_as_rate_or_cost_whatever_the_unit() {
        let cost = |reading: Reading| reading.of(Unit::NsPerPacket, 200.0, 800.0);
        assert_eq!(cost(Reading::Rate), 4.0);
        assert_eq!(cost(Reading::Cost), 0.25);
        assert_eq!(cost(Reading::Difference), -600.0);
        let rate = |reading: Reading| reading.of(Unit::GbitPerSecond, 8.0, 4.0);
        assert_eq!(rate(Reading::Rate), 2.0);
        assert_eq!(rate(Reading::Cost), 0.5);
    }

    #[test]
    fn a_goal_is_met_at_its_bound() {
        assert!(Goal::AtLeast(4.0).is_met(4.0) && !Goal::AtLeast(4.0).is_met(3.99));
        assert!(Goal::AtMost(1.45).is_met(1.45) && !Goal::AtMost(1.45).is_met(1.46));
    }
}
