//! The corridor on the host: a packet in a byte buffer, a machine whose sockets
//! and addresses are written down, and tables in memory. Nothing here is part
//! of a BPF program; `cargo test` walks the very code that the kernel runs.

mod buffer;
mod draft;
mod entries;
mod forward;
mod machine;
mod memory;
mod tally;

pub use buffer::Buffer;
pub use entries::WhenFull;
pub use forward::Forward;
pub use machine::{Listener, Machine};
pub use memory::Memory;
pub use tally::{Call, Tally};

use portfwd_common::{Verdict, names};

use crate::{
    accelerate::{self, Sent},
    egress,
    hook::Readable as _,
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

/// Walks a packet at XDP, and counts it as the program does; none where it goes
/// on to TC.
pub fn accelerate(buffer: &mut Buffer<'_>, memory: &Memory) -> Option<Sent> {
    let Some(sent) = accelerate::walk(buffer, memory) else {
        memory.count_verdict(Verdict::Deferred);
        return None;
    };
    outcome::count(memory, &buffer.frame(), &sent.packet, &sent.outcome);
    memory.count_verdict(sent.outcome.verdict);
    Some(sent)
}

fn run<'a>(
    buffer: &mut Buffer<'a>,
    memory: &Memory,
    find: impl Fn(&mut Buffer<'a>, &Memory, &mut Draft) -> Result<Named, Verdict>,
    walk: impl Fn(&mut Buffer<'a>, &Memory, &mut Draft, Named) -> Outcome,
) -> Outcome {
    memory.tally.lookup(names::FORWARDER);
    let draft = memory.draft().expect("there is memory");
    let outcome = match find(buffer, memory, draft) {
        Err(verdict) => leave(memory, verdict.into()),
        Ok(named) => {
            let outcome = walk(buffer, memory, draft, named);
            finish(buffer, memory, draft, outcome)
        }
    };
    memory.keep(draft);
    outcome
}

fn finish(buffer: &Buffer<'_>, memory: &Memory, draft: &Draft, outcome: Outcome) -> Outcome {
    outcome::count(memory, &buffer.frame(), &draft.packet, &outcome);
    leave(memory, outcome)
}

fn leave(memory: &Memory, outcome: Outcome) -> Outcome {
    memory.count_verdict(outcome.verdict);
    outcome
}
