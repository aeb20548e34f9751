//! `cargo xtask bench`: builds as the caller, measures as root.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{cargo, setup, shell, tools};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {
    /// What the benchmark is called with: --quick, --part NAME, --out FOLDER, --against FILE, --list
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

/// The verb.
pub fn run(args: &Args) -> Result<()> {
    setup::for_build()?;
    tools::for_bench()?;
    let portfwd = cargo::build_portfwd()?;
    let built = cargo::build(&["build", "--package", "portfwd-bench"])?;
    let bench = built
        .into_iter()
        .find(|built| built.kind == "bin" && built.target == "portfwd-bench")
        .context("cargo built no `portfwd-bench`")?;
    let mut command = shell::as_root(&bench.file, "measuring in namespaces")?;
    command
        .current_dir(cargo::root())
        .arg("--portfwd")
        .arg(portfwd)
        .args(&args.args);
    shell::print(&command);
    Err(command.exec()).context("cannot start the benchmark")
}
