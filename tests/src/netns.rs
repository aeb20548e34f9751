//! Network namespaces that belong to one test run and never outlive it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    panic,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    net::if_::{InterfaceFlags, if_nametoindex},
    sched::{CloneFlags, setns},
    sys::signal::kill,
    unistd::{Pid, Uid},
};

use crate::wait::until;

const FOLDER: &str = "/run/netns";

/// A network namespace of this run, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace named `pf<pid>-<n>` with `lo` up.
    ///
    /// # Panics
    ///
    /// Without root.
    #[track_caller]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        static SWEEP: Once = Once::new();
        assert!(
            Uid::effective().is_root(),
            "these tests make network namespaces, which needs root: run them with `cargo xtask test`",
        );
        SWEEP.call_once(sweep);

        let name = format!(
            "pf{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        checked(Command::new("ip").args(["netns", "add", &name]));
        let file = File::open(path(&name)).expect("the namespace that was just made opens");
        let ns = Self { name, file };
        // An address is of use at once, also the link-local ones.
        ns.sysctl("net.ipv6.conf.default.accept_dad", 0);
        ns.sysctl("net.ipv6.conf.default.dad_transmits", 0);
        ns.ip("link set lo up");
        ns
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps the namespace, as `--netns PATH` takes it.
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Runs the closure on a thread of its own inside the namespace.
    ///
    /// Sockets made in there stay in the namespace wherever they are used.
    /// A child process does not belong in there: it would be ended with the
    /// thread. Use [`Netns::command`].
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("a live namespace is entered");
                inside()
            });
            thread.join()
        });
        result.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// A command that starts inside the namespace and is killed when the
    /// thread that started it ends before it. Mounts stay as they are.
    pub fn command(&self, program: &str) -> Command {
        let namespace = OwnedFd::from(self.file.try_clone().expect("a descriptor is free"));
        let mut command = Command::new(program);
        let enter = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and
        // allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a shell line inside the namespace and returns what it printed.
    ///
    /// # Panics
    ///
    /// When it fails, with what it printed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let output = checked(self.command("sh").args(["-ec", line]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs lines of `ip` inside the namespace in one process.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        feed(self.command("ip").args(["-batch", "-"]), lines);
    }

    /// Loads an nftables ruleset inside the namespace.
    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        feed(self.command("nft").args(["-f", "-"]), ruleset);
    }

    /// Sets a sysctl below `net`. Slashes may separate the parts where a
    /// device name holds a dot.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: impl ToString) {
        let (file, value) = (sysctl_path(name), value.to_string());
        self.enter(|| fs::write(&file, &value))
            .unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }

    /// Reads a sysctl below `net`.
    #[track_caller]
    pub fn read_sysctl(&self, name: &str) -> String {
        let file = sysctl_path(name);
        let text = self.enter(|| fs::read_to_string(&file));
        text.unwrap_or_else(|error| panic!("{name}: {error}"))
            .trim()
            .to_owned()
    }

    /// The index of a device.
    #[track_caller]
    pub fn ifindex(&self, device: &str) -> u32 {
        self.enter(|| if_nametoindex(device))
            .unwrap_or_else(|error| panic!("{device} in {}: {error}", self.name))
    }

    /// Waits until the device carries packets.
    #[track_caller]
    pub fn until_running(&self, device: &str) {
        until(&format!("{device} in {} to run", self.name), || {
            self.enter(|| is_running(device))
        });
    }

    /// Waits until every TCP connection is over on this side.
    #[track_caller]
    pub fn until_connections_end(&self) {
        until(&format!("the connections of {} to end", self.name), || {
            let states = [
                "syn-recv",
                "established",
                "fin-wait-1",
                "close-wait",
                "last-ack",
            ];
            let open = states.map(|state| format!("state {state}")).join(" ");
            self.sh(&format!("ss -Htan {open}")).is_empty()
        });
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it cannot start or fails, with what it printed.
#[track_caller]
pub fn checked(command: &mut Command) -> Output {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Runs a command with the text as its input.
#[track_caller]
fn feed(command: &mut Command, input: &str) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let fed = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("a child is waited for");
    assert!(
        output.status.success() && fed.is_ok(),
        "{command:?}: {}\n{input}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
}

fn is_running(device: &str) -> bool {
    let mut devices = nix::ifaddrs::getifaddrs().expect("the kernel lists its devices");
    devices.any(|entry| {
        entry.interface_name == device && entry.flags.contains(InterfaceFlags::IFF_RUNNING)
    })
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn sysctl_path(name: &str) -> String {
    let parts = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    format!("/proc/sys/{parts}")
}

/// Removes the namespaces of runs that were killed.
fn sweep() {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        if owner(&name).is_some_and(is_dead) {
            remove(&name);
        }
    }
}

/// The process that the name of a namespace or cgroup tells, if it is a name of ours.
pub(crate) fn owner(name: &str) -> Option<i32> {
    let (pid, number) = name.strip_prefix("pf")?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

pub(crate) fn is_dead(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// What `ip netns del` does, without a process.
fn remove(name: &str) {
    let path = path(name);
    let unmounted = umount2(&path, MntFlags::MNT_DETACH).map_err(io::Error::from);
    if let Err(error) = unmounted.and_then(|()| fs::remove_file(&path)) {
        eprintln!("{} was not removed: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::{is_dead, owner};

    #[test]
    fn only_names_of_a_run_have_an_owner() {
        assert_eq!(owner("pf12-3"), Some(12));
        for name in ["pf12", "pf-3", "pfx-1", "pf12-x", "other"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn this_process_is_alive() {
        assert!(!is_dead(std::process::id() as i32));
    }
}
