//! The yardstick: portfwd against its rivals, in namespaces of its own.
//!
//! `cargo xtask bench` builds and starts this as root. A run is a list of
//! [`parts`]; a part has cases ([`case`]); in a case contestants
//! ([`contestant`]) carry the same traffic in turns ([`measure`]), and what came
//! out is told by [`report`].

mod bench;
mod case;
mod contestant;
mod flood;
mod forwarders;
mod interrupt;
mod machine;
mod measure;
mod parts;
mod pinned;
mod programs;
mod remote;
mod report;
mod rivals;
mod site;
mod supervise;
mod tcp;
mod yard;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Result, bail};
use clap::Parser;

use self::{bench::Bench, parts::Part};

#[derive(Parser)]
#[command(about = "Measure portfwd against its rivals, in namespaces of its own")]
struct Args {
    /// The portfwd to measure
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    portfwd: Option<PathBuf>,
    /// Less than five minutes: fewer rounds, fewer cases
    #[arg(long)]
    quick: bool,
    /// Only this part; repeatable
    #[arg(long = "part", value_name = "NAME")]
    parts: Vec<String>,
    /// Where the results go
    #[arg(long, value_name = "FOLDER", default_value = "docs/bench")]
    out: PathBuf,
    /// An earlier results.json to compare with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Print the parts, run none
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let verb: Vec<String> = env::args().skip(1).collect();
    let done = match tcp::peer::run(&verb) {
        Some(done) => done.map(|()| ExitCode::SUCCESS),
        None => run(&Args::parse()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        for part in parts::ALL {
            println!("{:14} {}", part.name, part.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let parts = chosen(&args.parts)?;
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::set_var(
            portfwd_tests::portfwd::BINARY,
            args.portfwd.as_deref().unwrap_or("".as_ref()),
        )
    };
    if !supervise::is_inner() {
        return supervise::run();
    }
    supervise::come_first()?;
    interrupt::listen()?;
    forwarders::conntrack::restore()?;
    // What is started from here on stays away from the CPU that is measured,
    // unless it is put there.
    measure::cpu::pin(measure::cpu::WATCH)?;
    let started = Instant::now();
    let mut bench = Bench::new(args.portfwd.clone().unwrap_or_default(), args.quick);
    for part in parts {
        if interrupt::asked() {
            break;
        }
        attempt(&mut bench, part);
    }
    let Bench { mut results, .. } = bench;
    results.seconds = started.elapsed().as_secs_f64();
    results.machine = machine::describe();
    interrupt::check()?;
    // Read before it is written over.
    let before = args
        .against
        .as_deref()
        .map(report::json::read)
        .transpose()?;
    println!("{}", report::table::rows(&results));
    report::write(&results, &args.out)?;
    if let Some(before) = before {
        let agreement = report::compare::Agreement::of(&results, &before);
        println!(
            "{:.1} % of {} lines agree with the earlier run",
            agreement.share() * 100.0,
            agreement.common
        );
        for line in &agreement.apart {
            println!("  apart: {line}");
        }
    }
    Ok(if results.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs a part; a panic of the harness fails it, and its guards undo all.
fn attempt(bench: &mut Bench, part: &Part) {
    bench.begin(part.name);
    let done = panic::catch_unwind(AssertUnwindSafe(|| (part.run)(bench)));
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => bench.fail(part.name, &format!("{error:#}")),
        // The hook has printed what it was.
        Err(_) => bench.fail(part.name, "panicked"),
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Part>> {
    let known = |name: &String| parts::ALL.iter().any(|part| part.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all: Vec<_> = parts::ALL.iter().map(|part| part.name).collect();
        bail!(
            "there is no part `{unknown}`: it is one of {}",
            all.join(", ")
        );
    }
    let chosen = |part: &&Part| names.is_empty() || names.iter().any(|name| name == part.name);
    Ok(parts::ALL.iter().filter(chosen).collect())
}
