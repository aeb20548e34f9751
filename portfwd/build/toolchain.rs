//! Finds what compiles and links the BPF object.
//!
//! `build.rs` and `xtask` share this file: the build takes what it finds here, `cargo xtask setup`
//! installs what it does not find.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The toolchain of way 1. Pinned, because bpf-linker reads only the bitcode of its own LLVM.
pub const NIGHTLY: &str = "nightly-2026-07-01";
/// The packages of way 2: a compiler that brings `core` prebuilt for the BPF target.
pub const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// The release of bpf-linker that reads what the compilers above write.
pub const LINKER_VERSION: &str = "0.10.4";
/// Where Debian's compiler lives; rustup takes the folder as a toolchain.
pub const DEBIAN_ROOT: &str = "/usr";

const LLVM: &str = "22";
const LLVM_LIBRARY: &str = "libLLVM.so.22.1";
/// The crates that may use unstable features when a stable compiler builds the object. `1` would
/// allow all, but aya-build takes it as the wish to build `core` itself.
const UNSTABLE_CRATES: &str =
    "aya_ebpf,aya_ebpf_bindings,aya_log_ebpf,portfwd_ebpf,portfwd_bpf,portfwd_yardstick";

/// What to do when there is no rustup that downloads and no apt-get.
pub const BY_HAND: &str = "\
by hand, way 1: rustup toolchain install nightly-2026-07-01 --profile minimal --component rust-src
by hand, way 2 (Debian): apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf
and, with either: cargo install bpf-linker --version 0.10.4 --locked";

/// A compiler whose bitcode the linker reads.
pub enum Compiler {
    /// Way 1: the pinned nightly of rustup, which builds `core` from its sources.
    Nightly {
        /// The folder of the toolchain.
        sysroot: PathBuf,
    },
    /// Way 2: Debian's compiler.
    Debian {
        /// The LLVM library that this compiler uses.
        llvm: PathBuf,
    },
}

impl Compiler {
    /// The name that `rustup run` knows it by.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nightly { .. } => NIGHTLY,
            Self::Debian { .. } => DEBIAN_ROOT,
        }
    }

    /// The environment of a cargo that builds the object with this compiler and `linker`.
    /// `scratch` is a folder that may be written to.
    ///
    /// # Errors
    ///
    /// The scratch folder cannot be written to.
    pub fn environment(
        &self,
        linker: &Path,
        scratch: &Path,
    ) -> std::io::Result<Vec<(&'static str, OsString)>> {
        let mut set = vec![
            ("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker.into()),
            ("CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER", linker.into()),
        ];
        // bpf-linker opens the first libLLVM that it sees in LD_LIBRARY_PATH, where cargo has put
        // the caller's toolchain, and then beside the rustc on PATH: both may be another LLVM.
        match self {
            Self::Nightly { sysroot } => set.push(("LD_LIBRARY_PATH", sysroot.join("lib").into())),
            Self::Debian { llvm } => {
                // Only the one library: its own folder holds every LLVM of the machine.
                let only = scratch.join("llvm");
                fs::create_dir_all(&only)?;
                let link = only.join(LLVM_LIBRARY);
                if fs::read_link(&link).ok().as_ref() != Some(llvm) {
                    let _ = fs::remove_file(&link);
                    std::os::unix::fs::symlink(llvm, &link)?;
                }
                set.push(("LD_LIBRARY_PATH", only.into()));
                set.push(("RUSTC_BOOTSTRAP", UNSTABLE_CRATES.into()));
                // Without rustup, aya-build takes the first cargo and rustc on PATH.
                let mut path = OsString::from("/usr/bin:");
                path.push(env::var_os("PATH").unwrap_or_default());
                set.push(("PATH", path));
            }
        }
        Ok(set)
    }
}

/// Finds a compiler, the pinned nightly first.
///
/// # Errors
///
/// One line for each way, saying why it is not there.
pub fn compiler() -> Result<Compiler, String> {
    nightly().or_else(|no_nightly| {
        debian().map_err(|no_debian| {
            format!(
                "{NIGHTLY}: {no_nightly}\n{}: {no_debian}",
                DEBIAN_PACKAGES[0]
            )
        })
    })
}

/// Finds the pinned nightly.
///
/// # Errors
///
/// Why it cannot be used.
pub fn nightly() -> Result<Compiler, String> {
    let rustc = |args: &[&str]| {
        let mut command = Command::new("rustup");
        // A question must not download anything.
        command
            .env("RUSTUP_AUTO_INSTALL", "0")
            .args(["run", NIGHTLY, "rustc"])
            .args(args);
        answer(command)
    };
    if answer_of("rustup", &["--version"]).is_none() {
        return Err("there is no rustup on PATH".into());
    }
    let about = rustc(&["-vV"]).ok_or("not installed")?;
    check_llvm(&about)?;
    let sysroot = PathBuf::from(
        rustc(&["--print", "sysroot"])
            .ok_or("has no sysroot")?
            .trim(),
    );
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Err("lacks the component rust-src".into());
    }
    Ok(Compiler::Nightly { sysroot })
}

/// Finds Debian's compiler.
///
/// # Errors
///
/// Why it cannot be used.
pub fn debian() -> Result<Compiler, String> {
    let root = Path::new(DEBIAN_ROOT);
    if !root.join("bin/cargo").exists() {
        return Err("not installed".into());
    }
    let about = answer_of(root.join("bin/rustc"), &["-vV"]).ok_or("not installed")?;
    check_llvm(&about)?;
    if !root.join("lib/rustlib/bpfel-unknown-none").is_dir() {
        return Err(format!("lacks {}", DEBIAN_PACKAGES[2]));
    }
    let llvm = debian_llvm().ok_or_else(|| format!("{LLVM_LIBRARY} is not under /usr/lib"))?;
    Ok(Compiler::Debian { llvm })
}

/// Finds bpf-linker: on PATH, then where `cargo xtask setup` puts it.
///
/// # Errors
///
/// Which other version was found, or that there is none.
pub fn linker() -> Result<PathBuf, String> {
    let mut seen = None;
    let private = linker_root().map(|root| root.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    for folder in env::split_paths(&path).chain(private) {
        let file = folder.join("bpf-linker");
        let Some(version) = answer_of(&file, &["--version"]) else {
            continue;
        };
        if version.trim().strip_prefix("bpf-linker ") == Some(LINKER_VERSION) {
            return Ok(file);
        }
        seen.get_or_insert_with(|| format!("{} is {}", file.display(), version.trim()));
    }
    Err(seen.unwrap_or_else(|| "not installed".into()))
}

/// The folder, one for all clones, that setup installs bpf-linker to. It is not cargo's own
/// folder, where another project may need another version.
pub fn linker_root() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(
        cache
            .join("portfwd")
            .join(format!("bpf-linker-{LINKER_VERSION}")),
    )
}

fn check_llvm(about: &str) -> Result<(), String> {
    let version = about
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "));
    match version {
        Some(version) if version.split('.').next() == Some(LLVM) => Ok(()),
        Some(version) => Err(format!("has LLVM {version}, bpf-linker reads {LLVM}")),
        None => Err("does not tell its LLVM version".into()),
    }
}

fn debian_llvm() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib")
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    folders
        .map(|folder| folder.join(LLVM_LIBRARY))
        .find(|file| file.exists())
}

fn answer_of(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args);
    answer(command)
}

/// What a command prints, if it ends well.
fn answer(mut command: Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}
