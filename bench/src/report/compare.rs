//! This run and an earlier one: do their intervals overlap?

use super::{Results, Row, Value, table::number};

/// What two runs have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Lines of both runs.
    pub common: usize,
    /// Those whose intervals do not overlap, as they are printed.
    pub apart: Vec<String>,
}

impl Agreement {
    /// Compares all rows, and the values that are in no row.
    pub fn of(now: &Results, before: &Results) -> Self {
        let mut agreement = Self::default();
        for row in &now.rows {
            if let Some(earlier) = before.rows.iter().find(|earlier| is_same_row(row, earlier)) {
                let name = format!(
                    "{}, {}: {} against {}",
                    row.part, row.case, row.contestant, row.reference
                );
                agreement.add(name, row.estimate, earlier.estimate);
            }
        }
        for value in now.values.iter().filter(|value| !is_compared(now, value)) {
            let earlier = before.values.iter().find(|earlier| {
                (&earlier.part, &earlier.case, &earlier.contestant)
                    == (&value.part, &value.case, &value.contestant)
            });
            if let Some(earlier) = earlier {
                let name = format!("{}, {}: {}", value.part, value.case, value.contestant);
                agreement.add(name, value.estimate, earlier.estimate);
            }
        }
        agreement
    }

    fn add(
        &mut self,
        name: String,
        now: crate::measure::stats::Estimate,
        before: crate::measure::stats::Estimate,
    ) {
        self.common += 1;
        if !now.overlaps(&before) {
            let interval = |of: crate::measure::stats::Estimate| {
                format!(
                    "{} ({} – {})",
                    number(of.median),
                    number(of.low),
                    number(of.high)
                )
            };
            self.apart.push(format!(
                "{name}: {}, before {}",
                interval(now),
                interval(before)
            ));
        }
    }

    /// The share of lines that agree, 0 to 1.
    pub fn share(&self) -> f64 {
        match self.common {
            0 => 1.0,
            common => 1.0 - self.apart.len() as f64 / common as f64,
        }
    }
}

fn is_same_row(one: &Row, other: &Row) -> bool {
    let key = |row: &Row| {
        (
            row.part.clone(),
            row.case.clone(),
            row.contestant.clone(),
            row.reference.clone(),
            row.reading,
        )
    };
    key(one) == key(other)
}

fn is_compared(results: &Results, value: &Value) -> bool {
    results.rows.iter().any(|row| {
        row.part == value.part
            && row.case == value.case
            && [&row.contestant, &row.reference].contains(&&value.contestant)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        case::{Reading, Unit},
        measure::stats::Estimate,
    };

    fn row(contestant: &str, low: f64, high: f64) -> Row {
        Row {
            part: "part".into(),
            case: "case".into(),
            contestant: contestant.into(),
            reference: "reference".into(),
            reading: Reading::Rate,
            estimate: estimate(low, high),
            goal: None,
        }
    }

    fn estimate(low: f64, high: f64) -> Estimate {
        Estimate {
            median: f64::midpoint(low, high),
            low,
            high,
        }
    }

    fn value(contestant: &str, low: f64, high: f64) -> Value {
        Value {
            part: "part".into(),
            case: "case".into(),
            contestant: contestant.into(),
            unit: Unit::Ms,
            estimate: estimate(low, high),
            rounds: Vec::new(),
            repeated: 0,
            disturbed: 0,
            sent: None,
            received: None,
        }
    }

    #[test]
    fn rows_agree_where_their_intervals_overlap() {
        let now = Results {
            rows: vec![row("a", 1.0, 2.0), row("b", 1.0, 2.0), row("new", 1.0, 2.0)],
            ..Results::default()
        };
        let before = Results {
            rows: vec![row("b", 3.0, 4.0), row("a", 1.5, 4.0)],
            ..Results::default()
        };
        let agreement = Agreement::of(&now, &before);
        assert_eq!((agreement.common, agreement.apart.len()), (2, 1));
        assert!(agreement.apart[0].contains("b against reference"));
        assert_eq!(agreement.share(), 0.5);
    }

    #[test]
    fn a_value_counts_where_no_row_holds_it() {
        let results = |at: f64| Results {
            rows: vec![row("a", 1.0, 2.0)],
            values: vec![value("a", at, at), value("alone", at, at)],
            ..Results::default()
        };
        let agreement = Agreement::of(&results(1.0), &results(2.0));
        assert_eq!((agreement.common, agreement.apart.len()), (2, 1));
        assert!(agreement.apart[0].contains("alone"));
    }
}
