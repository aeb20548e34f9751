//! A run is a child of a process that tidies up after it, should it be killed.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    panic,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::{
        prctl,
        signal::{SigHandler, Signal, kill, signal},
    },
    unistd::Pid,
};
use portfwd_tests::{Netns, Portfwd, Tcp};

use crate::{forwarders::conntrack, interrupt, rivals};

/// Set for the child.
const INNER: &str = "PORTFWD_BENCH_INNER";

/// Whether this process is the child, which does the work.
pub fn is_inner() -> bool {
    env::var_os(INNER).is_some()
}

/// Gives the child a session of its own, which the scheduler lets come first:
/// where sessions share the CPU evenly (`CONFIG_SCHED_AUTOGROUP`), a nice value
/// holds only within one. It ends with the child.
///
/// # Errors
///
/// The child leads a group already.
pub fn come_first() -> Result<()> {
    const NICE: &str = "-20";
    nix::unistd::setsid().context("a session of its own")?;
    match fs::write("/proc/self/autogroup", NICE) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("this run has to share the CPU with other sessions: {error}");
        }
        _ => {}
    }
    Ok(())
}

/// Starts this binary again, waits for it, and undoes what it could not.
///
/// # Errors
///
/// It cannot start.
pub fn run() -> Result<ExitCode> {
    let mut command = Command::new(env::current_exe().context("finding this binary")?);
    command.args(env::args_os().skip(1)).env(INNER, "1");
    let end_with_parent = || Ok(prctl::set_pdeathsig(Signal::SIGTERM)?);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(end_with_parent) };
    let mut child = command.spawn().context("cannot start the run")?;
    interrupt::listen()?;
    let pid = Pid::from_raw(child.id().try_into()?);
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt::asked() && !told {
            // The child has a session of its own, so nothing else reaches it.
            let _ = kill(pid, Signal::SIGTERM);
            told = true;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    if let Some(signal) = status.signal() {
        eprintln!("the run was ended by signal {signal}: tidying up after it");
        tidy_up();
    }
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Removes namespaces, restores the kernel's tables, and has portfwd remove
/// what a killed one left.
fn tidy_up() {
    // SAFETY: the default action, so that an impatient second Ctrl-C works.
    let _ = unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) };
    if let Err(error) = conntrack::restore() {
        eprintln!("{error:#}");
    }
    rivals::remove_folders_of_the_dead();
    let done = panic::catch_unwind(|| {
        // The first namespace sweeps those of dead runs away; each start of
        // portfwd removes the pins of namespaces that are gone.
        let ns = Netns::new();
        Portfwd::start(&ns, Tcp::Steered, "run --no-local 80:5000").stop();
    });
    if done.is_err() {
        eprintln!("not everything could be tidied up: the next run tries again");
    }
}
