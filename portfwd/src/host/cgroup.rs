//! The cgroup whose programs are served as clients on this host.

use std::{
    ffi::{CStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStringExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    ptr,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::Error;

/// `FSCONFIG_CMD_CREATE` of linux/mount.h.
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// The root of cgroup2, wherever it is mounted, or even if it is mounted out of
/// our sight, as `ip netns exec` does it.
///
/// # Errors
///
/// [`Error::Machine`] where no cgroup2 is mounted.
pub fn root() -> Result<File, Error> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let visible = roots(&mounts).find_map(|path| directory(&path).ok());
    match visible {
        Some(root) => Ok(root),
        None if is_mounted() => detached().map_err(|error| none(&format!(" in sight ({error})"))),
        None => Err(none("")),
    }
}

/// The cgroup at a path.
///
/// # Errors
///
/// [`Error::Machine`] where it is no directory of cgroup2.
pub fn at(path: &Path) -> Result<File, Error> {
    directory(path).map_err(|why| {
        Error::machine(format!(
            "`--cgroup {}`: {why}; name a directory of a mounted cgroup2, such as \
             /sys/fs/cgroup/system.slice",
            path.display()
        ))
    })
}

fn directory(path: &Path) -> Result<File, String> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "there is no such directory".to_owned(),
            io::ErrorKind::NotADirectory => "that is no directory".to_owned(),
            _ => format!("it cannot be opened: {error}"),
        })?;
    match fstatfs(&directory) {
        Ok(status) if status.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(directory),
        Ok(_) => Err("that directory is not of cgroup2".to_owned()),
        Err(errno) => Err(format!("it cannot be read: {}", errno.desc())),
    }
}

fn none(where_: &str) -> Error {
    Error::machine(format!(
        "no cgroup2 is mounted{where_}, and without one clients on this host cannot be sent to \
         other hosts; name one with `--cgroup PATH`, or give `--no-local`"
    ))
}

/// Where the roots of cgroup2 are mounted, by proc_pid_mountinfo(5).
fn roots(mounts: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mounts.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let is_root = filesystem.starts_with("cgroup2 ") && root == "/";
        is_root.then(|| unescaped(point))
    })
}

/// A path with its blanks, which stand as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3).and_then(octal))
            .flatten();
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Is cgroup2 mounted somewhere? Then every process is in one of its cgroups.
fn is_mounted() -> bool {
    fs::read_to_string("/proc/self/cgroup")
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("0::")))
}

/// The root of cgroup2 by a mount of our own that is nowhere to be seen and
/// gone with its last descriptor (Linux 5.2).
fn detached() -> io::Result<File> {
    let name: &CStr = c"cgroup2";
    // SAFETY: a string that ends with a zero, and numbers.
    let context =
        owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    // SAFETY: an open descriptor; this command takes neither key nor value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            ptr::null::<libc::c_char>(),
            ptr::null::<libc::c_char>(),
            0,
        )
    };
    if created != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: an open descriptor and numbers.
    let mount = owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            0,
        )
    })?;
    // The mount's own descriptor is good for paths only.
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    directory(Path::new(&path)).map_err(io::Error::other)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_by_its_mount() {
        let mounts = "\
30 23 0:26 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw shared:5 - cgroup cgroup rw,cpu
32 30 0:28 /docker/7 /part rw shared:6 - cgroup2 cgroup2 rw
33 30 0:28 / /my\\040cgroups rw shared:6 master:7 - cgroup2 none rw
";
        assert!(roots(mounts).eq([PathBuf::from("/my cgroups")]));
        assert_eq!(unescaped("/a\\134b\\04"), Path::new("/a\\b\\04"));
    }

    #[test]
    fn what_is_no_cgroup_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (path, why) in [
            (Path::new("/no/such/cgroup"), "no such directory"),
            (file.path(), "no directory"),
            (folder.path(), "not of cgroup2"),
        ] {
            let error = at(path).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            let message = error.to_string();
            assert!(message.contains(why), "{message}");
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }
}
