//! News of the host: that something changed, and hardly what.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::netlink::no_netlink;
use super::routes::LONGEST_DEFAULT;
use crate::Error;

/// What to watch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Devices (new, gone, renamed, another master) and addresses.
    Devices,
    /// Routes, routing rules and neighbours as well.
    Routes,
}

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Neighbours and nothing else.
    Neighbours,
    /// Routes to networks, but no default route.
    Routes,
    /// Anything.
    Any,
}

/// Starts to watch for changes. Watch first and list then, so that nothing is
/// missed between the two.
pub fn watch(scope: Scope) -> Result<Watch, Error> {
    open_watch(scope).map_err(|errno| no_netlink(&errno.into()))
}

/// What came in since the last look, hardly saying what: list again.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
    /// News of drivers, where they matter.
    drivers: Option<AsyncFd<OwnedFd>>,
    quiet_until: Instant,
    /// How often in a row they could not be read.
    failures: u32,
}

/// News come no closer together than this, however much changes.
const PAUSE: Duration = Duration::from_millis(100);

impl Watch {
    /// Returns when something may have changed since the last return; many
    /// changes at once count as one, and so do those of a tenth of a second.
    /// Nothing is lost when the future is dropped before it is ready.
    ///
    /// Only the kind of a message is read: an overrun of the buffer
    /// (`ENOBUFS`) and a message of a later kernel are news of anything.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where they cannot be read; they are read again after
    /// a [`pause`].
    pub async fn changed(&mut self) -> Result<News, Error> {
        sleep_until(self.quiet_until).await;
        let news = self.next().await;
        let quiet = match news {
            Ok(_) => {
                self.failures = 0;
                PAUSE
            }
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                pause(self.failures - 1)
            }
        };
        self.quiet_until = Instant::now() + quiet;
        news
    }

    /// Hears from now on of what changes in drivers too, by the group that
    /// tells of it ([`super::drivers::Drivers::changes`]).
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where the kernel does not let us.
    pub fn hear_of_drivers(&mut self, group: u32) -> Result<(), Error> {
        let heard = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.add_membership(group)?;
            let socket = socket.as_fd().try_clone_to_owned()?;
            Ok(readable(socket)?)
        };
        let drivers = heard().map_err(|error| no_netlink(&error))?;
        self.drivers = Some(drivers);
        Ok(())
    }

    async fn next(&self) -> Result<News, Error> {
        let Some(drivers) = &self.drivers else {
            return heard(&self.socket).await;
        };
        tokio::select! {
            news = heard(&self.socket) => news,
            // Their numbers mean something else in that protocol.
            news = heard(drivers) => news.map(|_| News::Any),
        }
    }
}

async fn heard(socket: &AsyncFd<OwnedFd>) -> Result<News, Error> {
    loop {
        let ready = socket.readable().await;
        let mut ready = ready.map_err(|error| no_netlink(&error))?;
        let news = drain(ready.get_inner());
        ready.clear_ready();
        if let Some(news) = news.map_err(|errno| no_netlink(&errno.into()))? {
            return Ok(news);
        }
    }
}

/// How long what failed so often before is left alone: from a second to a
/// little over an hour, for each repeat tells of the failure again.
pub fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(12))
}

impl Scope {
    const fn groups(self) -> libc::c_int {
        let devices = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        match self {
            Self::Devices => devices,
            Self::Routes => {
                devices
                    | libc::RTMGRP_IPV4_ROUTE
                    | libc::RTMGRP_IPV6_ROUTE
                    | libc::RTMGRP_IPV4_RULE
                    | IPV6_RULE
                    | NEXT_HOP
                    | libc::RTMGRP_NEIGH
            }
        }
    }
}

/// `RTNLGRP_IPV6_RULE` and `RTNLGRP_NEXTHOP` as bits (linux/rtnetlink.h).
const IPV6_RULE: libc::c_int = 1 << (19 - 1);
const NEXT_HOP: libc::c_int = 1 << (32 - 1);

fn open_watch(scope: Scope) -> nix::Result<Watch> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(
        socket.as_raw_fd(),
        &NetlinkAddr::new(0, scope.groups().cast_unsigned()),
    )?;
    listen(socket)
}

fn listen(socket: OwnedFd) -> nix::Result<Watch> {
    Ok(Watch {
        socket: readable(socket)?,
        drivers: None,
        quiet_until: Instant::now(),
        failures: 0,
    })
}

fn readable(socket: OwnedFd) -> nix::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, which stays open and the same
    // until it is dropped; nothing takes it out.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(|error| {
        io::Error::from(error)
            .raw_os_error()
            .map_or(Errno::EIO, Errno::from_raw)
    })
}

/// Empties the socket, and what was in it.
fn drain(socket: &OwnedFd) -> nix::Result<Option<News>> {
    let mut news = None;
    // What does not fit is cut off.
    let mut header = [0; HEADER];
    loop {
        match recv(socket.as_raw_fd(), &mut header, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => news = news.max(Some(told_by(&header))),
            Err(Errno::ENOBUFS) => news = Some(News::Any),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(news),
            Err(errno) => return Err(errno),
        }
    }
}

/// `struct nlmsghdr`, and of `struct rtmsg` the family and the length of the
/// destination's prefix.
const HEADER: usize = 16 + 2;

fn told_by(header: &[u8; HEADER]) -> News {
    let prefix = header[17];
    match u16::from_ne_bytes([header[4], header[5]]) {
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => News::Neighbours,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE if prefix > LONGEST_DEFAULT => News::Routes,
        _ => News::Any,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_cannot_be_read_is_left_alone_for_longer_each_time() {
        // Ready to be read, and no socket.
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(writer);
        let mut watch = listen(reader.into()).expect("a watch");
        for seconds in [1, 2, 4] {
            let before = Instant::now();
            assert!(watch.changed().await.is_err());
            assert!(watch.quiet_until >= before + Duration::from_secs(seconds));
            assert!(watch.changed().now_or_never().is_none());
            let (reader, _) = io::pipe().expect("a pipe");
            let next = listen(reader.into()).expect("a watch");
            watch.socket = next.socket;
            watch.quiet_until = next.quiet_until;
        }
    }

    #[test]
    fn a_message_tells_what_is_to_be_asked_again() {
        let told = |kind: u16, prefix| {
            let mut header = [0; HEADER];
            header[4..6].copy_from_slice(&kind.to_ne_bytes());
            header[17] = prefix;
            told_by(&header)
        };
        assert_eq!(told(libc::RTM_NEWNEIGH, 0), News::Neighbours);
        assert_eq!(told(libc::RTM_NEWROUTE, 24), News::Routes);
        for prefix in [0, 1, 3] {
            assert_eq!(told(libc::RTM_DELROUTE, prefix), News::Any);
        }
        for kind in [libc::RTM_DELLINK, libc::RTM_NEWADDR, 0] {
            assert_eq!(told(kind, 24), News::Any);
        }
        let [none, neighbours, routes, any] = [
            None,
            Some(News::Neighbours),
            Some(News::Routes),
            Some(News::Any),
        ];
        assert!(none < neighbours && neighbours < routes && routes < any);
    }
}
