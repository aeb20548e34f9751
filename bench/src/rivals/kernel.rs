//! NAT by rules of the kernel: nothing but what the one port needs, since every
//! further rule would cost.

use std::net::SocketAddr;

use portfwd_tests::Netns;

use super::{Rule, To};

/// One map from port to target, as everyone does it who has many.
pub fn map(rule: &Rule) -> String {
    let (port, ip) = (rule.listen.port(), ip(rule.listen));
    let addr_type = match rule.listen {
        SocketAddr::V4(_) => "ipv4_addr",
        SocketAddr::V6(_) => "ipv6_addr",
    };
    let (kind, element, action) = match rule.to {
        To::Local(to) => (
            "inet_service".to_owned(),
            to.to_string(),
            "meta l4proto tcp redirect to :tcp dport map @targets".to_owned(),
        ),
        To::Remote(to) | To::Masqueraded(to) => (
            format!("{addr_type} . inet_service"),
            format!("{} . {}", to.ip(), to.port()),
            format!("dnat {ip} to tcp dport map @targets"),
        ),
    };
    let targets = format!(
        "map targets {{ type inet_service : {kind}; elements = {{ {port} : {element} }}; }}"
    );
    table(rule, &targets, &action)
}

/// A rule for each port.
pub fn chain(rule: &Rule) -> String {
    let port = rule.listen.port();
    let action = match rule.to {
        To::Local(to) => format!("redirect to :{to}"),
        To::Remote(to) | To::Masqueraded(to) => format!("dnat {} to {to}", ip(rule.listen)),
    };
    table(rule, "", &format!("tcp dport {port} {action}"))
}

fn table(rule: &Rule, map: &str, action: &str) -> String {
    let (ip, listen) = (ip(rule.listen), rule.listen.ip());
    let postrouting = match rule.to {
        To::Masqueraded(to) => format!(
            "chain postrouting {{ type nat hook postrouting priority srcnat; {ip} daddr {} masquerade; }}",
            to.ip()
        ),
        To::Local(_) | To::Remote(_) => String::new(),
    };
    format!(
        "table {ip} rival {{
             {map}
             chain prerouting {{
                 type nat hook prerouting priority dstnat;
                 {ip} daddr {listen} {action}
             }}
             {postrouting}
         }}
"
    )
}

/// Loads a ruleset.
pub fn nft(host: &Netns, ruleset: &str) {
    host.nft(ruleset);
}

/// Adds the rules.
pub fn iptables(host: &Netns, rule: &Rule) {
    for line in iptables_lines(rule) {
        host.sh(&line);
    }
}

fn iptables_lines(rule: &Rule) -> Vec<String> {
    let program = match rule.listen {
        SocketAddr::V4(_) => "iptables",
        SocketAddr::V6(_) => "ip6tables",
    };
    let (addr, port) = (rule.listen.ip(), rule.listen.port());
    let claim = format!("{program} -w -t nat -A PREROUTING -d {addr} -p tcp --dport {port} -j");
    match rule.to {
        To::Local(to) => vec![format!("{claim} REDIRECT --to-ports {to}")],
        To::Remote(to) => vec![format!("{claim} DNAT --to-destination {to}")],
        To::Masqueraded(to) => vec![
            format!("{claim} DNAT --to-destination {to}"),
            format!(
                "{program} -w -t nat -A POSTROUTING -d {} -j MASQUERADE",
                to.ip()
            ),
        ],
    }
}

fn ip(addr: SocketAddr) -> &'static str {
    match addr {
        SocketAddr::V4(_) => "ip",
        SocketAddr::V6(_) => "ip6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(to: To) -> Rule {
        let listen = "192.0.2.1:80".parse().unwrap();
        Rule { listen, to }
    }

    fn target() -> SocketAddr {
        "203.0.113.2:5000".parse().unwrap()
    }

    #[test]
    fn the_map_leads_from_the_port_to_the_target() {
        let text = map(&rule(To::Remote(target())));
        assert!(text.contains("type inet_service : ipv4_addr . inet_service;"));
        assert!(text.contains("80 : 203.0.113.2 . 5000"));
        assert!(text.contains("ip daddr 192.0.2.1 dnat ip to tcp dport map @targets"));
        assert!(!text.contains("masquerade"));
        assert!(map(&rule(To::Local(5000))).contains("redirect to :tcp dport map @targets"));
    }

    #[test]
    fn the_chain_names_the_port() {
        let text = chain(&rule(To::Masqueraded(target())));
        assert!(text.contains("tcp dport 80 dnat ip to 203.0.113.2:5000"));
        assert!(text.contains("ip daddr 203.0.113.2 masquerade"));
        assert!(chain(&rule(To::Local(5000))).contains("tcp dport 80 redirect to :5000"));
    }

    #[test]
    fn iptables_masquerades_only_where_it_is_asked_to() {
        assert_eq!(iptables_lines(&rule(To::Local(5000))).len(), 1);
        assert_eq!(iptables_lines(&rule(To::Remote(target()))).len(), 1);
        let lines = iptables_lines(&rule(To::Masqueraded(target())));
        assert!(lines[0].ends_with("--dport 80 -j DNAT --to-destination 203.0.113.2:5000"));
        assert!(lines[1].ends_with("-d 203.0.113.2 -j MASQUERADE"));
    }

    #[test]
    fn ipv6_has_its_own_words() {
        let listen = "[2001:db8::1]:80".parse().unwrap();
        let to = To::Remote("[2001:db8::2]:5000".parse().unwrap());
        let rule = Rule { listen, to };
        assert!(chain(&rule).contains("dnat ip6 to [2001:db8::2]:5000"));
        assert!(map(&rule).contains("ipv6_addr . inet_service"));
        assert!(iptables_lines(&rule)[0].starts_with("ip6tables "));
    }
}
