use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proptest::{collection::vec, option, prelude::*, sample::subsequence};

use super::read;
use crate::{
    Error,
    rule::{PortRange, Proto, Protos, Rule, Target, not_yet, valid},
};

/// The names that the tests know: no test asks the network.
fn names(name: &str) -> Option<IpAddr> {
    match name {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        "six.example" => Some("2001:db8::6".parse().expect("an address")),
        _ => None,
    }
}

fn rule(text: &str) -> Rule {
    read(text, &names).unwrap_or_else(|error| panic!("{error}"))
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

fn addr(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

fn to(addr: Option<IpAddr>, ports: Option<PortRange>) -> Vec<Target> {
    vec![Target {
        addr,
        ports,
        weight: 1,
    }]
}

#[test]
fn every_form_of_the_table_is_read() {
    let tcp = Protos::default();
    let simple = rule("80:5000");
    assert_eq!(
        simple,
        Rule {
            listen: None,
            ports: ports(80, 80),
            targets: to(None, Some(ports(5000, 5000))),
            protos: tcp.clone(),
        }
    );
    let remote = rule("10.10.10.100:800:192.168.100.31:8080");
    assert_eq!(
        remote,
        Rule {
            listen: addr("10.10.10.100"),
            ports: ports(800, 800),
            targets: to(addr("192.168.100.31"), Some(ports(8080, 8080))),
            protos: tcp,
        }
    );
    assert_eq!(rule("80:10.0.0.5").targets, to(addr("10.0.0.5"), None));
    let v6 = rule("[2001:db8::1]:443:[2001:db8::2]:8443");
    assert_eq!(v6.listen, addr("2001:db8::1"));
    let target = to(addr("2001:db8::2"), Some(ports(8443, 8443)));
    assert_eq!(v6.targets, target);
    let range = rule("8000-8999:18000-18999/udp");
    assert_eq!(range.ports, ports(8000, 8999));
    assert_eq!(range.targets, to(None, Some(ports(18000, 18999))));
    assert_eq!(Some(range.protos), Protos::new(&[Proto::Udp]));
    let many = rule("20000-50000:443/udp");
    assert_eq!(many.targets, to(None, Some(ports(443, 443))));
    let both = rule("53:5353/tcp+udp").protos;
    assert_eq!(Some(both), Protos::new(&[Proto::Tcp, Proto::Udp]));
    let several = rule("80:10.0.0.2:8080,10.0.0.3:8080*3").targets;
    let weights: Vec<u16> = several.iter().map(|target| target.weight).collect();
    assert_eq!(weights, [1, 3]);
    let firewalld = rule("port=8080:proto=tcp:toport=3000:toaddr=192.168.1.100");
    assert_eq!(firewalld, rule("8080:192.168.1.100:3000"));
}

#[test]
fn a_rule_prints_in_the_normal_form() {
    let cases = [
        ("80:5000", "80:5000"),
        ("80:5000/tcp", "80:5000"),
        ("*:80:5000", "80:5000"),
        ("*:80:10.0.0.5", "80:10.0.0.5"),
        ("080:5000", "80:5000"),
        ("80-80:5000-5000", "80:5000"),
        ("80:5000*1", "80:5000"),
        ("80:80", "80:80"),
        ("1-65535:1-65535/udp", "1-65535:1-65535/udp"),
        ("127.0.0.1:80:5000", "127.0.0.1:80:5000"),
        ("80:127.0.0.1:5000/udp", "80:127.0.0.1:5000/udp"),
        ("10.0.0.1:80:127.0.0.1:5000", "10.0.0.1:80:127.0.0.1:5000"),
        ("10.0.0.1:80:10.0.0.5", "10.0.0.1:80:10.0.0.5"),
        ("80:[::1]:5000", "80:[::1]:5000"),
        ("80:[2001:DB8:0::2]", "80:[2001:db8::2]"),
        ("[fe80::1]:80:5000", "[fe80::1]:80:5000"),
        ("80:169.254.0.2:80", "80:169.254.0.2:80"),
        ("[::1]:80:[::1]:5000/udp", "[::1]:80:[::1]:5000/udp"),
        ("80:5000/udp+tcp", "80:5000/udp+tcp"),
        ("80:5000/sctp", "80:5000/sctp"),
        (
            "80:10.0.0.2,10.0.0.3:81,10.0.0.3:82*65535",
            "80:10.0.0.2,10.0.0.3:81,10.0.0.3:82*65535",
        ),
        (
            "80:[2001:db8::2]*2,[2001:db8::3]",
            "80:[2001:db8::2]*2,[2001:db8::3]",
        ),
        (
            "80-89:10.0.0.2:8080-8089,10.0.0.3:1",
            "80-89:10.0.0.2:8080-8089,10.0.0.3:1",
        ),
        ("port=80:proto=udp:toport=81", "80:81/udp"),
        ("port=80-89:proto=tcp:toport=180-189", "80-89:180-189"),
        ("port=80:toaddr=10.0.0.5", "80:10.0.0.5"),
        ("port=80:proto=tcp:toaddr=2001:db8::5", "80:[2001:db8::5]"),
        (
            "toaddr=[2001:db8::5]:toport=81:port=80",
            "80:[2001:db8::5]:81",
        ),
    ];
    for (typed, printed) in cases {
        assert_eq!(rule(typed).to_string(), printed, "{typed}");
    }
}

/// Text, and words that the sentence about it must hold.
const WRONG: &[(&str, &str)] = &[
    ("", "80:5000"),
    (" 80:5000", "no spaces"),
    ("80:5000\n", "no spaces"),
    ("80", "target after `80` is missing"),
    ("80:", "empty"),
    (":5000", "empty"),
    (":80:5000", "empty"),
    ("80::5000", "empty"),
    ("10.0.0.1:80", "target after `10.0.0.1:80` is missing"),
    ("10.0.0.1", "no `:` between ports and a target"),
    ("80->5000", "`80->5000` has no `:`"),
    ("80;5000/udp", "`80;5000` has no `:`"),
    ("*:80", "`*` stands where ports belong"),
    ("*:5000", "as in `*:80:5000`"),
    ("80:5000,", "empty"),
    ("80:,10.0.0.3:80", "empty"),
    ("80:10.0.0.2,,10.0.0.3", "empty"),
    ("80:5000/", "a protocol is missing"),
    ("0:5000", "`0` is not a port; type a number from 1 to 65535"),
    ("80:0", "`0` is not a port"),
    ("65536:5000", "`65536` is not a port"),
    ("80:65536", "`65536` is not a port"),
    ("80:10.0.0.5:65536", "`65536` is not a port"),
    ("99999999999999999999:80", "is not a port"),
    ("+80:5000", "`+80` is not a port"),
    ("-80:5000", "`-80` is not a port"),
    ("80-:5000", "no range"),
    ("80-81-82:5000", "no range"),
    ("0-10:5000", "`0` is not a port"),
    ("90-80:5000", "runs backwards; type `80-90`"),
    ("80:5010-5000", "runs backwards; type `5000-5010`"),
    (
        "8000-8009:9000-9010",
        "type `9000-9009` or `9000` as target",
    ),
    ("8000-8009:65530-65535", "type `65530` as target"),
    ("80:5000-5001", "type `5000` as target"),
    ("80-81:10.0.0.2:80,10.0.0.3:80-82", "of the same length"),
    (
        "80:5000/icmp",
        "`icmp` is no protocol of a rule; type `/tcp`, `/udp` or `/tcp+udp`",
    ),
    ("80:5000/TCP", "`TCP` is no protocol"),
    ("80:5000/tcp/udp", "`tcp/udp` is no protocol"),
    ("80:5000/tcp,udp", "`tcp,udp` is no protocol"),
    ("80:5000/tcp+", "a protocol is missing"),
    ("80:5000/udp+udp", "`udp` is there twice"),
    (
        "80/tcp:5000",
        "`/tcp` stands before `:5000`, and a protocol stands at the end",
    ),
    ("http://10.0.0.5:80", "a URL stands there"),
    ("80:http://10.0.0.5:80/index", "a URL stands there"),
    (
        "80:/tmp/sock",
        "`/tmp/sock` stands where ports or an address",
    ),
    ("/tmp/sock:80", "no path"),
    ("80:/udp", "`/udp` stands where ports or an address"),
    ("80:10.0.0.5/24:80", "`/24` makes a prefix"),
    ("192.0.2.1/24:80:5000", "`--from` takes prefixes"),
    (
        "80:10.0.0.5/255.255.255.0",
        "`/255.255.255.0` makes a prefix",
    ),
    ("80:[2001:db8::1]/64:80", "`/64` makes a prefix"),
    ("80:10.0.0.2/8,10.0.0.3", "`/8` makes a prefix"),
    ("80:5000:", "empty"),
    ("80:5000x", "neither a port nor an address"),
    (
        "80:5000:6000",
        "`5000` stands where the target's address belongs",
    ),
    ("80:81:82:83", "too many parts behind the ports `80`"),
    (
        "80:10.0.0.5:8080:9",
        "too many parts behind the ports `80`; type a target address",
    ),
    (
        "80:5000:10.0.0.5:80",
        "too many parts behind the ports `80`",
    ),
    (
        "10.0.0.1:80:10.0.0.5:8080:9",
        "too many parts; type at most",
    ),
    ("80:81:82:83:84", "too many parts"),
    ("80:10.0.0.2,10.0.0.3:80:81", "too many parts"),
    ("80,443:5000", "as in `80:5000 443:5000`"),
    (
        "80:5000,81:5001",
        "`81:5001` behind the comma is a rule of its own",
    ),
    ("80:10.0.0.2:80,81:10.0.0.3:81", "as in `80:5000 81:5001`"),
    (
        "80:5000/tcp,81:5001/udp",
        "`81:5001/udp` behind the comma is a rule",
    ),
    (
        "10.0.0.1:10.0.0.2:80",
        "`10.0.0.2` stands where ports belong",
    ),
    (
        "80:10.0.0.5:10.0.0.6",
        "`10.0.0.6` stands where ports belong",
    ),
    ("2001:db8::1:443:5000", "brackets"),
    ("80:2001:db8::1", "brackets"),
    ("80:2001:db8:0:0:0:0:0:1:5000", "brackets"),
    ("::1:80:5000", "brackets"),
    ("80:::1:5000", "brackets"),
    ("80:::1", "brackets"),
    ("80:[2001:db8::2],2001:db8::3", "brackets"),
    ("[2001:db8::1:443:5000", "not closed"),
    (
        "[2001:db8::1]443:80:5000",
        "not an IPv6 address in brackets",
    ),
    ("[80]:5000:6000", "not an IPv6 address in brackets"),
    ("80:[]:5000", "not an IPv6 address in brackets"),
    ("80:[[::1]]:5000", "not an IPv6 address in brackets"),
    ("[10.0.0.1]:80:5000", "type `10.0.0.1`"),
    ("[::ffff:10.0.0.1]:80:5000", "type `10.0.0.1`"),
    ("80:[::ffff:10.0.0.1]:5000", "type `10.0.0.1`"),
    ("fe80::1%eth0:80:5000", "scope"),
    ("[fe80::1%eth0]:80:5000", "scope"),
    ("80:[fe80::1%eth0]:5000", "scope"),
    ("10.0.0.256:80:5000", "four numbers from 0 to 255"),
    ("80:10.0.0:5000", "four numbers from 0 to 255"),
    ("80:10.0.0.05", "four numbers from 0 to 255"),
    ("0.0.0.0:80:5000", "type `*`"),
    ("[::]:80:5000", "type `*`"),
    ("224.0.0.1:80:5000", "multicast"),
    ("255.255.255.255:80:5000", "broadcast"),
    ("[ff02::1]:80:5000", "multicast"),
    ("80:0.0.0.0:5000", "leave the address out"),
    ("80:[::]:5000", "leave the address out"),
    ("80:239.1.2.3:5000", "multicast"),
    ("80:255.255.255.255", "broadcast"),
    ("80:*:5000", "`*` is no target"),
    ("80:*", "`*` is no target"),
    ("**:80:5000", "`**` is not an address"),
    (
        "localhost:80:5000",
        "`localhost` is a host name, and a rule takes addresses only; type `127.0.0.1`",
    ),
    ("80:localhost:5000", "type `127.0.0.1`"),
    ("80:localhost", "type `127.0.0.1`"),
    ("80:six.example:5000", "type `[2001:db8::6]`"),
    ("80:10.0.0.2,six.example", "type `[2001:db8::6]`"),
    ("80:gone.example:5000", "does not resolve here"),
    ("80:gone.example", "does not resolve here"),
    ("web-1:80:10.0.0.5:80", "does not resolve here"),
    (
        "eth0:80:5000",
        "`-i eth0` before the rule if it is a device",
    ),
    ("any:80:5000", "`any` is not an address; type `*`"),
    (
        "tcp:80:5000",
        "the protocol `tcp` stands where a listen address belongs; type it at the end",
    ),
    ("udp:53:10.0.0.5:53", "as in `80:5000/tcp`"),
    (
        "http:5000",
        "names of ports are not yet read; type the number",
    ),
    ("http:10.0.0.5:8080", "names of ports are not yet read"),
    ("80:10.0.0.5:http", "names of ports are not yet read"),
    ("80:http", "neither a port nor an address"),
    ("80:5000*0", "`*0` is no weight"),
    ("80:5000*", "`*` is no weight"),
    ("80:5000*-1", "`*-1` is no weight"),
    ("80:5000*+3", "`*+3` is no weight"),
    ("80:5000*65536", "`*65536` is no weight"),
    ("80:5000*2*3", "`*2*3` is no weight"),
    ("80:*3", "missing"),
    ("80:10.0.0.2*3:8080", "type it at the end of the target"),
    ("10.0.0.1:80:[2001:db8::2]:80", "different families"),
    ("[::1]:80:10.0.0.2", "different families"),
    ("80:10.0.0.2,[2001:db8::2]", "different families"),
    ("80:5000,10.0.0.3:80", "`5000` is on this host"),
    ("80:5000,5001", "`5000` is on this host"),
    ("80:10.0.0.3:80,5000", "`5000` is on this host"),
    ("80:10.0.0.3,127.0.0.1:80", "`127.0.0.1:80` is on this host"),
    ("80:10.0.0.3,10.0.0.3:80", "`10.0.0.3:80` is there twice"),
    ("80:[::1]:5000/udp", "listen on `[::1]:80`"),
    (
        "80:[::1]:5000/tcp+udp",
        "UDP from the network cannot reach `[::1]`",
    ),
    (
        "[2001:db8::1]:80:[::1]:5000/udp",
        "UDP from the network cannot reach `[::1]`",
    ),
    ("80:5000=6000", "`80` has no `=`"),
    ("port=80", "`toport=` and `toaddr=` are missing"),
    ("toport=80", "`port=` is missing"),
    ("port=80:toport=", "nothing follows `toport=`"),
    ("port=80:toport=81:toport=82", "`toport=` is there twice"),
    (
        "port=80:proto=dccp:toport=81",
        "`dccp` is no protocol of a rule; type `proto=tcp`, `proto=udp` or `proto=tcp+udp`",
    ),
    ("port=80:proto=tcp+:toport=81", "as in `proto=udp`"),
    ("port=80:to=81", "`to=` is not known"),
    ("port=80:toport=81:82", "`82` has no `=`"),
    ("port=80:toaddr=10.0.0.5/24", "not an address"),
    ("port=80:toaddr=2001:db8::g", "not an IPv6 address"),
    ("port=80:toaddr=fe80::1%eth0", "scope"),
    ("port=80:toaddr=localhost", "type `127.0.0.1`"),
    ("port=80-89:toport=80-88", "of the same length"),
];

#[test]
fn wrong_text_is_exit_2_with_one_sentence_that_names_it() {
    for (text, words) in WRONG {
        let error = read(text, &names).expect_err(text);
        assert_eq!(error.exit_code(), 2, "{text}");
        let sentence = error.to_string();
        assert!(
            sentence.contains(&super::printable(text)),
            "{text}: {sentence}"
        );
        assert!(sentence.contains(words), "{text}: {sentence}");
        assert_is_one_sentence(&sentence);
    }
}

fn assert_is_one_sentence(sentence: &str) {
    let broken = sentence.contains('\n') || sentence.ends_with('.') || sentence.contains(". ");
    assert!(!broken, "{sentence}");
    assert!(sentence.contains("; "), "nothing to try in: {sentence}");
}

#[test]
fn forms_of_later_are_refused_with_not_yet() {
    for text in [
        "80:5000",
        "80:10.0.0.5:8080",
        "80:[::1]:5000",
        "80:127.9.9.9/udp",
    ] {
        assert_eq!(not_yet(&rule(text)), Ok(()), "{text}");
    }
    for text in ["80:5000/tcp+sctp", "80:10.0.0.5,10.0.0.6"] {
        let error = not_yet(&rule(text)).expect_err(text);
        assert_eq!(error.exit_code(), 2, "{text}");
        let sentence = error.to_string();
        assert!(
            sentence.contains(text) && sentence.contains("not yet"),
            "{sentence}"
        );
        assert_is_one_sentence(&sentence);
    }
}

#[test]
fn the_resolver_of_the_system_serves_the_message() {
    let error = "80:localhost:5000"
        .parse::<Rule>()
        .expect_err("a host name");
    assert!(matches!(error, Error::Text(_)), "{error}");
}

#[test]
fn protocols_are_at_least_one_and_none_twice() {
    assert_eq!(Protos::new(&[]), None);
    assert_eq!(Protos::new(&[Proto::Udp, Proto::Tcp, Proto::Udp]), None);
}

fn some_ports() -> impl Strategy<Value = PortRange> {
    let single = (1..=u16::MAX).prop_map(|port| ports(port, port));
    let range = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| ports(a.min(b), a.max(b)));
    prop_oneof![single, range]
}

/// Target ports that fit the listen ports: as many, or one.
fn fitting(listen: PortRange) -> impl Strategy<Value = PortRange> {
    let more = listen.last - listen.first;
    let shifted = (1..=u16::MAX - more).prop_map(move |first| ports(first, first + more));
    let single = (1..=u16::MAX).prop_map(|port| ports(port, port));
    prop_oneof![shifted, single]
}

fn some_addr(v4: bool) -> BoxedStrategy<IpAddr> {
    if v4 {
        let known = Just(Ipv4Addr::LOCALHOST);
        let any = any::<u32>().prop_map(Ipv4Addr::from_bits);
        prop_oneof![known, any].prop_map(IpAddr::V4).boxed()
    } else {
        let known = Just(Ipv6Addr::LOCALHOST);
        let any = any::<u128>().prop_map(Ipv6Addr::from_bits);
        prop_oneof![known, any].prop_map(IpAddr::V6).boxed()
    }
}

fn some_target(listen: PortRange, v4: bool) -> impl Strategy<Value = Target> {
    let weight = prop_oneof![Just(1), 1..=u16::MAX];
    let ports = fitting(listen);
    let place = prop_oneof![
        fitting(listen).prop_map(|ports| (None, Some(ports))),
        (some_addr(v4).prop_map(Some), option::of(ports)),
    ];
    (place, weight).prop_map(|((addr, ports), weight)| Target {
        addr,
        ports,
        weight,
    })
}

fn some_protos() -> impl Strategy<Value = Protos> {
    let any = subsequence(vec![Proto::Tcp, Proto::Udp, Proto::Sctp], 1..=3);
    any.prop_shuffle()
        .prop_map(|protos| Protos::new(&protos).expect("none twice"))
}

/// Every rule that the grammar can say.
fn some_rule() -> impl Strategy<Value = Rule> {
    (some_ports(), any::<bool>())
        .prop_flat_map(|(ports, v4)| {
            let targets = prop_oneof![
                3 => vec(some_target(ports, v4), 1),
                1 => vec(some_target(ports, v4), 1..5),
            ];
            (
                option::of(some_addr(v4)),
                Just(ports),
                targets,
                some_protos(),
            )
        })
        .prop_map(|(listen, ports, targets, protos)| Rule {
            listen,
            ports,
            targets,
            protos,
        })
        .prop_filter("parts that fit each other", |rule| {
            let mut addrs = rule.addrs().map(portfwd_common::Addr::from);
            let usable = addrs.all(|addr| !addr.names_no_host());
            usable && valid::check(rule).is_ok()
        })
}

/// Text that is nearly a rule.
fn nearly_a_rule() -> impl Strategy<Value = String> {
    let pieces = [
        ":",
        ":",
        ":",
        ",",
        "/",
        "*",
        "-",
        "+",
        "[",
        "]",
        "%",
        "=",
        ".",
        "80",
        "5000",
        "0",
        "65536",
        "10.0.0.5",
        "[2001:db8::1]",
        "::1",
        "fe80",
        "tcp",
        "udp",
        "port=",
        "toport=",
        "toaddr=",
        "proto=",
        "localhost",
        "http",
        "é",
        " ",
        "\u{1b}",
    ];
    let piece = proptest::sample::select(pieces.to_vec());
    vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_a_rule_prints_reads_back_as_the_same_rule(rule in some_rule()) {
        let printed = rule.to_string();
        let back = read(&printed, &names);
        prop_assert_eq!(back, Ok(rule), "{}", printed);
    }

    #[test]
    fn printing_what_was_read_changes_nothing_the_second_time(
        text in prop_oneof![nearly_a_rule(), "[0-9*.]{1,4}:[0-9]{1,5}(:[0-9.-]{1,9})?(/tcp)?"],
    ) {
        match read(&text, &names) {
            Ok(rule) => {
                let printed = rule.to_string();
                let again = read(&printed, &names).map(|rule| rule.to_string());
                prop_assert_eq!(again, Ok(printed));
            }
            Err(error) => {
                let sentence = error.to_string();
                prop_assert_eq!(error.exit_code(), 2);
                prop_assert!(sentence.contains(&super::printable(&text)), "{}", sentence);
                prop_assert!(!sentence.contains(char::is_control), "{:?}", sentence);
            }
        }
    }

    #[test]
    fn the_form_of_firewalld_is_the_same_rule(
        port in some_ports(),
        toport in option::of(some_ports()),
        toaddr in option::of(some_addr(true)),
    ) {
        let form = |option: &str, value: Option<String>| {
            value.map(|value| format!("{option}={value}")).into_iter()
        };
        let firewalld: Vec<String> = form("port", Some(port.to_string()))
            .chain(form("proto", Some("udp".into())))
            .chain(form("toport", toport.map(|ports| ports.to_string())))
            .chain(form("toaddr", toaddr.map(|addr| addr.to_string())))
            .collect();
        let ours: Vec<String> = [Some(port.to_string())]
            .into_iter()
            .chain([toaddr.map(|addr| addr.to_string()), toport.map(|ports| ports.to_string())])
            .flatten()
            .collect();
        let firewalld = read(&firewalld.join(":"), &names);
        let ours = read(&format!("{}/udp", ours.join(":")), &names);
        prop_assert_eq!(firewalld.ok(), ours.ok());
    }
}

#[test]
fn every_sentence_is_its_own() {
    let texts: HashSet<&str> = WRONG.iter().map(|(text, _)| *text).collect();
    assert_eq!(texts.len(), WRONG.len(), "a text stands in the table twice");
}
