//! What the running kernel can do.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use super::machine;
use crate::{Error, host::kernel::Release};

/// Features of the kernel that the programs are loaded for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// TC ingress can give a packet to a listener (`bpf_sk_assign`, 5.7).
    pub steer: bool,
    /// Also to `SO_REUSEPORT` listeners (6.6, commit 9c02bec95954).
    pub steer_all: bool,
    /// `bpf_check_mtu` (5.12).
    pub check_mtu: bool,
    /// tcx links (6.6, commit e420bed02507); a clsact qdisc below.
    pub tcx: bool,
}

impl Features {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel lets nobody load programs.
    pub fn probe(release: Release) -> Result<Self, Error> {
        let at_6_6 = release >= Release { major: 6, minor: 6 };
        let steer =
            helper(BpfHelper::BPF_FUNC_sk_assign)? && helper(BpfHelper::BPF_FUNC_skc_lookup_tcp)?;
        Ok(Self {
            steer,
            steer_all: steer && at_6_6,
            check_mtu: helper(BpfHelper::BPF_FUNC_check_mtu)?,
            tcx: at_6_6,
        })
    }

    /// The same without steering: TCP is always rewritten.
    #[must_use]
    pub const fn without_steering(self) -> Self {
        Self {
            steer: false,
            steer_all: false,
            ..self
        }
    }
}

fn helper(id: BpfHelper) -> Result<bool, Error> {
    is_helper_supported(ProgramType::SchedClassifier, id)
        .map_err(|error| machine("the kernel lets no program be loaded; run as root", error))
}
