//! The form of `firewall-cmd --add-forward-port`:
//! `port=8080:proto=tcp:toport=3000:toaddr=192.168.1.100`.

use std::net::IpAddr;

use super::{
    Protos, Rule, Target,
    address::{self, Resolve, Role},
    text::{self, Read},
};

const EXAMPLE: &str = "`port=8080:proto=tcp:toport=3000:toaddr=192.168.1.100`";

pub(super) fn parse(text: &str, resolve: Resolve<'_>) -> Read<Rule> {
    let mut fields = Fields::default();
    for (key, value) in pairs(text)? {
        fields.set(key, value)?;
    }
    let Some(port) = fields.port else {
        return Err(format!("`port=` is missing; type it, as in {EXAMPLE}"));
    };
    if fields.toport.is_none() && fields.toaddr.is_none() {
        return Err(format!(
            "`toport=` and `toaddr=` are missing; type one of them, as in {EXAMPLE}"
        ));
    }
    let toaddr = fields.toaddr.map(|addr| read_address(&addr, resolve));
    let target = Target {
        addr: toaddr.transpose()?,
        ports: fields.toport.as_deref().map(text::ports).transpose()?,
        weight: 1,
    };
    Ok(Rule {
        listen: None,
        ports: text::ports(&port)?,
        targets: vec![target],
        protos: match fields.proto {
            Some(names) => text::protos(&names, "proto=")?,
            None => Protos::default(),
        },
    })
}

#[derive(Default)]
struct Fields {
    port: Option<String>,
    proto: Option<String>,
    toport: Option<String>,
    toaddr: Option<String>,
}

impl Fields {
    fn set(&mut self, key: &str, value: String) -> Read<()> {
        let field = match key {
            "port" => &mut self.port,
            "proto" => &mut self.proto,
            "toport" => &mut self.toport,
            "toaddr" => &mut self.toaddr,
            _ => {
                return Err(format!(
                    "`{key}=` is not known; type `port=`, `proto=`, `toport=` and `toaddr=`, \
                     as in {EXAMPLE}"
                ));
            }
        };
        if value.is_empty() {
            return Err(format!(
                "nothing follows `{key}=`; type a value, as in {EXAMPLE}"
            ));
        }
        if field.replace(value).is_some() {
            return Err(format!("`{key}=` is there twice; type it once"));
        }
        Ok(())
    }
}

/// Keys and values. A piece without `=` belongs to the value before it: the
/// form has IPv6 addresses without brackets.
fn pairs(text: &str) -> Read<Vec<(&str, String)>> {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for piece in text.split(':') {
        match (piece.split_once('='), pairs.last_mut()) {
            (Some((key, value)), _) => pairs.push((key, value.to_owned())),
            (None, Some(("toaddr", value))) => {
                value.push(':');
                value.push_str(piece);
            }
            (None, _) => {
                return Err(format!(
                    "`{piece}` has no `=` as its neighbours have; type {EXAMPLE} or `80:5000`"
                ));
            }
        }
    }
    Ok(pairs)
}

fn read_address(addr: &str, resolve: Resolve<'_>) -> Read<IpAddr> {
    if addr.contains('%') {
        return Err(address::scoped(addr));
    }
    if addr.contains(':') && !addr.starts_with('[') {
        return address::read(&format!("[{addr}]"), Role::Target, resolve);
    }
    address::read(addr, Role::Target, resolve)
}
