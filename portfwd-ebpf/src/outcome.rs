//! How a packet leaves: one verdict, counted once.

use portfwd_common::{Flow, Verdict};

use crate::{
    hook::Frame,
    packet::Packet,
    tables::{Count, Tables},
};

/// The end of a walk.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What happened to the packet.
    pub verdict: Verdict,
    /// Slot of the rule that the packet counts for, or [`Flow::NO_RULE`].
    pub slot: u32,
    /// The packet opens a connection of the rule.
    pub opens: bool,
    /// The packet goes from target to client.
    pub back: bool,
}

impl Outcome {
    /// A packet from a client that counts for a rule.
    #[inline(always)]
    pub const fn of_rule(verdict: Verdict, slot: u32) -> Self {
        Self {
            verdict,
            slot,
            opens: false,
            back: false,
        }
    }

    /// The same with a connection opened where `opens`.
    #[inline(always)]
    pub const fn opening(self, opens: bool) -> Self {
        Self { opens, ..self }
    }

    /// The same on the way back to the client.
    #[inline(always)]
    pub const fn back(self) -> Self {
        Self { back: true, ..self }
    }

    /// True when the packet counts for a rule.
    #[inline(always)]
    pub const fn has_rule(&self) -> bool {
        self.slot != Flow::NO_RULE
    }
}

impl From<Verdict> for Outcome {
    /// A packet that counts for no rule.
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self::of_rule(verdict, Flow::NO_RULE)
    }
}

/// Counts a packet of a rule as it is on the wire.
#[inline(always)]
pub fn count<T: Tables>(tables: &T, frame: &Frame, packet: &Packet, outcome: &Outcome) {
    if !outcome.has_rule() {
        return;
    }
    let headers = u32::from(packet.headers);
    let segments = segments(frame, headers);
    let unwired = u32::from(packet.unwired);
    let bytes = if frame.gso_size == 0 {
        // The link may have padded it.
        packet.len
    } else {
        frame.len - unwired + (segments - 1) * (headers - unwired)
    };
    let count = Count {
        packets: segments,
        bytes,
        back: outcome.back,
        opens: outcome.opens,
    };
    tables.count_rule(outcome.slot, &count);
}

/// Packets that the frame is on the wire.
#[inline(always)]
fn segments(frame: &Frame, headers: u32) -> u32 {
    if frame.gso_size == 0 || frame.len <= headers {
        return 1;
    }
    (frame.len - headers).div_ceil(frame.gso_size)
}
