//! `cargo xtask setup`: finds what the build and the tests need, and installs what is missing.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    cargo, shell,
    toolchain::{self, BY_HAND, DEBIAN_PACKAGES, LINKER_VERSION, NIGHTLY},
    tools,
};

/// What `cargo xtask setup` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Print the commands, run none of them
    #[arg(long)]
    dry_run: bool,
}

/// Whether commands are run or only printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Run them.
    Install,
    /// Print them.
    DryRun,
}

/// The verb.
pub fn run(args: &Args) -> Result<()> {
    let mode = if args.dry_run {
        Mode::DryRun
    } else {
        Mode::Install
    };
    compiler(mode)?;
    linker(mode)?;
    tools::all(mode)?;
    report();
    Ok(())
}

/// Installs what the build needs; says nothing when it is there.
pub fn for_build() -> Result<()> {
    compiler(Mode::Install)?;
    linker(Mode::Install)
}

/// Installs what the build and the tests need; says nothing when it is there.
pub fn for_tests() -> Result<()> {
    for_build()?;
    tools::all(Mode::Install)
}

/// Installs Debian packages.
pub fn apt_install(mode: Mode, packages: &[&str]) -> Result<()> {
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    if packages.iter().all(|package| apt_knows(package)) {
        let done = obey(mode, &mut apt(&install)?);
        if done.is_ok() {
            return done;
        }
        // The lists of an older day name files that the mirror has replaced since.
    }
    if let Err(error) = obey(mode, &mut apt(&["update"])?) {
        // One broken source of several does not matter here.
        eprintln!("{error:#}: going on with the lists that are there");
    }
    obey(mode, &mut apt(&install)?)
}

/// Installs Debian packages of a server without starting it, now or with the
/// machine: Debian starts what it installs. While apt runs, the service is
/// masked for systemd; without systemd the scripts see runlevel 1, in which no
/// server is started.
pub fn apt_install_at_rest(packages: &[&str], service: &str) -> Result<()> {
    let systemd = Path::new("/run/systemd/system").is_dir();
    let systemctl = |args: &[&str]| -> Result<()> {
        if !systemd {
            return Ok(());
        }
        let mut command = shell::as_root("systemctl", "keeping a service at rest")?;
        shell::run(command.args(args).arg(format!("{service}.service")))
    };
    systemctl(&["mask", "--runtime"])?;
    let installed = apt_install(Mode::Install, packages);
    systemctl(&["unmask", "--runtime"])?;
    installed?;
    systemctl(&["disable"])
}

fn compiler(mode: Mode) -> Result<()> {
    let Err(missing) = toolchain::compiler() else {
        return Ok(());
    };
    eprintln!("no BPF compiler:\n{missing}");
    if shell::find("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
        rustup.args(["--component", "rust-src", "--no-self-update"]);
        match obey(mode, &mut rustup) {
            Ok(()) => return check(mode, toolchain::nightly()),
            Err(error) => eprintln!("{error:#}: taking Debian's compiler instead"),
        }
    }
    if shell::find("apt-get").is_none() {
        bail!("no BPF compiler, and neither rustup nor apt-get to install one\n{BY_HAND}");
    }
    apt_install(mode, &DEBIAN_PACKAGES).with_context(|| format!("no BPF compiler\n{BY_HAND}"))?;
    check(mode, toolchain::debian())
}

fn linker(mode: Mode) -> Result<()> {
    let Err(missing) = toolchain::linker() else {
        return Ok(());
    };
    eprintln!("no bpf-linker {LINKER_VERSION}: {missing}");
    let root = toolchain::linker_root().context(
        "bpf-linker has no place to go: set HOME or XDG_CACHE_HOME to a folder of your own",
    )?;
    let mut install = cargo::command(&["install", "bpf-linker", "--version", LINKER_VERSION]);
    // With its folder on PATH, cargo does not ask for it to be put there.
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":");
    path.push(root.join("bin"));
    install
        .args(["--locked", "--root"])
        .arg(root)
        .env("PATH", path);
    obey(mode, &mut install)?;
    check(mode, toolchain::linker())
}

/// Runs the command, or only prints it.
fn obey(mode: Mode, command: &mut Command) -> Result<()> {
    match mode {
        Mode::Install => shell::run(command),
        Mode::DryRun => {
            shell::print(command);
            Ok(())
        }
    }
}

/// What was installed has the right version too.
fn check<T>(mode: Mode, found: Result<T, String>) -> Result<()> {
    match found {
        Err(why) if mode == Mode::Install => Err(anyhow!("still not usable: {why}\n{BY_HAND}")),
        _ => Ok(()),
    }
}

fn apt(args: &[&str]) -> Result<Command> {
    let mut command = shell::as_root("env", &format!("`apt-get {}`", args.join(" ")))?;
    // Some packages ask a question; nobody is there to answer.
    command
        .arg("DEBIAN_FRONTEND=noninteractive")
        .arg("RUNLEVEL=1")
        .arg("apt-get")
        .args(args);
    Ok(command)
}

fn apt_knows(package: &str) -> bool {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", package]);
    show.stdout(Stdio::null()).stderr(Stdio::null());
    show.status().is_ok_and(|status| status.success())
}

/// What is there now.
fn report() {
    if let Ok(compiler) = toolchain::compiler() {
        println!("BPF compiler: {}", compiler.name());
    }
    if let Ok(linker) = toolchain::linker() {
        println!("bpf-linker {LINKER_VERSION}: {}", linker.display());
    }
    if tools::missing().is_empty() {
        println!("tools of the tests: all there");
    }
}
