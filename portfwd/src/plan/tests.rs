use std::{collections::HashMap, net::IpAddr};

use portfwd_common::rule::MAX_RULES;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    Addr, ClaimKey, Family, MAX_CLAIMS, MAX_FROM, MAX_TARGETS_PER_RULE, Plan, PortEntry, Proto,
    Rule, RuleEntry, RuleSpec, Target, TargetEntry, TcpMechanism, check,
};
use crate::reach::Reach;

/// The plan of rules whose targets are all on this host.
fn plan(specs: &[RuleSpec], tcp: TcpMechanism) -> Plan {
    super::plan(specs, tcp, |spec, target| {
        Reach::Local.entry(target, spec.nat)
    })
}

/// The plan where every address but a loopback one is another host's.
fn plan_out(specs: &[RuleSpec], tcp: TcpMechanism) -> Plan {
    super::plan(specs, tcp, |spec, target| {
        let local = Reach::Local.entry(target, spec.nat);
        match is_remote(target) {
            true => TargetEntry {
                flags: 0,
                ifindex: 7,
                ..local
            },
            false => local,
        }
    })
}

fn is_remote(target: &Target) -> bool {
    target.addr.is_some_and(|addr| !addr.is_loopback())
}

fn spec(text: &str) -> RuleSpec {
    let rule: Rule = text.parse().unwrap_or_else(|error| panic!("{error}"));
    rule.into()
}

fn specs(texts: &[&str]) -> Vec<RuleSpec> {
    texts.iter().map(|text| spec(text)).collect()
}

fn named(text: &str, name: &str) -> RuleSpec {
    RuleSpec {
        name: Some(name.into()),
        ..spec(text)
    }
}

fn from(text: &str, nets: &[&str]) -> RuleSpec {
    RuleSpec {
        from: nets
            .iter()
            .map(|net| net.parse().expect("a prefix"))
            .collect(),
        ..spec(text)
    }
}

/// A plan as the kernel reads it.
struct Tables {
    ports: HashMap<(Proto, u16), PortEntry>,
    claims: HashMap<ClaimKey, u32>,
}

impl Tables {
    fn of(plan: &Plan) -> Self {
        let claims: HashMap<ClaimKey, u32> = plan.claims.iter().copied().collect();
        assert_eq!(claims.len(), plan.claims.len(), "a claim is made twice");
        let mut ports = HashMap::new();
        for span in &plan.ports {
            for port in span.first..=span.last {
                let before = ports.insert((span.proto, port), span.entry);
                assert_eq!(before, None, "spans overlap at {port}");
            }
        }
        Self { ports, claims }
    }

    fn entry(&self, proto: Proto, port: u16) -> PortEntry {
        self.ports.get(&(proto, port)).copied().unwrap_or_default()
    }

    /// The lookup of the datapath: at most two probes.
    fn winner(&self, proto: Proto, addr: IpAddr, port: u16) -> Option<u32> {
        let entry = self.entry(proto, port);
        let addr = Addr::from(addr);
        let probe = |bit, probed| {
            let key = ClaimKey {
                addr: probed,
                class: entry.class(),
                bank: 0,
                proto: proto as u8,
                family: addr.family() as u8,
                reserved: 0,
            };
            let found = self.claims.get(&key).copied();
            found.filter(|_| entry.class() != 0 && entry.has(bit))
        };
        let exact = probe(PortEntry::PROBE_ADDR, addr);
        exact.or_else(|| probe(PortEntry::PROBE_ANY, Addr::UNSPECIFIED))
    }
}

/// Precedence as the documentation has it: a listen address before `*`, then
/// the narrower range.
fn naive(specs: &[RuleSpec], proto: Proto, addr: IpAddr, port: u16) -> Option<u32> {
    let serves = |rule: &Rule| {
        let target = rule.targets[0].addr;
        let address = match rule.listen {
            Some(listen) => listen == addr,
            None => target.is_none_or(|target| target.is_ipv4() == addr.is_ipv4()),
        };
        address && rule.protos.contains(proto) && rule.ports.contains(port)
    };
    let candidates = (0..).zip(specs).filter(|(_, spec)| serves(&spec.rule));
    let rank = |(_, spec): &(u32, &RuleSpec)| (spec.rule.listen.is_none(), spec.rule.ports.count());
    candidates.min_by_key(rank).map(|(slot, _)| slot)
}

/// Whether two rules may not stand beside each other, by the definition.
fn clash(one: &Rule, other: &Rule) -> bool {
    let family = |rule: &Rule| {
        rule.targets[0]
            .addr
            .or(rule.listen)
            .map(|addr| addr.is_ipv4())
    };
    let families = match (family(one), family(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    let protos = one.protos.iter().any(|proto| other.protos.contains(proto));
    if one.listen != other.listen || !families || !protos {
        return false;
    }
    let (a, b) = (one.ports, other.ports);
    let apart = a.last < b.first || b.last < a.first;
    let inside =
        |a: super::PortRange, b: super::PortRange| a != b && b.first <= a.first && a.last <= b.last;
    !(apart || inside(a, b) || inside(b, a))
}

const MECHANISMS: [TcpMechanism; 3] = [
    TcpMechanism::Steer,
    TcpMechanism::SteerOrRewrite,
    TcpMechanism::Rewrite,
];

#[test]
fn one_rule_is_two_claims_and_one_span() {
    let plan = plan(&specs(&["80:5000"]), TcpMechanism::Steer);
    assert_eq!(plan.ports.len(), 1);
    let entry = plan.ports[0].entry;
    assert_eq!(entry, PortEntry(1 | PortEntry::PROBE_ANY));
    let families: Vec<u8> = plan.claims.iter().map(|(key, _)| key.family).collect();
    assert_eq!(families, [Family::V4 as u8, Family::V6 as u8]);
    let rule = RuleEntry {
        listen_first: 80,
        target_first: 5000,
        n_targets: 1,
        generation: 1,
        ..RuleEntry::default()
    };
    assert_eq!(plan.rules, [rule]);
    let target = TargetEntry::local(Addr::UNSPECIFIED, 1);
    assert_eq!(plan.targets, [target]);
}

#[test]
fn a_rule_with_an_address_listens_on_that_family_only() {
    for (text, family) in [
        ("80:127.0.0.1:5000", Family::V4),
        ("80:[::1]:5000", Family::V6),
        ("10.0.0.1:80:5000", Family::V4),
        ("[2001:db8::1]:80:5000", Family::V6),
    ] {
        let plan = plan(&specs(&[text]), TcpMechanism::Steer);
        let families: Vec<u8> = plan.claims.iter().map(|(key, _)| key.family).collect();
        assert_eq!(families, [family as u8], "{text}");
    }
}

#[test]
fn a_rule_of_two_protocols_has_one_slot() {
    let plan = plan(&specs(&["53:5353/tcp+udp"]), TcpMechanism::Steer);
    assert_eq!(plan.rules.len(), 1);
    assert_eq!(plan.claims.len(), 4);
    assert!(plan.claims.iter().all(|(_, slot)| *slot == 0));
}

#[test]
fn the_range_of_any_size_is_one_span_and_one_class() {
    let plan = plan(&specs(&["1-65535:443/udp"]), TcpMechanism::Steer);
    assert_eq!(plan.claims.len(), 2);
    let spans: Vec<_> = plan
        .ports
        .iter()
        .map(|span| (span.first, span.last))
        .collect();
    assert_eq!(spans, [(1, 442), (443, 443), (444, 65535)]);
    assert!(plan.ports.iter().all(|span| span.entry.class() == 1));
    assert!(plan.ports[1].entry.has(PortEntry::TARGET));
}

#[test]
fn ports_around_a_nested_range_share_a_class() {
    let rules = specs(&["8000-8999:443", "8100-8199:444", "8150:445"]);
    let plan = plan(&rules, TcpMechanism::Steer);
    let tables = Tables::of(&plan);
    let class = |port| tables.entry(Proto::Tcp, port).class();
    assert_eq!(class(8000), class(8999));
    assert_eq!(class(8149), class(8151));
    assert_eq!(plan.claims.len(), 6);
}

#[test]
fn a_port_is_sent_with_its_offset() {
    for (text, dialled, expected) in [
        (
            "8000-8999:18000-18999/udp",
            [8000, 8123, 8999],
            [18000, 18123, 18999],
        ),
        (
            "60000-65535:1-5536/udp",
            [60000, 60001, 65535],
            [1, 2, 5536],
        ),
        ("1-5536:60000-65535", [1, 2, 5536], [60000, 60001, 65535]),
        (
            "20000-50000:443/udp",
            [20000, 30000, 50000],
            [443, 443, 443],
        ),
        ("1-65535:1-65535", [1, 443, 65535], [1, 443, 65535]),
        ("80-89:127.0.0.1", [80, 85, 89], [80, 85, 89]),
        ("80:5000", [80; 3], [5000; 3]),
    ] {
        let plan = plan(&specs(&[text]), TcpMechanism::Steer);
        let sent = dialled.map(|port| plan.rules[0].target_port(port));
        assert_eq!(sent, expected, "{text}");
    }
}

#[test]
fn target_ports_and_tracked_ports_are_marked_where_something_is_rewritten() {
    let rules = specs(&[
        "80:5000",
        "53:5353/udp",
        "8000-8002:9000-9002/udp",
        "7:7/udp",
    ]);
    for tcp in MECHANISMS {
        let tables = Tables::of(&plan(&rules, tcp));
        let has = |proto, port, bit| tables.entry(proto, port).has(bit);
        let rewritten = tcp != TcpMechanism::Steer;
        assert_eq!(has(Proto::Tcp, 80, PortEntry::TRACKED), rewritten);
        assert_eq!(has(Proto::Tcp, 5000, PortEntry::TARGET), rewritten);
        for (listen, target) in [(53, 5353), (8000, 9000), (8001, 9001), (8002, 9002), (7, 7)] {
            assert!(has(Proto::Udp, listen, PortEntry::TRACKED), "{listen}");
            assert!(has(Proto::Udp, target, PortEntry::TARGET), "{target}");
        }
        for port in [8999, 9003, 53, 6, 8] {
            assert!(!has(Proto::Udp, port, PortEntry::TARGET), "{port}");
        }
        assert_eq!(tables.entry(Proto::Tcp, 5353), PortEntry::default());
    }
}

#[test]
fn ports_of_rules_to_other_hosts_are_tracked_and_marked() {
    let rules = specs(&[
        "80:10.0.0.5:8080",
        "81:10.0.0.5",
        "8000-8002:10.0.0.6:9000-9002/tcp+udp",
        "82:5000",
        "53:10.0.0.5:8080/udp",
        "54:8080/udp",
    ]);
    for tcp in MECHANISMS {
        let plan = plan_out(&rules, tcp);
        let tables = Tables::of(&plan);
        let has = |proto, port, bit| tables.entry(proto, port).has(bit);
        for (listen, target) in [(80, 8080), (81, 81), (8000, 9000), (8002, 9002)] {
            assert!(has(Proto::Tcp, listen, PortEntry::TRACKED), "{listen}");
            assert!(has(Proto::Tcp, target, PortEntry::REMOTE), "{target}");
            assert!(!has(Proto::Tcp, target, PortEntry::TARGET), "{target}");
        }
        let rewritten = tcp != TcpMechanism::Steer;
        assert_eq!(has(Proto::Tcp, 82, PortEntry::TRACKED), rewritten);
        assert_eq!(has(Proto::Tcp, 5000, PortEntry::TARGET), rewritten);
        assert!(!has(Proto::Tcp, 5000, PortEntry::REMOTE));
        let both = PortEntry::REMOTE | PortEntry::TARGET;
        assert!(has(Proto::Udp, 8080, both), "here and elsewhere");
        let remotes = ["10.0.0.5", "10.0.0.6"].map(|addr| {
            let addr: IpAddr = addr.parse().expect("an address");
            Addr::from(addr)
        });
        assert_eq!(plan.remotes, remotes);
    }
}

/// One class, two rules that win in it: on its address the rule to another
/// host, elsewhere the one to this host.
#[test]
fn a_class_is_tracked_where_any_of_its_rules_is() {
    let rules = specs(&["80:5000", "192.0.2.1:80:10.0.0.5:8080", "81:5001"]);
    let tables = Tables::of(&plan_out(&rules, TcpMechanism::Steer));
    let tracked = |port| tables.entry(Proto::Tcp, port).has(PortEntry::TRACKED);
    assert!(tracked(80) && !tracked(81));
}

#[test]
fn a_target_is_planned_as_it_is_placed() {
    let rules = specs(&["80:10.0.0.5:8080", "81:5000"]);
    let plan = plan_out(&rules, TcpMechanism::Steer);
    let remote: Vec<(u32, bool)> = plan
        .targets
        .iter()
        .map(|target| (target.ifindex, target.is_local()))
        .collect();
    assert_eq!(remote, [(7, false), (0, true)]);
    assert_eq!(plan.rules[1].targets, 1);
}

#[test]
fn rewriting_all_tcp_is_a_flag_of_the_rule() {
    let rules = specs(&["80:5000", "81:5001/udp"]);
    let flags = |tcp| {
        plan(&rules, tcp)
            .rules
            .iter()
            .map(|rule| rule.flags)
            .collect::<Vec<_>>()
    };
    assert_eq!(flags(TcpMechanism::SteerOrRewrite), [0, 0]);
    assert_eq!(flags(TcpMechanism::Rewrite), [RuleEntry::REWRITE_TCP, 0]);
}

/// Whether a source is found in the table of sources.
fn lists(plan: &Plan, slot: u32, source: &str) -> bool {
    let addr: IpAddr = source.parse().expect("an address");
    let wanted = u128::from_be_bytes(Addr::from(addr).octets());
    plan.from.iter().any(|(bits, key)| {
        let differ = wanted ^ u128::from_be_bytes(key.addr.octets());
        u32::from_be(key.slot) == slot && differ.leading_zeros() >= bits - 32
    })
}

#[test]
fn sources_are_listed_for_the_rule_that_names_them() {
    let rules = [
        from("80:5000", &["10.1.2.3/8", "10.0.0.0/8", "2001:db8::/32"]),
        spec("81:5000"),
        from("82:5000", &["192.0.2.1/32"]),
    ];
    let plan = plan(&rules, TcpMechanism::Steer);
    let flags: Vec<u16> = plan.rules.iter().map(|rule| rule.flags).collect();
    assert_eq!(flags, [RuleEntry::HAS_FROM, 0, RuleEntry::HAS_FROM]);
    assert_eq!(plan.from.len(), 3);
    assert_eq!(plan.from[0].0, 32 + 96 + 8);
    assert!(lists(&plan, 0, "10.255.0.1") && lists(&plan, 0, "2001:db8:ffff::1"));
    assert!(!lists(&plan, 0, "11.0.0.1") && !lists(&plan, 0, "2001:db9::1"));
    assert!(lists(&plan, 2, "192.0.2.1") && !lists(&plan, 2, "192.0.2.2"));
    assert!(!lists(&plan, 2, "10.0.0.1"));
}

#[test]
fn every_source_of_one_family_is_no_source_of_the_other() {
    for (net, v4, v6) in [
        ("0.0.0.0/0", true, false),
        ("::/0", false, true),
        ("::/64", false, false),
        ("::ffff:0:0/96", true, false),
    ] {
        let plan = plan(&[from("80:5000", &[net])], TcpMechanism::Steer);
        for (source, listed) in [
            ("0.0.0.1", v4),
            ("255.1.2.3", v4),
            ("2001:db8::1", v6),
            ("ffff::", v6),
            ("::1", v6 || net == "::/64"),
            ("::fffe:10.0.0.1", v6 || net == "::/64"),
        ] {
            assert_eq!(lists(&plan, 0, source), listed, "{source} in {net}");
        }
    }
}

#[test]
fn rules_that_claim_the_same_or_cross_are_both_named() {
    for (one, other, words) in [
        ("80:5000", "80:6000", "claim the same tcp port 80"),
        ("80:5000", "80:5000", "claim the same tcp port 80"),
        ("80:5000", "80:127.0.0.1:5000", "claim the same tcp port 80"),
        ("80:5000", "80:[::1]:5000", "claim the same tcp port 80"),
        (
            "80:5000/udp",
            "80:5000/tcp+udp",
            "claim the same udp port 80",
        ),
        (
            "10.0.0.1:80:5000",
            "10.0.0.1:80:6000",
            "claim the same tcp port 80",
        ),
        (
            "8000-8999:443",
            "8000-8999:444",
            "claim the same tcp ports 8000-8999",
        ),
        (
            "8000-8010:443",
            "8005-8020:444",
            "cross at tcp ports 8005-8010",
        ),
        ("8000-8010:443", "8010-8020:444", "cross at tcp port 8010"),
        (
            "8005-8020:444",
            "8000-8010:443",
            "cross at tcp ports 8005-8010",
        ),
    ] {
        let error = check(&specs(&[one, other])).expect_err(other);
        assert_eq!(error.exit_code(), 2, "{one} {other}");
        let sentence = error.to_string();
        for words in [&format!("`{one}`"), &format!("`{other}`"), words] {
            assert!(sentence.contains(words), "{one} {other}: {sentence}");
        }
    }
}

#[test]
fn rules_that_differ_in_their_claim_stand_side_by_side() {
    for texts in [
        ["80:5000", "80:5000/udp"],
        ["80:127.0.0.1:5000", "80:[::1]:5000"],
        ["80:10.0.0.5:8080", "80:[2001:db8::2]:8080"],
        ["80:5000", "10.0.0.1:80:5000"],
        ["8000-8010:443", "10.0.0.1:8005-8020:444"],
        ["8000-8999:443", "8000-8001:444"],
        ["8000-8999:443", "8999:444"],
        ["8000-8009:443", "8010-8019:443"],
    ] {
        assert_eq!(check(&specs(&texts)), Ok(()), "{texts:?}");
    }
}

#[test]
fn a_listen_address_wins_over_a_narrower_rule_on_every_address() {
    let rules = specs(&["80:5000", "10.0.0.1:1-1000:6000"]);
    let tables = Tables::of(&plan(&rules, TcpMechanism::Steer));
    let winner = |addr: &str| tables.winner(Proto::Tcp, addr.parse().expect("an address"), 80);
    assert_eq!(winner("10.0.0.1"), Some(1));
    assert_eq!(winner("10.0.0.2"), Some(0));
    assert_eq!(winner("2001:db8::1"), Some(0));
}

#[test]
fn a_name_is_given_once() {
    let rules = [
        named("80:5000", "web"),
        spec("81:5000"),
        named("82:5000", "web"),
    ];
    let error = check(&rules).expect_err("one name twice");
    assert_eq!(error.exit_code(), 2);
    let sentence = error.to_string();
    for words in ["`80:5000`", "`82:5000`", "`web`"] {
        assert!(sentence.contains(words), "{sentence}");
    }
    assert_eq!(
        check(&[named("80:5000", "web"), named("81:5000", "dns")]),
        Ok(())
    );
}

/// As many rules as are asked for, each on a port of its own.
fn many(count: u32) -> Vec<RuleSpec> {
    let texts = (1..=count).map(|port| format!("{port}:{port}"));
    texts.map(|text| spec(&text)).collect()
}

fn assert_limit(rules: &[RuleSpec], limit: u32) {
    let error = check(rules).expect_err("too many");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
}

#[test]
fn one_more_than_a_limit_is_exit_1_with_the_limit_named() {
    assert_eq!(check(&many(MAX_RULES)), Ok(()));
    assert_limit(&many(MAX_RULES + 1), MAX_RULES);

    let targets = |count: u32| {
        let targets: Vec<String> = (1..=count).map(|last| format!("10.0.0.{last}")).collect();
        vec![spec(&format!("80:{}", targets.join(",")))]
    };
    assert_eq!(check(&targets(MAX_TARGETS_PER_RULE)), Ok(()));
    assert_limit(&targets(MAX_TARGETS_PER_RULE + 1), MAX_TARGETS_PER_RULE);

    let mut rules = many(2);
    let nets = (0..=MAX_FROM).map(|net| std::net::Ipv4Addr::from_bits(net << 8));
    rules[1].from = nets.map(|net| IpAddr::V4(net).into()).collect();
    assert_limit(&rules, MAX_FROM);
    rules[1].from.pop();
    assert_eq!(check(&rules), Ok(()));
}

#[test]
fn claims_have_a_limit_of_their_own() {
    let wide = (1..=100).map(|last| spec(&format!("10.0.0.{last}:1-65535:9")));
    let nested = (1..=5000).map(|port| spec(&format!("{}:9", 2 * port)));
    let rules: Vec<RuleSpec> = wide.chain(nested).collect();
    assert_limit(&rules, MAX_CLAIMS / 2);
}

#[test]
fn the_deepest_nesting_has_room() {
    let rings = (1..=MAX_RULES).map(|ring| spec(&format!("{ring}-{}:9/udp", 65_536 - ring)));
    let rules: Vec<RuleSpec> = rings.collect();
    assert_eq!(check(&rules), Ok(()));
    let plan = plan(&rules, TcpMechanism::Steer);
    assert_eq!(plan.claims.len(), 2 * MAX_RULES as usize);
}

const ADDRS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "[2001:db8::1]", "[2001:db8::2]"];

/// A rule among few ports and addresses, so that rules meet.
fn some_rule() -> impl Strategy<Value = RuleSpec> {
    let listen = select(vec!["", "", "10.0.0.1:", "[2001:db8::1]:"]);
    let ports = prop_oneof![(1..40_u16, 0..30_u16), (65_500..=65_535_u16, 0..1_u16)];
    let target = select(vec!["", "", "127.0.0.1:", "[2001:db8::2]:"]);
    let proto = select(vec!["tcp", "udp", "tcp+udp", "udp+sctp"]);
    let shape = (listen, ports, target, 1..60_u16, any::<bool>(), proto);
    shape.prop_filter_map(
        "of one family",
        |(listen, (first, more), target, to, shift, proto)| {
            let to = if shift {
                format!("{to}-{}", to + more)
            } else {
                to.to_string()
            };
            let text = format!("{listen}{first}-{}:{target}{to}/{proto}", first + more);
            text.parse::<Rule>().ok().map(RuleSpec::from)
        },
    )
}

/// Rules of which each fits those before it.
fn some_rules() -> impl Strategy<Value = Vec<RuleSpec>> {
    vec(some_rule(), 0..40).prop_map(|rules| {
        let mut fitting: Vec<RuleSpec> = Vec::new();
        for spec in rules {
            if !fitting.iter().any(|other| clash(&other.rule, &spec.rule)) {
                fitting.push(spec);
            }
        }
        fitting
    })
}

proptest! {
    #[test]
    fn check_refuses_exactly_what_clashes(rules in vec(some_rule(), 0..6)) {
        let mut pairs = (0..rules.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
        let clashes = pairs.any(|(a, b)| clash(&rules[a].rule, &rules[b].rule));
        prop_assert_eq!(check(&rules).is_err(), clashes);
    }

    #[test]
    fn the_plan_answers_as_the_precedence_says(rules in some_rules(), tcp in select(&MECHANISMS[..])) {
        prop_assert_eq!(check(&rules), Ok(()));
        let plan = plan_out(&rules, tcp);
        let tables = Tables::of(&plan);
        for proto in super::PROTOS {
            for port in (1..110).chain(65_490..=65_535) {
                for addr in ADDRS {
                    let addr: IpAddr = addr.trim_matches(['[', ']']).parse().expect("an address");
                    let expected = naive(&rules, proto, addr, port);
                    prop_assert_eq!(tables.winner(proto, addr, port), expected, "{} {}", addr, port);
                    let Some(slot) = expected else { continue };
                    let (entry, rule) = (&plan.rules[slot as usize], &rules[slot as usize].rule);
                    let target = rule.targets[0].ports.expect("ports");
                    let offset = if target.count() == 1 { 0 } else { port - rule.ports.first };
                    prop_assert_eq!(entry.target_port(port), target.first + offset);
                }
                let rewrites = proto != Proto::Tcp || tcp != TcpMechanism::Steer;
                let entry = tables.entry(proto, port);
                let is_target = |elsewhere| rules.iter().any(|RuleSpec { rule, .. }| {
                    let target = &rule.targets[0];
                    let ports = target.ports.expect("ports");
                    let there = rule.protos.contains(proto) && ports.contains(port);
                    there && is_remote(target) == elsewhere
                });
                prop_assert_eq!(entry.has(PortEntry::TARGET), rewrites && is_target(false));
                prop_assert_eq!(entry.has(PortEntry::REMOTE), is_target(true));
                let claims = plan.claims.iter().filter(|(key, _)| {
                    key.class == entry.class() && key.proto == proto as u8
                });
                let mut winners = claims.map(|(_, slot)| &rules[*slot as usize].rule.targets[0]);
                let tracked = entry.class() != 0 && (rewrites || winners.any(is_remote));
                prop_assert_eq!(entry.has(PortEntry::TRACKED), tracked);
            }
        }
    }

    #[test]
    fn spans_are_sorted_apart_and_as_wide_as_they_can_be(rules in some_rules()) {
        let plan = plan_out(&rules, TcpMechanism::SteerOrRewrite);
        for span in &plan.ports {
            prop_assert!(span.first <= span.last && span.entry != PortEntry::default());
        }
        for pair in plan.ports.windows(2) {
            let [one, next] = [&pair[0], &pair[1]];
            let sorted = (one.proto, one.last) < (next.proto, next.first);
            prop_assert!(sorted, "{:?} {:?}", one, next);
            let joins = one.proto == next.proto && u32::from(one.last) + 1 == u32::from(next.first);
            prop_assert!(!(joins && one.entry == next.entry), "{:?} {:?}", one, next);
        }
    }
}
