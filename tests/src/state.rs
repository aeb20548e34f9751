//! What a forwarder could leave on a host.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    mem::size_of,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use nix::net::if_::{Interface, if_nameindex};

use crate::{
    Netns,
    bpf::{Side, programs},
};

/// Where locks and journals lie, and where maps are pinned.
const RUN: &str = "/run/portfwd";
const PINS: &str = "/sys/fs/bpf/portfwd";

/// Everything on a host that a forwarder might change: devices, queueing
/// disciplines, filters, tcx programs, sysctls, and the files of its
/// namespace.
#[derive(Clone, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

impl State {
    /// What there is now.
    #[track_caller]
    pub fn of(ns: &Netns) -> Self {
        let mut lines = BTreeSet::new();
        let devices = devices(ns);
        let mut script = "ip -o link; tc qdisc show;".to_owned();
        for device in &devices {
            for side in ["ingress", "egress"] {
                script += &format!("tc filter show dev {device} {side} 2>/dev/null || true;");
            }
        }
        let listed = ns.sh(&script);
        lines.extend(listed.lines().map(without_carrier));
        lines.extend(sysctls(ns));
        for device in &devices {
            for side in [Side::Ingress, Side::Egress] {
                let ids = programs(ns, device, side);
                lines.insert(format!("{device} {side:?}: programs {ids:?}"));
            }
        }
        lines.extend(files(ns).iter().map(|file| file.display().to_string()));
        Self(lines)
    }

    /// The sysctls alone.
    #[track_caller]
    pub fn of_sysctls(ns: &Netns) -> Self {
        Self(sysctls(ns))
    }

    /// Waits for nothing and complains about each difference.
    ///
    /// # Panics
    ///
    /// When something is not as it was.
    #[track_caller]
    pub fn assert_unchanged(&self, now: &Self, when: &str) {
        let lines = |sign: &str, from: &Self, without: &Self| -> String {
            let differing = from.0.difference(&without.0);
            differing.map(|line| format!("  {sign} {line}\n")).collect()
        };
        let changed = lines("-", self, now) + &lines("+", now, self);
        assert!(
            changed.is_empty(),
            "{when} the host has changed:\n{changed}"
        );
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.0.len())
    }
}

/// The line of a device without what depends on the cable, which the kernel
/// finds out in its own time.
fn without_carrier(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let kept = words
        .iter()
        .enumerate()
        .filter(|(at, word)| **word != "state" && (*at == 0 || words[at - 1] != "state"));
    let kept: Vec<&str> = kept.map(|(_, word)| *word).collect();
    kept.join(" ")
}

/// The names of a namespace's devices.
#[track_caller]
pub fn devices(ns: &Netns) -> Vec<String> {
    let name = |device: &Interface| device.name().to_string_lossy().into_owned();
    ns.enter(|| {
        let devices = if_nameindex().expect("the kernel lists its devices");
        devices.iter().map(name).collect()
    })
}

/// The files that a forwarder of this namespace has: lock, journal and pins.
#[track_caller]
pub fn files(ns: &Netns) -> Vec<PathBuf> {
    files_of(&cookie(ns))
}

/// The same for a namespace that may be gone.
pub fn files_of(cookie: &str) -> Vec<PathBuf> {
    let names = [
        Path::new(RUN).join(format!("{cookie}.lock")),
        Path::new(RUN).join(format!("{cookie}.journal")),
        Path::new(PINS).join(cookie),
    ];
    let there = |path: &PathBuf| path.symlink_metadata().is_ok();
    names.into_iter().filter(there).collect()
}

/// The namespace's cookie, by which a forwarder names its files.
///
/// # Panics
///
/// Before Linux 5.14.
#[track_caller]
pub fn cookie(ns: &Netns) -> String {
    let ask = || -> io::Result<u64> {
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
        // SAFETY: the kernel writes at most `length` bytes into the cookie.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        match result {
            0 => Ok(cookie),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match ns.enter(ask) {
        Ok(cookie) => cookie.to_string(),
        Err(error) => panic!("SO_NETNS_COOKIE (Linux 5.14 or later): {error}"),
    }
}

/// Counts what goes on, or is one for the whole machine, which others may set.
const NO_SETTINGS: [&str; 3] = [
    "nf_conntrack_count",
    "nf_conntrack_max",
    "nf_conntrack_buckets",
];

/// Every readable file below /proc/sys/net with its value.
fn sysctls(ns: &Netns) -> BTreeSet<String> {
    ns.enter(|| {
        let mut lines = BTreeSet::new();
        let mut folders = vec![PathBuf::from("/proc/sys/net")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if !NO_SETTINGS.iter().any(|name| path.ends_with(name))
                    && let Ok(value) = fs::read_to_string(&path)
                {
                    lines.insert(format!("{} = {}", path.display(), value.trim()));
                }
            }
        }
        lines
    })
}
