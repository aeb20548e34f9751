//! Rules as tests write them.

use std::ops::RangeInclusive;

use portfwd_common::{Addr, Family, Proto, RuleEntry, TargetEntry};

/// A rule in words; [`super::Memory::add`] writes it into the tables.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Protocol.
    pub proto: Proto,
    /// Listen address, or [`Addr::UNSPECIFIED`] for every address.
    pub addr: Addr,
    /// Listen ports.
    pub ports: RangeInclusive<u16>,
    /// Target address, or [`Addr::UNSPECIFIED`] for the one that was dialled.
    pub target: Addr,
    /// First target port.
    pub to: u16,
    /// Every listen port goes to the one target port.
    pub to_one: bool,
    /// The rule's TCP is rewritten.
    pub rewrites_tcp: bool,
    /// Sources and the length of their prefix among the 128 bits; none: all.
    pub from: Vec<(Addr, u32)>,
    /// The rule's generation.
    pub generation: u32,
    /// The target is another host, reached so; none is a socket of this host.
    pub across: Option<TargetEntry>,
}

impl Forward {
    /// `ports:to/udp`.
    pub const fn udp(ports: RangeInclusive<u16>, to: u16) -> Self {
        Self {
            proto: Proto::Udp,
            addr: Addr::UNSPECIFIED,
            ports,
            target: Addr::UNSPECIFIED,
            to,
            to_one: false,
            rewrites_tcp: false,
            from: Vec::new(),
            generation: 1,
            across: None,
        }
    }

    /// `ports:to/tcp`.
    pub const fn tcp(ports: RangeInclusive<u16>, to: u16) -> Self {
        let mut forward = Self::udp(ports, to);
        forward.proto = Proto::Tcp;
        forward
    }

    /// The same with TCP rewritten.
    pub const fn rewriting(mut self) -> Self {
        self.rewrites_tcp = true;
        self
    }

    /// The same on one listen address.
    pub const fn on(mut self, addr: Addr) -> Self {
        self.addr = addr;
        self
    }

    /// The same with another target address.
    pub const fn at(mut self, target: Addr) -> Self {
        self.target = target;
        self
    }

    /// The same to another host.
    pub const fn to_host(mut self, target: TargetEntry) -> Self {
        self.target = target.addr;
        self.across = Some(target);
        self
    }

    /// The same with every port sent to the first target port.
    pub const fn to_one(mut self) -> Self {
        self.to_one = true;
        self
    }

    /// The same with `addr` and the prefix of `bits` of its 128 among its
    /// sources.
    pub fn from(mut self, addr: Addr, bits: u32) -> Self {
        self.from.push((addr, bits));
        self
    }

    pub(super) const fn target_port(&self, port: u16) -> u16 {
        self.entry(0).target_port(port)
    }

    pub(super) const fn entry(&self, slot: u32) -> RuleEntry {
        let mut flags = 0;
        if self.rewrites_tcp {
            flags |= RuleEntry::REWRITE_TCP;
        }
        if !self.from.is_empty() {
            flags |= RuleEntry::HAS_FROM;
        }
        RuleEntry {
            listen_first: *self.ports.start(),
            target_first: self.to,
            offset_mask: if self.to_one { 0 } else { 0xffff },
            flags,
            targets: slot,
            n_targets: 1,
            generation: self.generation,
        }
    }

    pub(super) fn families(&self) -> &'static [Family] {
        match (self.addr.is_unspecified(), self.target.is_unspecified()) {
            (true, true) => &[Family::V4, Family::V6],
            (true, false) => family(&self.target),
            (false, _) => family(&self.addr),
        }
    }
}

const fn family(addr: &Addr) -> &'static [Family] {
    match addr.family() {
        Family::V4 => &[Family::V4],
        Family::V6 => &[Family::V6],
    }
}
