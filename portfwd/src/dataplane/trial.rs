//! Running a program on one packet, without a device (`BPF_PROG_TEST_RUN`).
//!
//! The packet is nobody's: it comes from no wire, no stack sees it afterwards,
//! and nothing is sent. All else is real: the maps, whose counters and flows
//! change, and the sockets, routes and addresses of the calling thread's
//! network namespace. Only `bpf_sk_assign` refuses (EOPNOTSUPP), which no
//! verdict depends on.

use std::{slice, time::Duration};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult};
use portfwd_common::Action;

use super::{Dataplane, Side, machine, object, xdp};
use crate::{Error, host::devices::Link};

/// Return values of a TC program (`TC_ACT_UNSPEC`, `TC_ACT_SHOT` and
/// `TC_ACT_REDIRECT`).
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// Return values of an XDP program.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Bytes of the Ethernet header that a packet from a device without one is
/// given on the way to another host.
const ETHERNET: usize = 14;

/// Where a packet meets the programs, and what its frame does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entrance {
    /// The hook.
    pub side: Side,
    /// Where the IP header starts.
    pub link: Link,
    /// The device that the hook is on; 1 is `lo`.
    pub ifindex: u32,
    /// At egress: the device that the packet came in by, where this host only
    /// forwards it, else 0.
    pub ingress_ifindex: u32,
    /// Payload bytes of each segment of a GSO packet, 0 for a plain one.
    pub gso_size: u32,
}

/// What became of a packet.
#[must_use]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    /// Whether the packet goes on.
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// How long the program ran.
    pub duration: Duration,
}

/// The fields of `__sk_buff` up to the last one that a run may set here.
#[repr(C)]
struct Context {
    before_ingress_ifindex: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
    before_gso_size: [u32; 33],
    gso_size: u32,
}

/// `struct xdp_md`.
#[repr(C)]
struct XdpContext {
    data: u32,
    /// The length of the frame.
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl XdpContext {
    const fn bytes(&self) -> &[u8] {
        // SAFETY: plain numbers without padding, read for as long as `self`
        // is borrowed.
        unsafe { slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }
}

impl Context {
    const fn new(entrance: Entrance) -> Self {
        Self {
            before_ingress_ifindex: [0; 9],
            ingress_ifindex: entrance.ingress_ifindex,
            ifindex: entrance.ifindex,
            before_gso_size: [0; 33],
            gso_size: entrance.gso_size,
        }
    }

    const fn bytes(&self) -> &[u8] {
        // SAFETY: plain numbers without padding, read for as long as `self`
        // is borrowed.
        unsafe { slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }
}

impl Dataplane {
    /// Runs a program once on a frame: at least 14 bytes and a whole IPv4 or
    /// IPv6 header, and at most what fits a page.
    ///
    /// The kernel reads the first 14 bytes as an Ethernet header on every
    /// device: the destination decides whether the frame is for this host, and
    /// the EtherType is the packet's protocol. A packet on a device without a
    /// link-layer header has to look like one by chance.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel does not run it.
    pub fn run_once(&mut self, entrance: Entrance, frame: &[u8]) -> Result<Trial, Error> {
        self.run_again(entrance, frame, 1)
    }

    /// Runs a program so many times, each time on what the pass before made of
    /// the frame; the duration is the mean.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel does not run it.
    pub fn run_again(
        &mut self,
        entrance: Entrance,
        frame: &[u8],
        passes: u32,
    ) -> Result<Trial, Error> {
        let mut out = vec![0; frame.len() + ETHERNET];
        let context = Context::new(entrance);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context.bytes()),
            repeat: passes,
            ..TestRunOptions::default()
        };
        let result = self
            .classifier(entrance.side, entrance.link)?
            .test_run(options)
            .map_err(|error| machine("cannot run a program on a packet", error))?;
        let action = action(result.return_value as i32)?;
        Ok(trial(action, out, &result))
    }

    /// Runs the XDP program once on a frame that came in by a device of the
    /// thread's network namespace: at least 14 bytes, and at most what fits a
    /// page beside the room that XDP keeps. Where it would be sent to is not
    /// told; [`Dataplane::set_express`] says by which devices it may be.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel does not run it, as below 5.14.
    pub fn run_xdp_once(&mut self, ifindex: u32, frame: &[u8]) -> Result<Trial, Error> {
        self.run_xdp_again(ifindex, frame, 1)
    }

    /// Runs the XDP program so many times; the duration is the mean. The kernel
    /// puts back the frame's start and end before each pass, but not its bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel does not run it.
    pub fn run_xdp_again(
        &mut self,
        ifindex: u32,
        frame: &[u8],
        passes: u32,
    ) -> Result<Trial, Error> {
        let mut out = vec![0; frame.len()];
        let context = XdpContext {
            data: 0,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context.bytes()),
            repeat: passes,
            ..TestRunOptions::default()
        };
        let result = xdp::accelerator(&mut self.ebpf)?
            .test_run(options)
            .map_err(|error| machine("cannot run the XDP program on a frame", error))?;
        let action = xdp_action(result.return_value)?;
        Ok(trial(action, out, &result))
    }

    /// The same as [`Dataplane::verified_instructions`] of the XDP program.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel does not accept it.
    pub fn verified_xdp_instructions(&mut self) -> Result<Option<u32>, Error> {
        xdp::accelerator(&mut self.ebpf)?
            .info()
            .map(|info| info.verified_instruction_count())
            .map_err(|error| machine("cannot ask about a program", error))
    }

    /// Instructions that the verifier walked before it accepted a program;
    /// unknown below 5.16.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel does not accept it.
    pub fn verified_instructions(&mut self, side: Side, link: Link) -> Result<Option<u32>, Error> {
        self.classifier(side, link)?
            .info()
            .map(|info| info.verified_instruction_count())
            .map_err(|error| machine("cannot ask about a program", error))
    }

    fn classifier(&mut self, side: Side, link: Link) -> Result<&mut SchedClassifier, Error> {
        object::program(&mut self.ebpf, side.program(link))
    }
}

fn trial(action: Action, mut frame: Vec<u8>, result: &TestRunResult) -> Trial {
    frame.truncate(result.data_size_out as usize);
    Trial {
        action,
        frame,
        duration: result.duration,
    }
}

fn xdp_action(returned: u32) -> Result<Action, Error> {
    match returned {
        XDP_PASS => Ok(Action::Pass),
        XDP_DROP => Ok(Action::Drop),
        XDP_TX | XDP_REDIRECT => Ok(Action::Send),
        other => Err(Error::machine(format!(
            "the XDP program returned {other}, which is none of XDP_DROP, XDP_PASS, XDP_TX and XDP_REDIRECT"
        ))),
    }
}

fn action(returned: i32) -> Result<Action, Error> {
    match returned {
        UNSPEC => Ok(Action::Pass),
        SHOT => Ok(Action::Drop),
        REDIRECT => Ok(Action::Send),
        other => Err(Error::machine(format!(
            "a program returned {other}, which is none of TC_ACT_UNSPEC, TC_ACT_SHOT and TC_ACT_REDIRECT"
        ))),
    }
}
