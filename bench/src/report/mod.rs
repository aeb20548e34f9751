//! What a run came to.

pub mod compare;
pub mod json;
pub mod markdown;
pub mod svg;
pub mod table;

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{
    case::{Goal, Reading, Unit},
    contestant::Traffic,
    measure::stats::Estimate,
};

/// Writes results.json, results.md and the plots into a folder; they belong to
/// whom the folder belongs to.
///
/// # Errors
///
/// The folder cannot be written to.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    json::write(results, &folder.join("results.json"))?;
    fs::write(folder.join("results.md"), markdown::page(results))?;
    let mut files = svg::write(results, folder)?;
    files.extend(["results.json", "results.md"].map(String::from));
    let owner = fs::metadata(folder)?;
    for file in files {
        std::os::unix::fs::chown(folder.join(file), Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// All that one run came to; results.json is this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Fewer and shorter samples than a full run.
    pub quick: bool,
    /// How long it took.
    pub seconds: f64,
    /// What it ran on.
    pub machine: Vec<(String, String)>,
    /// Every contestant of every case.
    pub values: Vec<Value>,
    /// Every comparison.
    pub rows: Vec<Row>,
    /// What did not take part, and why.
    pub skipped: Vec<Note>,
    /// What went wrong.
    pub failed: Vec<Note>,
    /// What should be known beside the numbers.
    pub notes: Vec<Note>,
}

/// A line of text about a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The part.
    pub part: String,
    /// The case, or the contestant, or nothing.
    pub about: String,
    /// The text.
    pub text: String,
}

/// What one contestant came to in one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The part.
    pub part: String,
    /// The case.
    pub case: String,
    /// Who.
    pub contestant: String,
    /// Of the values.
    pub unit: Unit,
    /// Of all rounds.
    pub estimate: Estimate,
    /// One for each round.
    pub rounds: Vec<f64>,
    /// Samples that were taken again because they were disturbed.
    pub repeated: usize,
    /// Samples that count although they were disturbed.
    pub disturbed: usize,
    /// Packets sent and received, where that was counted.
    pub sent: Option<u64>,
    /// See `sent`.
    pub received: Option<u64>,
}

impl Value {
    /// What was counted.
    pub fn traffic(&self) -> Option<Traffic> {
        Some(Traffic {
            sent: self.sent?,
            received: self.received?,
        })
    }
}

/// A comparison of two contestants of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The part.
    pub part: String,
    /// The case.
    pub case: String,
    /// Who is judged.
    pub contestant: String,
    /// By whom.
    pub reference: String,
    /// How a pair became a number.
    pub reading: Reading,
    /// Median of the numbers of all rounds, and the interval.
    pub estimate: Estimate,
    /// What it should come to.
    pub goal: Option<Goal>,
}

impl Row {
    /// Whether the median meets the goal.
    pub fn is_met(&self) -> Option<bool> {
        Some(self.goal?.is_met(self.estimate.median))
    }
}
