//! Attaching to devices and detaching.

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use portfwd_common::names;

use super::{Dataplane, machine, object};
use crate::{
    Error,
    host::devices::{Device, Link},
};

/// Below 6.6: our filter's place in the qdisc, by which a start finds what a
/// dead run left behind.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0x7066, 1);

/// Which TC hook of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Packets that leave.
    Egress,
    /// Packets that arrive.
    Ingress,
    /// The same where clients are not served: only replies of other hosts are
    /// met.
    Back,
}

/// An attached program; detaches when it is dropped.
#[derive(Debug)]
pub struct Attached {
    _link: SchedClassifierLink,
}

impl Side {
    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Egress => TcAttachType::Egress,
            Self::Ingress | Self::Back => TcAttachType::Ingress,
        }
    }

    /// First on ingress and last on egress: other programs see packets as they
    /// are on the wire side of ours.
    fn order(self) -> LinkOrder {
        match self {
            Self::Egress => LinkOrder::last(),
            Self::Ingress | Self::Back => LinkOrder::first(),
        }
    }

    pub(super) const fn program(self, link: Link) -> &'static str {
        match (self, link) {
            (Self::Ingress, Link::Ethernet) => names::TC_IN,
            (Self::Ingress, Link::Bare) => names::TC_IN_L3,
            (Self::Back, Link::Ethernet) => names::TC_BACK,
            (Self::Back, Link::Bare) => names::TC_BACK_L3,
            (Self::Egress, Link::Ethernet) => names::TC_OUT,
            (Self::Egress, Link::Bare) => names::TC_OUT_L3,
        }
    }
}

impl Dataplane {
    /// Attaches to one side of a device, unless it is there already.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel refuses.
    pub fn attach(&mut self, device: &Device, side: Side) -> Result<(), Error> {
        if self.attached.contains_key(&(device.index, side)) {
            return Ok(());
        }
        let name = side.program(device.link);
        let tcx = self.tcx;
        let program = object::program(&mut self.ebpf, name)?;
        let result = if tcx {
            attach_tcx(program, device, side)
        } else {
            attach_filter(program, device, side, name)
        };
        let link = result.map_err(|error| {
            machine(
                format!("cannot attach to {} of {}", describe(side), device.name),
                error,
            )
        })?;
        self.attached
            .insert((device.index, side), Attached { _link: link });
        Ok(())
    }

    /// Whether the program of one side is attached to a device.
    pub fn is_attached(&self, ifindex: u32, side: Side) -> bool {
        self.attached.contains_key(&(ifindex, side))
    }

    /// Detaches from every device for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(u32, Side) -> bool) {
        self.attached
            .retain(|(ifindex, side), _| keep(*ifindex, *side));
    }

    /// Detaches from everything.
    pub fn detach(&mut self) {
        self.detach_express();
        self.hooks.clear();
        self.attached.clear();
    }
}

const fn describe(side: Side) -> &'static str {
    match side {
        Side::Egress => "tc egress",
        Side::Ingress | Side::Back => "tc ingress",
    }
}

type Attaching = Result<SchedClassifierLink, aya::programs::ProgramError>;

fn attach_tcx(program: &mut SchedClassifier, device: &Device, side: Side) -> Attaching {
    let options = TcAttachOptions::TcxOrder(side.order());
    let id = program.attach_with_options(&device.name, side.attach_type(), options)?;
    program.take_link(id)
}

/// Below 6.6 a filter in a clsact qdisc, which a dead run leaves behind: one
/// with our name is replaced.
fn attach_filter(
    program: &mut SchedClassifier,
    device: &Device,
    side: Side,
    name: &str,
) -> Attaching {
    match tc::qdisc_add_clsact(&device.name) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        Err(error) if is_there(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let _none_left = tc::qdisc_detach_program(&device.name, side.attach_type(), name);
    let options = NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        ..NlOptions::default()
    };
    let options = TcAttachOptions::Netlink(options);
    let id = program.attach_with_options(&device.name, side.attach_type(), options)?;
    program.take_link(id)
}

fn is_there(error: &TcError) -> bool {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text.contains("File exists")
}
