//! Loading the embedded object.

use std::path::Path;

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::MapError,
    programs::{Program, ProgramError, SchedClassifier},
};
use aya_log::EbpfLogger;
use portfwd_common::{
    Timeouts, names,
    settings::{UNWRITTEN, tick},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Features, FlowTables, machine};
use crate::{
    Error,
    host::{kernel, netns},
};

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portfwd-bpf"));

/// What a forwarder is loaded with and cannot change later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Flow timeouts.
    pub timeouts: Timeouts,
    /// Flows that the tables hold.
    pub max_flows: u32,
    /// The ports that this host gives its own connections, see
    /// [`portfwd_common::settings::local_ports`].
    pub local_ports: u32,
    /// The programs announce new flows.
    pub log_flows: bool,
}

/// Loads maps and programs. The maps are pinned under `pins` by their names.
pub(super) fn load(settings: &Settings, features: Features, pins: &Path) -> Result<Ebpf, Error> {
    let tables = FlowTables::new(settings.max_flows)?;
    let flags = [features.steer, features.steer_all, features.check_mtu].map(u8::from);
    let [steer, steer_all, check_mtu] = &flags;
    let level = if settings.log_flows {
        log::Level::Info as u8
    } else {
        0
    };
    let mut timeouts = settings.timeouts;
    timeouts.tcp_established += UNWRITTEN;
    timeouts.udp_two_way += UNWRITTEN;
    // No namespace has 0, so the hooks serve nobody where it is not known.
    let netns = netns::cookie_number()?.unwrap_or_default();

    let tick = tick(kernel::tick_nanoseconds()?);

    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::STEER, steer, true)
        .override_global(names::STEER_ALL, steer_all, true)
        .override_global(names::TICK, &tick, true)
        .override_global(names::NETNS_COOKIE, &netns, true)
        .override_global(names::CHECK_MTU, check_mtu, true)
        .override_global(names::LOCAL_PORTS, &settings.local_ports, true)
        .override_global(names::TCP_HALF_OPEN, &timeouts.tcp_half_open, true)
        .override_global(names::TCP_ESTABLISHED, &timeouts.tcp_established, true)
        .override_global(names::UDP_ONE_WAY, &timeouts.udp_one_way, true)
        .override_global(names::UDP_TWO_WAY, &timeouts.udp_two_way, true)
        .override_global(aya_log::LEVEL, &level, true)
        .map_max_entries(names::FLOWS, tables.proven())
        .map_max_entries(names::NEW, tables.unproven())
        .map_max_entries(names::FOREIGN, tables.unproven());
    for name in names::PINNED {
        loader.map_pin_path(name, pins.join(name));
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| refused(&tables, error))?;
    // Devices without a link-layer header are rare: their programs are loaded
    // when one is there.
    for name in [names::TC_IN, names::TC_OUT] {
        program(&mut ebpf, name)?;
    }
    Ok(ebpf)
}

fn refused(tables: &FlowTables, error: EbpfError) -> Error {
    match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::ENOMEM) =>
        {
            Error::machine(format!(
                "the kernel has no memory for the tables of {} flows, which take {}; \
                 type a smaller `--max-flows`",
                tables.flows(),
                tables.memory()
            ))
        }
        _ => machine("cannot load the BPF maps", error),
    }
}

/// A program by its name, loaded at the first call.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, Error> {
    let program: &mut SchedClassifier = find(ebpf, name)?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| machine(format!("cannot load program {name}"), error))?;
    }
    Ok(program)
}

/// A program by its name, loaded or not.
pub(super) fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| Error::machine(format!("the BPF object holds no program {name}")))?
        .try_into()
        .map_err(|error| machine(format!("program {name}"), error))
}

/// The programs' log: one line for each new flow.
pub(super) struct FlowLog(AsyncFd<EbpfLogger<&'static dyn log::Log>>);

impl FlowLog {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let failed = "cannot read the programs' log";
        let logger = EbpfLogger::init(ebpf).map_err(|error| machine(failed, error))?;
        // SAFETY: the `AsyncFd` owns the logger with its descriptor until it
        // is dropped; nothing takes it out.
        unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map(Self)
            .map_err(|error| machine(failed, std::io::Error::from(error)))
    }

    /// Waits for records and hands them to the logger. Safe to cancel.
    pub(super) async fn flush_next(&mut self) -> Result<(), Error> {
        let mut guard = self
            .0
            .readable_mut()
            .await
            .map_err(|error| machine("cannot read the programs' log", error))?;
        guard.get_inner_mut().flush();
        guard.clear_ready();
        Ok(())
    }
}
