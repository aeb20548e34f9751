//! One CPU for all that a sample costs, and who else had it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The CPU of generators, forwarders, servers and sinks: what happens on it
/// one after another is the whole cost.
pub const WORK: usize = 0;

/// The CPU of what looks on.
pub const WATCH: usize = 1;

/// Pins the calling thread, and what it starts from now on.
///
/// # Errors
///
/// The machine lacks the CPU.
pub fn pin(cpu: usize) -> Result<()> {
    pin_task(Pid::from_raw(0), cpu)
}

/// Pins another task.
///
/// # Errors
///
/// The machine lacks the CPU, or the task has ended.
pub fn pin_task(task: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(task, &set).with_context(|| format!("cannot pin a task to CPU {cpu}"))
}

/// Lets the calling thread have most of its CPU where others want it too.
///
/// # Errors
///
/// Without root.
pub fn come_first() -> Result<()> {
    const NICE: libc::c_int = -10;
    // SAFETY: numbers only; 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    nix::errno::Errno::result(result).context("cannot raise a thread's priority")?;
    Ok(())
}

/// A stretch of time of a process tree, and how much of the CPU it got.
///
/// The tasks of this process that are pinned to [`WORK`], and those of the
/// processes that it is told of, are ours; so is the kernel's own thread for
/// network work on that CPU. What is left of the CPU's busy time went to
/// others.
pub struct Window {
    began: Instant,
    pids: Vec<u32>,
    ours: Duration,
    busy: Duration,
}

/// What a window came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// By the clock on the wall.
    pub wall: Duration,
    /// The share of it (0 to 1) in which others had the CPU.
    pub disturbed: f64,
}

impl Window {
    /// Opens a window over this process and the processes `pids`.
    ///
    /// # Errors
    ///
    /// /proc does not tell.
    pub fn open(pids: &[u32]) -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            pids: pids.to_vec(),
            ours: ours(pids)?,
            busy: busy()?,
        })
    }

    /// Closes it.
    ///
    /// # Errors
    ///
    /// /proc does not tell.
    pub fn close(self) -> Result<Spent> {
        let (busy, ours) = (busy()?, ours(&self.pids)?);
        let wall = self.began.elapsed();
        let others = busy
            .saturating_sub(self.busy)
            .saturating_sub(ours.saturating_sub(self.ours));
        Ok(Spent {
            wall,
            disturbed: others.as_secs_f64() / wall.as_secs_f64(),
        })
    }
}

/// Time that CPU [`WORK`] was not idle, from /proc/stat: exact to one tick.
fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{WORK} ");
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .context("/proc/stat lacks the CPU")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let sum: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|at| ticks.get(*at))
        .sum();
    Ok(Duration::from_millis(sum * 1000 / 100))
}

/// Time that our tasks had on the CPU.
fn ours(pids: &[u32]) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in tasks(std::process::id()) {
        if is_pinned_to_work(&task) {
            sum += ran(&task);
        }
    }
    for pid in pids {
        sum += tasks(*pid).iter().map(|task| ran(task)).sum();
    }
    Ok(sum + softirq_thread().map(|task| ran(&task)).unwrap_or_default())
}

/// The folders of a process's tasks.
fn tasks(pid: u32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/task"));
    folder
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// A task that has ended has run no more.
fn ran(task: &str) -> Duration {
    let text = fs::read_to_string(format!("{task}/schedstat")).unwrap_or_default();
    let nanoseconds = text
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

fn is_pinned_to_work(task: &str) -> bool {
    let status = fs::read_to_string(format!("{task}/status")).unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.is_some_and(|list| list.trim() == WORK.to_string())
}

/// `ksoftirqd` of the CPU, which takes over network work under load.
fn softirq_thread() -> Option<String> {
    use std::sync::OnceLock;
    static TASK: OnceLock<Option<String>> = OnceLock::new();
    TASK.get_or_init(|| {
        let name = format!("ksoftirqd/{WORK}");
        // Kernel threads are the first processes.
        (1..500).map(|pid| format!("/proc/{pid}")).find(|task| {
            fs::read_to_string(format!("{task}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
    })
    .clone()
}

/// Time that a thread of this process, and the kernel's own thread for network
/// work on CPU [`WORK`], have run. Exact to the nanosecond.
///
/// # Errors
///
/// The thread has ended.
pub fn ran_with_softirqs(task: Pid) -> Result<Duration> {
    let own = clock(task, true).context("the thread's clock")?;
    let kernel = softirq_thread()
        .and_then(|folder| folder.strip_prefix("/proc/")?.parse().ok())
        .map(|pid| clock(Pid::from_raw(pid), false).context("the clock of ksoftirqd"))
        .transpose()?;
    Ok(own + kernel.unwrap_or_default())
}

/// The CPU clock of a thread of ours or of another process.
fn clock(task: Pid, thread: bool) -> nix::Result<Duration> {
    /// CPUCLOCK_SCHED and CPUCLOCK_PERTHREAD_MASK (linux/posix-timers_types.h).
    const SCHED: i32 = 2;
    const PER_THREAD: i32 = 4;
    let kind = if thread { SCHED | PER_THREAD } else { SCHED };
    let id = nix::time::ClockId::from_raw((!task.as_raw() << 3) | kind);
    Ok(nix::time::clock_gettime(id)?.into())
}
