//! Is this kernel recent enough, and may this process load programs into it?

use std::fmt;
use std::fs;

use nix::{
    sys::time::TimeValLike as _,
    time::{ClockId, clock_getres},
};

use crate::Error;

/// The oldest kernel that portfwd runs on.
pub const FLOOR: Release = Release {
    major: 5,
    minor: 10,
};

/// Bits of the capability sets, from `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The first two numbers of a kernel release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The 6 of 6.18.
    pub major: u32,
    /// The 18 of 6.18.
    pub minor: u32,
}

impl Release {
    /// The kernel that runs this process.
    pub fn running() -> Result<Self, Error> {
        let names = nix::sys::utsname::uname().map_err(|errno| {
            Error::machine(format!(
                "cannot ask the kernel for its release: {}",
                errno.desc()
            ))
        })?;
        Self::parse(&names.release().to_string_lossy())
    }

    /// Reads the text of `uname -r`; whatever follows the second number is
    /// the distribution's.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut numbers = text.splitn(3, '.').map(leading_number);
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(Error::machine(format!(
                "kernel release `{text}` is not of the form 6.1; portfwd needs Linux {FLOOR} or later"
            ))),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// How long a tick of the kernel's clock (`jiffies`) takes: the coarse clock
/// goes by them.
pub fn tick_nanoseconds() -> Result<u32, Error> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|errno| {
        Error::machine(format!(
            "cannot ask the kernel how fast its clock ticks: {}",
            errno.desc()
        ))
    })?;
    match u32::try_from(resolution.num_nanoseconds()) {
        Ok(tick @ 1..) => Ok(tick),
        _ => Err(Error::machine(format!(
            "a clock that ticks every {resolution} is none that portfwd can go by"
        ))),
    }
}

/// An error for a kernel below [`FLOOR`].
pub fn require_floor(release: Release) -> Result<(), Error> {
    if release < FLOOR {
        return Err(Error::machine(format!(
            "kernel {release} is too old: portfwd needs Linux {FLOOR} or later; boot a newer kernel"
        )));
    }
    Ok(())
}

/// An error where this process may not attach programs, which names `sudo`.
pub fn require_root() -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| {
        Error::machine(format!(
            "cannot read the capabilities of this process in /proc/self/status ({error}); mount /proc"
        ))
    })?;
    match missing(effective_capabilities(&status)) {
        None => Ok(()),
        Some(missing) => Err(Error::machine(format!(
            "portfwd needs root to attach to interfaces ({missing} missing); run it with sudo"
        ))),
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The set in the line `CapEff:` of a `/proc/PID/status`.
fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

/// `CAP_SYS_ADMIN` still includes what 5.8 split off as `CAP_BPF` and
/// `CAP_PERFMON`; without the latter the verifier takes no program that compares
/// pointers.
fn missing(set: u64) -> Option<String> {
    let has = |capability: u32| set & (1 << capability) != 0;
    let wanted = [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
    ];
    let lacks = |capability| {
        let covered = capability != CAP_NET_ADMIN && has(CAP_SYS_ADMIN);
        !covered && !has(capability)
    };
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter_map(|(capability, name)| lacks(capability).then_some(name))
        .collect();
    match missing.split_last()? {
        (only, []) => Some(format!("{only} is")),
        (last, others) => Some(format!("{} and {last} are", others.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn release(major: u32, minor: u32) -> Release {
        Release { major, minor }
    }

    #[test]
    fn releases_of_distributions_are_read() {
        for (text, expected) in [
            ("6.18.44-custom", release(6, 18)),
            ("5.10.0-28-amd64", release(5, 10)),
            ("5.14.0-503.el9.x86_64", release(5, 14)),
            ("6.1", release(6, 1)),
            ("6.19-rc1", release(6, 19)),
            ("6.6.87.2-microsoft-standard-WSL2", release(6, 6)),
            ("10.0+", release(10, 0)),
        ] {
            assert_eq!(Release::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_release_is_refused() {
        for text in ["", "6", "six.one", ".5", "5.", "-5.10", "99999999999.1"] {
            assert!(
                matches!(Release::parse(text), Err(Error::Machine(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn the_floor_itself_is_enough() {
        assert_eq!(require_floor(release(5, 10)), Ok(()));
        assert_eq!(require_floor(release(6, 0)), Ok(()));
        for old in [release(5, 9), release(4, 18)] {
            let message = require_floor(old).unwrap_err().to_string();
            assert!(
                message.contains(&old.to_string()) && message.contains("5.10"),
                "{message}"
            );
        }
    }

    #[test]
    fn capabilities_decide_and_not_the_user() {
        let set = |bits: &[u32]| bits.iter().fold(0_u64, |set, bit| set | 1 << bit);
        let missing = |set| missing(set).unwrap_or_default();
        assert_eq!(missing(set(&[CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON])), "");
        assert_eq!(missing(set(&[CAP_NET_ADMIN, CAP_SYS_ADMIN])), "");
        assert_eq!(missing(set(&[CAP_SYS_ADMIN])), "CAP_NET_ADMIN is");
        assert_eq!(
            missing(set(&[CAP_NET_ADMIN])),
            "CAP_BPF and CAP_PERFMON are"
        );
        assert_eq!(missing(set(&[CAP_NET_ADMIN, CAP_BPF])), "CAP_PERFMON is");
        assert_eq!(missing(0), "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON are");
        let status = "Name:\tportfwd\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(missing(effective_capabilities(status)), "");
    }
}
