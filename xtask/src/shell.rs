//! Commands of this machine: each one is printed before it runs.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, bail};

/// Prints a command in the form that can be typed.
pub fn print(command: &Command) {
    eprintln!("$ {}", line(command));
}

/// Runs a command and waits; an end other than success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a command and waits.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    print(command);
    command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))
}

/// A command that runs as root: through sudo where we are not. `what` needs it.
pub fn as_root(program: impl AsRef<OsStr>, what: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("{what} needs root, and there is no sudo here: run it as root");
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where a program is, also in the folders that only root has on PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut files = env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program));
    files.find(|file| is_executable(file))
}

/// The command as it would be typed.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=+./:,@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_can_be_typed() {
        let mut command = Command::new("portfwd");
        command.args(["--from", "10.0.0.0/8", "[::1]:80:5000", "it's", ""]);
        assert_eq!(
            line(&command),
            r"portfwd --from 10.0.0.0/8 '[::1]:80:5000' 'it'\''s' ''"
        );
    }
}
