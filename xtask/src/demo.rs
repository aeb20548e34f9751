//! `cargo xtask demo`: two namespaces and a cable; the machine's own network is not touched.
//!
//! ```text
//! client                              server
//!   eth0 192.0.2.2, 2001:db8::2 ────── eth0 192.0.2.1, 2001:db8::1
//!                                      portfwd run --iface eth0 80:5000
//!                                      a small server on port 5000
//! ```

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{cargo, setup, shell, tools};

const SERVER_ADDRESSES: [&str; 2] = ["192.0.2.1/24", "2001:db8::1/64"];
const CLIENT_ADDRESSES: [&str; 2] = ["192.0.2.2/24", "2001:db8::2/64"];
const URLS: [&str; 2] = ["http://192.0.2.1:80/", "http://[2001:db8::1]:80/"];
/// The answer starts with this, so that nobody else's answer is taken for it.
const GREETING: &str = "the server on port 5000";
const PATIENCE: Duration = Duration::from_secs(5);

/// What `cargo xtask demo` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The portfwd to show, instead of one built here
    #[arg(long, hide = true)]
    binary: Option<PathBuf>,
}

/// The verb.
pub fn run(args: &Args) -> Result<()> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            setup::for_build()?;
            tools::for_demo()?;
            cargo::build_portfwd()?
        }
    };
    if !shell::is_root() {
        return again_as_root(&binary);
    }
    let mut interrupts = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if interrupts.forever().next().is_some() {
            Place::of_this_process().remove();
            process::exit(130);
        }
    });
    show(&binary)
}

/// The server: tells each client who it seems to be.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind("[::]:5000").context("cannot listen on port 5000")?;
    println!("ready");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let client = stream.peer_addr()?;
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        // The request is read to its end, or closing would reset the connection.
        let mut lines = BufReader::new(&stream).lines();
        while lines
            .next()
            .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
        {}
        let body = format!("{GREETING} sees the client as {client}\n");
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all((head + &body).as_bytes())?;
    }
    Ok(())
}

fn again_as_root(binary: &Path) -> Result<()> {
    let mut demo = shell::as_root(env::current_exe()?, "making namespaces")?;
    demo.args(["demo", "--binary"]).arg(binary);
    shell::print(&demo);
    Err(demo.exec()).context("cannot start sudo")
}

fn show(binary: &Path) -> Result<()> {
    let started = Instant::now();
    let place = Place::of_this_process();
    place.lay_out()?;
    let mut server = Running::start(
        place
            .in_server(&env::current_exe()?)
            .arg("demo-server")
            .stdout(Stdio::piped()),
    )?;
    server.wait_for_first_line()?;
    let mut portfwd = Running::start(
        place
            .in_server(binary)
            .args(["run", "--iface", "eth0", "80:5000"]),
    )?;
    for url in URLS {
        let answer = fetch(&place, url, &mut portfwd)?;
        print!("{answer}");
        if !answer.starts_with(GREETING) {
            bail!("{url} was answered by something else");
        }
    }
    portfwd.end()?;
    drop((server, place));
    eprintln!(
        "shown and cleaned up in {:.1} s",
        started.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Fetches until portfwd is attached: nothing listens on port 80 before.
fn fetch(place: &Place, url: &str, portfwd: &mut Running) -> Result<String> {
    let mut curl = place.in_client(Path::new("curl"));
    curl.args(["--silent", "--show-error", "--max-time", "2", url]);
    shell::print(&curl);
    let started = Instant::now();
    loop {
        let Output {
            status,
            stdout,
            stderr,
        } = curl.output().context("cannot start curl")?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        if let Some(status) = portfwd.child.try_wait()? {
            bail!("portfwd ended before it was asked to ({status})");
        }
        if started.elapsed() > PATIENCE {
            bail!(
                "{url} is not served: {}",
                String::from_utf8_lossy(&stderr).trim()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The two namespaces; dropping it removes them.
struct Place {
    server: String,
    client: String,
}

impl Place {
    fn of_this_process() -> Self {
        let pid = process::id();
        Self {
            server: format!("portfwd-demo-server-{pid}"),
            client: format!("portfwd-demo-client-{pid}"),
        }
    }

    fn lay_out(&self) -> Result<()> {
        let (server, client) = (self.server.as_str(), self.client.as_str());
        ip(&["netns", "add", server])?;
        ip(&["netns", "add", client])?;
        ip(&[
            "link", "add", "eth0", "netns", server, "type", "veth", "peer", "name", "eth0",
            "netns", client,
        ])?;
        for (namespace, [v4, v6]) in [(server, SERVER_ADDRESSES), (client, CLIENT_ADDRESSES)] {
            ip(&["-n", namespace, "address", "add", v4, "dev", "eth0"])?;
            // Two hosts need no search for a duplicate, which takes a second.
            ip(&[
                "-n", namespace, "address", "add", v6, "dev", "eth0", "nodad",
            ])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
            ip(&["-n", namespace, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    fn in_server(&self, program: &Path) -> Command {
        within(&self.server, program)
    }

    fn in_client(&self, program: &Path) -> Command {
        within(&self.client, program)
    }

    /// Ends what runs in the namespaces and removes them with their devices.
    fn remove(&self) {
        for namespace in [&self.server, &self.client] {
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                for pid in pids_in(namespace) {
                    let _ = kill(pid, signal);
                }
                let _ = within_patience(|| pids_in(namespace).is_empty().then_some(()));
            }
            let mut delete = Command::new("ip");
            let _ = delete
                .args(["netns", "delete", namespace])
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove();
    }
}

fn within(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

fn ip(args: &[&str]) -> Result<()> {
    shell::run(Command::new("ip").args(args))
}

/// A child that does not outlive us.
struct Running {
    child: Child,
    line: String,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        shell::print(command);
        let line = shell::line(command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self { child, line })
    }

    fn wait_for_first_line(&mut self) -> Result<()> {
        let mut first = [0; 1];
        let output = self
            .child
            .stdout
            .as_mut()
            .context("the output is not ours")?;
        output
            .read_exact(&mut first)
            .with_context(|| format!("`{}` did not start", self.line))
    }

    /// Asks it to end, as `kill` does, and expects that it ends well.
    fn end(mut self) -> Result<()> {
        eprintln!("$ kill {}", self.child.id());
        match self.stop() {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("`{}` ended badly ({status})", self.line),
            None => bail!(
                "`{}` did not end within {} s",
                self.line,
                PATIENCE.as_secs()
            ),
        }
    }

    fn stop(&mut self) -> Option<ExitStatus> {
        let pid = self.child.id().try_into().ok()?;
        // A child that was waited for has no pid any more.
        if self.child.try_wait().ok()?.is_none() {
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok()?;
        }
        within_patience(|| self.child.try_wait().ok().flatten())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stop().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn pids_in(namespace: &str) -> Vec<Pid> {
    let output = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

fn within_patience<T>(mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let result = done();
        if result.is_some() || started.elapsed() > PATIENCE {
            return result;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
