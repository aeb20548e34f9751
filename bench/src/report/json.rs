//! results.json.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::Results;

/// Writes it.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(results: &Results, file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads an earlier one.
///
/// # Errors
///
/// The file is not there, or is no results.json of this version.
pub fn read(file: &Path) -> Result<Results> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no results.json", file.display()))
}
