//! The programs of a cgroup: calls of programs of this host.

use std::{fs::File, os::fd::AsFd};

use aya::programs::{CgroupAttachMode, CgroupSockAddr, cgroup_sock_addr::CgroupSockAddrLink};
use portfwd_common::names;

use super::{Dataplane, machine, object};
use crate::{Error, host::netns};

/// An attached program; detaches when it is dropped.
#[derive(Debug)]
pub(super) struct Hook {
    _link: CgroupSockAddrLink,
}

impl Dataplane {
    /// Sends programs of this network namespace that dial a rule for another
    /// host there, if they are in the cgroup. Attached until
    /// [`Dataplane::detach`]; again is no second time.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the kernel refuses, or when it cannot tell the
    /// namespaces of a machine apart (5.14); nothing is attached then.
    pub fn attach_hooks(&mut self, cgroup: &File) -> Result<(), Error> {
        if !self.hooks.is_empty() {
            return Ok(());
        }
        if netns::cookie_number()?.is_none() {
            return Err(Error::machine(
                "clients on this host cannot be served with rules for other hosts by this kernel, \
                 which does not tell the cookie of a network namespace; use Linux 5.14 or later, \
                 or give `--no-local`",
            ));
        }
        self.hooks = names::HOOKS
            .iter()
            .map(|name| self.attach_hook(name, cgroup))
            .collect::<Result<_, _>>()?;
        Ok(())
    }

    fn attach_hook(&mut self, name: &str, cgroup: impl AsFd) -> Result<Hook, Error> {
        let program: &mut CgroupSockAddr = object::find(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            program
                .load()
                .map_err(|error| machine(format!("cannot load program {name}"), error))?;
        }
        // A link stands beside others always, and takes no flag that says so.
        program
            .attach(cgroup, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map(|link| Hook { _link: link })
            .map_err(|error| {
                machine(
                    format!(
                        "cannot attach program {name} to the cgroup; see that no other program \
                         is alone there, or name another with `--cgroup PATH`"
                    ),
                    error,
                )
            })
    }
}
