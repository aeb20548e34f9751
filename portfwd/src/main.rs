//! The `portfwd` command.

mod cli;
mod commands;

use std::process::ExitCode;

use portfwd::Error;

fn main() -> ExitCode {
    match cli::parse()
        .map_err(anyhow::Error::from)
        .and_then(|arguments| {
            log_to_stderr(arguments.verbose);
            commands::run::run(&arguments)
        }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portfwd: {error:#}");
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}

/// Warnings always, new flows and changes of the host on request.
fn log_to_stderr(verbose: bool) {
    let level = if verbose {
        log::LevelFilter::Info
    } else {
        log::LevelFilter::Warn
    };
    env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            use std::io::Write as _;
            writeln!(out, "portfwd: {}", record.args())
        })
        .init();
}
