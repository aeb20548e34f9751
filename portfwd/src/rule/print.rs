//! Rule to text: the form in which a rule is typed.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use super::{PortRange, Proto, Protos, Rule, Target};

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(listen) = self.listen {
            write!(f, "{}:", Bracketed(listen))?;
        }
        write!(f, "{}:", self.ports)?;
        for (index, target) in self.targets.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{target}")?;
        }
        if self.protos != Protos::default() {
            write!(f, "/{}", self.protos)?;
        }
        Ok(())
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.addr, self.ports) {
            (Some(addr), Some(ports)) => write!(f, "{}:{ports}", Bracketed(addr))?,
            (Some(addr), None) => write!(f, "{}", Bracketed(addr))?,
            (None, Some(ports)) => write!(f, "{ports}")?,
            (None, None) => {}
        }
        if self.weight != 1 {
            write!(f, "*{}", self.weight)?;
        }
        Ok(())
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Display for Protos {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, proto) in self.iter().enumerate() {
            let plus = if index == 0 { "" } else { "+" };
            write!(f, "{plus}{}", proto_name(proto))?;
        }
        Ok(())
    }
}

/// The protocol as it is typed.
pub const fn proto_name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
        Proto::Sctp => "sctp",
    }
}

/// An address as it stands in a rule: IPv6 in brackets.
pub(super) struct Bracketed(pub(super) IpAddr);

impl Display for Bracketed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "[{v6}]"),
        }
    }
}
