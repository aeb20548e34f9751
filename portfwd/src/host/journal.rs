//! The sysctls that a run changes, written down before each change, so that
//! they can be put back even by the start after a `kill -9`.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RUN_DIR;
use super::devices;
use crate::Error;

/// A sysctl of one device, `net/ipv4/conf/DEVICE/KEY` under `/proc/sys`.
///
/// The device is kept by its index: it may be renamed between the change and
/// its undoing, and its sysctls move with it. A name may hold dots, so paths
/// are built by components and never in the form of `sysctl(8)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    family: String,
    ifindex: u32,
    key: String,
}

impl Sysctl {
    /// `net/ipv4/conf/DEVICE/KEY` of the device with this index.
    pub fn ipv4(ifindex: u32, key: &str) -> Self {
        Self {
            family: "ipv4".to_owned(),
            ifindex,
            key: key.to_owned(),
        }
    }

    /// `net/ipv6/conf/DEVICE/KEY` of the device with this index.
    pub fn ipv6(ifindex: u32, key: &str) -> Self {
        Self {
            family: "ipv6".to_owned(),
            ifindex,
            key: key.to_owned(),
        }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of interface {} ({})",
            self.key, self.ifindex, self.family
        )
    }
}

/// One change: what stood there before and what we wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    #[serde(flatten)]
    sysctl: Sysctl,
    before: String,
    set: String,
}

/// The changes of this run, oldest first, and the file that holds them.
///
/// Dropping it undoes nothing: call [`Journal::undo`] on every way out.
#[derive(Debug)]
pub struct Journal {
    host: Host,
    file: PathBuf,
    changes: Vec<Change>,
}

impl Journal {
    /// The journal of the namespace with this cookie, after the changes of a
    /// dead run were undone. What cannot be undone now stays in the journal
    /// and is tried again by [`Journal::undo`]. The caller holds the lock.
    pub fn recover(cookie: &str) -> Result<Self, Error> {
        Self::recover_on(Host::default(), Path::new(RUN_DIR), cookie)
    }

    fn recover_on(host: Host, folder: &Path, cookie: &str) -> Result<Self, Error> {
        let file = folder.join(format!("{cookie}.journal"));
        let changes = read_changes(&file)?;
        let mut journal = Self {
            host,
            file,
            changes,
        };
        if !journal.changes.is_empty() {
            log::info!("undoing the changes of a run that died");
            if let Err(error) = journal.undo() {
                log::warn!("{error}");
            }
        }
        Ok(journal)
    }

    /// Writes `value` to the sysctl of a device, and whether that was a
    /// change: a value that is there already is not ours to undo.
    pub fn set(&mut self, sysctl: &Sysctl, value: &str) -> Result<bool, Error> {
        let path = self.host.path(sysctl).ok_or_else(|| {
            Error::machine(format!(
                "cannot set {sysctl}: the interface is gone; start again"
            ))
        })?;
        let failed = |what: &str, error: &io::Error| {
            Error::machine(format!(
                "cannot {what} {}: {error}; run portfwd as root where /proc/sys is writable",
                path.display()
            ))
        };
        let before = read(&path).map_err(|error| failed("read", &error))?;
        if before == value {
            return Ok(false);
        }
        self.changes.push(Change {
            sysctl: sysctl.clone(),
            before,
            set: value.to_owned(),
        });
        let written = self.save().and_then(|()| {
            fs::write(&path, value).map_err(|error| failed(&format!("write {value} to"), &error))
        });
        if let Err(error) = written {
            self.changes.pop();
            // The first error is the one to tell; a change that was never
            // made is skipped when it is undone.
            let _ = self.save();
            return Err(error);
        }
        log::info!("set {} to {value}", path.display());
        Ok(true)
    }

    /// True when the kernel goes by the sysctl on a device already: it is set
    /// for the device or for all of them.
    pub fn is_on(&self, sysctl: &Sysctl) -> Result<bool, Error> {
        let path = self.host.path(sysctl).ok_or_else(|| {
            Error::machine(format!(
                "cannot read {sysctl}: the interface is gone; start again"
            ))
        })?;
        for path in [path, self.host.path_of("all", sysctl)] {
            let value = read(&path).map_err(|error| {
                Error::machine(format!(
                    "cannot read {}: {error}; run portfwd where /proc/sys is mounted",
                    path.display()
                ))
            })?;
            if value != "0" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts every value back that is still ours, last change first, and
    /// removes the journal. An error names what could not be written; that
    /// part stays in the journal.
    pub fn undo(&mut self) -> Result<(), Error> {
        let mut failures = Vec::new();
        let mut kept = Vec::new();
        for change in self.changes.drain(..).rev() {
            if let Err(failure) = self.host.restore(&change) {
                failures.push(failure);
                kept.push(change);
            }
        }
        kept.reverse();
        self.changes = kept;
        self.save()?;
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::machine(format!(
            "cannot undo a change to this host: {}; the next start tries again, {} holds the values",
            failures.join(", "),
            self.file.display()
        )))
    }

    /// Replaces the file in one step; no changes, no file.
    fn save(&self) -> Result<(), Error> {
        let written = if self.changes.is_empty() {
            remove(&self.file)
        } else {
            replace(&self.file, &self.changes)
        };
        written.map_err(|error| {
            Error::machine(format!(
                "cannot write the journal {}: {error}; see that /run is there and writable",
                self.file.display()
            ))
        })
    }
}

/// Where sysctls stand and how devices are called: the running host, but for
/// the tests.
struct Host {
    sysctls: PathBuf,
    name_of: Box<dyn Fn(u32) -> Option<String> + Send>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            sysctls: PathBuf::from("/proc/sys"),
            name_of: Box::new(devices::name_of),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("sysctls", &self.sysctls)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// `None` where the device is gone.
    fn path(&self, sysctl: &Sysctl) -> Option<PathBuf> {
        let device = (self.name_of)(sysctl.ifindex)?;
        Some(self.path_of(&device, sysctl))
    }

    fn path_of(&self, device: &str, sysctl: &Sysctl) -> PathBuf {
        let components = ["net", &sysctl.family, "conf", device, &sysctl.key];
        components
            .iter()
            .fold(self.sysctls.clone(), |path, component| path.join(component))
    }

    fn restore(&self, change: &Change) -> Result<(), String> {
        let Some(path) = self.path(&change.sysctl) else {
            return Ok(());
        };
        match read(&path) {
            Ok(value) if value == change.set => {}
            Ok(value) if value == change.before => return Ok(()),
            Ok(value) => {
                log::warn!(
                    "left {} at {value}: it was changed by another",
                    path.display()
                );
                return Ok(());
            }
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(format!("{} cannot be read ({error})", path.display())),
        }
        match fs::write(&path, &change.before) {
            Ok(()) => log::info!("set {} back to {}", path.display(), change.before),
            Err(error) if gone(&error) => {}
            Err(error) => {
                return Err(format!(
                    "{} cannot be set to {} ({error})",
                    path.display(),
                    change.before
                ));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

/// The device went away between the lookup of its name and the access.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn read_changes(file: &Path) -> Result<Vec<Change>, Error> {
    let advice = "restore the sysctls that it names by hand and remove it";
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::machine(format!(
                "portfwd needs root to read its journal {}; run it with sudo",
                file.display()
            )));
        }
        Err(error) => {
            return Err(Error::machine(format!(
                "cannot read the journal {}: {error}; {advice}",
                file.display()
            )));
        }
    };
    serde_json::from_slice(&text).map_err(|error| {
        Error::machine(format!(
            "the journal {} of an earlier run is damaged ({error}); {advice}",
            file.display()
        ))
    })
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// A reader finds the old changes or the new ones, whatever happens.
fn replace(file: &Path, changes: &[Change]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let draft = file.with_extension("journal.new");
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    serde_json::to_writer_pretty(&mut out, changes)?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    fs::rename(&draft, file)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use tempfile::TempDir;

    use super::*;

    /// A host in a temporary folder, whose devices are folders.
    struct Fake {
        root: TempDir,
        names: Arc<Mutex<HashMap<u32, String>>>,
    }

    impl Fake {
        fn new(devices: &[(u32, &str)]) -> Self {
            let fake = Self {
                root: tempfile::tempdir().unwrap(),
                names: Arc::default(),
            };
            for (ifindex, name) in devices {
                fake.names
                    .lock()
                    .unwrap()
                    .insert(*ifindex, (*name).to_owned());
                fs::create_dir_all(fake.conf(name)).unwrap();
                fake.write(name, "0\n");
            }
            fake
        }

        fn start(&self) -> Journal {
            let names = Arc::clone(&self.names);
            let host = Host {
                sysctls: self.root.path().join("sys"),
                name_of: Box::new(move |ifindex| names.lock().unwrap().get(&ifindex).cloned()),
            };
            Journal::recover_on(host, &self.root.path().join("run"), "7").unwrap()
        }

        fn conf(&self, device: &str) -> PathBuf {
            self.root.path().join("sys/net/ipv4/conf").join(device)
        }

        fn write(&self, device: &str, value: &str) {
            fs::write(self.conf(device).join("route_localnet"), value).unwrap();
        }

        fn value(&self, device: &str) -> String {
            read(&self.conf(device).join("route_localnet")).unwrap()
        }

        fn file(&self) -> PathBuf {
            self.root.path().join("run/7.journal")
        }

        fn rename(&self, ifindex: u32, to: &str) {
            let from = self
                .names
                .lock()
                .unwrap()
                .insert(ifindex, to.to_owned())
                .unwrap();
            fs::rename(self.conf(&from), self.conf(to)).unwrap();
        }

        fn delete(&self, ifindex: u32) {
            let name = self.names.lock().unwrap().remove(&ifindex).unwrap();
            fs::remove_dir_all(self.conf(&name)).unwrap();
        }
    }

    fn route_localnet(ifindex: u32) -> Sysctl {
        Sysctl::ipv4(ifindex, "route_localnet")
    }

    #[test]
    fn a_change_is_undone_and_the_journal_removed() {
        let host = Fake::new(&[(2, "eth0.100")]);
        let mut journal = host.start();
        assert_eq!(journal.set(&route_localnet(2), "1"), Ok(true));
        assert_eq!(host.value("eth0.100"), "1");
        assert!(host.file().exists());
        journal.undo().unwrap();
        assert_eq!(host.value("eth0.100"), "0");
        assert!(!host.file().exists());
    }

    #[test]
    fn what_has_the_value_already_is_not_ours() {
        let host = Fake::new(&[(2, "eth0")]);
        host.write("eth0", "1\n");
        let mut journal = host.start();
        assert_eq!(journal.set(&route_localnet(2), "1"), Ok(false));
        assert!(!host.file().exists());
        journal.undo().unwrap();
        assert_eq!(host.value("eth0"), "1");
    }

    #[test]
    fn the_next_start_undoes_the_changes_of_a_dead_run() {
        let host = Fake::new(&[(2, "eth0"), (3, "eth1")]);
        let mut dead = host.start();
        dead.set(&route_localnet(2), "1").unwrap();
        dead.set(&route_localnet(3), "2").unwrap();
        drop(dead);
        assert_eq!(host.value("eth1"), "2");
        host.start();
        assert_eq!(
            (host.value("eth0"), host.value("eth1")),
            ("0".to_owned(), "0".to_owned())
        );
        assert!(!host.file().exists());
    }

    #[test]
    fn a_run_that_died_between_journal_and_sysctl_changes_nothing() {
        let host = Fake::new(&[(2, "eth0")]);
        host.start().set(&route_localnet(2), "1").unwrap();
        host.write("eth0", "0\n");
        host.start();
        assert_eq!(host.value("eth0"), "0");
        assert!(!host.file().exists());
    }

    #[test]
    fn a_value_that_another_wrote_stays() {
        let host = Fake::new(&[(2, "eth0")]);
        let mut journal = host.start();
        journal.set(&route_localnet(2), "1").unwrap();
        host.write("eth0", "2\n");
        journal.undo().unwrap();
        assert_eq!(host.value("eth0"), "2");
        assert!(!host.file().exists());
    }

    #[test]
    fn two_changes_of_one_sysctl_are_undone_in_reverse() {
        let host = Fake::new(&[(2, "eth0")]);
        let mut journal = host.start();
        journal.set(&route_localnet(2), "1").unwrap();
        journal.set(&route_localnet(2), "2").unwrap();
        journal.undo().unwrap();
        assert_eq!(host.value("eth0"), "0");
    }

    #[test]
    fn a_renamed_device_is_found_and_its_namesake_left_alone() {
        let host = Fake::new(&[(2, "eth0")]);
        let mut journal = host.start();
        journal.set(&route_localnet(2), "1").unwrap();
        host.rename(2, "lan0");
        fs::create_dir_all(host.conf("eth0")).unwrap();
        host.write("eth0", "1\n");
        journal.undo().unwrap();
        assert_eq!(
            (host.value("lan0"), host.value("eth0")),
            ("0".to_owned(), "1".to_owned())
        );
    }

    #[test]
    fn a_device_that_is_gone_is_ignored() {
        let host = Fake::new(&[(2, "eth0"), (3, "eth1")]);
        let mut journal = host.start();
        journal.set(&route_localnet(2), "1").unwrap();
        journal.set(&route_localnet(3), "1").unwrap();
        host.delete(3);
        journal.undo().unwrap();
        assert_eq!(host.value("eth0"), "0");
        assert!(!host.file().exists());
        assert!(matches!(
            journal.set(&route_localnet(3), "1"),
            Err(Error::Machine(_))
        ));
    }

    #[test]
    fn what_cannot_be_undone_is_kept_for_the_next_start() {
        let host = Fake::new(&[(2, "eth0"), (3, "eth1")]);
        let mut journal = host.start();
        journal.set(&route_localnet(2), "1").unwrap();
        journal.set(&route_localnet(3), "1").unwrap();
        let sysctl = host.conf("eth0").join("route_localnet");
        fs::remove_file(&sysctl).unwrap();
        fs::create_dir(&sysctl).unwrap();
        let message = journal.undo().unwrap_err().to_string();
        assert!(message.contains("eth0/route_localnet"), "{message}");
        assert_eq!(host.value("eth1"), "0");
        fs::remove_dir(&sysctl).unwrap();
        host.write("eth0", "1\n");
        drop(journal);
        host.start();
        assert_eq!(host.value("eth0"), "0");
    }

    #[test]
    fn a_change_that_fails_is_not_journalled() {
        let host = Fake::new(&[(2, "eth0")]);
        let mut journal = host.start();
        assert!(journal.set(&Sysctl::ipv6(2, "forwarding"), "1").is_err());
        assert!(!host.file().exists());
    }

    #[test]
    fn a_damaged_journal_is_named() {
        let host = Fake::new(&[(2, "eth0")]);
        fs::create_dir_all(host.file().parent().unwrap()).unwrap();
        fs::write(host.file(), "[{").unwrap();
        let folder = host.root.path().join("run");
        let message = Journal::recover_on(Host::default(), &folder, "7")
            .unwrap_err()
            .to_string();
        assert!(message.contains("7.journal"), "{message}");
    }
}
