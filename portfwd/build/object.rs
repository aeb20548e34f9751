//! Builds a crate of BPF programs into the build script's output folder.

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use aya_build::{Package, Toolchain, build_ebpf};

use super::toolchain;

/// The whole of a build script: errors are cargo's.
pub fn build_or_tell(object: Package<'_>) -> ExitCode {
    match build(object) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build(object: Package<'_>) -> anyhow::Result<()> {
    let compiler = toolchain::compiler().map_err(|why| missing("BPF compiler", &why))?;
    let linker = toolchain::linker().map_err(|why| {
        missing(
            "bpf-linker",
            &format!("bpf-linker {}: {why}", toolchain::LINKER_VERSION),
        )
    })?;
    println!("cargo::rerun-if-changed={}", linker.display());

    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let mut environment = compiler.environment(&linker, &out)?;
    // What the inner cargo says comes out as warnings: leave the real ones.
    environment.push(("CARGO_TERM_QUIET", "true".into()));
    for (name, value) in environment {
        // SAFETY: the build script has a single thread until aya-build starts one below.
        unsafe { env::set_var(name, value) };
    }
    build_ebpf([object], Toolchain::Custom(compiler.name()))
}

fn missing(what: &str, why: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "there is no {what} for the programs that run in the kernel\n{why}\n\
         run `cargo xtask setup`, which finds or installs it\n{}",
        toolchain::BY_HAND
    )
}
