//! Rounds A B C A B C …: what drifts, drifts for all.

use anyhow::{Context as _, Result};

use crate::{
    case::{Case, Lanes},
    contestant::{Contestant, Lane, Sample, Traffic},
    interrupt,
};

/// A sample with a larger share of disturbance is taken again.
const DISTURBED: f64 = 0.03;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of a case.
    pub rounds: usize,
    /// Most repeats for each contestant of a case; then samples count
    /// whatever they are.
    pub repeats: usize,
}

/// The samples of one contestant.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The contestant.
    pub name: String,
    /// One value for each round.
    pub values: Vec<f64>,
    /// Samples that were taken again.
    pub repeated: usize,
    /// Samples that count although they were disturbed.
    pub disturbed: usize,
    /// What was sent and received in all rounds, where that was counted.
    pub traffic: Option<Traffic>,
}

/// Runs all rounds of a case. Each contestant proves a right reply each time
/// that its lane is built.
///
/// # Errors
///
/// The first error of a contestant, with its name.
pub fn run(case: &Case, contestants: &[&dyn Contestant], effort: Effort) -> Result<Vec<Series>> {
    let mut entries: Vec<Entry<'_>> = contestants.iter().map(|one| Entry::new(*one)).collect();
    for _ in 0..effort.rounds {
        for entry in &mut entries {
            interrupt::check()?;
            entry
                .round(case.lanes, effort.repeats)
                .with_context(|| format!("{}: {}", case.name, entry.series.name))?;
        }
    }
    Ok(entries.into_iter().map(|entry| entry.series).collect())
}

struct Entry<'a> {
    contestant: &'a dyn Contestant,
    lane: Option<Box<dyn Lane + 'a>>,
    series: Series,
}

impl<'a> Entry<'a> {
    fn new(contestant: &'a dyn Contestant) -> Self {
        Self {
            contestant,
            lane: None,
            series: Series {
                name: contestant.name().to_owned(),
                ..Series::default()
            },
        }
    }

    fn round(&mut self, lanes: Lanes, repeats: usize) -> Result<()> {
        let sample = loop {
            let sample = self.sample(lanes)?;
            if sample.disturbed <= DISTURBED || self.series.repeated == repeats {
                break sample;
            }
            self.series.repeated += 1;
        };
        self.series.disturbed += usize::from(sample.disturbed > DISTURBED);
        self.series.values.push(sample.value);
        if let Some(traffic) = sample.traffic {
            let sum = self.series.traffic.unwrap_or_default();
            self.series.traffic = Some(sum.with(traffic));
        }
        Ok(())
    }

    fn sample(&mut self, lanes: Lanes) -> Result<Sample> {
        let lane = match &mut self.lane {
            Some(lane) => lane,
            none => {
                let mut lane = self.contestant.start().context("set-up")?;
                lane.prove().context("a right reply")?;
                none.insert(lane)
            }
        };
        let sample = lane.sample();
        if lanes == Lanes::Fresh {
            self.lane = None;
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::case::Unit;

    struct Scripted<'a> {
        name: &'static str,
        log: &'a RefCell<Vec<&'static str>>,
        disturbed: Cell<usize>,
    }

    impl Contestant for Scripted<'_> {
        fn name(&self) -> &str {
            self.name
        }

        fn start(&self) -> Result<Box<dyn Lane + '_>> {
            self.log.borrow_mut().push("start");
            Ok(Box::new(ScriptedLane(self)))
        }
    }

    struct ScriptedLane<'a>(&'a Scripted<'a>);

    impl Lane for ScriptedLane<'_> {
        fn prove(&mut self) -> Result<()> {
            Ok(())
        }

        fn sample(&mut self) -> Result<Sample> {
            self.0.log.borrow_mut().push(self.0.name);
            let left = self.0.disturbed.get();
            self.0.disturbed.set(left.saturating_sub(1));
            Ok(Sample {
                disturbed: if left > 0 { 0.5 } else { 0.0 },
                ..Sample::of(1.0)
            })
        }
    }

    const EFFORT: Effort = Effort {
        rounds: 2,
        repeats: 2,
    };

    fn scripted<'a>(
        name: &'static str,
        log: &'a RefCell<Vec<&'static str>>,
        disturbed: usize,
    ) -> Scripted<'a> {
        Scripted {
            name,
            log,
            disturbed: disturbed.into(),
        }
    }

    #[test]
    fn contestants_take_turns() {
        let log = RefCell::default();
        let (a, b) = (scripted("a", &log, 0), scripted("b", &log, 0));
        let case = Case::new("case", Unit::Ns, "a");
        run(&case, &[&a, &b], EFFORT).unwrap();
        assert_eq!(*log.borrow(), ["start", "a", "start", "b", "a", "b"]);
    }

    #[test]
    fn fresh_lanes_are_built_for_each_sample() {
        let log = RefCell::default();
        let a = scripted("a", &log, 0);
        let case = Case::new("case", Unit::Ns, "a").fresh_lanes();
        run(&case, &[&a], EFFORT).unwrap();
        assert_eq!(*log.borrow(), ["start", "a", "start", "a"]);
    }

    #[test]
    fn disturbed_samples_are_repeated_and_counted() {
        let log = RefCell::default();
        let a = scripted("a", &log, 3);
        let case = Case::new("case", Unit::Ns, "a");
        let series = run(&case, &[&a], EFFORT).unwrap();
        // Round 1: two repeats, and the third counts; round 2 is quiet.
        assert_eq!(series[0].values.len(), 2);
        assert_eq!((series[0].repeated, series[0].disturbed), (2, 1));
    }
}
