//! What a run ran on; nothing that tells whose machine it is.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Name and value of what matters.
pub fn describe() -> Vec<(String, String)> {
    let kernel = nix::sys::utsname::uname()
        .map(|name| {
            let release = name.release().to_string_lossy().into_owned();
            // What follows is the distribution's.
            release.split('-').next().unwrap_or_default().to_owned()
        })
        .unwrap_or_default();
    // Not those that this thread may use, which is one.
    let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .unwrap_or_default();
    let facts = [
        ("kernel", kernel),
        ("processor", field("/proc/cpuinfo", "model name")),
        ("CPUs", cpus.to_string()),
        ("memory", field("/proc/meminfo", "MemTotal")),
        (
            "devices",
            "veth; client and target as network cards (no checksum offload), GRO on".into(),
        ),
    ];
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}
