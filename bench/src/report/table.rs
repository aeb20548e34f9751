//! The tables that people read.

use comfy_table::{Table, presets};

use super::{Results, Row};
use crate::case::{Goal, Reading};

/// The comparisons, as Markdown.
pub fn rows(results: &Results) -> String {
    of_rows(results, |_| true)
}

/// The comparisons that have a goal.
pub fn goals(results: &Results) -> String {
    of_rows(results, |row| row.goal.is_some())
}

/// What every contestant came to.
pub fn values(results: &Results) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "part",
        "case",
        "contestant",
        "median",
        "95 %",
        "unit",
        "lost",
        "repeated",
        "disturbed",
    ]);
    for value in &results.values {
        let lost = value
            .traffic()
            .map(|traffic| format!("{:.3} %", traffic.lost() * 100.0));
        table.add_row([
            value.part.clone(),
            value.case.clone(),
            value.contestant.clone(),
            number(value.estimate.median),
            format!(
                "{} – {}",
                number(value.estimate.low),
                number(value.estimate.high)
            ),
            value.unit.label().to_owned(),
            lost.unwrap_or_default(),
            value.repeated.to_string(),
            value.disturbed.to_string(),
        ]);
    }
    table.to_string()
}

fn of_rows(results: &Results, wanted: impl Fn(&Row) -> bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "part",
        "case",
        "contestant",
        "",
        "against",
        "",
        "unit",
        "ratio",
        "95 %",
        "goal",
        "met",
    ]);
    for row in results.rows.iter().filter(|row| wanted(row)) {
        table.add_row(cells(results, row));
    }
    table.to_string()
}

fn cells(results: &Results, row: &Row) -> [String; 11] {
    let median = |name: &str| {
        let value = results.values.iter().find(|value| {
            value.part == row.part && value.case == row.case && value.contestant == name
        });
        value.map(|value| (number(value.estimate.median), value.unit.label()))
    };
    let (of_contestant, unit) = median(&row.contestant).unwrap_or_default();
    let (of_reference, _) = median(&row.reference).unwrap_or_default();
    let (low, high) = (number(row.estimate.low), number(row.estimate.high));
    let what = match row.reading {
        Reading::Rate => " × the rate",
        Reading::Cost => " × the cost",
        Reading::Difference => " more",
    };
    [
        row.part.clone(),
        row.case.clone(),
        row.contestant.clone(),
        of_contestant,
        row.reference.clone(),
        of_reference,
        unit.to_owned(),
        number(row.estimate.median) + what,
        format!("{low} – {high}"),
        row.goal.map(goal).unwrap_or_default(),
        match row.is_met() {
            None => String::new(),
            Some(true) => "yes".into(),
            Some(false) => "no".into(),
        },
    ]
}

fn goal(goal: Goal) -> String {
    match goal {
        Goal::AtLeast(bound) => format!("≥ {bound}"),
        Goal::AtMost(bound) => format!("≤ {bound}"),
    }
}

/// Three digits or more, with thousands set apart.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole
        .strip_prefix('-')
        .map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_short_and_grouped() {
        for (value, text) in [
            (1.234, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.5, "1,234"),
            (-1_234_567.0, "-1,234,567"),
            (0.0, "0.00"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
