//! XDP on veth pairs that stand for NICs, and what shows that it carries.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Capture, Keep, Nat, Node, Output, Portfwd, World};

/// XDP on both devices of a host between two networks.
pub const EXPRESS: &str = "--mode xdp -i eth0 -i eth1";

impl World {
    /// The cables of the host become wires, which NICs with XDP have: nobody
    /// hands it a checksum to complete, and what XDP sends arrives.
    #[must_use]
    #[track_caller]
    pub fn wired(self) -> Self {
        for node in [&self.client, self.behind()] {
            node.ns.sh("ethtool -K eth0 tx off gro on >/dev/null");
        }
        self
    }

    /// Starts `portfwd` on the host with XDP and the rules to the machine
    /// behind it, for clients on other machines.
    #[track_caller]
    pub fn express(&self, nat: Nat) -> Portfwd {
        let rules = self.behind().rules();
        self.host.relay(nat, &format!("{EXPRESS} {rules}"))
    }
}

impl Output {
    /// Packets that XDP has forwarded: what TC sends on is met again as it
    /// leaves.
    pub fn express(&self) -> u64 {
        let sent = self.verdict("forwarded") + self.verdict("returned");
        sent.saturating_sub(self.verdict("passing"))
    }
}

/// What the stack of a host gets to see: everything but what XDP forwards.
pub struct Stack(Capture);

/// No rule and no program is there.
const NOBODY: u16 = 9;

impl Stack {
    /// Looks at every packet of the host from now on.
    #[track_caller]
    pub fn of(host: &Node) -> Self {
        Self(Capture::start(&host.ns, Keep::Everything))
    }

    /// Asks until a question and its answer both pass the stack by. The text
    /// that is to be sent is new each time.
    ///
    /// # Panics
    ///
    /// When XDP carries none of many.
    #[track_caller]
    pub fn is_passed_by(
        &self,
        client: &Node,
        host: SocketAddr,
        what: &str,
        mut ask: impl FnMut(&str),
    ) {
        // At most two in a second go by TC, each of which teaches a next hop.
        const ATTEMPTS: u32 = 50;
        for _ in 0..ATTEMPTS {
            let text = format!("question {};", number());
            ask(&text);
            if !self.sees(client, host, &text) {
                return;
            }
        }
        panic!("{what}: none of {ATTEMPTS} went by XDP both ways");
    }

    /// Has the stack got a packet with this text in it?
    #[track_caller]
    fn sees(&self, client: &Node, host: SocketAddr, text: &str) -> bool {
        // Behind all that was sent before.
        let mark = format!("mark {};", number());
        let nobody = SocketAddr::new(host.ip(), NOBODY);
        let family = crate::Family::of(host.ip());
        client
            .udp(family)
            .send(nobody, mark.as_bytes())
            .expect("a datagram is sent");
        let with = |packet: &crate::Packet, text: &str| {
            let mut windows = packet.bytes.windows(text.len());
            windows.any(|bytes| bytes == text.as_bytes())
        };
        self.0
            .wait_for("the mark", |packet| !packet.outgoing && with(packet, &mark));
        !self.0.packets(|packet| with(packet, text)).is_empty()
    }
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
