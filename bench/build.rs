//! Builds the BPF object of the benchmark, which it embeds.

#[path = "../portfwd/build/object.rs"]
mod object;
#[path = "../portfwd/build/toolchain.rs"]
#[allow(dead_code, reason = "some of it is for xtask only")]
mod toolchain;

use std::process::ExitCode;

use aya_build::Package;

fn main() -> ExitCode {
    object::build_or_tell(Package {
        name: "portfwd-yardstick",
        root_dir: "ebpf",
        features: &["bpf"],
        ..Package::default()
    })
}
