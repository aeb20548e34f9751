//! Others who forward ports, set up as somebody would who knows them well and
//! wants one port forwarded on one CPU.

mod kernel;
mod proxy;

pub use self::proxy::remove_folders_of_the_dead;

use std::{env, net::SocketAddr};

use anyhow::Result;
use portfwd_tests::Netns;

use self::proxy::Proxy;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rival {
    /// nftables, all ports in one map.
    NftMap,
    /// nftables, a chain with a rule for each port.
    NftChain,
    /// iptables, as the distribution has it.
    Iptables,
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// socat, a process for each connection.
    Socat,
    /// rinetd.
    Rinetd,
    /// realm.
    Realm,
}

/// What a rival is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The address and port of the host that are dialled.
    pub listen: SocketAddr,
    /// Where connections go.
    pub to: To,
}

/// Where connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// A port of this host.
    Local(u16),
    /// Another host, which sees the client's address where the rival can.
    Remote(SocketAddr),
    /// Another host, which sees this host's address.
    Masqueraded(SocketAddr),
}

impl To {
    /// What a program that connects by itself dials.
    fn dialled(self, listen: SocketAddr) -> SocketAddr {
        match self {
            Self::Local(port) => (portfwd_tests::Family::of(listen.ip()).loopback(), port).into(),
            Self::Remote(to) | Self::Masqueraded(to) => to,
        }
    }
}

/// A rival at work; ended on drop. What it left in the namespace goes with
/// that.
#[derive(Debug)]
pub enum Running {
    /// Rules of the kernel.
    Kernel,
    /// A process.
    Process(Proxy),
}

impl Running {
    /// Fails when it has ended, with what it said.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn check(&mut self) -> Result<()> {
        match self {
            Self::Kernel => Ok(()),
            Self::Process(proxy) => proxy.check(),
        }
    }

    /// Its process, if it has one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Kernel => None,
            Self::Process(proxy) => Some(proxy.pid()),
        }
    }
}

impl Rival {
    /// All of them, those of the kernel first.
    pub const ALL: [Self; 8] = [
        Self::NftMap,
        Self::NftChain,
        Self::Iptables,
        Self::Haproxy,
        Self::Nginx,
        Self::Socat,
        Self::Rinetd,
        Self::Realm,
    ];

    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NftMap => "nft map",
            Self::NftChain => "nft chain",
            Self::Iptables => "iptables",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx stream",
            Self::Socat => "socat",
            Self::Rinetd => "rinetd",
            Self::Realm => "realm",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::NftMap | Self::NftChain => "nft",
            Self::Iptables => "iptables",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Socat => "socat",
            Self::Rinetd => "rinetd",
            Self::Realm => "realm",
        }
    }

    /// Whether it can take part.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn available(self) -> Result<(), String> {
        let program = self.program();
        if !is_on_path(program) {
            return Err(format!("{program} is not on PATH"));
        }
        if self == Self::Nginx && proxy::nginx_stream_module().is_none() {
            return Err("nginx has no stream module".to_owned());
        }
        Ok(())
    }

    /// Whether it is a process for each connection: these come and go, so what
    /// they cost is not known.
    pub fn forks(self) -> bool {
        self == Self::Socat
    }

    /// Sets it up on the host. It need not serve yet when this returns.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(self, host: &Netns, rule: &Rule) -> Result<Running> {
        match self {
            Self::NftMap => kernel::nft(host, &kernel::map(rule)),
            Self::NftChain => kernel::nft(host, &kernel::chain(rule)),
            Self::Iptables => kernel::iptables(host, rule),
            Self::Haproxy => return proxy::haproxy(host, rule).map(Running::Process),
            Self::Nginx => return proxy::nginx(host, rule).map(Running::Process),
            Self::Socat => return proxy::socat(host, rule).map(Running::Process),
            Self::Rinetd => return proxy::rinetd(host, rule).map(Running::Process),
            Self::Realm => return proxy::realm(host, rule).map(Running::Process),
        }
        Ok(Running::Kernel)
    }
}

fn is_on_path(program: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks.
    let mut folders = env::split_paths(&folders).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.any(|folder| folder.join(program).is_file())
}
