//! Builds the BPF object, which the library embeds.

#[path = "build/object.rs"]
mod object;
#[path = "build/toolchain.rs"]
#[allow(dead_code, reason = "some of it is for xtask only")]
mod toolchain;

use std::process::ExitCode;

use aya_build::Package;

fn main() -> ExitCode {
    object::build_or_tell(Package {
        name: "portfwd-ebpf",
        root_dir: "../portfwd-ebpf",
        features: &["bpf"],
        ..Package::default()
    })
}
