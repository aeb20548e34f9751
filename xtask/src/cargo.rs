//! Builds with cargo, which tells in JSON where it put what it built.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell;

/// An executable that cargo built.
pub struct Executable {
    /// The package's name.
    pub package: String,
    /// The name of the library, binary or test file.
    pub target: String,
    /// `lib`, `bin`, `test` …
    pub kind: String,
    /// The folder that cargo runs its tests in.
    pub folder: PathBuf,
    /// The executable.
    pub file: PathBuf,
}

/// A cargo command in the root of the workspace.
pub fn command(args: &[&str]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(args).current_dir(root());
    cargo
}

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Builds the `portfwd` command, optimised, and says where it is.
pub fn build_portfwd() -> Result<PathBuf> {
    let built = build(&["build", "--release", "--package", "portfwd"])?;
    let found = built
        .into_iter()
        .find(|built| built.kind == "bin" && built.target == "portfwd");
    Ok(found.context("cargo built no `portfwd`")?.file)
}

/// Runs a cargo command that builds, and lists the executables.
pub fn build(args: &[&str]) -> Result<Vec<Executable>> {
    let mut command = command(args);
    shell::print(&command);
    command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let messages = BufReader::new(child.stdout.take().context("cargo has no output")?);
    let mut built = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(&line?).unwrap_or_default();
        built.extend(executable(&message));
    }
    if !child.wait()?.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    Ok(built)
}

fn executable(message: &Value) -> Option<Executable> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let manifest = PathBuf::from(text(&message["manifest_path"])?);
    let folder = manifest.parent()?.to_owned();
    Some(Executable {
        package: folder.file_name()?.to_string_lossy().into_owned(),
        target: text(&message["target"]["name"])?,
        kind: text(&message["target"]["kind"][0])?,
        folder,
        file: text(&message["executable"])?.into(),
    })
}
