use super::*;
use crate::rule::Rule;

const ETH0: u32 = 2;
const ETH1: u32 = 3;

const FULL: Driver = Driver {
    runs: true,
    sends: true,
};
/// As many drivers are until a program is attached.
const RUNS: Driver = Driver {
    runs: true,
    sends: false,
};
const NONE: Driver = Driver {
    runs: false,
    sends: false,
};

fn device(index: u32) -> Device {
    Device {
        index,
        name: format!("eth{}", index - 2),
        link: Link::Ethernet,
        loopback: false,
        mac: Some([2, 0, 0, 0, 0, 1]),
        leads_out: false,
        mtu: 1500,
        wire: Wire::Network,
        under_vlan: false,
        xdp: None,
    }
}

/// A NIC that traffic is taken from.
fn nic(device: &Device) -> Facts<'_> {
    Facts {
        device,
        takes: true,
        driver: Some(FULL),
        offloads: Offloads::default(),
        taken: None,
        attached: false,
        refused: None,
    }
}

/// What becomes of `eth0`, where the target is behind `eth1`, another NIC.
fn chosen(mode: Mode, facts: &Facts<'_>) -> Result<Hook, Why> {
    let other = device(ETH1);
    let all = [facts.clone(), nic(&other)];
    let mut chosen = choose(mode, &all, &BTreeSet::from([ETH1]));
    chosen
        .remove(&facts.device.index)
        .expect("each has its answer")
}

fn specs(rules: &[&str]) -> Vec<RuleSpec> {
    let spec = |text: &&str| {
        let rule: Rule = text.parse().unwrap_or_else(|error| panic!("{error}"));
        RuleSpec::from(rule)
    };
    rules.iter().map(spec).collect()
}

#[test]
fn auto_takes_native_xdp_where_the_driver_has_it_and_nothing_is_in_the_way() {
    use Wire::{Tap, Veth};
    let with = |change: fn(&mut Device, &mut Facts<'_>)| {
        let mut changed = device(ETH0);
        let base = device(ETH0);
        let mut facts = nic(&base);
        change(&mut changed, &mut facts);
        facts.device = &changed;
        chosen(Mode::Auto, &facts)
    };
    type Change = fn(&mut Device, &mut Facts<'_>);
    let rows: [(Change, Result<Hook, Why>); 15] = [
        (|_, _| {}, Ok(Hook::Native)),
        (|_, f| f.driver = Some(RUNS), Ok(Hook::Native)),
        // Below 6.3 it is tried.
        (|_, f| f.driver = None, Ok(Hook::Native)),
        (|_, f| f.driver = Some(NONE), Err(Why::Driver)),
        (
            |d, f| (d.wire, f.driver) = (Wire::Host, None),
            Err(Why::Driver),
        ),
        (|d, _| d.wire = Veth, Err(Why::Wire(Veth))),
        (|d, _| d.wire = Tap, Err(Why::Wire(Tap))),
        (|d, _| d.link = Link::Bare, Err(Why::Bare)),
        (|d, _| d.mac = None, Err(Why::Bare)),
        (|d, _| d.loopback = true, Err(Why::Plain)),
        (|d, _| d.under_vlan = true, Ok(Hook::Native)),
        (|_, f| f.offloads.strips_vlan = true, Ok(Hook::Native)),
        (
            |d, f| (d.under_vlan, f.offloads.strips_vlan) = (true, true),
            Err(Why::Vlan),
        ),
        (
            |_, f| f.taken = Some("filter".into()),
            Err(Why::Taken("filter".into())),
        ),
        (
            |_, f| f.refused = Some("no".into()),
            Err(Why::Refused("no".into())),
        ),
    ];
    for (row, (change, expected)) in rows.into_iter().enumerate() {
        assert_eq!(with(change), expected, "row {row}");
    }
    let high = device(MAX_DEVICES);
    assert_eq!(chosen(Mode::Auto, &nic(&high)), Err(Why::Index));
    let highest = device(MAX_DEVICES - 1);
    assert_eq!(chosen(Mode::Auto, &nic(&highest)), Ok(Hook::Native));
}

#[test]
fn tc_is_tc() {
    let eth0 = device(ETH0);
    assert_eq!(chosen(Mode::Tc, &nic(&eth0)), Err(Why::Plain));
}

#[test]
fn a_forced_mode_holds_for_the_devices_that_are_named() {
    let eth0 = Device {
        wire: Wire::Veth,
        ..device(ETH0)
    };
    let named = nic(&eth0);
    assert_eq!(chosen(Mode::Xdp, &named), Ok(Hook::Native));
    assert_eq!(chosen(Mode::XdpGeneric, &named), Ok(Hook::Generic));
    let other = Facts {
        takes: false,
        ..named
    };
    for mode in [Mode::Xdp, Mode::XdpGeneric] {
        assert_eq!(chosen(mode, &other), Err(Why::NotNamed(mode)));
    }
}

#[test]
fn generic_xdp_needs_no_driver_and_no_packets_that_were_put_together() {
    let eth0 = device(ETH0);
    let mut facts = Facts {
        driver: Some(NONE),
        ..nic(&eth0)
    };
    assert_eq!(chosen(Mode::XdpGeneric, &facts), Ok(Hook::Generic));
    facts.offloads.gro = true;
    assert_eq!(chosen(Mode::XdpGeneric, &facts), Err(Why::Gro));
    facts.driver = Some(FULL);
    assert_eq!(chosen(Mode::Xdp, &facts), Ok(Hook::Native));
}

#[test]
fn a_device_whose_packets_xdp_could_send_nowhere_gets_none() {
    let (eth0, eth1) = (device(ETH0), device(ETH1));
    let plain = |device| Facts {
        driver: Some(NONE),
        ..nic(device)
    };
    let hooks = |all: &[Facts<'_>], targets: &[u32]| -> Vec<Result<Hook, Why>> {
        let targets = targets.iter().copied().collect();
        choose(Mode::Auto, all, &targets).into_values().collect()
    };
    let (native, alone) = (Ok(Hook::Native), Err(Why::Alone));
    // The target is behind a device without XDP, such as a bridge.
    let one = [nic(&eth0), plain(&eth1)];
    assert_eq!(hooks(&one, &[ETH1]), [alone.clone(), Err(Why::Driver)]);
    // One of several targets is on the side of the clients.
    assert_eq!(
        hooks(&one, &[ETH0, ETH1]),
        [native.clone(), Err(Why::Driver)]
    );
    // A device may be sent by and have no program: half of the way is by XDP.
    let sends = Facts {
        driver: Some(Driver {
            sends: true,
            ..NONE
        }),
        ..nic(&eth1)
    };
    assert_eq!(
        hooks(&[nic(&eth0), sends], &[ETH1]),
        [native.clone(), Err(Why::Driver)]
    );
    // No traffic is taken from the target's device, but replies come in by it.
    let replies = Facts {
        takes: false,
        ..nic(&eth1)
    };
    let both = [nic(&eth0), replies.clone()];
    assert_eq!(hooks(&both, &[ETH1]), [native.clone(), native.clone()]);
    assert_eq!(hooks(&both, &[ETH0]), [native.clone(), alone.clone()]);
    assert_eq!(hooks(&both, &[]), [alone.clone(), alone.clone()]);
    // What is attached stays.
    let attached = [
        Facts {
            attached: true,
            ..nic(&eth0)
        },
        replies,
    ];
    assert_eq!(hooks(&attached, &[]), [native, alone]);
}

#[test]
fn xdp_sends_where_the_driver_says_so_or_ours_is_attached() {
    let eth0 = device(ETH0);
    let with = |driver| Facts {
        driver,
        ..nic(&eth0)
    };
    assert!(sends(Mode::Auto, &with(Some(FULL)), false));
    assert!(!sends(Mode::Auto, &with(Some(RUNS)), true));
    assert!(sends(Mode::Auto, &with(None), true));
    assert!(!sends(Mode::Auto, &with(None), false));
    assert!(sends(Mode::XdpGeneric, &with(Some(NONE)), false));
    let bare = Device {
        link: Link::Bare,
        ..device(ETH0)
    };
    let lo = Device {
        loopback: true,
        ..device(ETH0)
    };
    let high = device(MAX_DEVICES);
    for device in [bare, lo, high] {
        assert!(!sends(Mode::XdpGeneric, &nic(&device), true));
    }
}

#[test]
fn a_mode_that_is_wrong_from_the_text_is_refused() {
    let remote = specs(&["80:5000", "81:10.0.0.5:8080"]);
    let local = specs(&["80:5000", "81:127.0.0.1:5000"]);
    let named = |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).into()).collect() };
    let eth0 = named(&["lo", "eth0"]);
    for mode in [Mode::Xdp, Mode::XdpGeneric] {
        assert_eq!(check(mode, Some(&eth0), &remote), Ok(()));
        for (names, rules, word) in [
            (None, &remote, "`any`"),
            (Some(named(&["lo"])), &remote, "`lo` stays on TC"),
            (Some(eth0.clone()), &local, "nothing to do"),
        ] {
            let error = check(mode, names.as_deref(), rules).expect_err(word);
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with(&format!("`--mode {mode}` ")), "{text}");
            assert!(text.contains(word), "{text}");
        }
    }
    for mode in [Mode::Auto, Mode::Tc] {
        assert_eq!(check(mode, None, &local), Ok(()));
    }
}
