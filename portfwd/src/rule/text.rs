//! Text to rule.

use std::{net::IpAddr, str::FromStr};

use super::{
    PortRange, Proto, Protos, Rule, Target,
    address::{self, Resolve, Role},
    firewalld, proto_name, valid,
};
use crate::Error;

/// A result whose error is the part of the sentence that follows the input:
/// what is wrong and what to try.
pub(super) type Read<T> = Result<T, String>;

impl FromStr for Rule {
    type Err = Error;

    /// Reads a rule as it is typed.
    ///
    /// # Errors
    ///
    /// [`Error::Text`] with one sentence. A host name is never accepted, but it
    /// is resolved, for two seconds at most, to show the address to type.
    fn from_str(text: &str) -> Result<Self, Error> {
        read(text, &address::resolve)
    }
}

/// Reads a rule; `resolve` serves the message about a host name.
pub(super) fn read(text: &str, resolve: Resolve<'_>) -> Result<Rule, Error> {
    parse(text, resolve)
        .and_then(|rule| valid::check(&rule).map(|()| rule))
        .map_err(|what| Error::text(format!("rule `{}`: {what}", printable(text))))
}

/// The text without what would break the line or the terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

fn parse(text: &str, resolve: Resolve<'_>) -> Read<Rule> {
    if text.is_empty() {
        return Err("nothing is there; type ports and a target, as in `80:5000`".into());
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("a rule has no spaces; leave them out, as in `80:5000`".into());
    }
    if text.contains('=') {
        return firewalld::parse(text, resolve);
    }
    let (body, protos) = match text.split_once('/') {
        Some((body, names)) => {
            only_before_protocols(body, names)?;
            (body, protos(names, "/")?)
        }
        None => (text, Protos::default()),
    };
    let (head, more) = match body.split_once(',') {
        Some((head, more)) => (head, Some(more)),
        None => (body, None),
    };
    let parts = parts(head)?;
    if more.is_some() && parts.len() == 1 {
        return Err(format!(
            "the target of `{head}` is missing before the comma; \
             type each set of listen ports as a rule of its own, as in `80:5000 443:5000`"
        ));
    }
    let shape = Shape::of(&parts)?;
    let listen = match shape.listen {
        None | Some("*") => None,
        Some(listen) => Some(address::read(listen, Role::Listen, resolve)?),
    };
    let ports = ports(shape.ports)?;
    let mut targets = vec![target(shape.target, resolve)?];
    for further in more.into_iter().flat_map(|more| more.split(',')) {
        let parts = self::parts(further)?;
        if parts.len() > 1 && Kind::of(parts[0]) == Kind::Ports {
            return Err(two_rules(further));
        }
        targets.push(target(&parts, resolve)?);
    }
    Ok(Rule {
        listen,
        ports,
        targets,
        protos,
    })
}

/// Refuses a slash that is not the one before the protocols at the end.
fn only_before_protocols(body: &str, rest: &str) -> Read<()> {
    if body.ends_with(':') && rest.starts_with('/') {
        return Err(
            "a URL stands there, and a rule takes ports and addresses only; \
             type them, as in `80:10.0.0.5:8080`"
                .into(),
        );
    }
    if body.is_empty() || body.ends_with(':') {
        return Err(format!(
            "`/{rest}` stands where ports or an address belong, and a rule takes no path; \
             type them there, as in `80:5000/tcp`"
        ));
    }
    let (first, more) = match rest.find([':', ',']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if !first.is_empty() && first.chars().all(is_of_ipv4) {
        return Err(format!(
            "`/{first}` makes a prefix, and a rule takes single addresses; \
             leave it out (`--from` takes prefixes, of clients)"
        ));
    }
    if more.starts_with(':') {
        return Err(format!(
            "`/{first}` stands before `{more}`, and a protocol stands at the end; \
             type it there, as in `80:5000/tcp`"
        ));
    }
    match more.strip_prefix(',') {
        Some(further) if further.contains(':') => Err(two_rules(further)),
        _ => Ok(()),
    }
}

fn two_rules(further: &str) -> String {
    format!(
        "`{further}` behind the comma is a rule of its own; \
         type a space between rules, as in `80:5000 81:5001`"
    )
}

/// Which part of the text up to the first comma is what.
struct Shape<'a> {
    listen: Option<&'a str>,
    ports: &'a str,
    /// `PORTS`, `TARGET` or `TARGET:PORTS`.
    target: &'a [&'a str],
}

impl<'a> Shape<'a> {
    fn of(parts: &'a [&'a str]) -> Read<Self> {
        let (listen, ports, target) = match *parts {
            [only] if Kind::of(only) == Kind::Ports => return Err(missing_target(only)),
            [only] => {
                return Err(format!(
                    "`{only}` has no `:` between ports and a target; \
                     type both, as in `80:5000`"
                ));
            }
            ["*", _] => {
                return Err(
                    "`*` stands where ports belong, and it is every address of this host; \
                     type ports behind it and where they go, as in `*:80:5000`"
                        .into(),
                );
            }
            [listen, ports] if Kind::of(listen) == Kind::Address => {
                return Err(missing_target(&format!("{listen}:{ports}")));
            }
            [ports, _] => (None, ports, &parts[1..]),
            [listen, ports, _] if is_listen(listen, ports) => (Some(listen), ports, &parts[2..]),
            [ports, _, _] => (None, ports, &parts[1..]),
            [first, _, _, _] if Kind::of(first) == Kind::Ports => {
                return Err(format!(
                    "`{}` has too many parts behind the ports `{first}`; \
                     type a target address and its ports, as in `80:10.0.0.5:8080`",
                    parts.join(":")
                ));
            }
            [listen, ports, _, _] => (Some(listen), ports, &parts[2..]),
            _ => {
                return Err(format!(
                    "`{}` has too many parts; \
                     type at most an address, ports, a target address and its ports, \
                     as in `10.0.0.1:80:10.0.0.5:8080`",
                    parts.join(":")
                ));
            }
        };
        Ok(Self {
            listen,
            ports,
            target,
        })
    }
}

fn missing_target(typed: &str) -> String {
    format!("the target after `{typed}` is missing; type where packets go, as in `80:5000`")
}

/// Whether three parts begin with a listen address. A name does if a number
/// follows: `localhost:80:5000`, but `http:10.0.0.5:8080`.
fn is_listen(first: &str, second: &str) -> bool {
    match Kind::of(first) {
        Kind::Address => true,
        Kind::Ports => false,
        Kind::Name => Kind::of(second) == Kind::Ports,
    }
}

/// What a part looks like, right or wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ports,
    Address,
    Name,
}

impl Kind {
    fn of(part: &str) -> Self {
        let only = |allowed: fn(char) -> bool| part.chars().all(allowed);
        if part.starts_with(['[', '*']) || part.contains('.') && only(is_of_ipv4) {
            Self::Address
        } else if part.starts_with(|c: char| c.is_ascii_digit()) && only(is_of_ports) {
            Self::Ports
        } else {
            Self::Name
        }
    }
}

fn is_of_ipv4(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

fn is_of_ports(c: char) -> bool {
    c.is_ascii_digit() || c == '-'
}

/// Cuts at the colons outside brackets.
fn parts(text: &str) -> Read<Vec<&str>> {
    if text.is_empty() {
        return Err("a target is empty; type ports or an address on each side of a comma".into());
    }
    let mut parts = Vec::new();
    let mut start = 0;
    let mut inside = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            ':' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(format!(
            "a bracket of `{text}` is not closed; type `]` after the IPv6 address"
        ));
    }
    parts.push(&text[start..]);
    if text.contains('%') {
        return Err(address::scoped(text));
    }
    complete(text, &parts)?;
    Ok(parts)
}

/// Refuses empty parts and IPv6 addresses without brackets, which cut into
/// many parts or leave empty ones.
fn complete(text: &str, parts: &[&str]) -> Read<()> {
    let of_ipv6 = |part: &&str| part.len() <= 4 && part.chars().all(|c| c.is_ascii_hexdigit());
    let letters = |part: &&str| part.contains(|c: char| c.is_ascii_alphabetic());
    let empty = parts.iter().any(|part| part.is_empty());
    let hex = parts.iter().filter(|part| of_ipv6(part));
    let bare_ipv6 = if empty {
        let long = hex.clone().count() > 4;
        long || text.contains(":::") || text.starts_with("::") || hex.clone().any(letters)
    } else {
        hex.count() >= 8
    };
    if bare_ipv6 {
        return Err(format!(
            "`{text}` holds an IPv6 address without brackets; \
             type brackets around it, as in `80:[2001:db8::1]:5000`"
        ));
    }
    if empty {
        return Err(format!(
            "a part of `{text}` is empty; type `80:5000` or `80:10.0.0.5:8080`, \
             and an IPv6 address in brackets"
        ));
    }
    Ok(())
}

fn target(parts: &[&str], resolve: Resolve<'_>) -> Read<Target> {
    let (last, weight) = weight(parts.last().copied().unwrap_or_default())?;
    let (addr, ports) = match *parts {
        [_] => alone(last, resolve)?,
        [addr, _] => {
            if Kind::of(addr) == Kind::Ports {
                return Err(format!(
                    "`{addr}` stands where the target's address belongs; \
                     type `80:5000` for this host or `80:10.0.0.5:8080` for another one"
                ));
            }
            let addr = address::read(addr, Role::Target, resolve)?;
            (Some(addr), Some(self::ports(last)?))
        }
        _ => {
            return Err(format!(
                "`{}` has too many parts for a target; \
                 type ports, an address or both, as in `10.0.0.5:8080`",
                parts.join(":")
            ));
        }
    };
    Ok(Target {
        addr,
        ports,
        weight,
    })
}

/// A target of one part: ports of this host, or an address that keeps the port.
fn alone(part: &str, resolve: Resolve<'_>) -> Read<(Option<IpAddr>, Option<PortRange>)> {
    match Kind::of(part) {
        Kind::Ports => Ok((None, Some(ports(part)?))),
        Kind::Address => Ok((Some(address::read(part, Role::Target, resolve)?), None)),
        Kind::Name => Err(
            address::host_name_at_most(part, resolve).unwrap_or_else(|| {
                format!(
                    "`{part}` is neither a port nor an address; \
                 type a number, for names of ports are not yet read, or an address"
                )
            }),
        ),
    }
}

/// Takes the weight off the last part of a target.
fn weight(part: &str) -> Read<(&str, u16)> {
    let Some((rest, digits)) = part.split_once('*').filter(|_| part != "*") else {
        return Ok((part, 1));
    };
    if rest.is_empty() {
        return Err(format!(
            "the target before the weight `{part}` is missing; type it, as in `10.0.0.2:8080*3`"
        ));
    }
    match number(digits) {
        Some(weight @ 1..) => Ok((rest, weight)),
        _ => Err(format!(
            "`*{digits}` is no weight; type `*` and a number from 1 to 65535 after the target"
        )),
    }
}

/// Reads `80` or `8000-8999`.
pub(super) fn ports(part: &str) -> Read<PortRange> {
    match Kind::of(part) {
        Kind::Ports => {}
        Kind::Address => {
            return Err(format!(
                "`{part}` stands where ports belong; \
                 type the ports before the target, as in `80:10.0.0.5:8080`"
            ));
        }
        Kind::Name if part.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            return Err(format!(
                "`{part}` is not a port number, and names of ports are not yet read; \
                 type the number"
            ));
        }
        Kind::Name => return Err(no_port(part)),
    }
    let Some((first, last)) = part.split_once('-') else {
        let port = port(part)?;
        return Ok(PortRange {
            first: port,
            last: port,
        });
    };
    if first.is_empty() || last.is_empty() || last.contains('-') {
        return Err(format!(
            "`{part}` is no range of ports; type the first and the last one, as in `8000-8999`"
        ));
    }
    let (first, last) = (port(first)?, port(last)?);
    if last < first {
        return Err(format!(
            "the range `{part}` runs backwards; type `{last}-{first}`"
        ));
    }
    Ok(PortRange { first, last })
}

fn port(digits: &str) -> Read<u16> {
    number(digits)
        .filter(|port| *port != 0)
        .ok_or_else(|| no_port(digits))
}

fn no_port(part: &str) -> String {
    format!("`{part}` is not a port; type a number from 1 to 65535")
}

/// Digits only: `u16::from_str` alone would take a sign.
fn number(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// Reads `tcp+udp`; `mark` is what it stands behind.
pub(super) fn protos(names: &str, mark: &str) -> Read<Protos> {
    let mut protos = Vec::new();
    for name in names.split('+') {
        if name.is_empty() {
            return Err(format!(
                "a protocol is missing; type one, as in `{mark}udp` or `{mark}tcp+udp`"
            ));
        }
        let Some(proto) = proto(name) else {
            return Err(format!(
                "`{name}` is no protocol of a rule; \
                 type `{mark}tcp`, `{mark}udp` or `{mark}tcp+udp`"
            ));
        };
        if protos.contains(&proto) {
            return Err(format!(
                "the protocol `{name}` is there twice; type it once"
            ));
        }
        protos.push(proto);
    }
    Ok(Protos(protos))
}

/// The protocol of this name.
pub(super) fn proto(name: &str) -> Option<Proto> {
    let known = [Proto::Tcp, Proto::Udp, Proto::Sctp];
    known.into_iter().find(|proto| proto_name(*proto) == name)
}

#[cfg(test)]
mod tests;
