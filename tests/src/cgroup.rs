//! A cgroup that belongs to one test: what is attached to it meets nobody else.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    Identity, Netns, bpf,
    netns::{checked, is_dead, owner},
    wait::deadline,
};

/// How long the kernel may take to let go of processes that have ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// A cgroup of this run, removed on drop with all that runs in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// What a program of the host dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A TCP connection.
    Tcp,
    /// UDP by `sendto` and `recvfrom`.
    Udp,
    /// UDP on a connected socket.
    ConnectedUdp,
}

impl Call {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::ConnectedUdp];

    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::ConnectedUdp => "connected",
        }
    }
}

/// What a program of the host got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// The server that answered.
    pub server: Identity,
    /// The socket's other end, as `getpeername` or `recvfrom` says.
    pub peer: SocketAddr,
}

impl Cgroup {
    /// Makes a cgroup named `pf<pid>-<n>` below the root of cgroup2.
    ///
    /// # Panics
    ///
    /// Without root, or where no cgroup2 is mounted.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        static SWEEP: Once = Once::new();
        let root = root().expect("cgroup2 is mounted");
        SWEEP.call_once(|| sweep(&root));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("pf{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path }
    }

    /// Its directory, as `--cgroup` takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command whose process is in the cgroup and in a namespace.
    #[track_caller]
    pub fn command(&self, ns: &Netns, program: &str) -> Command {
        let processes = self.path.join("cgroup.procs");
        let mut processes = OpenOptions::new()
            .write(true)
            .open(processes)
            .expect("a cgroup has processes");
        let mut command = ns.command(program);
        // SAFETY: between fork and exec the closure makes one system call and
        // allocates nothing.
        unsafe { command.pre_exec(move || processes.write_all(b"0")) };
        command
    }

    /// Dials each from a program in the group, one after the other. Servers
    /// say who they are; an error is in words.
    #[track_caller]
    pub fn call(&self, ns: &Netns, calls: &[(Call, SocketAddr)]) -> Vec<Result<Called, String>> {
        let mut command = self.command(ns, "python3");
        command.args(["-c", CALLER]);
        for (call, remote) in calls {
            let (address, port) = (remote.ip().to_string(), remote.port().to_string());
            command.args([call.word(), &address, &port]);
        }
        let output = checked(&mut command);
        let answers = String::from_utf8_lossy(&output.stdout);
        let answers: Vec<_> = answers.lines().map(answer).collect();
        assert_eq!(answers.len(), calls.len(), "{answers:?}");
        answers
    }

    /// How many programs are attached to calls on sockets.
    #[track_caller]
    pub fn programs(&self) -> usize {
        bpf::cgroup_programs(&File::open(&self.path).expect("a directory opens"))
    }

    /// How many are attached to those of every program of the machine.
    #[track_caller]
    pub fn programs_of_all() -> usize {
        let root = root().expect("the machine has cgroup2");
        bpf::cgroup_programs(&File::open(root).expect("a directory opens"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Before Linux 5.14 there is no such file, and those who are in there
        // are waited for.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        if deadline(PATIENCE, || fs::remove_dir(&self.path).ok()).is_none() {
            eprintln!("{} was not removed", self.path.display());
        }
    }
}

/// One line for each call: the server's first line, then the other end.
const CALLER: &str = r#"
import socket, sys

def end(name):
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

def tcp(remote):
    with socket.create_connection(remote, timeout=3) as s:
        f = s.makefile("rwb")
        line = f.readline()
        f.write(b"hello")
        f.flush()
        assert f.read(5) == b"hello", "no echo"
        return line, s.getpeername()

def udp(remote, connected):
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        if connected:
            s.connect(remote)
        for _ in range(3):
            s.send(b"hello") if connected else s.sendto(b"hello", remote)
            answer, peer = s.recvfrom(65536)
            line, text = answer.split(b"\n", 1)
            assert text == b"hello", text
        return line, s.getpeername() if connected else peer

words = iter(sys.argv[1:])
for call, address, port in zip(words, words, words):
    remote = address, int(port)
    try:
        line, peer = tcp(remote) if call == "tcp" else udp(remote, call == "connected")
        print(line.decode().strip(), end(peer))
    except Exception as error:
        print("error", repr(error))
"#;

fn answer(line: &str) -> Result<Called, String> {
    let read = || {
        let (identity, peer) = line.rsplit_once(' ')?;
        Some(Called {
            server: identity.parse().ok()?,
            peer: peer.parse().ok()?,
        })
    };
    read().ok_or_else(|| line.to_owned())
}

/// Where cgroup2 is mounted.
fn root() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut points = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| point.into())
    });
    points.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Removes the cgroups of runs that were killed.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_str()
            .and_then(owner)
            .is_some_and(is_dead)
        {
            // It is not empty while a process of that run lives on.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
