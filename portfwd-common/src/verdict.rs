//! Verdicts: what happened to a packet, one for each packet.

/// What the hook returns to the kernel for a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// On to the next program of the hook and then to the stack.
    Pass,
    /// The packet ends here.
    Drop,
    /// On to another host, by the interface that leads there.
    Send,
}

impl Action {
    /// The word that tables and docs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Send => "send",
        }
    }
}

macro_rules! verdicts {
    ($($number:literal $variant:ident $action:ident $label:literal $help:literal)*) => {
        /// What happened to a packet. Numbers never change and are never used
        /// again; new verdicts come at the end.
        #[must_use]
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Verdict {
            $(#[doc = $help] $variant = $number,)*
        }

        impl Verdict {
            /// Every verdict in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What the hook does with the packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)* }
            }

            /// The name in tables and JSON.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// One line for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

verdicts! {
    0  NotIp          Pass "not-ip"          "Neither IPv4 nor IPv6."
    1  NotForHost     Pass "not-for-host"    "A broadcast, a multicast, or a frame that the link sent to another host."
    2  Vlan           Pass "vlan"            "Carries a VLAN tag: the VLAN device's program sees it."
    3  Malformed      Pass "malformed"       "A header is cut short or contradicts itself."
    4  OtherProtocol  Pass "other-protocol"  "Neither TCP nor UDP."
    5  Fragment       Pass "fragment"        "A fragment of a datagram."
    6  Extension      Pass "extension"       "An IPv6 extension header stands before the transport header."
    7  NoRule         Pass "no-rule"         "No rule names the port, or none for this address."
    8  Foreign        Pass "foreign"         "Traffic that this host, or NAT behind it, started itself."
    9  NotLocal       Pass "not-local"       "Sent to an address that is not this host's."
    10 NotListed      Pass "not-listed"      "The source is not among the rule's sources (--from)."
    11 Steered        Pass "steered"         "A SYN, or an ACK that completes a SYN cookie: given to the target's listener."
    12 Connected      Pass "connected"       "TCP of a connection that the kernel knows on a listen port."
    13 NoListener     Pass "no-listener"     "Nothing listens on the target; the kernel answers as without the rule."
    14 Stray          Pass "stray"           "TCP to a listen port that neither opens a connection nor belongs to one."
    15 Rewritten      Pass "rewritten"       "The destination was rewritten to the target."
    16 Restored       Pass "restored"        "A reply that got back the address and port the client dialled."
    17 Direct         Pass "direct"          "Sent to a target port itself and left as it is."
    18 Moved          Pass "moved"           "Sent to a target port from a tuple in use: got another source port."
    19 NoPort         Drop "no-port"         "No source port was free to tell the flow from another one."
    20 TableFull      Drop "table-full"      "The flow table took no new entry."
    21 Guarded        Drop "guarded"         "Sent to or from 127.0.0.0/8 across a device where a rule opened it."
    22 CannotSteer    Drop "cannot-steer"    "The kernel cannot steer to this listener, nor can the packet be rewritten."
    23 Forwarded      Send "forwarded"       "Rewritten and sent on to the target, another host."
    24 Returned       Send "returned"        "A reply of another host: got back the address and port the client dialled, and was sent to it."
    25 NoRoute        Drop "no-route"        "No route leads to the other host, or none with an address to masquerade with."
    26 HopLimit       Drop "hop-limit"       "The TTL or hop limit ran out on the way to another host or back."
    27 TooLarge       Drop "too-large"       "Larger than the MTU of the interface that leads to the other host, or back."
    28 Unhooked       Pass "unhooked"        "From a program of this host to a rule for another host, and no connect hook had sent it there."
    29 Dialled        Pass "dialled"         "A program of this host dialled a rule for another host; the connect hook gave it the target."
    30 Passing        Pass "passing"         "Leaves on its way to another host or back; the program that it came in by counted it."
    31 Martian        Pass "martian"         "To a rule for another host, from an address of this host or from one that names no host: the stack drops it."
    32 Deferred       Pass "deferred"        "XDP: nothing that the accelerator forwards by itself; the TC program has it next, and counts it."
}

impl Verdict {
    /// How many verdicts there are.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

#[cfg(test)]
mod tests {
    use super::Verdict;

    #[test]
    fn numbers_count_up_without_a_gap() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
        }
    }
}
