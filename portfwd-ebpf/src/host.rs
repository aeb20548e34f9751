//! The corridor on the host: a packet in a byte buffer, a machine whose sockets
//! and addresses are written down, and tables in memory. Nothing here is part
//! of a BPF program; `cargo test` walks the very code that the kernel runs.

mod buffer;
mod forward;
mod machine;
mod memory;

pub use buffer::Buffer;
pub use forward::Forward;
pub use machine::{Listener, Machine};
pub use memory::{Memory, WhenFull};

use portfwd_common::Verdict;

use crate::{
    egress,
    hook::Hook as _,
    ingress,
    outcome::{self, Outcome},
    ports::Named,
    tables::{Draft, Tables as _},
};

/// Walks a packet that arrives, and counts it as the program does.
pub fn arrive(buffer: &mut Buffer<'_>, memory: &Memory) -> Outcome {
    run(buffer, memory, ingress::find, ingress::walk)
}

/// Walks a packet that arrives where no client is served, and counts it as the
/// program does.
pub fn arrive_back(buffer: &mut Buffer<'_>, memory: &Memory) -> Outcome {
    run(buffer, memory, ingress::find, ingress::walk_back)
}

/// Walks a packet that leaves, and counts it as the program does.
pub fn depart(buffer: &mut Buffer<'_>, memory: &Memory) -> Outcome {
    run(buffer, memory, egress::find, egress::walk)
}

fn run<'a>(
    buffer: &mut Buffer<'a>,
    memory: &Memory,
    find: impl Fn(&mut Buffer<'a>, &Memory, &mut Draft) -> Result<Named, Verdict>,
    walk: impl Fn(&mut Buffer<'a>, &Memory, &mut Draft, Named) -> Outcome,
) -> Outcome {
    let draft = memory.draft().expect("there is memory");
    match find(buffer, memory, draft) {
        Err(verdict) => leave(memory, verdict.into()),
        Ok(named) => {
            let outcome = walk(buffer, memory, draft, named);
            finish(buffer, memory, draft, outcome)
        }
    }
}

fn finish(buffer: &Buffer<'_>, memory: &Memory, draft: &Draft, outcome: Outcome) -> Outcome {
    outcome::count(memory, &buffer.frame(), &draft.packet, &outcome);
    leave(memory, outcome)
}

fn leave(memory: &Memory, outcome: Outcome) -> Outcome {
    memory.count_verdict(outcome.verdict);
    outcome
}
