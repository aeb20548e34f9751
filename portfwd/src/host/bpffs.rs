//! The file system in which BPF maps and links outlive their process.
//!
//! A namespace's pins lie in `portfwd/COOKIE/maps` and `portfwd/COOKIE/links`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::lock::Lock;
use crate::Error;

/// Where every tool expects the bpffs.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// The bpffs, which is mounted here where nobody did so yet. It stays
/// mounted: others may have pinned something by the time we leave.
pub fn mounted() -> Result<PathBuf, Error> {
    let point = PathBuf::from(MOUNT_POINT);
    if is_bpffs(&point) {
        return Ok(point);
    }
    let data = Some("mode=0700");
    mount(Some("bpf"), &point, Some("bpf"), MsFlags::empty(), data).map_err(|errno| {
        Error::machine(format!(
            "no bpffs is mounted on {MOUNT_POINT} and mounting it was refused: {}; \
             try `sudo mount -t bpf bpf {MOUNT_POINT}`",
            errno.desc()
        ))
    })?;
    log::info!("mounted a bpffs on {MOUNT_POINT}, where there was none");
    Ok(point)
}

/// Folder of the pins of the namespace with this cookie.
pub fn pin_dir(cookie: &str) -> PathBuf {
    all_pins().join(cookie)
}

/// Folder of the pinned maps of the namespace with this cookie.
pub fn map_dir(cookie: &str) -> PathBuf {
    pin_dir(cookie).join("maps")
}

/// Makes the folder of the pinned maps. The caller holds the lock.
pub fn make_map_dir(cookie: &str) -> Result<(), Error> {
    let folder = map_dir(cookie);
    fs::create_dir_all(&folder).map_err(|error| {
        Error::machine(format!(
            "cannot make {}: {error}; run portfwd as root where {MOUNT_POINT} is writable",
            folder.display()
        ))
    })
}

/// Removes what a dead run left pinned. The caller holds the lock, so nobody
/// uses the maps; pinned links forward without a process, and are an error.
///
/// What dead runs left in other namespaces goes as well: such a namespace may
/// be gone, and no start in it would ever come.
pub fn remove_dead(cookie: &str) -> Result<(), Error> {
    remove_dead_in(&all_pins(), cookie)?;
    remove_dead_elsewhere(&all_pins(), cookie, Lock::try_acquire);
    Ok(())
}

/// Removes every pin of the namespace with this cookie, links included, which
/// ends what they attach.
pub fn remove(cookie: &str) -> Result<(), Error> {
    remove_in(&all_pins(), cookie)
}

fn all_pins() -> PathBuf {
    Path::new(MOUNT_POINT).join("portfwd")
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}

fn remove_dead_in(all: &Path, cookie: &str) -> Result<(), Error> {
    let links = all.join(cookie).join("links");
    if has_entries(&links).map_err(|error| unreadable(&links, &error))? {
        return Err(Error::machine(format!(
            "a forwarder is up in this network namespace without a process: {} holds its links; \
             remove that folder to end it",
            links.display()
        )));
    }
    remove_in(all, cookie)
}

/// What is held, up or cannot be removed is left alone.
fn remove_dead_elsewhere<L>(all: &Path, cookie: &str, lock: impl Fn(&str) -> Option<L>) {
    let names = fs::read_dir(all).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if name == cookie {
            continue;
        }
        if let Some(_lock) = lock(&name)
            && let Err(error) = remove_dead_in(all, &name)
        {
            log::debug!("{error}");
        }
    }
}

fn remove_in(all: &Path, cookie: &str) -> Result<(), Error> {
    let pins = all.join(cookie);
    match fs::remove_dir_all(&pins) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(unreadable(&pins, &error));
        }
        _ => {}
    }
    // Fails, as it should, while other namespaces have pins there.
    let _ = fs::remove_dir(all);
    Ok(())
}

fn has_entries(folder: &Path) -> io::Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let try_this = match error.kind() {
        io::ErrorKind::PermissionDenied => "run portfwd with sudo".to_owned(),
        _ => format!("try `sudo rm -r {}`", path.display()),
    };
    Error::machine(format!(
        "cannot remove the pins in {}: {error}; {try_this}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders of an ordinary file system: a pin is only a name there, too.
    fn pinned(all: &Path, names: &[&str]) {
        for name in names {
            let path = all.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn the_maps_of_a_dead_run_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let all = root.path().join("portfwd");
        pinned(&all, &["7/maps/RULES", "7/maps/FLOWS"]);
        fs::create_dir(all.join("7/links")).unwrap();
        remove_dead_in(&all, "7").unwrap();
        assert!(!all.exists());
    }

    #[test]
    fn a_forwarder_that_is_up_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        pinned(root.path(), &["7/maps/RULES", "7/links/tc_in"]);
        let error = remove_dead_in(root.path(), "7").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("a forwarder is up"), "{error}");
        assert!(root.path().join("7/maps/RULES").exists());
    }

    #[test]
    fn other_namespaces_keep_their_pins() {
        let root = tempfile::tempdir().unwrap();
        pinned(
            root.path(),
            &["7/maps/RULES", "7/links/tc_in", "8/maps/RULES"],
        );
        remove_in(root.path(), "7").unwrap();
        assert!(!root.path().join("7").exists());
        assert!(root.path().join("8/maps/RULES").exists());
    }

    #[test]
    fn a_start_elsewhere_removes_what_nobody_holds() {
        let root = tempfile::tempdir().unwrap();
        pinned(
            root.path(),
            &[
                "7/maps/A",
                "8/maps/A",
                "9/maps/A",
                "10/maps/A",
                "10/links/l",
            ],
        );
        remove_dead_elsewhere(root.path(), "7", |name| (name != "9").then_some(()));
        let left = ["7", "8", "9", "10"].map(|name| root.path().join(name).exists());
        assert_eq!(left, [true, false, true, true]);
    }

    #[test]
    fn nothing_to_remove_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        remove_dead_in(&root.path().join("portfwd"), "7").unwrap();
        remove_in(&root.path().join("portfwd"), "7").unwrap();
    }
}
