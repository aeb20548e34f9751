//! The connection tracking of the kernel: its size is one for all namespaces.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Most entries, and hash buckets.
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// What was there before, by the file; the next run puts it back where this
/// one could not.
const JOURNAL: &str = "/run/portfwd-bench.journal";

/// A raised table, put back on drop.
#[derive(Debug)]
pub struct Raised(());

impl Raised {
    /// Room for so many entries, with as many buckets.
    ///
    /// # Errors
    ///
    /// The kernel has no connection tracking, or refuses the size.
    pub fn to(entries: u32) -> Result<Self> {
        restore()?;
        let mut journal = String::new();
        for file in [MAX, BUCKETS] {
            let value = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            journal += &format!("{file} {}\n", value.trim());
        }
        fs::write(JOURNAL, journal).with_context(|| format!("cannot write {JOURNAL}"))?;
        let raised = Self(());
        for file in [MAX, BUCKETS] {
            write(file, &entries.to_string())?;
        }
        Ok(raised)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Err(error) = restore() {
            eprintln!("{error:#}");
        }
    }
}

/// Puts back what an earlier run left.
///
/// # Errors
///
/// The kernel refuses the old value.
pub fn restore() -> Result<()> {
    if !Path::new(JOURNAL).exists() {
        return Ok(());
    }
    for line in fs::read_to_string(JOURNAL)?.lines() {
        if let Some((file, value)) = line.split_once(' ') {
            write(file, value)?;
        }
    }
    Ok(fs::remove_file(JOURNAL)?)
}

fn write(file: &str, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot set {file} to {value}"))
}
