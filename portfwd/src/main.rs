//! The `portfwd` command.

mod cli;
mod commands;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

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
            // Whoever read it may be gone; the exit code remains.
            let _ = writeln!(io::stderr(), "portfwd: {}", one_line(&format!("{error:#}")));
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}

/// An error names what was typed: without what would break the line or the
/// terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
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
        .format(|out, record| writeln!(out, "portfwd: {}", record.args()))
        .init();
}
