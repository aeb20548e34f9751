//! The sources that a rule serves: `--from`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::RuleSpec;
use crate::Error;

/// Reads a source as it is typed: an address or a prefix.
///
/// # Errors
///
/// [`Error::Text`].
pub fn source(text: &str) -> Result<IpNet, Error> {
    let refuse = |what: String| Err(Error::text(format!("`--from {text}` {what}")));
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let Ok(net) = text.parse::<IpNet>().or(address) else {
        return refuse(
            "is neither an address nor a prefix; type one such as `192.0.2.0/24`".into(),
        );
    };
    if let Some(v4) = written_as_v6(net) {
        return refuse(format!("is IPv4 written as IPv6; type `{v4}`"));
    }
    if net != net.trunc() {
        return refuse(format!(
            "is one address with the length of a prefix; \
             type `{}`, or `{}` for this address alone",
            net.trunc(),
            net.addr()
        ));
    }
    Ok(net)
}

/// What `::ffff:10.0.0.0/104` means.
fn written_as_v6(net: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(net) = net else {
        return None;
    };
    let length = net.prefix_len().checked_sub(96)?;
    let net = Ipv4Net::new(net.addr().to_ipv4_mapped()?, length).ok()?;
    Some(net.trunc())
}

/// Refuses sources none of which the rule can serve: a rule with an address
/// holds for that address's family.
///
/// # Errors
///
/// [`Error::Text`].
pub fn check_sources(spec: &RuleSpec) -> Result<(), Error> {
    let (Some(addr), Some(source)) = (spec.rule.addrs().next(), spec.from.first()) else {
        return Ok(());
    };
    let is_v4 = |net: &IpNet| net.addr().is_ipv4();
    if spec.from.iter().any(|net| is_v4(net) == addr.is_ipv4()) {
        return Ok(());
    }
    let (family, other) = match addr {
        IpAddr::V4(_) => ("IPv4", "IPv6"),
        IpAddr::V6(_) => ("IPv6", "IPv4"),
    };
    Err(Error::text(format!(
        "rule `{}`: it is of {family}, and `--from {source}` lists {other} only; \
         list sources of {family}",
        spec.rule
    )))
}

#[cfg(test)]
mod tests {
    use super::{check_sources, source};
    use crate::rule::{Rule, RuleSpec};

    #[test]
    fn an_address_and_a_prefix_are_sources() {
        for (typed, net) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            let source = source(typed).map(|source| source.to_string());
            assert_eq!(source, Ok(net.to_owned()), "{typed}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused_with_what_to_type() {
        for (typed, hint) in [
            ("", "`192.0.2.0/24`"),
            ("home", "`192.0.2.0/24`"),
            ("10.0.0.0/33", "`192.0.2.0/24`"),
            ("203.0.113.5/24", "`203.0.113.0/24`, or `203.0.113.5`"),
            ("2001:db8::1/64", "`2001:db8::/64`, or `2001:db8::1`"),
            ("::ffff:10.0.0.0/104", "`10.0.0.0/8`"),
            ("::ffff:10.0.0.1/104", "`10.0.0.0/8`"),
            ("::ffff:10.0.0.1", "`10.0.0.1/32`"),
            ("::ffff:0:0/96", "`0.0.0.0/0`"),
        ] {
            let error = source(typed).expect_err(typed);
            assert_eq!(error.exit_code(), 2, "{typed}");
            let sentence = error.to_string();
            let named = sentence.starts_with(&format!("`--from {typed}` "));
            assert!(named && sentence.contains("; type "), "{sentence}");
            assert!(sentence.contains(hint), "{sentence}");
        }
    }

    #[test]
    fn some_source_is_of_the_family_of_the_rule() {
        let (v4, v6) = ("192.0.2.0/24", "2001:db8::/64");
        for (rule, from, fits) in [
            ("80:5000", &[v4][..], true),
            ("80:5000", &[v6], true),
            ("192.0.2.1:80:5000", &[], true),
            ("192.0.2.1:80:5000", &[v4], true),
            ("192.0.2.1:80:5000", &[v6, v4], true),
            ("192.0.2.1:80:5000", &[v6, v6], false),
            ("80:10.0.0.5", &[v6], false),
            ("80:127.0.0.1:5000", &[v6], false),
            ("[2001:db8::1]:80:5000", &[v6], true),
            ("[2001:db8::1]:80:5000", &[v4], false),
            ("80:[2001:db8::2]:80", &[v4], false),
        ] {
            let sources = from.iter().map(|net| source(net).expect("a source"));
            let spec = RuleSpec {
                from: sources.collect(),
                ..RuleSpec::from(rule.parse::<Rule>().expect("a rule"))
            };
            let Err(error) = check_sources(&spec) else {
                assert!(fits, "{rule} {from:?}");
                continue;
            };
            assert!(!fits && error.exit_code() == 2, "{error}");
            let sentence = error.to_string();
            assert!(sentence.contains(rule), "{sentence}");
            assert!(sentence.contains(from[0]), "{sentence}");
        }
    }
}
