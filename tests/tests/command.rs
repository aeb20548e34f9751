//! What was typed wrong, or does not fit the machine, is said in one sentence
//! and leaves nothing behind.

use std::{
    env, fs, io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Command},
};

use portfwd_tests::{Listen, Netns, Portfwd, Refusal, State, World, portfwd::binary, state};

/// From linux/capability.h.
const CAPABILITIES: [libc::c_ulong; 3] = [12, 21, 39];

/// From linux/personality.h: the release is said to be 2.6.
const UNAME26: libc::c_ulong = 0x0002_0000;

/// Options of the contract that are built, as --help shows them.
const OPTIONS: [&str; 13] = [
    "-i, --iface",
    "-m, --mode",
    "--force",
    "--netns",
    "--name",
    "--from",
    "--nat",
    "--no-local",
    "--cgroup",
    "--max-flows",
    "--stats",
    "-v, --verbose",
    "-V, --version",
];

/// Those that are not, each as it is typed, and as the refusal names it.
const LATER_OPTIONS: [(&[&str], &str); 6] = [
    (&["--json"], "`--json`"),
    (&["-f", "rules.toml"], "`--config`"),
    (&["--config", "rules.toml"], "`--config`"),
    (&["--kill"], "`--kill`"),
    (&["--watch"], "`--watch`"),
    (&["--dry-run"], "`--dry-run`"),
];

/// Verbs that are not, with the words that belong to them.
const LATER_VERBS: [&[&str]; 18] = [
    &["up", "-i", "eth0", "80:5000"],
    &["down"],
    &["add", "80:5000"],
    &["del", "1"],
    &["list", "--json"],
    &["flows"],
    &["stats", "--watch"],
    &["status"],
    &["apply", "rules.toml", "--dry-run"],
    &["save"],
    &["check", "80:5000"],
    &["explain", "tcp 203.0.113.7:40000 192.0.2.1:80 dev eth0"],
    &["doctor"],
    &["ports"],
    &["import", "nft"],
    &["enable", "1"],
    &["disable", "1"],
    &["completions", "bash"],
];

/// One character longer than a name may be.
const LONG_NAME: &str = "abcdefghijklmnopqrstuvwxyz-abcdefghijklmnopqrstuvwxyz-0123456789a";

const WHOLE: &str = "type a whole number from 1 to";

/// One command line, its exit code, and what its sentence must hold.
type Row<'a> = (&'a [&'a str], i32, &'a [&'a str]);

/// Wrong from the text alone.
const TEXT: &[Row] = &[
    // Ports.
    (&["0:5000"], 2, &["`0:5000`", "`0`", "1 to 65535"]),
    (&["80:0"], 2, &["`80:0`", "`0`", "1 to 65535"]),
    (&["65536:5000"], 2, &["`65536`", "1 to 65535"]),
    (&["80:65536"], 2, &["`65536`", "1 to 65535"]),
    (&["80-65536:5000"], 2, &["`65536`", "1 to 65535"]),
    (
        &["8999-8000:5000"],
        2,
        &["`8999-8000`", "backwards", "`8000-8999`"],
    ),
    (
        &["8000-8002:18000-18001"],
        2,
        &["`8000-8002`", "3 long", "`18000-18001`", "`18000-18002`"],
    ),
    (&["80:5000-5001"], 2, &["`5000-5001`", "2"]),
    (&["80-:5000"], 2, &["`80-`", "range"]),
    (&["http:5000"], 2, &["`http`", "number"]),
    (&["80"], 2, &["`80`", "missing", "`80:5000`"]),
    (&[""], 2, &["``", "`80:5000`"]),
    (&["80: 5000"], 2, &["spaces", "`80:5000`"]),
    (&["80:5000\n81:5001"], 2, &["`80:5000\\n81:5001`"]),
    (&["*:5000"], 2, &["`*:5000`", "ports", "`*:80:5000`"]),
    (&["80->5000"], 2, &["`80->5000`", "`:`", "`80:5000`"]),
    (&["80;5000"], 2, &["`80;5000`", "`:`", "`80:5000`"]),
    (
        &["80:5000,81:5001"],
        2,
        &["`81:5001`", "rule of its own", "`80:5000 81:5001`"],
    ),
    (
        &["80:10.0.0.5:8080:9"],
        2,
        &["`80:10.0.0.5:8080:9`", "too many parts"],
    ),
    (
        &["80:5000:10.0.0.5:80"],
        2,
        &["`80:5000:10.0.0.5:80`", "too many parts"],
    ),
    // Addresses.
    (
        &["2001:db8::1:443:5000"],
        2,
        &[
            "`2001:db8::1:443:5000`",
            "brackets",
            "`80:[2001:db8::1]:5000`",
        ],
    ),
    (&["443:2001:db8::2:8443"], 2, &["2001:db8::2", "brackets"]),
    (
        &["[2001:db8::1:443:5000"],
        2,
        &["`[2001:db8::1:443:5000`", "]"],
    ),
    (
        &["localhost:80:5000"],
        2,
        &["`localhost`", "host name", "address"],
    ),
    (
        &["80:localhost:5000"],
        2,
        &["`localhost`", "host name", "address"],
    ),
    (&["192.0.2.256:80:5000"], 2, &["`192.0.2.256`", "0 to 255"]),
    (&["0.0.0.0:80:5000"], 2, &["`0.0.0.0`", "`*`"]),
    (&["224.0.0.1:80:5000"], 2, &["`224.0.0.1`", "multicast"]),
    (
        &["192.0.2.1:80:[::1]:5000"],
        2,
        &["192.0.2.1", "[::1]", "families"],
    ),
    (
        &["80:255.255.255.255:5000"],
        2,
        &["`255.255.255.255`", "broadcast"],
    ),
    (&["80:239.1.2.3:5000"], 2, &["`239.1.2.3`", "multicast"]),
    (&["80:0.0.0.0:5000"], 2, &["`0.0.0.0`", "`80:5000`"]),
    (&["80:10.0.0.5/24:80"], 2, &["`/24`", "prefix", "`--from`"]),
    (
        &["192.0.2.1/24:80:5000"],
        2,
        &["`/24`", "prefix", "`--from`"],
    ),
    (&["http://10.0.0.5:80"], 2, &["URL", "`80:10.0.0.5:8080`"]),
    (&["80:/tmp/sock"], 2, &["`/tmp/sock`", "path"]),
    (&["any:80:5000"], 2, &["`any`", "`*`"]),
    (&["eth0:80:5000"], 2, &["`eth0`", "`-i eth0`"]),
    (&["tcp:80:5000"], 2, &["`tcp`", "at the end"]),
    (&["53:[::1]:5353/udp"], 2, &["`[::1]`", "UDP", "`[::1]:53`"]),
    // Protocols.
    (&["80:5000/dccp"], 2, &["`dccp`", "`/tcp`", "`/udp`"]),
    (&["80:5000/icmp"], 2, &["`icmp`", "`/tcp`, `/udp` or"]),
    (
        &["80/tcp:5000"],
        2,
        &["`/tcp`", "at the end", "`80:5000/tcp`"],
    ),
    (
        &["port=80:proto=foo:toport=3"],
        2,
        &["`foo`", "`proto=tcp`, `proto=udp`"],
    ),
    (&["80:5000/"], 2, &["protocol", "`/udp`"]),
    (&["80:5000/tcp+tcp"], 2, &["`tcp`", "twice"]),
    // Rules beside each other.
    (
        &["80:5000", "80:5001"],
        2,
        &["`80:5000`", "`80:5001`", "tcp port 80"],
    ),
    (&["80:5000", "80:5000"], 2, &["`80:5000`", "tcp port 80"]),
    (
        &["80:5000/tcp+udp", "80:5001/udp"],
        2,
        &["`80:5001/udp`", "udp port 80"],
    ),
    (
        &["8000-8100:5000", "8050-8150:6000"],
        2,
        &["`8000-8100:5000`", "`8050-8150:6000`", "cross", "8050-8100"],
    ),
    (&[], 2, &["no rule", "`portfwd 80:5000`"]),
    (&["run"], 2, &["no rule", "`portfwd 80:5000`"]),
    (&["run", "-i", "eth0"], 2, &["no rule"]),
    // Words.
    (&["help"], 2, &["`help` is no command", "`portfwd --help`"]),
    (&["help", "run"], 2, &["`help` is no command"]),
    (&["lst"], 2, &["`lst` is no command", "`portfwd --help`"]),
    (&["start", "80:5000"], 2, &["`start` is no command"]),
    (&["run", "start"], 2, &["`start` is no command"]),
    (&["80:5000", "dry-run"], 2, &["`dry-run` is no command"]),
    (&["80:5000", "run"], 2, &["`run`", "first"]),
    // Options.
    (
        &["--frobnicate", "80:5000"],
        2,
        &["'--frobnicate'", "`portfwd --help`"],
    ),
    (&["run", "-x", "80:5000"], 2, &["'-x'", "`portfwd --help`"]),
    (
        &["--name", "web", "80:5000", "81:5001"],
        2,
        &["`--name web`", "2 rules"],
    ),
    (
        &["--name", "we\n\nb", "80:5000"],
        2,
        &["`--name we\\n\\nb`", "control character"],
    ),
    (
        &["--name", LONG_NAME, "80:5000"],
        2,
        &[LONG_NAME, "65 characters", "at most 64"],
    ),
    (
        &["--from", "10.0.0/8", "80:5000"],
        2,
        &["`--from 10.0.0/8`", "`192.0.2.0/24`"],
    ),
    (
        &["--from", "10.0.0.0/33", "80:5000"],
        2,
        &["`--from 10.0.0.0/33`"],
    ),
    (
        &["--from", "192.0.2.2,home", "80:5000"],
        2,
        &["`--from home`"],
    ),
    (&["--from", "", "80:5000"], 2, &["--from"]),
    (
        &["--from", "203.0.113.5/24", "80:5000"],
        2,
        &["`--from 203.0.113.5/24`", "`203.0.113.0/24`"],
    ),
    (
        &["--from", "::ffff:10.0.0.0/104", "80:5000"],
        2,
        &["`--from ::ffff:10.0.0.0/104`", "`10.0.0.0/8`"],
    ),
    (
        &["--from", "2001:db8::/64", "192.0.2.1:443:8443"],
        2,
        &["`192.0.2.1:443:8443`", "`--from 2001:db8::/64`", "IPv4"],
    ),
    (
        &["--from", "192.0.2.0/24", "80:[2001:db8::2]:8080"],
        2,
        &["`80:[2001:db8::2]:8080`", "`--from 192.0.2.0/24`", "IPv6"],
    ),
    (
        &["--stats", "0", "80:5000"],
        2,
        &["'0'", "--stats", "from 1 to", "`--stats 10`"],
    ),
    (&["--stats", "often", "80:5000"], 2, &["'often'", WHOLE]),
    (&["--stats", "0.5", "80:5000"], 2, &["'0.5'", WHOLE]),
    (&["--stats", "1s", "80:5000"], 2, &["'1s'", WHOLE]),
    (&["80:5000", "--stats"], 2, &["--stats", "value"]),
    (
        &["--mode", "xyz", "80:5000"],
        2,
        &["'xyz'", "--mode", "auto, xdp, xdp-generic, tc"],
    ),
    (
        &["--nat", "always", "80:5000"],
        2,
        &["'always'", "--nat", "auto, masquerade, preserve"],
    ),
    (&["--nat", "", "80:5000"], 2, &["--nat", "value"]),
    (
        &["--max-flows", "0", "80:5000"],
        2,
        &["'0'", "--max-flows", "from 1 to 16777216"],
    ),
    (
        &["--max-flows", "16777217", "80:5000"],
        2,
        &["'16777217'", "--max-flows", "from 1 to 16777216"],
    ),
    (
        &["--max-flows", "many", "80:5000"],
        2,
        &["'many'", WHOLE, "`--max-flows 262144`"],
    ),
    (&["--max-flows", "1k", "80:5000"], 2, &["'1k'", WHOLE]),
    (
        &["--max-flows", "131,072", "80:5000"],
        2,
        &["'131,072'", WHOLE],
    ),
    (
        &["--max-flows", "99999999999999999999", "80:5000"],
        2,
        &["'99999999999999999999'", WHOLE],
    ),
    (&["--cgroup", "", "80:5000"], 2, &["--cgroup", "value"]),
    (
        &["--cgroup", "/x", "--no-local", "80:5000"],
        2,
        &["--cgroup", "`--no-local`"],
    ),
    (&["-i", "", "80:5000"], 2, &["--iface", "value"]),
    (&["--netns", "", "80:5000"], 2, &["--netns", "value"]),
    (&["-v", "run", "80:5000"], 2, &["`run`", "first"]),
    // Modes.
    (
        &["--mode", "xdp", "80:10.0.0.5:8080"],
        2,
        &["`--mode xdp`", "`any`", "`-i eth0`"],
    ),
    (
        &["-m", "xdp-generic", "-i", "any", "80:10.0.0.5:8080"],
        2,
        &["`--mode xdp-generic`", "`any`", "`-i eth0`"],
    ),
    (
        &["-m", "xdp", "-i", "lo", "80:10.0.0.5:8080"],
        2,
        &["`--mode xdp`", "`lo` stays on TC"],
    ),
    (
        &["-m", "xdp", "-i", "eth0", "80:5000", "81:127.0.0.1:5000"],
        2,
        &["`--mode xdp`", "nothing to do", "leave it out"],
    ),
    (
        &["-m", "tc", "--force", "80:5000"],
        2,
        &["`--force`", "`--mode tc`"],
    ),
    // What comes later.
    (
        &["80:10.0.0.2:8080,10.0.0.3:8080*3"],
        2,
        &["several targets", "not yet"],
    ),
    (&["80:5000/sctp"], 2, &["sctp", "not yet"]),
    (&["80:5000/tcp+sctp"], 2, &["sctp", "not yet"]),
];

/// Depends on the machine: on [`host`].
const MACHINE: &[Row] = &[
    (
        &["-i", "eth7", "80:5000"],
        1,
        &["eth7", "does not exist", "eth0"],
    ),
    (
        &["-i", "eth0", "-i", "eth7", "80:5000"],
        1,
        &["eth7", "does not exist"],
    ),
    (
        &["-i", "eth0,eth7", "80:5000"],
        1,
        &["eth0,eth7", "does not exist"],
    ),
    (
        &["-i", "eth0\neth7", "80:5000"],
        1,
        &["eth0\\neth7", "does not exist"],
    ),
    (
        &["-i", "port0", "80:5000"],
        1,
        &["port0", "port of br0", "name br0"],
    ),
    // A mode that cannot work.
    (
        &["-m", "xdp", "-i", "eth0", "80:192.0.2.1:5000"],
        1,
        &["`--mode xdp`", "nothing to do", "leave it out"],
    ),
    (
        &["-m", "xdp", "-i", "eth0", "80:192.0.2.9:5000"],
        1,
        &[
            "`--mode xdp`",
            "eth0",
            "XDP can send by no device",
            "GRO on",
        ],
    ),
    (
        &["-m", "xdp", "-i", "br0", "80:192.0.2.9:5000"],
        1,
        &["`--mode xdp`", "br0", "driver has no XDP", "`--mode auto`"],
    ),
    (
        &["-m", "xdp", "-i", "tun0", "80:192.0.2.9:5000"],
        1,
        &["`--mode xdp`", "tun0", "no Ethernet header"],
    ),
    (
        &["-m", "xdp-generic", "-i", "gro0", "80:192.0.2.9:5000"],
        1,
        &["`--mode xdp-generic`", "GRO", "`ethtool -K gro0 gro off`"],
    ),
    (
        &["-m", "xdp-generic", "-i", "far0", "80:192.0.2.9:5000"],
        1,
        &["`--mode xdp-generic`", "far0", "its index is 65536 or more"],
    ),
    (
        &["--netns", "nowhere", "80:5000"],
        1,
        &["`nowhere`", "does not exist"],
    ),
    (&["--netns", "no\nwhere", "80:5000"], 1, &["does not exist"]),
    (
        &["--netns", "/run/nowhere", "80:5000"],
        1,
        &["`/run/nowhere`"],
    ),
    (
        &["--netns", "/proc/self/status", "80:5000"],
        1,
        &["`/proc/self/status`", "not a network namespace"],
    ),
];

/// A host with `eth0` and a bridge `br0` whose port is `port0`; without
/// addresses, one without an Ethernet header, one that puts packets together,
/// and one with a high index.
fn host() -> Netns {
    let ns = Netns::new();
    ns.ip("link add eth0 type veth peer name wire
         link add port0 type veth peer name cable
         link add br0 type bridge
         link add gro0 type veth peer name pulse
         link add far0 index 70000 type veth peer name away
         tuntap add dev tun0 mode tun
         link set port0 master br0
         link set wire up
         link set eth0 up
         link set cable up
         link set port0 up
         link set br0 up
         address add 192.0.2.1/24 dev eth0
         address add 2001:db8:a::1/64 dev eth0 nodad");
    for device in ["eth0", "wire", "port0", "cable", "br0"] {
        ns.until_running(device);
    }
    ns.sh("ethtool -K gro0 gro on");
    ns
}

/// Checks exit code and sentence.
#[track_caller]
fn check(refusal: &Refusal, code: i32, words: &[&str]) {
    let Refusal {
        code: actual,
        stdout,
        stderr,
    } = refusal;
    assert_eq!(*actual, Some(code), "{stderr}");
    assert_eq!(stdout, "", "nothing goes to stdout: {stderr}");
    assert!(stderr.starts_with("portfwd: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    assert!(
        !stderr.trim_end().contains(|c: char| c.is_control()),
        "no control characters: {stderr:?}"
    );
    for word in words.iter().copied() {
        assert!(stderr.contains(word), "{word:?} is missing: {stderr}");
    }
}

/// Checks each row, and that it changed nothing.
fn check_all<'a>(ns: &Netns, rows: impl IntoIterator<Item = Row<'a>>) {
    let before = State::of(ns);
    let mut failures = Vec::new();
    for (args, code, words) in rows {
        let row = || {
            check(&Portfwd::refused(ns, args), code, words);
            before.assert_unchanged(&State::of(ns), "afterwards");
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(row)).is_err() {
            failures.push(args);
        }
    }
    assert!(failures.is_empty(), "wrong, see above: {failures:#?}");
}

/// The command with what runs in its process before it starts.
fn prepared(
    mut command: Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Command {
    // SAFETY: every caller only makes system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    command
}

fn answer(result: i64) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The binary where every user may run it.
struct Public(PathBuf);

impl Public {
    fn new() -> Self {
        let folder = env::temp_dir().join(format!("portfwd-test-{}", process::id()));
        fs::create_dir_all(&folder).expect("there is room for a folder");
        let copy = Self(folder);
        for (path, from) in [(copy.0.clone(), None), (copy.binary(), Some(binary()))] {
            if let Some(from) = from {
                fs::copy(from, &path).expect("there is room for the binary");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        copy
    }

    fn binary(&self) -> PathBuf {
        self.0.join("portfwd")
    }
}

impl Drop for Public {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn what_is_wrong_from_the_text_is_refused_with_exit_2() {
    check_all(&host(), TEXT.iter().copied());
}

#[test]
fn what_does_not_fit_the_machine_is_refused_with_exit_1() {
    check_all(&host(), MACHINE.iter().copied());
}

#[test]
fn what_is_not_built_is_refused_as_not_yet() {
    let ns = host();
    let verbs = LATER_VERBS.map(|words| (words.to_vec(), format!("`{}`", words[0])));
    let options = LATER_OPTIONS.map(|(words, named)| {
        let args = [words, &["80:5000"]].concat();
        (args, named.to_owned())
    });
    let behind = (vec!["-v", "up", "80:5000"], "`up`".to_owned());
    let rows: Vec<(Vec<&str>, [&str; 2])> = verbs
        .iter()
        .chain(&options)
        .chain([&behind])
        .map(|(args, named)| (args.clone(), [named.as_str(), "not yet"]))
        .collect();
    let rows = rows.iter();
    check_all(&ns, rows.map(|(args, words)| (&args[..], 2, &words[..])));
}

#[test]
fn a_port_of_a_bond_is_refused() {
    let ns = host();
    let bond = ns
        .command("ip")
        .args(["link", "add", "bond0", "type", "bond"])
        .output();
    if !bond.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this kernel has no bonds");
        return;
    }
    ns.ip("link set eth0 down\nlink set eth0 master bond0\nlink set bond0 up");
    check_all(
        &ns,
        [(
            &["-i", "eth0", "80:5000"][..],
            1,
            &["eth0", "port of bond0", "name bond0"][..],
        )],
    );
}

#[test]
fn without_root_it_says_so() {
    let (ns, public) = (host(), Public::new());
    let before = State::of(&ns);
    let nobody = |args: &[&str]| {
        let mut command = prepared(ns.command(text(&public.binary())), || {
            const NOBODY: libc::uid_t = 65534;
            // SAFETY: three system calls; the list of groups is empty.
            unsafe {
                answer(libc::setgroups(0, std::ptr::null()).into())?;
                answer(libc::setresgid(NOBODY, NOBODY, NOBODY).into())?;
                answer(libc::setresuid(NOBODY, NOBODY, NOBODY).into())
            }
        });
        command.args(args);
        Portfwd::refused_command(command)
    };
    check(&nobody(&["80:5000"]), 1, &["root", "sudo"]);
    check(
        &nobody(&["-i", "eth0", "80:5000/udp"]),
        1,
        &["root", "sudo"],
    );
    check(
        &nobody(&["--netns", ns.name(), "80:5000"]),
        1,
        &[ns.name(), "root", "sudo"],
    );
    // What is wrong anyway is said first: root would not help.
    check(&nobody(&["80:0"]), 2, &["`80:0`"]);

    let mut powerless = prepared(ns.command(text(&public.binary())), || {
        for capability in CAPABILITIES {
            // SAFETY: a system call without pointers.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            answer(result.into())?;
        }
        Ok(())
    });
    powerless.arg("80:5000");
    let refusal = Portfwd::refused_command(powerless);
    check(&refusal, 1, &["CAP_NET_ADMIN", "CAP_BPF", "missing"]);
    before.assert_unchanged(&State::of(&ns), "afterwards");
}

#[test]
fn a_kernel_that_is_too_old_is_refused() {
    let ns = host();
    let before = State::of(&ns);
    let mut old = prepared(ns.command(text(&binary())), || {
        // SAFETY: a system call without pointers.
        answer(unsafe { libc::personality(UNAME26) }.into())
    });
    old.args(["-i", "eth0", "80:5000"]);
    check(
        &Portfwd::refused_command(old),
        1,
        &["kernel 2.6", "too old", "5.10"],
    );
    before.assert_unchanged(&State::of(&ns), "afterwards");
}

#[test]
fn a_second_run_in_a_namespace_is_told_who_is_there() {
    let world = World::direct();
    let _server = world.host.tcp_server(Listen::DualStack, 5000);
    let first = world.host.portfwd("-i eth0 80:5000");
    let running = State::of(&world.host.ns);
    let pid = format!("pid {}", first.pid());
    let words = [pid.as_str(), "already", "`portfwd add`"];

    let ns = &world.host.ns;
    check(&Portfwd::refused(ns, &["81:5000"]), 1, &words);
    check(&Portfwd::refused(ns, &["-i", "eth0", "80:5000"]), 1, &words);
    let other = Netns::new();
    check(
        &Portfwd::refused(&other, &["--netns", ns.name(), "81:5000"]),
        1,
        &words,
    );
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", ns.name(), text(&binary()), "81:5000"]);
    check(&Portfwd::refused_command(inside), 1, &words);

    running.assert_unchanged(&State::of(ns), "after four refusals");
    for family in portfwd_tests::Family::BOTH {
        let served = world.tcp(portfwd_tests::Way::Remote(family), 80).open();
        assert!(served.expect("the first still serves").client_is_kept());
    }
    assert!(state::files(&other).is_empty());
}

/// Each with mounts of its own, in which one place is not to be written.
#[test]
fn where_nothing_may_be_written_nothing_is_left_attached() {
    let ns = host();
    let before = State::of(&ns);
    let rows: [(&str, &str, &[&str]); 4] = [
        (
            "mount -t bpf -o ro bpf /sys/fs/bpf",
            "80:5000",
            &["/sys/fs/bpf"],
        ),
        (
            "mount -t tmpfs -o ro tmpfs /sys/fs",
            "80:5000",
            &["no bpffs", "`sudo mount -t bpf bpf /sys/fs/bpf`"],
        ),
        ("mount -t tmpfs -o ro tmpfs /run", "80:5000", &["/run"]),
        // After everything is attached.
        (
            "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys",
            "53:127.0.0.1:5353/udp",
            &["/proc/sys", "route_localnet"],
        ),
    ];
    for (mounts, rule, words) in rows {
        let mut command = ns.command("unshare");
        let line = format!("{mounts}; exec {} {rule}", binary().display());
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &line]);
        check(&Portfwd::refused_command(command), 1, words);
        before.assert_unchanged(&State::of(&ns), mounts);
    }
}

/// A reader that has gone changes neither the exit code nor anything else.
#[test]
fn an_error_that_nobody_reads_is_still_the_exit_code() {
    let (reader, writer) = io::pipe().expect("a descriptor is free");
    drop(reader);
    let status = Command::new(binary()).arg("80:0").stderr(writer).status();
    assert_eq!(status.expect("it starts").code(), Some(2));
}

#[test]
fn help_and_version_are_on_stdout() {
    for words in [&["--help"][..], &["-h"], &["run", "--help"]] {
        let help = printed(words);
        let of_run = words.len() > 1;
        for option in OPTIONS {
            let there = help.contains(option);
            assert!(
                there || of_run && option == "-V, --version",
                "{option} is missing:\n{help}"
            );
        }
        for (_, named) in LATER_OPTIONS {
            let named = named.trim_matches('`');
            assert!(!help.contains(named), "{named} is not built:\n{help}");
        }
        for verb in LATER_VERBS.map(|words| words[0]) {
            let listed = |line: &str| line.split_whitespace().next() == Some(verb);
            assert!(!help.lines().any(listed), "{verb} is not built:\n{help}");
        }
        for word in ["-f,", "sctp"] {
            assert!(!help.contains(word), "{word} is not built:\n{help}");
        }
    }
    for words in [&["--version"][..], &["-V"]] {
        let version = printed(words);
        let number = version.strip_prefix("portfwd ").unwrap_or_default();
        assert!(
            number.starts_with(|c: char| c.is_ascii_digit()),
            "{version}"
        );
        assert_eq!(version.lines().count(), 1);
    }
}

/// What it prints on stdout, and nothing on stderr, when it ends with success.
#[track_caller]
fn printed(words: &[&str]) -> String {
    let output = Command::new(binary())
        .args(words)
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{words:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
