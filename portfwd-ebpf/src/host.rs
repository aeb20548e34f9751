//! The corridor on the host: a packet in a byte buffer, a machine whose sockets
//! and addresses are written down, and tables in memory. Nothing here is part
//! of a BPF program; `cargo test` walks the very code that the kernel runs.

mod buffer;
mod machine;
mod memory;

pub use buffer::Buffer;
pub use machine::{Listener, Machine};
pub use memory::{Forward, Memory, WhenFull};

use crate::{
    egress,
    hook::Hook as _,
    ingress,
    outcome::{self, Outcome},
    tables::Tables as _,
};

/// Walks a packet that arrives, and counts it as the program does.
pub fn arrive(buffer: &mut Buffer<'_>, memory: &Memory) -> Outcome {
    let frame = buffer.frame();
    let outcome = match ingress::find(buffer, memory, &frame) {
        Err(verdict) => verdict.into(),
        Ok((draft, entry)) => {
            let (Ok(outcome) | Err(outcome)) = ingress::walk(buffer, memory, draft, entry);
            outcome::count(memory, &frame, &draft.packet, &outcome);
            outcome
        }
    };
    memory.count_verdict(outcome.verdict);
    outcome
}

/// Walks a packet that leaves, and counts it as the program does.
pub fn depart(buffer: &mut Buffer<'_>, memory: &Memory) -> Outcome {
    let frame = buffer.frame();
    let outcome = match egress::find(buffer, memory, &frame) {
        Err(verdict) => verdict.into(),
        Ok((draft, entry)) => {
            let packet = &draft.packet;
            let (Ok(outcome) | Err(outcome)) = egress::walk(buffer, memory, &frame, packet, entry);
            outcome::count(memory, &frame, packet, &outcome);
            outcome
        }
    };
    memory.count_verdict(outcome.verdict);
    outcome
}
