//! The binary under test, started in a namespace and never left behind.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Netns,
    wait::{PATIENCE, deadline},
};

/// The line of stdout that says that everything is attached starts with this.
pub const READY: &str = "ready";

/// Names the binary, instead of the one beside the test.
pub const BINARY: &str = "PORTFWD_BIN";

/// A setting of the loader: how TCP to this host is carried.
const TCP_SETTING: &str = "PORTFWD_TCP";

/// How TCP reaches a socket of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// Given to the target's listener; nothing is rewritten.
    Steered,
    /// Rewritten, as where the kernel cannot steer.
    Rewritten,
}

impl Tcp {
    /// Every promise about TCP holds for both.
    pub const BOTH: [Self; 2] = [Self::Steered, Self::Rewritten];

    /// The port that the accepted socket has.
    pub fn accepted_port(self, dialled: u16, target: u16) -> u16 {
        match self {
            Self::Steered => dialled,
            Self::Rewritten => target,
        }
    }

    fn set(self, command: &mut Command) {
        match self {
            Self::Steered => command.env_remove(TCP_SETTING),
            Self::Rewritten => command.env(TCP_SETTING, "rewrite"),
        };
    }
}

/// A running `portfwd`, stopped on drop.
#[derive(Debug)]
pub struct Portfwd {
    child: Child,
    stdout: Stream,
    stderr: Stream,
    ended: bool,
}

impl Portfwd {
    /// Starts it in the namespace with the words of `args`, and waits until it
    /// is ready.
    ///
    /// # Panics
    ///
    /// When it ends before, with what it printed.
    #[track_caller]
    pub fn start(ns: &Netns, tcp: Tcp, args: &str) -> Self {
        Self::spawn(ns, tcp, args).until_ready()
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it ends before, with what it printed.
    #[track_caller]
    pub fn until_ready(mut self) -> Self {
        let ready = deadline(PATIENCE, || {
            let printed = self.stdout.text();
            let ready = printed.lines().any(|line| line.starts_with(READY));
            let over = ready
                || self
                    .child
                    .try_wait()
                    .expect("a child is waited for")
                    .is_some();
            over.then_some(ready)
        });
        if ready == Some(true) {
            return self;
        }
        panic!("portfwd was not ready\n{}", self.kill9());
    }

    /// Starts it without waiting.
    #[track_caller]
    pub fn spawn(ns: &Netns, tcp: Tcp, args: &str) -> Self {
        let mut command = ns.command(binary().to_str().expect("a path of text"));
        command.args(args.split_whitespace());
        tcp.set(&mut command);
        Self::from_command(command)
    }

    /// Starts a command that ends as `portfwd` does, for example a shell that
    /// leads to it.
    #[track_caller]
    pub fn from_command(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = Stream::of(child.stdout.take().expect("stdout was asked for"));
        let stderr = Stream::of(child.stderr.take().expect("stderr was asked for"));
        Self {
            child,
            stdout,
            stderr,
            ended: false,
        }
    }

    /// Runs it to its end, for what must not start. It is killed when it does.
    #[track_caller]
    pub fn refused(ns: &Netns, args: &[&str]) -> Refusal {
        let mut command = ns.command(binary().to_str().expect("a path of text"));
        command.args(args);
        Self::refused_command(command)
    }

    /// The same for a command that ends as `portfwd` does.
    #[track_caller]
    pub fn refused_command(mut command: Command) -> Refusal {
        command.env("RUST_BACKTRACE", "1");
        let output = Self::from_command(command).ended_by_itself();
        Refusal {
            code: output.status.and_then(|status| status.code()),
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has complained about so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Ctrl-C: waits until it has detached and printed its counters.
    ///
    /// # Panics
    ///
    /// When it does not end, or not with success.
    #[track_caller]
    pub fn stop(self) -> Output {
        self.stop_by(Signal::SIGINT)
    }

    /// Like [`Portfwd::stop`], and nothing was dropped for want of room or of
    /// a way.
    #[track_caller]
    pub fn stop_without_loss(self) -> Output {
        let output = self.stop();
        for verdict in [
            "no-port",
            "table-full",
            "no-route",
            "too-large",
            "hop-limit",
        ] {
            assert_eq!(output.verdict(verdict), 0, "{verdict}\n{output}");
        }
        output
    }

    /// Like [`Portfwd::stop`], with another signal.
    #[track_caller]
    pub fn stop_by(self, signal: Signal) -> Output {
        self.signal(signal);
        let output = self.ended_by_itself();
        let success = output.status.is_some_and(|status| status.success());
        assert!(
            success,
            "after {signal} it should end with success\n{output}"
        );
        output
    }

    /// Ends it without a chance to clean up.
    pub fn kill9(mut self) -> Output {
        self.signal(Signal::SIGKILL);
        self.output()
    }

    /// Waits until it ends, and kills it if it does not: then there is no
    /// status.
    fn ended_by_itself(mut self) -> Output {
        if self.ends_within(PATIENCE) {
            return self.output();
        }
        self.signal(Signal::SIGKILL);
        Output {
            status: None,
            ..self.output()
        }
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        deadline(patience, || {
            self.child.try_wait().expect("a child is waited for")
        })
        .is_some()
    }

    fn signal(&self, signal: Signal) {
        // It may have ended; its number is kept until it is waited for.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    fn output(&mut self) -> Output {
        let status = self.child.wait().expect("a child is waited for");
        self.ended = true;
        Output {
            status: Some(status),
            stdout: self.stdout.rest(),
            stderr: self.stderr.rest(),
        }
    }
}

impl Drop for Portfwd {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.signal(Signal::SIGINT);
        if !self.ends_within(PATIENCE) {
            self.signal(Signal::SIGKILL);
        }
        let output = self.output();
        if thread::panicking() {
            eprintln!("portfwd at the end of the test:\n{output}");
        }
    }
}

/// How a command line was turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The exit code; none if it had to be killed.
    pub code: Option<i32>,
    /// What it printed besides, which should be nothing.
    pub stdout: String,
    /// The error.
    pub stderr: String,
}

/// What an ended `portfwd` has left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended; none if it had to be killed.
    pub status: Option<ExitStatus>,
    /// Everything it printed.
    pub stdout: String,
    /// Everything it complained about.
    pub stderr: String,
}

impl Output {
    /// The final count of a verdict, by its label; 0 when it is not listed.
    pub fn verdict(&self, label: &str) -> u64 {
        self.verdicts().get(label).copied().unwrap_or_default()
    }

    /// The final counts of all verdicts that are listed.
    pub fn verdicts(&self) -> BTreeMap<String, u64> {
        counters::verdicts(&self.stdout)
    }

    /// A final counter of a rule, by the rule's text and the column's name;
    /// none when there is no such row or column.
    pub fn rule_counter(&self, rule: &str, column: &str) -> Option<u64> {
        counters::rule(&self.stdout, rule, column)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => writeln!(f, "{status}")?,
            None => writeln!(f, "killed, since it did not end")?,
        }
        write!(f, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr)
    }
}

/// The one place that knows how the final tables look: a heading line with the
/// columns' names, then rows, an empty line behind; cells are set apart by at
/// least two spaces or a bar.
mod counters {
    use std::collections::BTreeMap;

    /// First column of the tables, and the column of a verdict's count.
    const VERDICT: &str = "verdict";
    const RULE: &str = "rule";

    pub(super) fn verdicts(stdout: &str) -> BTreeMap<String, u64> {
        last_table(stdout, VERDICT)
            .into_iter()
            .filter_map(|row| {
                let label = row.first()?.1.clone();
                let count = row.iter().skip(1).find_map(|(_, cell)| number(cell))?;
                Some((label, count))
            })
            .collect()
    }

    pub(super) fn rule(stdout: &str, rule: &str, column: &str) -> Option<u64> {
        last_table(stdout, RULE)
            .into_iter()
            .find(|row| row.iter().any(|(name, cell)| name == RULE && cell == rule))?
            .into_iter()
            .find_map(|(name, cell)| if name == column { number(&cell) } else { None })
    }

    type Row = Vec<(String, String)>;

    /// The rows of the last table with a column of this name; `--stats` prints
    /// earlier ones.
    fn last_table(stdout: &str, column: &str) -> Vec<Row> {
        let lines: Vec<Vec<String>> = stdout.lines().map(cells).collect();
        let heading = lines.iter().rposition(|cells| {
            cells.len() > 1 && cells.iter().any(|cell| cell.eq_ignore_ascii_case(column))
        });
        let Some(heading) = heading else {
            return Vec::new();
        };
        let names: Vec<String> = lines[heading]
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect();
        lines[heading + 1..]
            .iter()
            .take_while(|cells| !cells.is_empty())
            .map(|cells| names.iter().cloned().zip(cells.iter().cloned()).collect())
            .collect()
    }

    fn cells(line: &str) -> Vec<String> {
        let parts = line
            .split(['|', '│', '┆'])
            .flat_map(|part| part.split("  "));
        parts
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn number(cell: &str) -> Option<u64> {
        cell.replace([',', '_'], "").parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::{rule, verdicts};

        const STDOUT: &str = "\
ready
  rule     packets  connections
  80:5000        1            1

  rule         packets  connections
  80:5000           12            3
  53:5353/udp        2            1

  verdict   count  what it means
  steered       9  A SYN or ACK that was given to the target's listener.
  no-rule     100  No rule names the port.
";

        #[test]
        fn the_last_table_counts() {
            assert_eq!(rule(STDOUT, "80:5000", "packets"), Some(12));
            assert_eq!(rule(STDOUT, "53:5353/udp", "connections"), Some(1));
            assert_eq!(rule(STDOUT, "81:5000", "packets"), None);
        }

        #[test]
        fn verdicts_are_read_by_label() {
            let verdicts = verdicts(STDOUT);
            assert_eq!(verdicts.get("steered"), Some(&9));
            assert_eq!(verdicts.get("no-rule"), Some(&100));
            assert_eq!(verdicts.len(), 2);
        }
    }
}

/// A stream of the child, read by a thread so that it never blocks.
#[derive(Debug)]
struct Stream {
    text: Arc<Mutex<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&text);
        let thread = thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let mut text = written.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&line));
                text.push('\n');
            }
        });
        Self {
            text,
            thread: Some(thread),
        }
    }

    fn text(&self) -> String {
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Everything up to the end of the stream.
    fn rest(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reader does not panic");
        }
        self.text()
    }
}

/// The binary: the one the environment names, or the one that cargo built
/// beside the test.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os(BINARY) {
        return path.into();
    }
    let test = env::current_exe().expect("a process knows its file");
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/<profile>/deps");
    let path = folder.join("portfwd");
    assert!(
        path.is_file(),
        "{} does not exist: build it with `cargo build -p portfwd`, or name another in {BINARY}",
        path.display(),
    );
    path
}
