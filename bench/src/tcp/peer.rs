//! The two ends of a load, each a process of its own in its namespace: this
//! binary again, by a hidden verb.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::fd::AsFd as _,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use portfwd_tests::Netns;

use super::{
    client,
    load::{Order, Outcome},
    server,
};
use crate::{
    measure::cpu,
    pinned::{self, Process},
};

/// Hidden verbs of the binary.
pub const CLIENT: &str = "tcp-client";
/// The other one; the port follows.
pub const SERVER: &str = "tcp-server";

/// How much longer than its time an order may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does what the arguments say, if they begin with a hidden verb.
///
/// # Errors
///
/// What keeps the end of a load from going on.
pub fn run(args: &[String]) -> Option<Result<()>> {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        [CLIENT] => Some(client::obey()),
        [SERVER, port] => Some(serve(port)),
        _ => None,
    }
}

fn serve(port: &str) -> Result<()> {
    server::serve(port.parse().context("no port")?).map(|never| match never {})
}

/// A server, ended on drop.
pub struct Server(Process);

impl Server {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Starts one that serves the port of every address of the namespace.
    ///
    /// # Errors
    ///
    /// When it does not serve; what it said is printed.
    pub fn start(ns: &Netns, port: u16) -> Result<Self> {
        let mut command = pinned::own(ns, cpu::WORK)?;
        command.args([SERVER, &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::spawn(command)?;
        let mut answers = Answers::of(&mut process.0)?;
        let line = answers.line(PATIENCE)?;
        ensure!(line.trim() == "serving", "the server said: {line}");
        Ok(Self(process))
    }
}

/// A client, ended on drop.
pub struct Client {
    orders: ChildStdin,
    answers: Answers,
    process: Process,
}

impl Client {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Starts one.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(ns: &Netns) -> Result<Self> {
        let mut command = pinned::own(ns, cpu::WORK)?;
        command.arg(CLIENT);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command)?;
        Ok(Self {
            orders: process.0.stdin.take().context("stdin was asked for")?,
            answers: Answers::of(&mut process.0)?,
            process,
        })
    }

    /// Has it carry out an order.
    ///
    /// # Errors
    ///
    /// When anything that came back was wrong, or nothing came in time: then
    /// the client is of no use any more.
    pub fn carry_out(&mut self, order: &Order) -> Result<Outcome> {
        writeln!(self.orders, "{order}").context("the client is gone")?;
        self.answers.line(order.time + PATIENCE)?.parse()
    }
}

/// The lines of a process, waited for no longer than told.
struct Answers(BufReader<ChildStdout>);

impl Answers {
    fn of(child: &mut Child) -> Result<Self> {
        let stdout = child.stdout.take().context("stdout was asked for")?;
        Ok(Self(BufReader::new(stdout)))
    }

    fn line(&mut self, patience: Duration) -> Result<String> {
        // One order, one line: nothing is left in the buffer.
        let mut stdout = [PollFd::new(self.0.get_ref().as_fd(), PollFlags::POLLIN)];
        let ready = match poll(&mut stdout, PollTimeout::try_from(patience)?) {
            Err(Errno::EINTR) => bail!("interrupted"),
            ready => ready?,
        };
        ensure!(ready == 1, "no answer within {} s", patience.as_secs());
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it ended without an answer");
        Ok(line)
    }
}
