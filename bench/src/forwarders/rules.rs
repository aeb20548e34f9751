//! Which ports are forwarded, as each forwarder wants it said.

use std::fmt::Write as _;

use crate::site::{self, TARGET};

/// The first listen port, and the target's port for it, of single rules.
const LISTEN: u16 = 10_000;
const TO: u16 = 30_000;

/// The ports of the one wide range; they are kept.
const RANGE: (u16, u16) = (1_024, 61_023);

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// So many rules of one port each, 10,000 at most.
    Single(u16),
    /// One rule for 60,000 ports, which are kept.
    Range,
}

/// What becomes of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// The target sees the client.
    Kept,
    /// The target sees the host.
    Masquerade,
}

impl Nat {
    /// In tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kept => "addresses kept",
            Self::Masquerade => "masquerade",
        }
    }
}

impl Rules {
    /// In tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Single(1) => "1 rule",
            Self::Single(100) => "100 rules",
            Self::Single(10_000) => "10,000 rules",
            Self::Single(_) => "some rules",
            Self::Range => "one range of 60,000 ports",
        }
    }

    /// The first port that clients dial.
    pub const fn first(self) -> u16 {
        match self {
            Self::Single(_) => LISTEN,
            Self::Range => RANGE.0,
        }
    }

    /// How many ports clients dial.
    pub const fn count(self) -> u16 {
        match self {
            Self::Single(count) => count,
            Self::Range => RANGE.1 - RANGE.0 + 1,
        }
    }

    /// The last port that clients dial, for the proof.
    pub const fn last(self) -> u16 {
        self.first() + (self.count() - 1)
    }

    /// The target's port for a listen port.
    pub const fn target_port(self, listen: u16) -> u16 {
        match self {
            Self::Single(_) => TO + (listen - LISTEN),
            Self::Range => listen,
        }
    }

    fn pairs(self) -> impl Iterator<Item = (u16, u16)> {
        (self.first()..=self.last()).map(move |listen| (listen, self.target_port(listen)))
    }

    /// As portfwd takes them, for UDP.
    pub fn for_portfwd(self) -> String {
        match self {
            Self::Range => format!("{}-{}:{TARGET}/udp", RANGE.0, RANGE.1),
            Self::Single(_) => {
                let mut text = String::new();
                for (listen, to) in self.pairs() {
                    let _ = write!(text, "{listen}:{TARGET}:{to}/udp ");
                }
                text
            }
        }
    }

    /// One nft rule with a map.
    pub fn for_nft_map(self, nat: Nat) -> String {
        let elements: Vec<_> = match self {
            // A map cannot keep the port: the plain rule is what one writes.
            Self::Range => return self.for_nft_chain(nat),
            Self::Single(_) => self
                .pairs()
                .map(|(listen, to)| format!("{listen} : {TARGET} . {to}"))
                .collect(),
        };
        format!(
            "table ip bench {{
               map ports {{ type inet_service : ipv4_addr . inet_service; elements = {{ {} }} }}
               chain to {{ type nat hook prerouting priority dstnat; dnat ip to udp dport map @ports; }}
               {}
             }}",
            elements.join(", "),
            nft_masquerade(nat)
        )
    }

    /// An nft rule for each port.
    pub fn for_nft_chain(self, nat: Nat) -> String {
        let rules: String = match self {
            Self::Range => format!("udp dport {}-{} dnat to {TARGET};", RANGE.0, RANGE.1),
            Self::Single(_) => self
                .pairs()
                .map(|(listen, to)| format!("udp dport {listen} dnat to {TARGET}:{to};\n"))
                .collect(),
        };
        format!(
            "table ip bench {{
               chain to {{ type nat hook prerouting priority dstnat; {rules} }}
               {}
             }}",
            nft_masquerade(nat)
        )
    }

    /// As `iptables-restore` takes them.
    pub fn for_iptables(self, nat: Nat) -> String {
        let mut text = "*nat\n".to_owned();
        let mut rule = |ports: &str, to: &str| {
            let _ = writeln!(
                text,
                "-A PREROUTING -i {} -p udp --dport {ports} -j DNAT --to-destination {to}",
                site::NET
            );
        };
        match self {
            Self::Range => rule(&format!("{}:{}", RANGE.0, RANGE.1), &TARGET.to_string()),
            Self::Single(_) => self
                .pairs()
                .for_each(|(listen, to)| rule(&listen.to_string(), &format!("{TARGET}:{to}"))),
        }
        if nat == Nat::Masquerade {
            text.push_str("-A POSTROUTING -o lan0 -j MASQUERADE\n");
        }
        text + "COMMIT\n"
    }
}

fn nft_masquerade(nat: Nat) -> String {
    match nat {
        Nat::Kept => String::new(),
        Nat::Masquerade => format!(
            "chain from {{ type nat hook postrouting priority srcnat; oifname {} masquerade; }}",
            site::LAN
        ),
    }
}
