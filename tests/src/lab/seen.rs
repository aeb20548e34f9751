//! What a lab saw of a frame.

use etherparse::{SlicedPacket, TransportSlice};
use portfwd::{dataplane::Trial, host::devices::Link, plan::TcpMechanism};
use portfwd_common::{Action, RuleCounters, Verdict};

use crate::{
    checksum::{self, Sums},
    frame::{Bytes, ETHERNET},
};

/// What became of a frame: each of its methods is a sentence about it.
#[derive(Debug)]
pub struct Seen {
    pub(super) frame: Vec<u8>,
    pub(super) link: Link,
    pub(super) trial: Trial,
    pub(super) verdict: Verdict,
    pub(super) rules: Vec<RuleCounters>,
}

impl Seen {
    /// The frame stays as it is, gets this verdict and what follows from it,
    /// and counts for no rule.
    #[track_caller]
    pub fn is(self, verdict: Verdict) {
        self.stays(verdict).counts_for_none();
    }

    /// The frame stays as it is and gets this verdict.
    #[track_caller]
    pub fn stays(self, verdict: Verdict) -> Self {
        self.judged(verdict);
        assert_eq!(self.trial.frame, self.frame, "{verdict:?} changes no byte");
        self
    }

    /// The frame becomes another one, with every checksum right.
    #[track_caller]
    pub fn becomes(self, verdict: Verdict, wanted: impl Bytes) -> Self {
        self.judged(verdict);
        let wanted = wanted.bytes();
        let start = match (self.link, verdict.action()) {
            (Link::Bare, Action::Pass | Action::Drop) => 0,
            // A link-layer header is put before what is sent from there.
            (Link::Ethernet, _) | (Link::Bare, Action::Send) => ETHERNET,
        };
        let (header, found) = self.trial.frame.split_at(start);
        match self.link {
            Link::Ethernet => assert_eq!(header, &self.frame[..start], "link layer"),
            Link::Bare => assert!(header.iter().all(|byte| *byte == 0), "{header:02x?}"),
        }
        assert_eq!(found, &wanted[ETHERNET..], "{verdict:?}");
        let sums = checksum::check(found, false);
        assert!(!matches!(sums, Sums::Wrong(_)), "{verdict:?}: {sums:?}");
        self
    }

    /// The segment is carried by this mechanism: steered as it is, or rewritten
    /// to another one where the kernel cannot steer.
    #[track_caller]
    pub fn is_carried(self, tcp: TcpMechanism, rewritten: impl Bytes) -> Self {
        match tcp {
            TcpMechanism::Rewrite => self.becomes(Verdict::Rewritten, rewritten),
            TcpMechanism::Steer | TcpMechanism::SteerOrRewrite => self.stays(Verdict::Steered),
        }
    }

    /// It is the client's packet of the rule in this slot.
    #[track_caller]
    pub fn counts_for(self, slot: usize) {
        let wanted = self.one();
        self.counted(slot, wanted);
    }

    /// The same, and it opens a connection.
    #[track_caller]
    pub fn opens(self, slot: usize) {
        let wanted = RuleCounters {
            connections: 1,
            ..self.one()
        };
        self.counted(slot, wanted);
    }

    /// It is a packet to the client of the rule in this slot.
    #[track_caller]
    pub fn counts_back_for(self, slot: usize) {
        let wanted = RuleCounters {
            packets_back: 1,
            bytes_back: self.length(),
            ..RuleCounters::default()
        };
        self.counted(slot, wanted);
    }

    /// No rule counts it.
    #[track_caller]
    pub fn counts_for_none(self) {
        assert!(
            self.rules
                .iter()
                .all(|rule| *rule == RuleCounters::default()),
            "{:?} counts for no rule: {:?}",
            self.verdict,
            self.rules
        );
    }

    /// Exactly these numbers for the rule in this slot, nothing for another.
    #[track_caller]
    pub fn counted(self, slot: usize, wanted: RuleCounters) {
        for (index, found) in self.rules.iter().enumerate() {
            let wanted = if index == slot {
                wanted
            } else {
                RuleCounters::default()
            };
            assert_eq!(*found, wanted, "rule {index}, {:?}", self.verdict);
        }
    }

    /// The port that the frame says it is from as it came out.
    #[track_caller]
    pub fn source_port(&self) -> u16 {
        let packet = SlicedPacket::from_ethernet(&self.trial.frame).expect("a whole frame");
        match packet.transport {
            Some(TransportSlice::Tcp(segment)) => segment.source_port(),
            Some(TransportSlice::Udp(datagram)) => datagram.source_port(),
            other => panic!("{other:?} has no port"),
        }
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    #[track_caller]
    fn judged(&self, verdict: Verdict) {
        assert_eq!(self.verdict, verdict);
        assert_eq!(self.trial.action, verdict.action(), "{verdict:?}");
        if verdict.action() == Action::Drop {
            assert_eq!(self.trial.frame, self.frame, "dropped as it came");
        }
    }

    fn one(&self) -> RuleCounters {
        RuleCounters {
            packets: 1,
            bytes: self.length(),
            ..RuleCounters::default()
        }
    }

    /// Bytes of layer 3.
    fn length(&self) -> u64 {
        let header = match self.link {
            Link::Ethernet => ETHERNET,
            Link::Bare => 0,
        };
        (self.frame.len() - header) as u64
    }
}
