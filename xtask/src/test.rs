//! `cargo xtask test`: the host's tests as the caller, then those on the wire as root.

mod outcome;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::outcome::Outcome;
use crate::{
    cargo::{self, Executable},
    setup, shell, verify,
};

/// The package whose tests need root and namespaces.
const WIRE: &str = "portfwd-tests";
/// What the summary calls the budgets, and a name that asks for them.
const VERIFY: &str = "verify";
const SHORT: Duration = Duration::from_secs(10 * 60);
const LONG: Duration = Duration::from_secs(120 * 60);
const LAST_LINES: Duration = Duration::from_secs(1);

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A test file, the first word of several, or a part of the names of tests
    name: Option<String>,
    /// Also what takes minutes
    #[arg(long)]
    long: bool,
}

/// The verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::for_tests()?;
    let portfwd = cargo::build_portfwd()?;
    let host = built(&["test", "--workspace", "--exclude", WIRE, "--no-run"])?;
    let wire = built(&["test", "--package", WIRE, "--no-run"])?;
    let run = Run {
        portfwd: &portfwd,
        name: args.name.as_deref(),
        long: args.long,
        limit: if args.long { LONG } else { SHORT },
    };
    let mut outcomes = Vec::new();
    for built in &host {
        outcomes.extend(run.host(built)?);
    }
    if args.name.is_none() {
        outcomes.push(run.documentation()?);
    }
    if args.name.as_deref().is_none_or(|name| name == VERIFY) {
        outcomes.push(verified());
    }
    for built in &wire {
        outcomes.extend(run.wire(built)?);
    }
    if outcomes.is_empty() {
        let files: BTreeSet<_> = host
            .iter()
            .chain(&wire)
            .map(|built| &*built.target)
            .collect();
        bail!(
            "no test matches `{}`: try a part of a test's name, or one of these: {}",
            args.name.as_deref().unwrap_or_default(),
            Vec::from_iter(files).join(", ")
        );
    }
    Ok(outcome::summarise(&outcomes))
}

/// `cargo xtask verify`, as one test of this name.
fn verified() -> Outcome {
    let started = Instant::now();
    let faults = verify::check().unwrap_or_else(|error| vec![format!("{error:#}")]);
    Outcome::of_one(VERIFY.into(), faults, started.elapsed())
}

/// Builds test executables; cargo lists them as they happen to be ready.
fn built(args: &[&str]) -> Result<Vec<Executable>> {
    let mut built = cargo::build(args)?;
    built.sort_by_key(Executable::label);
    Ok(built)
}

/// What holds for every test executable.
struct Run<'a> {
    portfwd: &'a Path,
    name: Option<&'a str>,
    long: bool,
    limit: Duration,
}

impl Run<'_> {
    fn host(&self, built: &Executable) -> Result<Option<Outcome>> {
        let Some(filter) = self.filter(built)? else {
            return Ok(None);
        };
        let mut command = Command::new(&built.file);
        command.args(filter);
        self.watch(built.label(), command.current_dir(&built.folder))
            .map(Some)
    }

    fn wire(&self, built: &Executable) -> Result<Option<Outcome>> {
        let Some(filter) = self.filter(built)? else {
            return Ok(None);
        };
        let mut command = shell::as_root("env", "testing in namespaces")?;
        command.arg(format!("PORTFWD_BIN={}", self.portfwd.display()));
        if self.long {
            command.arg("PORTFWD_TEST_LONG=1");
        }
        // More namespaces at once than that, and what is measured in them wavers.
        let threads = thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4));
        command
            .arg(&built.file)
            .arg(format!("--test-threads={threads}"))
            .args(filter);
        self.watch(built.label(), command.current_dir(&built.folder))
            .map(Some)
    }

    fn documentation(&self) -> Result<Outcome> {
        let mut command = cargo::command(&["test", "--workspace", "--exclude", WIRE, "--doc"]);
        self.watch("documentation".into(), &mut command)
    }

    /// The filter for the executable, or `None` where none of its tests is meant.
    fn filter(&self, built: &Executable) -> Result<Option<Option<&str>>> {
        let filter = self.name.filter(|name| !built.is_called(name));
        let mut list = Command::new(&built.file);
        list.args(["--list", "--format", "terse"])
            .args(filter)
            .current_dir(&built.folder);
        let output = list.output().context("cannot start a test executable")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let any = text.lines().any(|line| line.ends_with(": test"));
        Ok(any.then_some(filter))
    }

    /// Runs the tests, showing what they print, until they end or time is up.
    fn watch(&self, label: String, command: &mut Command) -> Result<Outcome> {
        shell::print(command);
        let started = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the tests")?;
        let lines = lines_of(child.stdout.take().context("the output is not ours")?);
        let mut outcome = Outcome::new(label);
        let end = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => outcome.read(&show(line)),
                Err(RecvTimeoutError::Disconnected) => break Some(child.wait()?),
                Err(RecvTimeoutError::Timeout) => match child.try_wait()? {
                    None => {}
                    ended => break ended,
                },
            }
            if started.elapsed() > self.limit {
                stop(&mut child)?;
                break None;
            }
        };
        // The last lines may still be on their way. A pipe that a child of a test
        // keeps open never ends.
        while let Ok(line) = lines.recv_timeout(LAST_LINES) {
            outcome.read(&show(line));
        }
        match end {
            Some(status) => outcome.end(status, started.elapsed()),
            None => {
                let why = format!("not done after {} s", self.limit.as_secs());
                outcome.crash(why, started.elapsed());
            }
        }
        Ok(outcome)
    }
}

impl Executable {
    /// Is it this one, or `udp_load` for `udp`?
    fn is_called(&self, name: &str) -> bool {
        let rest = self.target.strip_prefix(name);
        let in_family = |rest: &str| self.kind == "test" && rest.starts_with('_');
        rest.is_some_and(|rest| rest.is_empty() || in_family(rest))
    }

    fn label(&self) -> String {
        match self.kind.as_str() {
            "test" => format!("{}/{}", self.package, self.target),
            kind => format!("{} ({kind})", self.package),
        }
    }
}

/// A child of a killed test may keep the pipe open: reading must not hold up the rest.
fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    lines
}

fn show(line: String) -> String {
    println!("{line}");
    line
}

fn stop(child: &mut Child) -> Result<()> {
    let pid = child.id().to_string();
    for signal in ["-TERM", "-KILL"] {
        let _ = shell::status(shell::as_root("kill", "ending a test")?.args([signal, &pid]))?;
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(kind: &str, target: &str) -> Executable {
        Executable {
            package: "package".into(),
            target: target.into(),
            kind: kind.into(),
            folder: Path::new("folder").into(),
            file: Path::new("file").into(),
        }
    }

    #[test]
    fn what_comes_after_the_end_is_read_too() {
        let run = Run {
            portfwd: Path::new("portfwd"),
            name: None,
            long: false,
            limit: SHORT,
        };
        let mut late = Command::new("sh");
        late.args([
            "-c",
            "(sleep 0.4; echo 'test result: ok. 1 passed; 0 failed; 0 ignored') &",
        ]);
        let outcome = run.watch("late".into(), &mut late).expect("it starts");
        let told = format!("{outcome:?}");
        assert!(told.contains("passed: 1, failed: 0"), "{told}");
    }

    #[test]
    fn a_test_file_is_called_by_its_name_or_its_first_word() {
        let file = executable("test", "udp_load");
        assert!(file.is_called("udp_load"));
        assert!(file.is_called("udp"));
        assert!(!file.is_called("ud"));
        assert!(!file.is_called("load"));
        let library = executable("lib", "portfwd_common");
        assert!(library.is_called("portfwd_common"));
        assert!(!library.is_called("portfwd"));
    }
}
