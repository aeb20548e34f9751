//! The kernel side: the only folder that names aya.
//!
//! [`Dataplane::load`] loads the object and checks what the kernel has,
//! [`Dataplane::install`] fills the rule maps, [`Dataplane::attach`] comes
//! last. Dropping it detaches.

mod attach;
mod hooks;
mod kernel;
mod object;
mod ports;
mod programs;
mod room;
mod tables;
mod trial;
mod xdp;

use std::{collections::BTreeMap, path::Path};

pub use attach::{Attached, Side};
use aya::Ebpf;
pub use kernel::Features;
pub use object::Settings;
pub use programs::{Program, programs};
pub use room::{FlowTables, Memory};
pub use trial::{Entrance, Trial};
pub use xdp::hold_program;

use crate::Error;

/// The loaded programs and maps of one forwarder.
pub struct Dataplane {
    ebpf: Ebpf,
    tcx: bool,
    attached: BTreeMap<(u32, Side), Attached>,
    express: xdp::Express,
    hooks: Vec<hooks::Hook>,
    log: Option<object::FlowLog>,
}

impl Dataplane {
    /// Loads the object; its maps are pinned under `pins`.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel refuses a map or a program.
    pub fn load(settings: &Settings, features: Features, pins: &Path) -> Result<Self, Error> {
        let mut ebpf = object::load(settings, features, pins)?;
        let log = settings
            .log_flows
            .then(|| object::FlowLog::open(&mut ebpf))
            .transpose()?;
        Ok(Self {
            ebpf,
            tcx: features.tcx,
            attached: BTreeMap::new(),
            express: xdp::Express::default(),
            hooks: Vec::new(),
            log,
        })
    }

    /// Prints new flows as the programs announce them; pends for ever where
    /// that was not asked for, or has failed.
    pub async fn log_flows(&mut self) -> Result<(), Error> {
        let Some(log) = &mut self.log else {
            return std::future::pending().await;
        };
        let flushed = log.flush_next().await;
        if flushed.is_err() {
            self.log = None;
        }
        flushed
    }
}

/// An error of the machine with its cause in one sentence.
fn machine(what: impl std::fmt::Display, cause: impl std::error::Error) -> Error {
    let mut message = format!("{what}: {}", brief(&cause.to_string()));
    let mut source = cause.source();
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&brief(&cause.to_string()));
        source = cause.source();
    }
    Error::machine(message)
}

/// What an error says without the verifier's log, which runs over many lines:
/// the last one before its statistics says why.
fn brief(text: &str) -> String {
    const LOG: &str = ". Verifier output";
    let Some((what, log)) = text.split_once(LOG) else {
        return text.trim().to_owned();
    };
    let is_reason = |line: &&str| {
        let statistics = ["processed ", "verification time", "stack depth"];
        let line = line.trim();
        !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start))
    };
    match log.lines().rfind(is_reason) {
        Some(reason) => format!("{what}: {}", reason.trim()),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn of_a_verifier_log_the_reason_is_told() {
        let error = "the syscall returned Permission denied (os error 13). Verifier output: 0: R1=ctx()\n\
                     1: (1f) r5 -= r6\n\
                     R5 pointer -= pointer prohibited\n\
                     processed 57 insns (limit 1000000)\n";
        let brief = super::brief(error);
        assert_eq!(
            brief,
            "the syscall returned Permission denied (os error 13): R5 pointer -= pointer prohibited"
        );
        assert_eq!(super::brief("no log"), "no log");
    }
}
