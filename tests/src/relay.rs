//! Rules for another host: from a port of this one to the other's services.

use std::net::SocketAddr;

use crate::{Family, Node, Portfwd, World};

/// The port that rules listen on.
pub const DIALLED: u16 = 8080;

/// The port of the target's services.
pub const SERVICE: u16 = 80;

/// What is asked of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Kept where the reply is sure to come back.
    Auto,
    /// Replaced by the host's.
    Masquerade,
    /// Kept.
    Preserve,
}

impl Nat {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Masquerade, Self::Preserve];

    /// The two that do not depend on routes.
    pub const FORCED: [Self; 2] = [Self::Masquerade, Self::Preserve];

    /// As the command line takes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Masquerade => "masquerade",
            Self::Preserve => "preserve",
        }
    }
}

/// Rules of both families, each with the text of one.
pub fn rules(rule: impl Fn(Family) -> String) -> String {
    Family::BOTH.map(rule).join(" ")
}

/// The rule from [`DIALLED`] to a target.
pub fn rule_to(target: SocketAddr) -> String {
    format!("{DIALLED}:{target}/tcp+udp")
}

impl World {
    /// Starts `portfwd` on the host for clients on other machines, with the
    /// rules to the machine behind it.
    #[track_caller]
    pub fn relay(&self, nat: Nat) -> Portfwd {
        self.host.relay(nat, &self.behind().rules())
    }
}

impl Node {
    /// Starts `portfwd` here for clients on other machines, with the words of
    /// `args`.
    #[track_caller]
    pub fn relay(&self, nat: Nat, args: &str) -> Portfwd {
        self.portfwd(&format!("--no-local --nat {} {args}", nat.word()))
    }

    /// The rules of both families that lead here.
    pub fn rules(&self) -> String {
        rules(|family| self.rule(family))
    }

    /// The rule that leads to [`SERVICE`] here.
    pub fn rule(&self, family: Family) -> String {
        rule_to(self.at(family, SERVICE))
    }
}
