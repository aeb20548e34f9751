//! Addresses of a rule, and what to say about host names.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs},
    sync::mpsc,
    thread,
    time::Duration,
};

use portfwd_common::Addr;

use super::{
    print::Bracketed,
    text::{Read, proto},
};

/// Which address of a rule is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Listen,
    Target,
}

/// Asks for the address of a host name.
pub(super) type Resolve<'a> = &'a dyn Fn(&str) -> Option<IpAddr>;

/// How long the message about a host name waits for its address.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads one address that a single host can have.
pub(super) fn read(part: &str, role: Role, resolve: Resolve<'_>) -> Read<IpAddr> {
    let addr = if part.starts_with('[') {
        IpAddr::V6(v6(part)?)
    } else if part == "*" {
        return Err(
            "`*` is no target; leave the target's address out for this host, as in `80:5000`"
                .into(),
        );
    } else if part.contains('*') && role == Role::Target {
        return Err(format!(
            "the weight in `{part}` stands before the ports; \
             type it at the end of the target, as in `10.0.0.2:8080*3`"
        ));
    } else {
        IpAddr::V4(v4(part, role, resolve)?)
    };
    of_one_host(addr, role)
}

fn v6(part: &str) -> Read<Ipv6Addr> {
    let inner = part.trim_start_matches('[').trim_end_matches(']');
    if inner.parse::<Ipv4Addr>().is_ok() {
        return Err(format!(
            "the IPv4 address `{part}` stands in brackets; type `{inner}`"
        ));
    }
    let bracketed = part
        .strip_prefix('[')
        .and_then(|part| part.strip_suffix(']'));
    let Some(addr) = bracketed.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) else {
        return Err(format!(
            "`{part}` is not an IPv6 address in brackets; type one such as `[2001:db8::1]`"
        ));
    };
    match addr.to_ipv4_mapped() {
        Some(mapped) => Err(format!(
            "`{part}` is an IPv4 address written as IPv6; type `{mapped}`"
        )),
        None => Ok(addr),
    }
}

fn v4(part: &str, role: Role, resolve: Resolve<'_>) -> Read<Ipv4Addr> {
    if let Ok(addr) = part.parse() {
        return Ok(addr);
    }
    if may_be_host_name(part) {
        return Err(match role {
            Role::Listen => listen_word(part, resolve),
            Role::Target => host_name(part, resolve(part)),
        });
    }
    let example = match role {
        Role::Listen => "10.0.0.1:80:5000",
        Role::Target => "80:10.0.0.5:8080",
    };
    Err(format!(
        "`{part}` is not an address; type four numbers from 0 to 255, as in `{example}`"
    ))
}

/// What to say of a word where a listen address belongs.
fn listen_word(word: &str, resolve: Resolve<'_>) -> String {
    if word == "any" {
        return "`any` is not an address; \
                type `*`, as in `*:80:5000`, for every address of this host"
            .into();
    }
    if proto(word).is_some() {
        return format!(
            "the protocol `{word}` stands where a listen address belongs; \
             type it at the end, as in `80:5000/tcp`"
        );
    }
    match resolve(word) {
        None => format!(
            "`{word}` is not an address, and as a host name it does not resolve here; \
             type an address of this host, or `-i {word}` before the rule if it is a device"
        ),
        found => host_name(word, found),
    }
}

fn of_one_host(addr: IpAddr, role: Role) -> Read<IpAddr> {
    if !Addr::from(addr).names_no_host() {
        return Ok(addr);
    }
    let what = if addr.is_unspecified() {
        "is no address that a packet can carry"
    } else if addr.is_multicast() {
        "is a multicast address, which is not forwarded"
    } else {
        "is the broadcast address, which is not forwarded"
    };
    let hint = match role {
        Role::Listen => "type `*`, as in `*:80:5000`, for every address of this host",
        Role::Target => {
            "leave the address out for this host, as in `80:5000`, or type that of one host"
        }
    };
    Err(format!("`{}` {what}; {hint}", Bracketed(addr)))
}

/// What to say of `fe80::1%eth0`, in brackets or not.
pub(super) fn scoped(part: &str) -> String {
    format!(
        "`{part}` holds an address with a scope (`%`), and a rule cannot keep to one interface; \
         type an address without it, in brackets if it is IPv6, as in `[2001:db8::1]`"
    )
}

/// What to say of a word that may also be meant as the name of a port: nothing
/// unless it resolves or has a dot.
pub(super) fn host_name_at_most(part: &str, resolve: Resolve<'_>) -> Option<String> {
    if !may_be_host_name(part) {
        return None;
    }
    let found = resolve(part);
    (found.is_some() || part.contains('.')).then(|| host_name(part, found))
}

fn may_be_host_name(part: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    part.chars().all(allowed) && part.contains(char::is_alphabetic)
}

/// What to say of a host name: the address to type, where it has one.
fn host_name(name: &str, found: Option<IpAddr>) -> String {
    let refused = format!("`{name}` is a host name, and a rule takes addresses only");
    match found {
        Some(addr) => format!("{refused}; type `{}`, its address now", Bracketed(addr)),
        None => format!("{refused}; type its address (the name does not resolve here)"),
    }
}

/// An address of the host, IPv4 before IPv6 as `localhost` is mostly meant.
/// The resolver of the C library knows no limit, so it is left behind in its
/// thread when it takes too long.
pub(super) fn resolve(name: &str) -> Option<IpAddr> {
    let (sender, receiver) = mpsc::channel();
    let name = name.to_owned();
    thread::spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        let addrs: Vec<IpAddr> = found.into_iter().flatten().map(|addr| addr.ip()).collect();
        // Nobody listens any more when it took too long.
        let _ = sender.send(addrs);
    });
    let addrs = receiver.recv_timeout(PATIENCE).ok()?;
    let v4 = addrs.iter().find(|addr| addr.is_ipv4());
    v4.or(addrs.first()).copied()
}
