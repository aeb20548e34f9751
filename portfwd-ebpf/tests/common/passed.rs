//! What became of a packet that walked.

use portfwd_common::Verdict;
use portfwd_ebpf::{hook::Way, host::Buffer, outcome::Outcome, packet::Tuple};

use super::tuple_of;

/// What became of a packet.
#[derive(Clone, Debug)]
pub struct Passed {
    pub outcome: Outcome,
    pub bytes: Vec<u8>,
    /// The tuple that it has now.
    pub tuple: Tuple,
    /// The way that it was sent.
    pub sent: Option<Way>,
}

impl Passed {
    pub fn of((outcome, buffer): (Outcome, Buffer<'_>)) -> Self {
        Self {
            outcome,
            tuple: tuple_of(&buffer.bytes),
            sent: buffer.sent,
            bytes: buffer.bytes,
        }
    }

    pub const fn verdict(&self) -> Verdict {
        self.outcome.verdict
    }

    /// The device that it was sent by.
    #[track_caller]
    pub fn ifindex(&self) -> u32 {
        self.sent.expect("it was sent").ifindex
    }
}
