//! What portfwd needs of the host around it: its devices and addresses, the
//! network namespace, and what a run leaves under `/run` and in the bpffs.
//!
//! Nothing here knows a rule or a BPF program.

pub mod bpffs;
pub mod cgroup;
pub mod devices;
pub mod drivers;
pub mod journal;
pub mod kernel;
pub mod lock;
pub mod netlink;
pub mod netns;
pub mod offloads;
pub mod routes;
pub mod watch;
pub mod xdp_hook;

/// Folder of the lock and of the journal. It is gone after a reboot, like the
/// kernel state that they describe.
pub const RUN_DIR: &str = "/run/portfwd";
