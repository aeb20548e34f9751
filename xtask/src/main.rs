//! What cargo alone cannot do: set up, run, demo, test, verify and measure portfwd.

mod bench;
mod cargo;
mod demo;
mod run;
mod setup;
mod shell;
mod test;
#[path = "../../portfwd/build/toolchain.rs"]
#[allow(dead_code, reason = "some of it is for the build script only")]
mod toolchain;
mod tools;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Set up, run, demo, test, verify and measure portfwd"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install the BPF compiler, bpf-linker and the tools of the tests
    Setup(setup::Args),
    /// Build portfwd and run it: `cargo xtask run -- --iface eth0 80:5000`
    Run(run::Args),
    /// Forward port 80 to a small server between two namespaces of its own
    Demo(demo::Args),
    /// Run the tests on the host, then those on the wire
    Test(test::Args),
    /// Compare what the programs take, and the calls of their packets, with xtask/budgets.toml
    Verify(verify::Args),
    /// Measure portfwd against its rivals, in namespaces
    Bench(bench::Args),
    /// The small server of the demo
    #[command(hide = true)]
    DemoServer,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => return exit(test::run(&args)),
        Verb::Verify(args) => return exit(verify::run(&args)),
        Verb::Bench(args) => bench::run(&args),
        Verb::DemoServer => demo::serve(),
    };
    exit(done.map(|()| ExitCode::SUCCESS))
}

fn exit(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
