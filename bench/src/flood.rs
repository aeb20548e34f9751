//! A load of 60-byte UDP frames, made in the kernel, and what it costs.
//!
//! Generator, forwarder and sink run one after another on CPU [`cpu::WORK`]:
//! the generator is an XDP program that a test run calls again and again with
//! live frames; what it sends is forwarded and counted in the softirqs that
//! follow. So nothing waits, nothing is lost for want of speed, and the time of
//! that CPU for one packet is the whole cost. One long call is sampled from
//! another CPU: each call ends with a pause of some 25 ms.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};
use nix::{
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::{Pid, gettid},
};
use portfwd_tests::deadline;
use portfwd_yardstick::{FRAME, Plan, Progress, SinkMode, at, names};

use crate::{
    contestant::{Sample, Traffic},
    interrupt,
    measure::cpu,
    site::{self, Site},
    yard::{Yard, fold},
};

/// Frames that go through the chain at once; a veth's ring holds 256.
const BATCH: u32 = 64;

/// No call lasts longer, whatever happens to the one who samples.
const MOST_FRAMES: u32 = 400_000_000;

/// No table is smaller unless it is asked for.
const USUAL_ROOM: u32 = 8_000;

/// Source ports of each client address.
const PORTS_PER_CLIENT: u16 = 50;
/// The first of them.
pub const FIRST_SPORT: u16 = 40_000;

/// The first frame takes a moment: the call makes its buffers before.
const START: Duration = Duration::from_secs(5);

/// Frames that are put off to the kernel's own thread wait for the CPU.
const SETTLE: Duration = Duration::from_millis(500);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// So many flows in turn; `None`: each frame a new one.
    pub flows: Option<u32>,
    /// Where to; the ports follow each other.
    pub to: SocketAddrV4,
    /// How many ports, one for each frame in turn.
    pub ports: u16,
    /// The first of the addresses that it comes from.
    pub first_client: Ipv4Addr,
}

impl Load {
    /// So many flows to one port.
    pub const fn flows(flows: u32, to: SocketAddrV4) -> Self {
        Self {
            flows: Some(flows),
            to,
            ports: 1,
            first_client: site::CLIENTS,
        }
    }

    fn plan(&self, ifindex: u32, macs: [[u8; 6]; 2]) -> Plan {
        let words = |bytes: &[u8]| -> u32 {
            bytes
                .chunks_exact(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum()
        };
        let length = |from: usize| ((FRAME - from) as u16).to_be_bytes();
        let [upper, lower] = length(at::IP);
        // Version and length, TTL and protocol; addresses come with the flow.
        let ip = words(&[0x45, 0, upper, lower, 64, 17]) + words(&self.to.ip().octets());
        let udp_length = words(&length(at::SPORT));
        // The length stands in the header and in the pseudo header.
        let udp = words(&self.to.ip().octets()) + 17 + 2 * udp_length;
        Plan {
            ifindex,
            flows: self.flows.unwrap_or(0),
            saddr: self.first_client.to_bits(),
            daddr: self.to.ip().to_bits(),
            ip_sum: fold(ip).into(),
            udp_sum: fold(udp).into(),
            sport: FIRST_SPORT,
            sport_last: FIRST_SPORT + (PORTS_PER_CLIENT - 1),
            dport: self.to.port(),
            dport_last: self.to.port() + (self.ports - 1),
            macs: macs.concat().try_into().expect("twelve bytes"),
        }
    }

    /// The same flows, so many at a time at most, each to the port that it has
    /// in the whole.
    fn stretches(self, flows: u32, most: u32) -> impl Iterator<Item = Self> {
        // Whole addresses and whole turns of the ports.
        let unit = u32::from(PORTS_PER_CLIENT).max(self.ports.into());
        let step = (most / unit).max(1) * unit;
        (0..flows).step_by(step as usize).map(move |start| Self {
            flows: Some(step.min(flows - start)),
            first_client: Ipv4Addr::from_bits(
                self.first_client.to_bits() + start / u32::from(PORTS_PER_CLIENT),
            ),
            ..self
        })
    }

    /// How many frames meet every flow once.
    pub fn pass(&self) -> u32 {
        self.flows.unwrap_or(0).max(self.ports.into())
    }
}

/// How long a sample lasts, in time that the load has the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub sample: Duration,
}

/// Who counts the frames that arrive.
pub trait Count {
    /// Frames so far.
    ///
    /// # Errors
    ///
    /// The counter cannot be read.
    fn count(&self) -> Result<u64>;
}

impl Count for Yard {
    fn count(&self) -> Result<u64> {
        Self::count(self)
    }
}

/// The generator in the client's namespace, and the client's sink.
pub struct Generator {
    site: Rc<Site>,
    generator: Yard,
    /// Counts what comes back to the client.
    pub back: Yard,
    load: Load,
}

impl Generator {
    /// Takes over the client's device.
    ///
    /// # Errors
    ///
    /// The kernel refuses a program.
    pub fn new(site: Rc<Site>, load: Load) -> Result<Self> {
        let mut back = Yard::load()?;
        back.attach_sink(&site.client, site::END)?;
        let mut generator = Yard::load()?;
        generator.xdp(names::GENERATE)?;
        let mut this = Self {
            site,
            generator,
            back,
            load,
        };
        this.aim(load)?;
        Ok(this)
    }

    /// Sends something else from now on.
    ///
    /// # Errors
    ///
    /// The maps refuse it.
    pub fn aim(&mut self, load: Load) -> Result<()> {
        let ifindex = self.site.client.ifindex(site::END);
        let plan = load.plan(ifindex, [site::MAC_NET, site::MAC_CLIENT]);
        self.generator.array::<Plan>(names::PLAN)?.set(0, plan, 0)?;
        self.generator
            .array::<Progress>(names::PROGRESS)?
            .set(0, Progress::start(&plan), 0)?;
        self.load = load;
        Ok(())
    }

    /// What it sends.
    pub const fn load(&self) -> &Load {
        &self.load
    }

    /// Sends so many frames and waits until they are through.
    ///
    /// # Errors
    ///
    /// The kernel refuses the run.
    pub fn send(&mut self, frames: u32) -> Result<()> {
        let Self {
            site, generator, ..
        } = self;
        let program = generator.xdp(names::GENERATE)?;
        site.client.enter(|| {
            cpu::pin(cpu::WORK)?;
            let frame = [0u8; FRAME];
            let mut left = frames;
            while left > 0 {
                // Where softirqs are put off to their thread, the rings would
                // run over: a pause after each stretch lets it catch up.
                let stretch = left.min(1 << 20);
                program.test_run(options(&frame, stretch))?;
                left -= stretch;
                interrupt::check()?;
            }
            Ok(())
        })
    }

    /// Sends as fast as it goes, and takes a sample in the middle. `sink`
    /// counts what arrives; `value` is nanoseconds of the CPU for each of
    /// that.
    ///
    /// # Errors
    ///
    /// The kernel refuses the run, or nothing arrives.
    pub fn sample(&mut self, span: Span, sink: &dyn Count) -> Result<Sample> {
        heed_nothing(Signal::SIGUSR1)?;
        let before = (self.sent()?, sink.count()?);
        let (began, ended) = self.run(span, sink)?;
        let after = (self.sent()?, sink.count()?);

        let wall = ended.at - began.at;
        let ran = ended.ran - began.ran;
        let received = ended.received - began.received;
        ensure!(received > 0, "nothing arrived");
        let traffic = Traffic {
            sent: after.0 - before.0,
            received: after.1 - before.1,
        };
        let others = 1.0 - (ran.as_secs_f64() / wall.as_secs_f64()).min(1.0);
        Ok(Sample {
            value: ran.as_nanos() as f64 / received as f64,
            // A device that another CPU happens to poll goes on there as long
            // as there is work, and its ring runs over: that shows as a loss.
            disturbed: others.max(traffic.lost()),
            traffic: Some(traffic),
        })
    }

    fn run(&mut self, span: Span, sink: &dyn Count) -> Result<(Reading, Reading)> {
        let Self {
            site, generator, ..
        } = self;
        let program = generator.xdp(names::GENERATE)?;
        let namespace = std::fs::File::open(site.client.path())?;
        let over = AtomicBool::new(false);
        let mut thread_id = None;
        thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let over = &over;
            let sending = scope.spawn(move || -> Result<()> {
                nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                cpu::pin(cpu::WORK)?;
                cpu::come_first()?;
                tell.send(gettid()).expect("it is waited for");
                let frame = [0u8; FRAME];
                // A signal ends the call with EINTR.
                let result = program.test_run(options(&frame, MOST_FRAMES));
                match result {
                    Err(error) if !over.load(Ordering::Relaxed) => {
                        Err(error).context("the generator stopped")
                    }
                    _ => Ok(()),
                }
            });
            let task = told.recv().context("the generator did not start");
            let readings = task.and_then(|task| {
                thread_id = Some(task);
                let running = || ensure_running(&sending);
                let before = sink.count()?;
                let first = deadline(START, || {
                    sink.count().is_ok_and(|count| count > before).then_some(())
                });
                ensure!(first.is_some(), "nothing arrives");
                let began = Reading::after(span.warm_up, task, sink, running)?;
                let ended = Reading::after(span.sample, task, sink, running)?;
                Ok((began, ended))
            });
            over.store(true, Ordering::Relaxed);
            // One signal could come just before the call.
            while !sending.is_finished() {
                if let Some(task) = thread_id {
                    interrupt_call(task);
                }
                thread::sleep(Duration::from_millis(1));
            }
            sending.join().expect("the generator does not panic")?;
            readings
        })
    }

    /// Frames handed to the device so far.
    ///
    /// # Errors
    ///
    /// The map is not there.
    pub fn sent(&mut self) -> Result<u64> {
        let progress = self.generator.array::<Progress>(names::PROGRESS)?;
        Ok(progress.get(&0, 0)?.sent)
    }

    /// Makes every flow one that has been answered, and whose client has been
    /// heard of again, with `target` echoing. Forwarders that have room for
    /// `room` flows may have less for those that are not that far, so it is
    /// done some flows at a time: each stretch is sent until all of it has come
    /// back, twice.
    ///
    /// # Errors
    ///
    /// Frames are lost again and again.
    pub fn prime(&mut self, target: &mut Yard, room: u32) -> Result<()> {
        let whole = self.load;
        let Some(flows) = whole.flows else {
            return Ok(());
        };
        target.set_mode(SinkMode::Echo)?;
        for stretch in whole.stretches(flows, room.max(USUAL_ROOM) / 8) {
            self.aim(stretch)?;
            // Two calls: within one, a few frames would all leave before the
            // first answer.
            self.exchange(stretch.pass())?;
            self.exchange(stretch.pass())?;
        }
        self.aim(whole)?;
        target.set_mode(SinkMode::Drop)
    }

    /// Sends so many frames, all of which have to come back.
    fn exchange(&mut self, frames: u32) -> Result<()> {
        for _ in 0..4 {
            let expected = self.back.count()? + u64::from(frames);
            self.send(frames)?;
            // The last frames may still be on their way.
            let all = deadline(SETTLE, || {
                let count = self.back.count();
                count.is_ok_and(|count| count >= expected).then_some(())
            });
            if all.is_some() {
                return Ok(());
            }
        }
        bail!("the flows could not all be made two-way: answers are lost")
    }
}

/// What is read at one moment.
struct Reading {
    at: Instant,
    ran: Duration,
    received: u64,
}

impl Reading {
    /// Once the load has had the CPU for so long: where others want it too,
    /// that takes longer.
    fn after(
        time: Duration,
        task: Pid,
        sink: &dyn Count,
        running: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let start = cpu::ran_with_softirqs(task)?;
        let latest = Instant::now() + 20 * time;
        loop {
            let left = time.saturating_sub(cpu::ran_with_softirqs(task)? - start);
            if left.is_zero() || Instant::now() > latest {
                return Self::take(task, sink);
            }
            running()?;
            interrupt::check()?;
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn take(task: Pid, sink: &dyn Count) -> Result<Self> {
        Ok(Self {
            received: sink.count()?,
            ran: cpu::ran_with_softirqs(task)?,
            at: Instant::now(),
        })
    }
}

/// One frame, as the generator makes them. `macs`: destination and source.
pub fn frame(from: SocketAddrV4, to: SocketAddrV4, macs: [[u8; 6]; 2]) -> [u8; FRAME] {
    let words = |bytes: &[u8]| -> u32 {
        bytes
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum()
    };
    let mut frame = [0; FRAME];
    let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    put(at::MAC_TO, &macs.concat());
    put(at::ETHERTYPE, &[8, 0, 0x45, 0]);
    put(at::IP + 2, &((FRAME - at::IP) as u16).to_be_bytes());
    put(at::TTL, &[64, 17]);
    put(at::SADDR, &from.ip().octets());
    put(at::DADDR, &to.ip().octets());
    put(at::SPORT, &from.port().to_be_bytes());
    put(at::DPORT, &to.port().to_be_bytes());
    let length = (FRAME - at::SPORT) as u16;
    put(at::UDP_LEN, &length.to_be_bytes());
    let ip_sum = !fold(words(&frame[at::IP..at::SPORT]));
    let udp_sum = !fold(words(&frame[at::SADDR..]) + 17 + u32::from(length));
    frame[at::IP_SUM..at::SADDR].copy_from_slice(&ip_sum.to_be_bytes());
    frame[at::UDP_SUM..at::UDP_SUM + 2].copy_from_slice(&udp_sum.to_be_bytes());
    frame
}

fn options(frame: &[u8], repeat: u32) -> TestRunOptions<'_> {
    TestRunOptions {
        data_in: Some(frame),
        repeat,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    }
}

fn ensure_running<T>(sending: &thread::ScopedJoinHandle<'_, T>) -> Result<()> {
    ensure!(!sending.is_finished(), "the generator ended early");
    Ok(())
}

fn interrupt_call(task: Pid) {
    // SAFETY: numbers only. The thread has not been joined, so its number is
    // not another's.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            std::process::id(),
            task.as_raw(),
            libc::SIGUSR1,
        )
    };
}

/// The signal interrupts a system call and does nothing else.
fn heed_nothing(signal: Signal) -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use portfwd_tests::checksum::{self, Sums};

    use super::*;

    #[test]
    fn a_frame_has_its_checksums() {
        let from = SocketAddrV4::new(site::CLIENTS, 40_000);
        let frame = frame(
            from,
            site::host_at(10_000),
            [site::MAC_NET, site::MAC_CLIENT],
        );
        let sums = checksum::check(&frame[at::IP..], false);
        assert!(matches!(sums, Sums::Right), "{sums:?}");
    }

    #[test]
    fn stretches_are_the_whole() {
        let load = Load {
            ports: 100,
            ..Load::flows(1_000, site::host_at(10_000))
        };
        let stretches: Vec<_> = load.stretches(1_000, 350).collect();
        let flows: Vec<_> = stretches
            .iter()
            .filter_map(|stretch| stretch.flows)
            .collect();
        assert_eq!(flows, [300, 300, 300, 100]);
        assert_eq!(stretches[1].first_client, Ipv4Addr::new(10, 64, 0, 6));
    }
}
