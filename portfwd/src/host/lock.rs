//! One forwarder per network namespace.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::RUN_DIR;
use crate::Error;

/// How often the file or its folder may vanish under us before we give up.
const ATTEMPTS: usize = 100;

/// How long a start waits for one in another namespace, which holds the lock
/// for a moment while it removes what a dead run left here.
const MOMENTS: u32 = 5;
const MOMENT: Duration = Duration::from_millis(10);

/// The lock of a network namespace, held until it is dropped; the kernel
/// releases it when the process dies.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of the namespace with this cookie. Where another
    /// process holds it, an error that names that process.
    pub fn acquire(cookie: &str) -> Result<Self, Error> {
        for _ in 0..MOMENTS {
            if let Some(lock) = Self::try_acquire(cookie) {
                return Ok(lock);
            }
            thread::sleep(MOMENT);
        }
        Self::acquire_in(Path::new(RUN_DIR), cookie)
    }

    /// The same where it does not matter why it cannot be taken.
    pub fn try_acquire(cookie: &str) -> Option<Self> {
        Self::acquire_in(Path::new(RUN_DIR), cookie).ok()
    }

    fn acquire_in(folder: &Path, cookie: &str) -> Result<Self, Error> {
        let path = folder.join(format!("{cookie}.lock"));
        for _ in 0..ATTEMPTS {
            if let Some(lock) = Self::attempt(folder, &path)? {
                return Ok(lock);
            }
        }
        Err(Error::machine(format!(
            "cannot lock {}: it is removed again and again; find out by what and stop that",
            path.display()
        )))
    }

    /// `None`: the former holder removed the file or the folder after we
    /// opened it, so that ours is no longer the one that others would open.
    fn attempt(folder: &Path, path: &Path) -> Result<Option<Self>, Error> {
        create(folder).map_err(|error| refused(path, &error))?;
        let file = match open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused(path, &error)),
        };
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => return Err(taken(file)),
            Err((_, errno)) => return Err(refused(path, &errno.into())),
        };
        if !stands_at(&file, path) {
            return Ok(None);
        }
        write_pid(&mut file).map_err(|error| refused(path, &error))?;
        Ok(Some(Self {
            file,
            path: path.to_owned(),
        }))
    }
}

impl Drop for Lock {
    /// Removed while it is still locked: whoever opened it before finds out
    /// in [`Lock::attempt`], and nobody removes the file of the next holder.
    fn drop(&mut self) {
        if !stands_at(&self.file, &self.path) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
        if let Some(folder) = self.path.parent() {
            // Fails, as it should, while other namespaces have files there.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Only for root: whoever can open the file can hold the lock.
fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Whether `path` still leads to this very file.
fn stands_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", process::id())
}

fn taken(mut file: File) -> Error {
    let mut pid = String::new();
    // Empty while the holder has not written yet: the sentence does without.
    let _ = file.read_to_string(&mut pid);
    let holder = match pid.trim() {
        "" => "another portfwd".to_owned(),
        pid => format!("a portfwd (pid {pid})"),
    };
    Error::machine(format!(
        "{holder} already forwards in this network namespace; stop it and give all rules to one \
         `portfwd run`, since `portfwd add` cannot change a running one yet"
    ))
}

fn refused(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Error::machine(format!(
            "portfwd needs root to write its lock {}; run it with sudo",
            path.display()
        )),
        _ => Error::machine(format!(
            "cannot take the lock {}: {error}; see that /run is there and writable",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let held = Lock::acquire_in(folder.path(), "7").unwrap();
        let error = Lock::acquire_in(folder.path(), "7").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let message = error.to_string();
        assert!(
            message.contains(&format!("(pid {})", process::id())),
            "{message}"
        );
        assert!(message.contains("`portfwd add`"), "{message}");
        drop(held);
        Lock::acquire_in(folder.path(), "7").unwrap();
    }

    #[test]
    fn another_namespace_has_another_lock() {
        let folder = tempfile::tempdir().unwrap();
        let _one = Lock::acquire_in(folder.path(), "1").unwrap();
        let _two = Lock::acquire_in(folder.path(), "2").unwrap();
    }

    #[test]
    fn nothing_is_left_behind() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("portfwd");
        drop(Lock::acquire_in(&folder, "7").unwrap());
        assert!(!folder.exists());
    }

    #[test]
    fn the_file_of_a_dead_run_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("7.lock");
        fs::write(&path, "4194304000 and more\n").unwrap();
        let _held = Lock::acquire_in(folder.path(), "7").unwrap();
        assert_eq!(
            fs::read_to_string(path).unwrap(),
            format!("{}\n", process::id())
        );
    }

    #[test]
    fn at_most_one_holds_it_while_many_come_and_go() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("portfwd");
        let (holders, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let Ok(lock) = Lock::acquire_in(&folder, "7") else {
                            continue;
                        };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        served.fetch_add(1, Ordering::SeqCst);
                        holders.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(served.load(Ordering::SeqCst) > 0);
        assert!(!folder.exists());
    }
}
