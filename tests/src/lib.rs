//! The harness: what a test needs to prove a promise of portfwd on the wire.
//!
//! A test builds a [`World`] of network namespaces, starts [`Portfwd`] and real
//! servers in it, and dials them as a client would:
//!
//! ```no_run
//! use portfwd_tests::{Listen, Tcp, Way, World};
//!
//! for tcp in Tcp::BOTH {
//!     let world = World::direct();
//!     let _service = world.host.tcp_server(Listen::DualStack, 5000);
//!     let portfwd = world.host.portfwd_with(tcp, "-i eth0 80:5000");
//!     for way in Way::ALL {
//!         let answer = world.tcp(way, 80).open().unwrap();
//!         assert_eq!(answer.server.peer.ip(), answer.local.ip(), "the client's address is kept");
//!     }
//!     assert_eq!(portfwd.stop().verdict("table-full"), 0);
//! }
//! ```
//!
//! Whatever the test does, every packet that the host sends, and every packet
//! that it delivers after the programs have rewritten it, is checked by the
//! world's captures, and a wrong checksum fails the test when the world ends.

pub mod bpf;
pub mod capture;
pub mod cgroup;
pub mod checksum;
pub mod crowd;
pub mod express;
pub mod frame;
pub mod lab;
pub mod netns;
pub mod packet_socket;
pub mod portfwd;
pub mod relay;
pub mod services;
pub mod site;
pub mod state;
pub mod tcp;
pub mod tun;
pub mod udp;
pub mod wait;
pub mod watchers;
pub mod world;

pub use bpf::Bystander;
pub use capture::{Capture, Fault, Keep, Packet, Report};
pub use cgroup::{Call, Called, Cgroup};
pub use crowd::Crowd;
pub use express::Stack;
pub use frame::{Frame, Wire};
pub use lab::Lab;
pub use netns::Netns;
pub use portfwd::{Output, Portfwd, Refusal, Tcp};
pub use relay::Nat;
pub use services::Services;
pub use site::{Place, Site, Who};
pub use state::State;
pub use tcp::{Conversation, Dial, Identity, Listen, Manner, TcpServer};
pub use tun::TunCable;
pub use udp::{UdpClient, UdpListen, UdpManner, UdpReply, UdpServer};
pub use wait::{deadline, until, until_some};
pub use watchers::Watchers;
pub use world::{Family, Node, Watch, Way, World};

/// Loads that take minutes are for those who ask for them.
pub fn long() -> bool {
    std::env::var_os("PORTFWD_TEST_LONG").is_some()
}

/// The Debian packages whose programs the tests run.
pub const PACKAGES: &[&str] = &[
    "bind9-dnsutils",
    "conntrack",
    "curl",
    "ethtool",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "nftables",
    "procps",
    "python3",
    "socat",
    "tcpdump",
];
