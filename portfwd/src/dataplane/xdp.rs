//! XDP: the accelerator beside the TC programs.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use aya::{
    maps::Array,
    programs::{
        Xdp, XdpMode, loaded_programs,
        xdp::{XdpLink, XdpLinkId},
    },
};
use portfwd_common::{self as common, Forwarder, names};

use super::{Dataplane, machine, object};
use crate::{Error, accelerate::Hook, host::devices::Device};

/// Where the accelerator is, and what it knows of devices.
#[derive(Debug, Default)]
pub(super) struct Express {
    links: BTreeMap<u32, XdpLink>,
    /// What is written and not zero.
    entries: BTreeMap<u32, common::Device>,
}

impl Dataplane {
    /// Attaches the accelerator to a device, by a link, unless it is there. It
    /// passes everything on until [`Dataplane::set_express`] names the device.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel refuses.
    pub fn accelerate(&mut self, device: &Device, hook: Hook) -> Result<(), Error> {
        if self.is_accelerated(device.index) {
            return Ok(());
        }
        let mode = match hook {
            Hook::Native => XdpMode::Driver,
            Hook::Generic => XdpMode::Skb,
        };
        let program = accelerator(&mut self.ebpf)?;
        let link = program
            .attach_to_if_index(device.index, mode)
            .and_then(|id: XdpLinkId| program.take_link(id))
            .map_err(|error| machine("the kernel does not attach XDP", error))?;
        self.express.links.insert(device.index, link);
        Ok(())
    }

    /// Whether the accelerator is on a device.
    pub fn is_accelerated(&self, ifindex: u32) -> bool {
        self.express.links.contains_key(&ifindex)
    }

    /// The devices that the accelerator is on.
    pub fn accelerated(&self) -> Vec<u32> {
        self.express.links.keys().copied().collect()
    }

    /// Takes the accelerator off a device, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map refuses; it is off all the same.
    pub fn slow_down(&mut self, ifindex: u32) -> Result<(), Error> {
        let cleared = self.set_device(ifindex, common::Device::default());
        self.express.links.remove(&ifindex);
        cleared
    }

    /// Makes DEVICES hold exactly these, by interface index.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map refuses.
    pub fn set_express(&mut self, wanted: &BTreeMap<u32, common::Device>) -> Result<(), Error> {
        let known = self.express.entries.clone();
        let gone = known.keys().filter(|ifindex| !wanted.contains_key(ifindex));
        for ifindex in gone {
            self.set_device(*ifindex, common::Device::default())?;
        }
        for (ifindex, device) in wanted {
            self.set_device(*ifindex, *device)?;
        }
        Ok(())
    }

    fn set_device(&mut self, ifindex: u32, device: common::Device) -> Result<(), Error> {
        let none = common::Device::default();
        let known = self.express.entries.get(&ifindex).copied();
        if known.unwrap_or(none) == device {
            return Ok(());
        }
        let mut map: Array<_, common::Device> = self.map_mut(names::DEVICES)?;
        map.set(ifindex, device, 0)
            .map_err(|error| machine(format!("map {}", names::DEVICES), error))?;
        if device == none {
            self.express.entries.remove(&ifindex);
        } else {
            self.express.entries.insert(ifindex, device);
        }
        Ok(())
    }

    /// Begins another epoch: next hops that flows have learned count no more.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the map refuses.
    pub fn next_epoch(&mut self) -> Result<(), Error> {
        let failed = |error| machine(format!("map {}", names::FORWARDER), error);
        let mut map: Array<_, Forwarder> = self.map_mut(names::FORWARDER)?;
        let now = map.get(&0, 0).map_err(failed)?;
        let next = Forwarder {
            epoch: now.epoch % 255 + 1,
            ..now
        };
        map.set(0, next, 0).map_err(failed)
    }

    /// Takes the accelerator off every device, its entries first.
    pub(super) fn detach_express(&mut self) {
        let none = BTreeMap::new();
        if let Err(error) = self.set_express(&none) {
            log::debug!("{error}");
        }
        self.express.links.clear();
    }
}

/// The accelerator, loaded at the first call: most rules need none.
pub(super) fn accelerator(ebpf: &mut aya::Ebpf) -> Result<&mut Xdp, Error> {
    let program: &mut Xdp = object::find(ebpf, names::XDP)?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| machine(format!("cannot load program {}", names::XDP), error))?;
    }
    Ok(program)
}

/// A program of another, by its id: its name, and what keeps it loaded.
///
/// # Errors
///
/// [`Error::Machine`] where there is none, or it cannot be held.
pub fn hold_program(id: u32) -> Result<(String, OwnedFd), Error> {
    let failed = |error| machine(format!("cannot hold program {id}"), error);
    let info = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .ok_or_else(|| Error::machine(format!("there is no program {id}")))?;
    let name = match info.name_as_str() {
        None | Some("") => "program".to_owned(),
        Some(name) => name.to_owned(),
    };
    let program = info.fd().map_err(failed)?;
    let program = std::os::fd::AsFd::as_fd(&program)
        .try_clone_to_owned()
        .map_err(|error| machine(format!("cannot hold program {id}"), error))?;
    Ok((name, program))
}
