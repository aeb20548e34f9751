//! `cargo xtask run`: builds portfwd as the caller and becomes it, as root.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{cargo, setup, shell};

/// What `cargo xtask run` takes.
#[derive(clap::Args)]
pub struct Args {
    /// What portfwd is called with
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// The verb.
pub fn run(args: &Args) -> Result<()> {
    setup::for_build()?;
    let binary = cargo::build_portfwd()?;
    let mut portfwd = shell::as_root(&binary, &format!("`{}`", binary.display()))?;
    portfwd.args(&args.args);
    shell::print(&portfwd);
    // In our place, so that Ctrl-C, signals by pid and the exit code are portfwd's own.
    let error = portfwd.exec();
    Err(error).with_context(|| format!("cannot start `{}`", shell::line(&portfwd)))
}
