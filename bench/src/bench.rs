//! One run: what the parts are given, and where their numbers go.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    case::{Case, Comparison, Reading, Unit},
    contestant::Contestant,
    interrupt,
    measure::{
        rounds::{self, Effort, Series},
        stats::Estimate,
    },
    report::{Note, Results, Row, Value, table},
};

/// One run.
pub struct Bench {
    /// The built `portfwd`.
    pub portfwd: PathBuf,
    /// Fewer cases, shorter samples.
    pub quick: bool,
    /// What came out so far.
    pub results: Results,
    part: &'static str,
}

impl Bench {
    /// A run of that `portfwd`.
    pub fn new(portfwd: PathBuf, quick: bool) -> Self {
        Self {
            portfwd,
            quick,
            results: Results {
                quick,
                ..Results::default()
            },
            part: "",
        }
    }

    /// The part whose cases follow.
    pub fn begin(&mut self, part: &'static str) {
        self.part = part;
    }

    /// How much is measured.
    pub const fn effort(&self) -> Effort {
        Effort {
            rounds: 5,
            repeats: if self.quick { 1 } else { 3 },
        }
    }

    /// Lets the contestants that are there run against each other, and keeps
    /// what came out. Each is compared with the case's reference; the case's
    /// own comparisons replace that one where they name the same two and come
    /// in addition else.
    ///
    /// An error of a contestant fails the case, and the next one goes on.
    ///
    /// # Errors
    ///
    /// The run was asked to end.
    pub fn race(&mut self, case: &Case, contestants: &[&dyn Contestant]) -> Result<()> {
        let mut present = Vec::new();
        for contestant in contestants {
            match contestant.available() {
                Ok(()) => present.push(*contestant),
                Err(why) => self.skip(contestant.name(), &why),
            }
        }
        eprintln!("{}: {}", self.part, case.name);
        let series = match rounds::run(case, &present, self.effort()) {
            Ok(series) => series,
            Err(error) => {
                interrupt::check()?;
                self.fail(&case.name, &format!("{error:#}"));
                return Ok(());
            }
        };
        for one in &series {
            self.record(case, one);
        }
        self.compare(case, &series);
        Ok(())
    }

    /// Keeps values that were not taken in turns: a size, a time that is
    /// taken once.
    pub fn observe(&mut self, case: &str, unit: Unit, contestant: &str, values: &[f64]) {
        let case = Case::new(case, unit, contestant);
        let series = Series {
            name: contestant.to_owned(),
            values: values.to_vec(),
            ..Series::default()
        };
        self.record(&case, &series);
    }

    /// Something did not take part; told once.
    pub fn skip(&mut self, about: &str, why: &str) {
        let note = self.line(about, why);
        if !self.results.skipped.contains(&note) {
            eprintln!("{}: {about} skipped: {why}", self.part);
            self.results.skipped.push(note);
        }
    }

    /// Something that should be known beside the numbers.
    pub fn note(&mut self, about: &str, text: &str) {
        eprintln!("{}: {about}: {text}", self.part);
        let note = self.line(about, text);
        self.results.notes.push(note);
    }

    /// A case or a part ended early.
    pub fn fail(&mut self, about: &str, why: &str) {
        eprintln!("{}: FAILED: {why}", self.part);
        let note = self.line(about, why);
        self.results.failed.push(note);
    }

    fn line(&self, about: &str, text: &str) -> Note {
        Note {
            part: self.part.into(),
            about: about.into(),
            text: text.into(),
        }
    }

    fn record(&mut self, case: &Case, series: &Series) {
        let estimate = Estimate::of(&series.values);
        eprintln!(
            "  {:32} {:>10} {} ({} – {}){}{}",
            series.name,
            table::number(estimate.median),
            case.unit.label(),
            table::number(estimate.low),
            table::number(estimate.high),
            match series.traffic.map(crate::contestant::Traffic::lost) {
                Some(lost) if lost > 0.0 => format!(", {:.3} % lost", lost * 100.0),
                _ => String::new(),
            },
            match (series.repeated, series.disturbed) {
                (0, 0) => String::new(),
                (again, still) => format!(", {again} samples repeated, {still} disturbed"),
            },
        );
        self.results.values.push(Value {
            part: self.part.into(),
            case: case.name.clone(),
            contestant: series.name.clone(),
            unit: case.unit,
            estimate,
            rounds: series.values.clone(),
            repeated: series.repeated,
            disturbed: series.disturbed,
            sent: series.traffic.map(|traffic| traffic.sent),
            received: series.traffic.map(|traffic| traffic.received),
        });
    }

    fn compare(&mut self, case: &Case, series: &[Series]) {
        let own = |comparison: &Comparison| {
            case.comparisons.iter().any(|own| {
                own.contestant == comparison.contestant && own.reference == comparison.reference
            })
        };
        let usual = series
            .iter()
            .filter(|one| one.name != case.reference)
            .map(|one| Comparison {
                contestant: one.name.clone(),
                reference: case.reference.clone(),
                reading: Reading::Rate,
                goal: None,
            })
            .filter(|comparison| !own(comparison));
        for comparison in usual.chain(case.comparisons.iter().cloned()) {
            let find = |name: &str| series.iter().find(|one| one.name == name);
            let (Some(contestant), Some(reference)) =
                (find(&comparison.contestant), find(&comparison.reference))
            else {
                continue;
            };
            let pairs = contestant.values.iter().zip(&reference.values);
            let numbers: Vec<f64> = pairs
                .map(|(one, other)| comparison.reading.of(case.unit, *one, *other))
                .collect();
            self.results.rows.push(Row {
                part: self.part.into(),
                case: case.name.clone(),
                contestant: comparison.contestant,
                reference: comparison.reference,
                reading: comparison.reading,
                estimate: Estimate::of(&numbers),
                goal: comparison.goal,
            });
        }
    }
}
