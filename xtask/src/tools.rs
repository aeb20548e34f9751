//! The programs that the demo and the tests call, by Debian package.

use anyhow::{Result, bail};

use crate::{setup, setup::Mode, shell};

/// Program and package. What is always there (util-linux, coreutils) is not listed.
const TOOLS: &[Tool] = &[
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("socat", "socat"),
    ("tcpdump", "tcpdump"),
];

/// What the benchmark compares with, beside the tools of the tests. The name of
/// the program is that of its service, too.
const RIVALS: &[Rival] = &[
    Rival {
        program: "haproxy",
        packages: &["haproxy"],
    },
    Rival {
        program: "nginx",
        packages: &["nginx", "libnginx-mod-stream"],
    },
    Rival {
        program: "rinetd",
        packages: &["rinetd"],
    },
];

struct Rival {
    program: &'static str,
    packages: &'static [&'static str],
}

type Tool = (&'static str, &'static str);

/// Finds or installs every tool.
pub fn all(mode: Mode) -> Result<()> {
    ensure(mode, TOOLS)
}

/// Finds or installs the tools of the demo.
pub fn for_demo() -> Result<()> {
    ensure(Mode::Install, &[("curl", "curl"), ("ip", "iproute2")])
}

/// Finds or installs the tools of the benchmark. A rival that cannot be
/// installed does not take part, which the benchmark says.
pub fn for_bench() -> Result<()> {
    ensure(Mode::Install, TOOLS)?;
    for Rival { program, packages } in RIVALS {
        if shell::find(program).is_some() {
            continue;
        }
        let installed = setup::apt_install_at_rest(packages, program);
        if let Err(error) = installed {
            eprintln!("{error:#}: going on without {program}");
        }
    }
    Ok(())
}

/// The programs that are not there.
pub fn missing() -> Vec<&'static str> {
    absent(TOOLS).map(|(program, _)| *program).collect()
}

fn ensure(mode: Mode, tools: &'static [Tool]) -> Result<()> {
    let (programs, packages): (Vec<_>, Vec<_>) = absent(tools).copied().unzip();
    if programs.is_empty() {
        return Ok(());
    }
    let names = programs.join(", ");
    if shell::find("apt-get").is_none() {
        bail!("these programs are missing, and there is no apt-get to install them: {names}");
    }
    eprintln!("missing: {names}");
    setup::apt_install(mode, &packages)?;
    let still: Vec<_> = absent(tools).map(|(program, _)| *program).collect();
    if mode == Mode::Install && !still.is_empty() {
        bail!(
            "these programs are still missing after the installation: {}",
            still.join(", ")
        );
    }
    Ok(())
}

fn absent(tools: &'static [Tool]) -> impl Iterator<Item = &'static Tool> {
    tools
        .iter()
        .filter(|(program, _)| shell::find(program).is_none())
}
