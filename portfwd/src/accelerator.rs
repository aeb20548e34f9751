//! XDP on the devices of a forwarder, kept as [`accelerate`] decides while they
//! change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    os::fd::{AsFd as _, OwnedFd},
};

use portfwd_common as common;

use crate::{
    Error,
    accelerate::{self, Facts, Hook, Mode, Why},
    dataplane::{Dataplane, hold_program},
    host::{
        devices::{Attached, Device},
        drivers::{Driver, Drivers},
        offloads::Ethtool,
        xdp_hook,
    },
};

/// What a device got, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceMode {
    /// Its name.
    pub device: String,
    /// Where XDP runs beside TC, or why it does not.
    pub hook: Result<Hook, Why>,
}

impl fmt::Display for DeviceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        match &self.hook {
            Ok(Hook::Native) => write!(f, "{device}: xdp (native) and tc"),
            Ok(Hook::Generic) => write!(f, "{device}: xdp (generic) and tc"),
            Err(Why::Plain) => write!(f, "{device}: tc"),
            Err(why) => write!(f, "{device}: tc ({why})"),
        }
    }
}

/// The host as the accelerator meets it.
pub(crate) struct Scene<'a> {
    /// Every layer-3 device.
    pub(crate) present: &'a [Device],
    /// Those that traffic is taken from.
    pub(crate) taken_from: &'a BTreeSet<u32>,
    /// Those that lead to targets.
    pub(crate) targets: &'a BTreeSet<u32>,
}

/// XDP of one forwarder, whose rules lead to other hosts.
pub(crate) struct Accelerator {
    mode: Mode,
    /// Programs of others are replaced.
    force: bool,
    drivers: Option<Drivers>,
    ethtool: Ethtool,
    /// What the kernel said at the last try, by device.
    refused: BTreeMap<u32, Refused>,
    replaced: Vec<Replaced>,
    modes: Vec<DeviceMode>,
    /// The devices that XDP sends by.
    pub(crate) senders: BTreeSet<u32>,
}

/// Attaching is not tried again before the device has changed.
struct Refused {
    mtu: u32,
    said: String,
}

/// Another's program, which is put back.
struct Replaced {
    device: u32,
    generic: bool,
    program: OwnedFd,
}

impl Accelerator {
    pub(crate) fn new(mode: Mode, force: bool) -> Result<Self, Error> {
        Ok(Self {
            mode,
            force,
            drivers: Drivers::find()?,
            ethtool: Ethtool::open()?,
            refused: BTreeMap::new(),
            replaced: Vec::new(),
            modes: Vec::new(),
            senders: BTreeSet::new(),
        })
    }

    /// The group of those who hear of changes in drivers.
    pub(crate) fn changes(&self) -> Option<u32> {
        self.drivers.and_then(|drivers| drivers.changes)
    }

    /// What each device got.
    pub(crate) fn modes(&self) -> &[DeviceMode] {
        &self.modes
    }

    /// Makes the devices that have XDP, and what it knows of them, what the
    /// host calls for now.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where a map refuses, or a device has no XDP that was
    /// asked for; all else is done.
    pub(crate) fn follow(
        &mut self,
        dataplane: &mut Dataplane,
        scene: &Scene<'_>,
    ) -> Result<(), Error> {
        self.leave_lost(dataplane, scene.present)?;
        let drivers = self.list_drivers()?;
        let facts: Vec<Facts<'_>> = scene
            .present
            .iter()
            .map(|device| self.facts(dataplane, device, scene, drivers.as_ref()))
            .collect();
        let mut hooks = accelerate::choose(self.mode, &facts, scene.targets);
        for device in scene.present {
            let Some(hook) = hooks.get_mut(&device.index) else {
                continue;
            };
            match *hook {
                Ok(kind) => {
                    if let Err(why) = self.attach(dataplane, device, kind) {
                        *hook = Err(why);
                    }
                }
                Err(_) => dataplane.slow_down(device.index)?,
            }
        }
        self.write_devices(dataplane, &facts)?;
        self.tell(scene.present, hooks)
    }

    /// Puts back what was replaced, where its place is free.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] with the first that could not be put back.
    pub(crate) fn undo(&mut self) -> Result<(), Error> {
        let mut all = Ok(());
        for Replaced {
            device,
            generic,
            program,
        } in self.replaced.drain(..)
        {
            let put_back = xdp_hook::put_back(device, generic, program.as_fd());
            all = all.and(put_back.map_err(|error| {
                Error::machine(format!(
                    "cannot put back the XDP program that `--force` replaced on interface \
                     {device}: {error}; attach it again"
                ))
            }));
        }
        all
    }

    /// A device that went took its link along, and so did who has detached it.
    fn leave_lost(&mut self, dataplane: &mut Dataplane, present: &[Device]) -> Result<(), Error> {
        let find = |ifindex| present.iter().find(|device| device.index == ifindex);
        for ifindex in dataplane.accelerated() {
            if find(ifindex).is_none_or(|device| device.xdp.is_none()) {
                dataplane.slow_down(ifindex)?;
            }
        }
        self.refused.retain(|ifindex, refused| {
            find(*ifindex).is_some_and(|device| device.mtu == refused.mtu)
        });
        self.replaced
            .retain(|replaced| find(replaced.device).is_some());
        Ok(())
    }

    fn list_drivers(&self) -> Result<Option<HashMap<u32, Driver>>, Error> {
        self.drivers.map(|drivers| drivers.list()).transpose()
    }

    fn facts<'a>(
        &self,
        dataplane: &Dataplane,
        device: &'a Device,
        scene: &Scene<'_>,
        drivers: Option<&HashMap<u32, Driver>>,
    ) -> Facts<'a> {
        let attached = dataplane.is_accelerated(device.index);
        let refused = self.refused.get(&device.index);
        Facts {
            device,
            takes: scene.taken_from.contains(&device.index),
            // One that is not listed can nothing.
            driver: drivers.map(|all| all.get(&device.index).copied().unwrap_or_default()),
            // What cannot be asked is not there.
            offloads: self.ethtool.offloads(&device.name).unwrap_or_default(),
            taken: match device.xdp {
                Some(other) if !attached && !self.force => Some(program_name(other.program)),
                _ => None,
            },
            attached,
            refused: refused.map(|refused| refused.said.clone()),
        }
    }

    fn attach(
        &mut self,
        dataplane: &mut Dataplane,
        device: &Device,
        hook: Hook,
    ) -> Result<(), Why> {
        if dataplane.is_accelerated(device.index) {
            return Ok(());
        }
        if let Some(other) = device.xdp {
            self.replace(device.index, other)?;
        }
        dataplane.accelerate(device, hook).map_err(|error| {
            let said = error.to_string();
            let mtu = device.mtu;
            let refused = Refused {
                mtu,
                said: said.clone(),
            };
            self.refused.insert(device.index, refused);
            Why::Refused(said)
        })?;
        if device.wire.is_partial() {
            log::warn!(
                "XDP on {} needs whole packets from a veth or tap: on every sender behind it \
                 switch tx checksum offload off (`ethtool -K DEVICE tx off`), and to send by it \
                 GRO on at its other end (`ethtool -K DEVICE gro on`), or below Linux 5.13 an XDP \
                 program there",
                device.name
            );
        }
        Ok(())
    }

    fn replace(&mut self, device: u32, other: Attached) -> Result<(), Why> {
        let Attached { program, generic } = other;
        let (name, held) =
            hold_program(program).map_err(|error| Why::Refused(error.to_string()))?;
        xdp_hook::clear(device, generic).map_err(|error| {
            Why::Refused(format!(
                "`--force` cannot replace XDP program {name} (id {program}): {error}; a program \
                 that a BPF link holds is for its owner to end"
            ))
        })?;
        self.replaced.push(Replaced {
            device,
            generic,
            program: held,
        });
        Ok(())
    }

    /// Drivers are asked again: some can send once a program is attached.
    fn write_devices(
        &mut self,
        dataplane: &mut Dataplane,
        facts: &[Facts<'_>],
    ) -> Result<(), Error> {
        let mut wanted = BTreeMap::new();
        self.senders.clear();
        let drivers = match dataplane.accelerated()[..] {
            [] => return dataplane.set_express(&wanted),
            _ => self.list_drivers()?,
        };
        for facts in facts {
            let index = facts.device.index;
            let attached = dataplane.is_accelerated(index);
            let driver = drivers
                .as_ref()
                .map(|all| all.get(&index).copied().unwrap_or_default());
            let now = Facts {
                driver,
                ..facts.clone()
            };
            let sends = accelerate::sends(self.mode, &now, attached);
            let Some(mac) = facts.device.mac.filter(|_| attached || sends) else {
                continue;
            };
            wanted.insert(index, entry(mac, facts.device.mtu, sends));
            if sends {
                self.senders.insert(index);
            }
        }
        dataplane.set_express(&wanted)
    }

    /// Remembers what each device got, and tells where that is not what it had,
    /// or not what was asked for.
    fn tell(
        &mut self,
        present: &[Device],
        mut hooks: BTreeMap<u32, Result<Hook, Why>>,
    ) -> Result<(), Error> {
        let modes: Vec<DeviceMode> = present
            .iter()
            .filter_map(|device| {
                let hook = hooks.remove(&device.index)?;
                let device = device.name.clone();
                Some(DeviceMode { device, hook })
            })
            .collect();
        if !self.modes.is_empty() {
            for mode in modes.iter().filter(|mode| !self.modes.contains(mode)) {
                log::info!("{mode}");
            }
        }
        self.modes = modes;
        let asked = |mode: &&DeviceMode| self.mode.is_forced() && is_refusal(&mode.hook);
        match self.modes.iter().find(asked) {
            Some(DeviceMode {
                device,
                hook: Err(why),
            }) => Err(why.refuse(self.mode, device)),
            _ => Ok(()),
        }
    }
}

fn is_refusal(hook: &Result<Hook, Why>) -> bool {
    !matches!(hook, Ok(_) | Err(Why::Plain | Why::NotNamed(_)))
}

fn program_name(id: u32) -> String {
    match hold_program(id) {
        Ok((name, _)) => format!("{name} (program {id})"),
        Err(_) => format!("program {id}"),
    }
}

fn entry(mac: [u8; 6], mtu: u32, sends: bool) -> common::Device {
    let [a, b, c, d, e, f] = mac;
    common::Device {
        mac: [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes),
        mtu: match sends {
            true => u16::try_from(mtu).unwrap_or(u16::MAX),
            false => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::devices::Wire;

    fn line(hook: Result<Hook, Why>) -> String {
        let device = "eth0".to_owned();
        DeviceMode { device, hook }.to_string()
    }

    #[test]
    fn a_line_says_the_mode_and_why() {
        assert_eq!(line(Ok(Hook::Native)), "eth0: xdp (native) and tc");
        assert_eq!(line(Ok(Hook::Generic)), "eth0: xdp (generic) and tc");
        assert_eq!(line(Err(Why::Plain)), "eth0: tc");
        assert_eq!(
            line(Err(Why::Wire(Wire::Veth))),
            "eth0: tc (veth: XDP only with --mode xdp)"
        );
    }

    #[test]
    fn an_entry_names_an_mtu_where_xdp_sends() {
        let mac = [2, 0, 0, 0, 0, 7];
        let bytes = |device: common::Device| device.mac.map(u16::to_ne_bytes).concat();
        let sends = entry(mac, 1500, true);
        assert_eq!((bytes(sends), sends.mtu), (mac.to_vec(), 1500));
        assert_eq!(entry(mac, 1500, false).mtu, 0);
        assert_eq!(entry(mac, 65_536, true).mtu, 65_535);
    }
}
