//! Loads every program of the BPF object, in all ways in which a forwarder loads
//! them, and prints as JSON what each takes. `cargo xtask verify` starts it as root.
//!
//! It moves to namespaces of its own first, with a bpffs of its own: nothing is
//! left of it, however it ends.

use std::{env, path::Path, process::ExitCode};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use portfwd::{
    Error,
    dataplane::{self, Features, Settings},
    host::kernel::Release,
};
use portfwd_common::{Timeouts, settings::LOCAL_PORTS_DEFAULT};
use serde::Serialize;

/// Where the bpffs is mounted, in a namespace of ours alone.
const PINS: &str = "/sys/fs/bpf";

/// What is printed.
#[derive(Serialize)]
struct Sizes {
    /// First two numbers of the kernel's release.
    kernel: String,
    /// The machine, as Rust names it.
    arch: &'static str,
    loads: Vec<Load>,
}

/// One way to load the object.
#[derive(Serialize)]
struct Load {
    /// How TCP is carried.
    tcp: &'static str,
    /// New flows are announced.
    log_flows: bool,
    programs: Vec<Program>,
}

/// As [`dataplane::Program`].
#[derive(Serialize)]
struct Program {
    name: String,
    instructions: usize,
    verified: Option<u32>,
    translated: Option<u32>,
    jitted: Option<u32>,
}

fn main() -> ExitCode {
    if env::args_os().len() > 1 {
        eprintln!("error: this takes no arguments");
        return ExitCode::FAILURE;
    }
    match sizes() {
        Ok(sizes) => {
            println!("{}", serde_json::json!(sizes));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sizes() -> Result<Sizes, Error> {
    go_apart().map_err(|errno| {
        Error::machine(format!(
            "namespaces of its own were refused: {}; run it as root",
            errno.desc()
        ))
    })?;
    let kernel = Release::running()?;
    let probed = Features::probe(kernel)?;
    let mut loads = Vec::new();
    for (tcp, features) in ways(probed) {
        for log_flows in [false, true] {
            loads.push(load(tcp, features, log_flows)?);
        }
    }
    Ok(Sizes {
        kernel: kernel.to_string(),
        arch: env::consts::ARCH,
        loads,
    })
}

/// Leaves the namespaces of networks and mounts while this is the only thread.
fn go_apart() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("bpf"), PINS, Some("bpf"), MsFlags::empty(), NONE)
}

/// A kernel from 6.6 on, an older one, and one that does not steer.
fn ways(probed: Features) -> [(&'static str, Features); 3] {
    let steer_all = |steer_all| Features {
        steer_all,
        ..probed
    };
    [
        ("steered", steer_all(probed.steer)),
        ("steered or rewritten", steer_all(false)),
        ("rewritten", probed.without_steering()),
    ]
}

fn load(tcp: &'static str, features: Features, log_flows: bool) -> Result<Load, Error> {
    let settings = Settings {
        timeouts: Timeouts::DEFAULT,
        max_flows: 1024,
        local_ports: LOCAL_PORTS_DEFAULT,
        log_flows,
    };
    let pins = Path::new(PINS).join(format!("{tcp} {log_flows}"));
    std::fs::create_dir(&pins).map_err(|error| Error::machine(format!("no pins: {error}")))?;
    let programs = dataplane::programs(&settings, features, &pins)?;
    std::fs::remove_dir_all(&pins).map_err(|error| Error::machine(format!("pins: {error}")))?;
    Ok(Load {
        tcp,
        log_flows,
        programs: programs.into_iter().map(Program::from).collect(),
    })
}

impl From<dataplane::Program> for Program {
    fn from(program: dataplane::Program) -> Self {
        Self {
            name: program.name,
            instructions: program.instructions,
            verified: program.verified,
            translated: program.translated,
            jitted: program.jitted,
        }
    }
}
