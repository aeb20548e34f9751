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
mod room;
mod tables;
mod trial;

use std::{collections::BTreeMap, path::Path};

pub use attach::{Attached, Side};
use aya::Ebpf;
pub use kernel::Features;
pub use object::Settings;
pub use room::{FlowTables, Memory};
pub use trial::{Entrance, Trial};

use crate::Error;

/// The loaded programs and maps of one forwarder.
pub struct Dataplane {
    ebpf: Ebpf,
    tcx: bool,
    attached: BTreeMap<(u32, Side), Attached>,
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
            hooks: Vec::new(),
            log,
        })
    }

    /// Prints new flows as the programs announce them; pends for ever where
    /// that was not asked for.
    pub async fn log_flows(&mut self) -> Result<(), Error> {
        match &mut self.log {
            Some(log) => log.flush_next().await,
            None => std::future::pending().await,
        }
    }
}

/// An error of the machine with its cause in one sentence.
fn machine(what: impl std::fmt::Display, cause: impl std::error::Error) -> Error {
    let mut message = format!("{what}: {cause}");
    let mut source = cause.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // A verifier log runs over many lines: its last one says why.
        let line = text
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or_default();
        message.push_str(": ");
        message.push_str(line);
        source = cause.source();
    }
    Error::machine(message)
}
