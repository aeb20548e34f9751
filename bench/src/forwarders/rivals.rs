//! nftables and iptables, set up as their manuals do.

use std::{io::Write as _, process::Stdio};

use portfwd_tests::Netns;

use super::rules::{Nat, Rules};
use crate::site::Site;

/// One rule with a map.
pub fn nft_map(site: &Site, rules: Rules, nat: Nat) {
    site.route();
    site.host.nft(&rules.for_nft_map(nat));
}

/// A rule for each port.
pub fn nft_chain(site: &Site, rules: Rules, nat: Nat) {
    site.route();
    site.host.nft(&rules.for_nft_chain(nat));
}

/// A rule for each port.
pub fn iptables(site: &Site, rules: Rules, nat: Nat) {
    site.route();
    restore(&site.host, &rules.for_iptables(nat));
}

/// `iptables-restore` with the text.
///
/// # Panics
///
/// When it fails.
#[track_caller]
pub fn restore(ns: &Netns, text: &str) {
    let mut child = ns
        .command("iptables-restore")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("iptables-restore: {error}"));
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let fed = stdin.write_all(text.as_bytes());
    drop(stdin);
    let status = child.wait().expect("a child is waited for");
    assert!(
        status.success() && fed.is_ok(),
        "iptables-restore: {status}"
    );
}

/// Whether a program is installed.
///
/// # Errors
///
/// That it is not.
pub fn is_there(program: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    let found = std::env::split_paths(&path)
        .chain(system)
        .any(|folder: std::path::PathBuf| folder.join(program).is_file());
    if found {
        Ok(())
    } else {
        Err(format!("there is no {program}"))
    }
}
