//! portfwd itself.

use std::sync::OnceLock;

use portfwd_tests::{Netns, Portfwd, Tcp};

use super::{
    Forwarder,
    rules::{Nat, Rules},
};
use crate::site::{self, Site};

/// Room without `--max-flows`.
const USUAL_FLOWS: u32 = 131_072;

/// Starts it for the rules, with room for so many flows at least.
///
/// # Panics
///
/// When it does not get ready, with what it printed.
#[track_caller]
pub fn start(mode: Forwarder, site: &Site, rules: Rules, nat: Nat, flows: u32) -> Portfwd {
    let room = match flows {
        0..=USUAL_FLOWS => USUAL_FLOWS,
        more => more + more / 4,
    };
    start_with_room(mode, site, rules, nat, room)
}

/// The same, with room for exactly so many flows.
///
/// # Panics
///
/// When it does not get ready, with what it printed.
#[track_caller]
pub fn start_with_room(mode: Forwarder, site: &Site, rules: Rules, nat: Nat, room: u32) -> Portfwd {
    let args = format!(
        "run --mode {} --iface {} --nat {} --max-flows {room} --no-local {}",
        mode_name(mode),
        site::NET,
        match nat {
            Nat::Kept => "preserve",
            Nat::Masquerade => "masquerade",
        },
        rules.for_portfwd()
    );
    Portfwd::start(&site.host, Tcp::Steered, &args)
}

/// Whether this portfwd knows `--mode xdp`.
///
/// # Errors
///
/// What it says.
pub fn takes_xdp() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let ns = Netns::new();
            ns.ip("link add net0 type veth peer name eth0
                   link set net0 up
                   address add 192.0.2.1/24 dev net0");
            // The rule is wrong: it ends there if the mode is right.
            let words = ["run", "--mode", "xdp", "--iface", "net0", "80:80:80:80"];
            let refusal = Portfwd::refused(&ns, &words);
            if refusal.stderr.contains("xdp") {
                let first = refusal.stderr.lines().next().unwrap_or_default();
                Err(first.trim_start_matches("error: ").to_owned())
            } else {
                Ok(())
            }
        })
        .clone()
}

const fn mode_name(mode: Forwarder) -> &'static str {
    match mode {
        Forwarder::PortfwdXdp => "xdp",
        _ => "tc",
    }
}
