//! Programs that take a connection and open another. Each runs in the
//! foreground with one worker on the one CPU, writes no log, and is ended by
//! its process.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use portfwd_tests::{Family, Netns};
use tempfile::TempDir;

use super::Rule;
use crate::{
    measure::cpu,
    pinned::{self, Process},
};

/// A running proxy with the folder of its files.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    folder: TempDir,
}

impl Proxy {
    /// Fails when it has ended, with what it said.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.process.0.try_wait()? else {
            return Ok(());
        };
        let said = fs::read_to_string(self.folder.path().join(SAID)).unwrap_or_default();
        bail!("it has ended, {status}\n{said}");
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// HAProxy: one thread, TCP mode, and spliced where it sees that much flows,
/// as its manual advises for bulk.
pub fn haproxy(host: &Netns, rule: &Rule) -> Result<Proxy> {
    let config = |_: &Path| haproxy_config(rule);
    // -db: in the foreground.
    started(host, "haproxy", &["-db", "-f"], Some(&config))
}

/// nginx: the stream module alone, one process, buffers of 64 KiB instead of
/// 16 since it copies what it forwards.
pub fn nginx(host: &Netns, rule: &Rule) -> Result<Proxy> {
    let module = nginx_stream_module().context("nginx has no stream module")?;
    let config = |folder: &Path| nginx_config(rule, &module, folder);
    started(host, "nginx", &["-e", "stderr", "-c"], Some(&config))
}

/// Where the stream module is: a file of its own, or part of the binary, which
/// is the empty path.
pub fn nginx_stream_module() -> Option<PathBuf> {
    let folders = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"];
    folders
        .iter()
        .map(|folder| Path::new(folder).join("ngx_stream_module.so"))
        .find(|file| file.is_file())
}

/// socat: buffers of 64 KiB instead of 8, no waiting for small segments.
pub fn socat(host: &Netns, rule: &Rule) -> Result<Proxy> {
    let [listen, to] = socat_ends(rule);
    started(host, "socat", &["-b", "65536", &listen, &to], None)
}

/// rinetd has nothing to be tuned.
pub fn rinetd(host: &Netns, rule: &Rule) -> Result<Proxy> {
    let config = |_: &Path| rinetd_config(rule);
    started(host, "rinetd", &["-f", "-c"], Some(&config))
}

/// realm: it takes as many workers as it has CPUs, which is one, and splices.
pub fn realm(host: &Netns, rule: &Rule) -> Result<Proxy> {
    let (listen, to) = (rule.listen.to_string(), rule.to.dialled(rule.listen));
    started(host, "realm", &["-l", &listen, "-r", &to.to_string()], None)
}

const SAID: &str = "said";

/// Starts a program; the path of its configuration is the last argument.
fn started(
    host: &Netns,
    program: &str,
    args: &[&str],
    config: Option<&dyn Fn(&Path) -> String>,
) -> Result<Proxy> {
    // A proxy dials for each connection, and whoever runs a busy one lets it
    // have the ports.
    host.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
    host.sysctl("net.ipv4.tcp_tw_reuse", 1);

    let folder = folder().context("making a folder")?;
    let said = File::create(folder.path().join(SAID))?;
    let mut command = pinned::command(host, cpu::WORK, program)?;
    command.args(args);
    if let Some(config) = config {
        let file = folder.path().join("config");
        fs::write(&file, config(folder.path()))?;
        command.arg(file);
    }
    command
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said);
    let process = Process::spawn(command)?;
    Ok(Proxy { process, folder })
}

const FOLDERS: &str = "portfwd-bench-";

/// A folder that is named after this process.
fn folder() -> io::Result<TempDir> {
    remove_folders_of_the_dead();
    TempDir::with_prefix(format!("{FOLDERS}{}-", std::process::id()))
}

/// Removes the files of runs that were killed.
pub fn remove_folders_of_the_dead() {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(owner).is_some_and(is_dead) {
            // Another run may have been faster.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn owner(folder: &str) -> Option<u32> {
    let (pid, _) = folder.strip_prefix(FOLDERS)?.split_once('-')?;
    pid.parse().ok()
}

fn is_dead(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

fn haproxy_config(rule: &Rule) -> String {
    let (listen, to) = (rule.listen, rule.to.dialled(rule.listen));
    format!(
        "global
    nbthread 1
    maxconn 4096
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen rival
    bind {listen}
    server target {to}
"
    )
}

fn nginx_config(rule: &Rule, module: &Path, folder: &Path) -> String {
    let (listen, to) = (rule.listen, rule.to.dialled(rule.listen));
    format!(
        "load_module {};
daemon off;
master_process off;
worker_processes 1;
pid {}/pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
stream {{
    access_log off;
    tcp_nodelay on;
    server {{
        listen {listen};
        proxy_pass {to};
        proxy_buffer_size 64k;
    }}
}}
",
        module.display(),
        folder.display(),
    )
}

fn socat_ends(rule: &Rule) -> [String; 2] {
    let version = match Family::of(rule.listen.ip()) {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let (listen, to) = (rule.listen, rule.to.dialled(rule.listen));
    // Brackets hold for an IPv6 address as for `bind`.
    let bind = listen.to_string();
    let bind = bind.rsplit_once(':').map_or("", |(addr, _)| addr);
    [
        format!(
            "TCP{version}-LISTEN:{},bind={bind},fork,reuseaddr,backlog=1024,nodelay",
            listen.port()
        ),
        format!("TCP{version}:{to},nodelay"),
    ]
}

fn rinetd_config(rule: &Rule) -> String {
    let (listen, to) = (rule.listen, rule.to.dialled(rule.listen));
    format!(
        "{} {} {} {}\n",
        listen.ip(),
        listen.port(),
        to.ip(),
        to.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rivals::To;

    fn rule(listen: &str, to: To) -> Rule {
        let listen = listen.parse().unwrap();
        Rule { listen, to }
    }

    fn remote() -> Rule {
        let to = To::Remote("203.0.113.2:5000".parse().unwrap());
        rule("192.0.2.1:80", to)
    }

    #[test]
    fn every_proxy_listens_where_it_is_told_and_dials_the_target() {
        let config = haproxy_config(&remote());
        assert!(config.contains("bind 192.0.2.1:80\n"));
        assert!(config.contains("server target 203.0.113.2:5000\n"));
        let config = nginx_config(&remote(), Path::new("/m.so"), Path::new("/f"));
        assert!(config.contains("listen 192.0.2.1:80;"));
        assert!(config.contains("proxy_pass 203.0.113.2:5000;"));
        assert!(config.contains("pid /f/pid;"));
        assert_eq!(rinetd_config(&remote()), "192.0.2.1 80 203.0.113.2 5000\n");
        let [listen, to] = socat_ends(&remote());
        assert!(listen.starts_with("TCP4-LISTEN:80,bind=192.0.2.1,fork"));
        assert_eq!(to, "TCP4:203.0.113.2:5000,nodelay");
    }

    #[test]
    fn a_folder_tells_whose_it_is() {
        assert_eq!(owner("portfwd-bench-12-abc"), Some(12));
        for name in ["portfwd-bench-12", "portfwd-bench-x-abc", "other-12-abc"] {
            assert_eq!(owner(name), None, "{name}");
        }
        assert!(!is_dead(std::process::id()));
    }

    #[test]
    fn a_port_of_this_host_is_dialled_by_loopback() {
        let config = haproxy_config(&rule("192.0.2.1:80", To::Local(5000)));
        assert!(config.contains("server target 127.0.0.1:5000\n"));
        let [listen, to] = socat_ends(&rule("[2001:db8::1]:80", To::Local(5000)));
        assert!(listen.starts_with("TCP6-LISTEN:80,bind=[2001:db8::1],fork"));
        assert_eq!(to, "TCP6:[::1]:5000,nodelay");
    }
}
