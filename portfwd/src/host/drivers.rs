//! What XDP of a device's driver can do, as the kernel tells it since 6.3
//! (generic netlink family `netdev`, commit d3d854fd6a1d).

use std::collections::HashMap;
use std::io;

use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, McastGrpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, Emitable, ErrorContext as _, NLM_F_ACK, NLM_F_DUMP, NlasIterator,
    ParseableParametrized, parse_u32, parse_u64,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;

use super::netlink;
use crate::Error;

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Driver {
    /// A program can be attached, and can send a frame back or on.
    pub runs: bool,
    /// Frames that a program sends on may leave by the device.
    pub sends: bool,
}

/// The family, as this kernel has numbered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drivers {
    family: u16,
    /// The group of those who hear of changes.
    pub changes: Option<u32>,
}

/// Of linux/netdev.h: the command, its attributes, and bits of the features.
const DEV_GET: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
const BASIC: u64 = 1;
const REDIRECT: u64 = 2;
const NDO_XMIT: u64 = 4;

const FAMILY: &str = "netdev";
const CHANGES: &str = "mgmt";

impl Drivers {
    /// Looks the family up; none below 6.3.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where the kernel does not answer.
    pub fn find() -> Result<Option<Self>, Error> {
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        });
        match netlink::ask(NETLINK_GENERIC, question, NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(|m| Self::of(&m.payload))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(refused(&error)),
        }
    }

    fn of(family: &GenlCtrl) -> Option<Self> {
        let (mut id, mut changes) = (None, None);
        for attribute in &family.nlas {
            match attribute {
                GenlCtrlAttrs::FamilyId(number) => id = Some(*number),
                GenlCtrlAttrs::McastGroups(groups) => {
                    changes = groups.iter().find_map(|group| number_of_changes(group));
                }
                _ => {}
            }
        }
        id.map(|family| Self { family, changes })
    }

    /// What the drivers of all devices of this network namespace can do, by
    /// the device's index.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where the kernel does not answer.
    pub fn list(&self) -> Result<HashMap<u32, Driver>, Error> {
        let mut question = GenlMessage::from_payload(Netdev::default());
        question.set_resolved_family_id(self.family);
        let answers =
            netlink::ask(NETLINK_GENERIC, question, NLM_F_DUMP).map_err(|error| refused(&error))?;
        let driver = |answer: GenlMessage<Netdev>| {
            let Netdev { ifindex, features } = answer.payload;
            (ifindex, Driver::of(features))
        };
        Ok(answers.into_iter().map(driver).collect())
    }
}

impl Driver {
    const fn of(features: u64) -> Self {
        const RUNS: u64 = BASIC | REDIRECT;
        Self {
            runs: features & RUNS == RUNS,
            sends: features & NDO_XMIT != 0,
        }
    }
}

fn number_of_changes(group: &[McastGrpAttrs]) -> Option<u32> {
    let is_ours = |part: &McastGrpAttrs| *part == McastGrpAttrs::Name(CHANGES.to_owned());
    let number = |part: &McastGrpAttrs| match part {
        McastGrpAttrs::Id(number) => Some(*number),
        McastGrpAttrs::Name(_) => None,
    };
    group
        .iter()
        .any(is_ours)
        .then(|| group.iter().find_map(number))?
}

fn refused(error: &io::Error) -> Error {
    Error::machine(format!(
        "the kernel does not tell what XDP can do on its interfaces: {error}; \
         `--mode tc` does without"
    ))
}

/// A message of the family: a device, or the question for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Netdev {
    ifindex: u32,
    features: u64,
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

/// The question for all has no attributes.
impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        0
    }

    fn emit(&self, _: &mut [u8]) {}
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut device = Self::default();
        for attribute in NlasIterator::new(buffer) {
            let attribute = attribute.context("an attribute of a device")?;
            match attribute.kind() {
                IFINDEX => device.ifindex = parse_u32(attribute.value())?,
                XDP_FEATURES => device.features = parse_u64(attribute.value())?,
                _ => {}
            }
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_say_what_a_driver_can_do() {
        let can = |features| {
            let Driver { runs, sends } = Driver::of(features);
            (runs, sends)
        };
        assert_eq!(can(0), (false, false));
        assert_eq!(can(BASIC), (false, false), "it could not send on");
        assert_eq!(can(BASIC | REDIRECT), (true, false));
        assert_eq!(can(NDO_XMIT), (false, true));
        assert_eq!(can(0x7f), (true, true));
    }

    #[test]
    fn this_kernel_tells_of_lo() {
        let Some(drivers) = Drivers::find().expect("an answer") else {
            eprintln!("skipped: this kernel is older than 6.3");
            return;
        };
        assert!(drivers.changes.is_some());
        let all = drivers.list().expect("a list");
        // Below 6.18 or so, devices without any feature are listed too.
        assert!(all.get(&1).is_none_or(|lo| *lo == Driver::default()));
    }
}
