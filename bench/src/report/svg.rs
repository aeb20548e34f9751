//! A plot for each part and unit: bars of medians, lines for the intervals.

use std::{fs, path::Path};

use anyhow::{Result, anyhow};
use plotters::prelude::{
    DrawingArea, IntoDrawingArea as _, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};
use plotters::{coord::Shift, style::Color as _, style::IntoFont as _};

use super::{Results, Value, table::number};
use crate::case::Unit;

const WIDTH: i32 = 860;
const LABELS: i32 = 250;
const BARS: i32 = 470;
const LINE: i32 = 22;
const TITLE: i32 = 34;
const MARGIN: i32 = 12;

const OURS: RGBColor = RGBColor(31, 111, 178);
const YARDSTICK: RGBColor = RGBColor(150, 150, 150);
const OTHERS: RGBColor = RGBColor(214, 164, 92);
const INK: RGBColor = RGBColor(40, 40, 40);

/// Writes all plots into a folder and returns the names of the files.
///
/// # Errors
///
/// A file cannot be written.
pub fn write(results: &Results, folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for (part, unit) in kinds(results) {
        let values: Vec<&Value> = results
            .values
            .iter()
            .filter(|value| value.part == part && value.unit == unit)
            .collect();
        let several = kinds(results)
            .iter()
            .filter(|(other, _)| *other == part)
            .count()
            > 1;
        let name = if several {
            let unit = unit
                .label()
                .replace("/s", "")
                .replace('/', "-")
                .replace('µ', "u");
            format!("{part}-{unit}.svg")
        } else {
            format!("{part}.svg")
        };
        let mut text = String::new();
        draw(&values, unit, &mut text).map_err(|error| anyhow!("{name}: {error}"))?;
        fs::write(folder.join(&name), text + "\n")?;
        files.push(name);
    }
    Ok(files)
}

/// Parts and units, in their order.
fn kinds(results: &Results) -> Vec<(String, Unit)> {
    let mut kinds: Vec<(String, Unit)> = Vec::new();
    for value in &results.values {
        let kind = (value.part.clone(), value.unit);
        // Sizes are read from the table.
        if !kinds.contains(&kind) && value.unit != Unit::Count {
            kinds.push(kind);
        }
    }
    kinds
}

fn cases<'a>(values: &[&'a Value]) -> Vec<&'a str> {
    let mut cases: Vec<&str> = Vec::new();
    for value in values {
        if !cases.contains(&value.case.as_str()) {
            cases.push(&value.case);
        }
    }
    cases
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(values: &[&Value], unit: Unit, text: &mut String) -> Result<(), String> {
    let cases = cases(values);
    let height = MARGIN + cases.len() as i32 * TITLE + values.len() as i32 * LINE + MARGIN;
    let area = SVGBackend::with_string(text, (WIDTH as u32, height as u32)).into_drawing_area();
    let told = |error: &dyn std::fmt::Display| error.to_string();
    area.fill(&WHITE).map_err(|error| told(&error))?;
    let mut y = MARGIN;
    for case in cases {
        let of_case: Vec<_> = values.iter().filter(|value| value.case == case).collect();
        let most = of_case
            .iter()
            .map(|value| value.estimate.high)
            .fold(f64::MIN_POSITIVE, f64::max);
        let better = if unit.is_rate() {
            "more is better"
        } else {
            "less is better"
        };
        let title = format!("{case} ({}, {better})", unit.label());
        label(&area, title, (MARGIN, y + 10), 15.0)?;
        y += TITLE;
        for value in of_case {
            bar(&area, value, most, y)?;
            y += LINE;
        }
    }
    area.present().map_err(|error| told(&error))
}

fn bar(area: &Area<'_>, value: &Value, most: f64, y: i32) -> Result<(), String> {
    let x = |number: f64| LABELS + (number / most * f64::from(BARS)).round() as i32;
    let estimate = value.estimate;
    let color = match value.contestant.as_str() {
        name if name.starts_with("portfwd") => OURS,
        // Its own programs, by path.
        _ if value.part == "programs" && !value.contestant.starts_with("empty") => OURS,
        name if name.starts_with("yardstick") || name.starts_with("empty") => YARDSTICK,
        "direct" | "plain forwarding" | "nothing" => YARDSTICK,
        _ => OTHERS,
    };
    label(area, value.contestant.clone(), (MARGIN + 8, y + 3), 13.0)?;
    let rectangle = Rectangle::new(
        [(LABELS, y), (x(estimate.median), y + LINE - 6)],
        color.filled(),
    );
    area.draw(&rectangle).map_err(|error| error.to_string())?;
    let middle = y + LINE / 2 - 3;
    let line = PathElement::new(
        [(x(estimate.low), middle), (x(estimate.high), middle)],
        INK.stroke_width(2),
    );
    area.draw(&line).map_err(|error| error.to_string())?;
    let end = x(estimate.high.max(estimate.median)) + 6;
    label(area, number(estimate.median), (end, y + 3), 13.0)
}

fn label(area: &Area<'_>, text: String, at: (i32, i32), size: f64) -> Result<(), String> {
    let style = ("sans-serif", size).into_font().color(&INK);
    area.draw(&Text::new(text, at, style))
        .map_err(|error| error.to_string())
}
