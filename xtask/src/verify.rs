//! `cargo xtask verify`: no program takes more than its budget, no packet calls more helpers.

mod budgets;
mod sizes;
mod table;

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use self::{
    budgets::{Budgets, Paths},
    sizes::Sizes,
};
use crate::{cargo, setup, shell};

/// The package that prints what the programs take, and its binary.
const SIZES: [&str; 4] = ["--package", "portfwd-tests", "--bin", "portfwd-sizes"];
/// The same for the calls of each kind of packet.
const CALLS: [&str; 4] = ["--package", "portfwd-ebpf", "--bench", "calls"];

/// What `cargo xtask verify` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Make what is there now, and a tenth, the budgets
    #[arg(long)]
    write: bool,
    /// Print every way to load the programs as JSON, and compare nothing
    #[arg(long, conflicts_with = "write")]
    json: bool,
}

/// The verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::for_build()?;
    let found = Found::look()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.write {
        let budgets = Budgets::of(&found.sizes, &found.paths);
        fs::write(file(), budgets.to_string()).context("cannot write the budgets")?;
    }
    let faults = compare(&found)?;
    if faults.is_empty() {
        println!("every program and path keeps to its budget");
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &faults {
        println!("{fault}");
    }
    Ok(ExitCode::FAILURE)
}

/// Prints the tables; a sentence for each program or path that is past its budget.
pub fn check() -> Result<Vec<String>> {
    compare(&Found::look()?)
}

fn compare(found: &Found) -> Result<Vec<String>> {
    let file = file();
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let budgets =
        Budgets::parse(&text).with_context(|| format!("`{}` holds no budgets", file.display()))?;
    println!();
    table::print(&found.sizes, &found.paths, &budgets);
    println!();
    Ok(budgets.faults(&found.sizes, &found.paths))
}

fn file() -> PathBuf {
    cargo::root().join("xtask/budgets.toml")
}

/// What there is now.
#[derive(serde::Serialize)]
struct Found {
    sizes: Sizes,
    paths: Paths,
}

impl Found {
    fn look() -> Result<Self> {
        let sizes = built(&SIZES)?;
        let mut sizes = shell::as_root(&sizes, "loading the programs")?;
        let calls = built(&CALLS)?;
        Ok(Self {
            sizes: printed(&mut sizes)?,
            paths: printed(&mut Command::new(calls))?,
        })
    }
}

fn built(what: &[&str]) -> Result<PathBuf> {
    let mut words = vec!["build"];
    words.extend(what);
    let name = words.last().copied().unwrap_or_default();
    let mut built = cargo::build(&words)?.into_iter();
    let found = built.find(|built| built.target == name);
    Ok(found
        .with_context(|| format!("cargo built no `{name}`"))?
        .file)
}

fn printed<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    shell::print(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", shell::line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shell::line(command), output.status);
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`{}` did not print what it should", shell::line(command)))
}
