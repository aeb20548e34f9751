//! A service of each protocol, for runs where it matters that both are served
//! and not how.

use crate::{Listen, Netns, TcpServer, UdpListen, UdpManner, UdpServer};

/// The rules that lead to [`Services`].
pub const RULES: &str = "80:5000 53:5353/udp";

/// TCP on 5000 and UDP on 5353, both on every address.
#[derive(Debug)]
pub struct Services {
    _tcp: TcpServer,
    _udp: UdpServer,
}

impl Services {
    /// Starts both.
    #[track_caller]
    pub fn start(ns: &Netns) -> Self {
        Self {
            _tcp: TcpServer::builder(ns, Listen::DualStack, 5000).start(),
            _udp: UdpServer::start(ns, UdpListen::DualStack, 5353, UdpManner::Identify),
        }
    }
}
