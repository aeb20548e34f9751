//! News of the host: that something changed, and hardly what.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::devices::no_netlink;
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
    quiet_until: Instant,
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
    pub async fn changed(&mut self) -> Result<News, Error> {
        sleep_until(self.quiet_until).await;
        loop {
            let mut ready = self
                .socket
                .readable()
                .await
                .map_err(|error| no_netlink(&error))?;
            let news = drain(ready.get_inner()).map_err(|errno| no_netlink(&errno.into()))?;
            ready.clear_ready();
            if let Some(news) = news {
                self.quiet_until = Instant::now() + PAUSE;
                return Ok(news);
            }
        }
    }
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
    // SAFETY: the `AsyncFd` owns the descriptor, which stays open and the same
    // until it is dropped; nothing takes it out.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(
        |error| {
            io::Error::from(error)
                .raw_os_error()
                .map_or(Errno::EIO, Errno::from_raw)
        },
    )?;
    Ok(Watch {
        socket,
        quiet_until: Instant::now(),
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
    use super::*;

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
