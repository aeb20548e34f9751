//! The network namespace that is forwarded in.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::Error;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";

/// Enters the network namespace of `--netns NAME|PATH`: a name of `ip netns`,
/// or, with a slash in it, a path such as `/proc/PID/ns/net`. Every other
/// namespace stays, above all the mounts with the bpffs.
///
/// Only the calling thread moves, and a thread inherits the namespace of the
/// one that starts it: call this before any other thread exists, so before
/// the tokio runtime and before the first socket.
pub fn enter(name_or_path: &str) -> Result<(), Error> {
    let namespace = open(name_or_path)?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EINVAL => Error::machine(format!(
            "`{name_or_path}` is not a network namespace; {}",
            advice()
        )),
        Errno::EPERM => Error::machine(format!(
            "entering the network namespace `{name_or_path}` needs root; run portfwd with sudo"
        )),
        _ => Error::machine(format!(
            "cannot enter the network namespace `{name_or_path}`: {}; {}",
            errno.desc(),
            advice()
        )),
    })
}

/// A text that tells this network namespace from every other until the next
/// reboot, fit for a file name: its cookie, which is never reused, and before
/// 5.14, where a process cannot ask for it, its inode number.
pub fn cookie() -> Result<String, Error> {
    match cookie_number()? {
        Some(cookie) => Ok(cookie.to_string()),
        None => inode(),
    }
}

/// The cookie as programs in the kernel see it; none before 5.14.
pub fn cookie_number() -> Result<Option<u64>, Error> {
    match socket_cookie() {
        Ok(cookie) => Ok(Some(cookie)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(unknown(&error)),
    }
}

fn open(name_or_path: &str) -> Result<File, Error> {
    let path = path_of(name_or_path);
    OpenOptions::new()
        .read(true)
        // A path that happens to be a FIFO must not wait for its writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::machine(format!(
                "network namespace `{name_or_path}` does not exist; {}",
                advice()
            )),
            io::ErrorKind::PermissionDenied => Error::machine(format!(
                "opening the network namespace {} needs root; run portfwd with sudo",
                path.display()
            )),
            _ => Error::machine(format!(
                "cannot open the network namespace {}: {error}; {}",
                path.display(),
                advice()
            )),
        })
}

fn path_of(name_or_path: &str) -> PathBuf {
    if name_or_path.contains('/') {
        PathBuf::from(name_or_path)
    } else {
        Path::new(NAMED).join(name_or_path)
    }
}

/// What to try instead: the names that exist.
fn advice() -> String {
    let mut names: Vec<String> = fs::read_dir(NAMED)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        return "`ip netns` has none; give a path such as /proc/PID/ns/net".to_owned();
    }
    format!("`ip netns` has {}", names.join(", "))
}

/// `SO_NETNS_COOKIE` came with 5.14 (commit e8b9eab99232).
fn socket_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: `socket` is open for the whole call; the kernel writes at most
    // `length` bytes, the size of `cookie`, to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The thread's own namespace: `/proc/self` is that of the first thread.
fn inode() -> Result<String, Error> {
    let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(|error| unknown(&error))?;
    Ok(format!("inode-{}", namespace.ino()))
}

fn unknown(error: &io::Error) -> Error {
    Error::machine(format!(
        "cannot tell which network namespace this is ({error}); mount /proc and try again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_makes_a_path_of_a_name() {
        assert_eq!(path_of("blue"), Path::new("/run/netns/blue"));
        assert_eq!(path_of("/proc/7/ns/net"), Path::new("/proc/7/ns/net"));
        assert_eq!(path_of("./blue"), Path::new("./blue"));
    }

    #[test]
    fn a_namespace_that_does_not_exist_is_named() {
        let error = enter("no-such-namespace").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(
            error
                .to_string()
                .contains("`no-such-namespace` does not exist"),
            "{error}"
        );
    }

    #[test]
    fn the_cookie_is_a_stable_file_name() {
        let first = cookie().unwrap();
        assert_eq!(cookie().unwrap(), first);
        assert!(
            first.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "{first}"
        );
        assert!(inode().unwrap().starts_with("inode-"));
    }
}
