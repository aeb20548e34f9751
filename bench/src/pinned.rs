//! Processes in a namespace that stay on one CPU and never outlive the run.

use std::{
    env, io,
    os::unix::process::CommandExt as _,
    process::{Child, Command},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, killpg},
    unistd::{Pid, setpgid},
};
use portfwd_tests::Netns;

/// A command that starts in the namespace, on that CPU, as a group of its own.
///
/// # Errors
///
/// There can be no such CPU.
pub fn command(ns: &Netns, cpu: usize, program: &str) -> Result<Command> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    let mut command = ns.command(program);
    let pin = move || {
        sched_setaffinity(Pid::from_raw(0), &only)?;
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        io::Result::Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and
    // allocates nothing.
    unsafe { command.pre_exec(pin) };
    Ok(command)
}

/// This binary again.
///
/// # Errors
///
/// The binary is not found.
pub fn own(ns: &Netns, cpu: usize) -> Result<Command> {
    let binary = env::current_exe().context("finding this binary")?;
    command(ns, cpu, binary.to_str().context("a path of text")?)
}

/// A process of its own group, ended with the group on drop, and by the kernel
/// when the thread that started it ends before.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// Starts a command of [`command`].
    ///
    /// # Errors
    ///
    /// It cannot start.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let child = command.spawn();
        child.map(Self).with_context(|| format!("{command:?}"))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its number is kept until it is waited for, and so is its group's.
        let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
