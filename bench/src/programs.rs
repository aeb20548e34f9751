//! The programs of a running portfwd, as the kernel has them.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{
    ProgramInfo, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp, loaded_programs,
};
use aya_obj::programs::XdpAttachType;

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Bytes of machine code.
    pub jitted: u32,
}

/// The programs that a process holds, by name.
///
/// # Errors
///
/// /proc or the kernel does not tell.
pub fn of_process(pid: u32) -> Result<Vec<Facts>> {
    let mut facts: Vec<_> = held(pid)?
        .iter()
        .map(|info| Facts {
            name: info.name_as_str().unwrap_or_default().to_owned(),
            verified: info.verified_instruction_count().unwrap_or_default(),
            jitted: info.size_jitted(),
        })
        .collect();
    facts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(facts)
}

/// Bytes of kernel memory of the maps that a process holds.
///
/// # Errors
///
/// /proc does not tell.
pub fn map_memory(pid: u32) -> Result<u64> {
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    for text in descriptors(pid)? {
        if let (Some(id), Some(bytes)) = (field(&text, "map_id:"), field(&text, "memlock:"))
            && seen.insert(id)
        {
            sum += bytes;
        }
    }
    Ok(sum)
}

/// A program that can be run on one packet.
pub enum Runnable {
    /// At a TC hook.
    Tc(SchedClassifier),
    /// At XDP.
    Xdp(Xdp),
}

impl Runnable {
    /// The program of that name that a process holds.
    ///
    /// # Errors
    ///
    /// It holds none.
    pub fn of_process(pid: u32, name: &str) -> Result<Self> {
        let info = held(pid)?
            .into_iter()
            .find(|info| info.name_as_str() == Some(name))
            .with_context(|| format!("portfwd holds no program {name}"))?;
        let name = name.to_owned().into();
        Ok(match SchedClassifier::from_program_info(info, name) {
            Ok(program) => Self::Tc(program),
            Err(_) => {
                let info = held(pid)?
                    .into_iter()
                    .find(|info| info.name_as_str() == Some("portfwd_xdp"))
                    .context("portfwd holds no XDP program")?;
                Self::Xdp(Xdp::from_program_info(
                    info,
                    "portfwd_xdp".into(),
                    XdpAttachType::Interface,
                )?)
            }
        })
    }

    /// Time of one of many runs (see [`time`]), each on a fresh packet that arrives at (or
    /// leaves by) the device. Only runs with this return value count, which
    /// most must have. The calling thread is in the device's namespace.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or most runs end with another value.
    pub fn time(&self, ifindex: u32, frame: &[u8], runs: usize, wanted: u32) -> Result<f64> {
        match self {
            Self::Tc(program) => time(program, &tc_context(ifindex), frame, runs, wanted),
            Self::Xdp(program) => {
                let context = xdp_context(ifindex, frame.len() as u32);
                time(program, &context, frame, runs, wanted)
            }
        }
    }
}

/// Time of one of many runs: the mean of the middle half, since the kernel's
/// clock may tick in steps of 10 ns. See [`Runnable::time`].
///
/// # Errors
///
/// See there.
pub fn time<P>(program: &P, context: &[u8], frame: &[u8], runs: usize, wanted: u32) -> Result<f64>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut times = Vec::with_capacity(runs);
    let mut others = BTreeSet::new();
    for _ in 0..runs {
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context),
            ..TestRunOptions::default()
        })?;
        if result.return_value == wanted {
            times.push(result.duration);
        } else {
            others.insert(result.return_value);
        }
    }
    ensure!(
        2 * times.len() > runs,
        "{} of {runs} runs ended with {wanted}, the others with {others:?}",
        times.len()
    );
    times.sort();
    let middle = &times[times.len() / 4..times.len() - times.len() / 4];
    Ok(middle.iter().sum::<Duration>().as_secs_f64() * 1e9 / middle.len() as f64)
}

/// The fields of `__sk_buff` up to `ifindex`, the last but the tenth.
pub fn tc_context(ifindex: u32) -> [u8; 44] {
    let mut context = [0; 44];
    context[40..].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// `struct xdp_md`.
pub fn xdp_context(ifindex: u32, length: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&length.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

fn held(pid: u32) -> Result<Vec<ProgramInfo>> {
    let texts = descriptors(pid)?;
    let ids: BTreeSet<_> = texts
        .iter()
        .filter_map(|text| field(text, "prog_id:"))
        .collect();
    // A program may go while they are listed.
    let all = loaded_programs().flatten();
    Ok(all
        .filter(|info| ids.contains(&u64::from(info.id())))
        .collect())
}

/// What /proc says of each descriptor.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let folder = fs::read_dir(format!("/proc/{pid}/fdinfo"))?;
    Ok(folder
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .collect())
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}
