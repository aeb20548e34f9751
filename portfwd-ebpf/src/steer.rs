//! TCP to a socket of this host: the connection is the kernel's own, only the
//! listener that it meets is ours to choose. Nothing in a packet changes.

use portfwd_common::{RuleEntry, TargetEntry, Verdict};

use crate::{
    claim::Claimed,
    hook::{Hook, LISTEN, NEW_SYN_RECV, NO_SOCKET, SYN_SENT, Steering},
    outcome::Outcome,
    packet::Packet,
    tables::Tables,
};

/// True for a rule whose TCP is steered.
#[inline(always)]
pub fn steers<T: Tables>(tables: &T, rule: &RuleEntry) -> bool {
    tables.steers() && rule.flags & RuleEntry::REWRITE_TCP == 0
}

/// A packet of a connection that the kernel knows, TIME_WAIT included: it
/// passes, and counts for the rule `slot`.
#[inline(always)]
pub fn connected<H: Hook>(hook: &H, packet: &Packet, slot: u32) -> Option<Outcome> {
    match hook.tcp_socket(packet.family, &packet.tuple) {
        NO_SOCKET | LISTEN => None,
        SYN_SENT => Some(Verdict::Foreign.into()),
        state => {
            let completes = state == NEW_SYN_RECV && packet.is_ack();
            Some(Outcome::of_rule(Verdict::Connected, slot).opening(completes))
        }
    }
}

/// Gives a packet of no connection to the target's listener; none where the
/// kernel refuses and the packet has to be rewritten.
///
/// Never only the SYN: once SYN cookies start, the connection's first trace in
/// the kernel is the client's ACK. Never with the client's own tuple: that
/// finds the client's direct connection to the target port instead of the
/// listener.
#[inline(always)]
pub fn steer<H: Hook>(
    hook: &H,
    packet: &Packet,
    claimed: &Claimed,
    target: &TargetEntry,
) -> Result<Option<Outcome>, Verdict> {
    if !packet.is_open() && !packet.is_ack() {
        return Err(Verdict::Stray);
    }
    let addr = target.addr_for(&packet.tuple.dst);
    let port = claimed.rule.target_port(packet.tuple.dport);
    match hook.steer(packet, addr, port) {
        Steering::NoListener => Err(Verdict::NoListener),
        // It may be of a connection that NAT on this host started before.
        Steering::NoHandshake => Err(Verdict::Stray),
        Steering::Assigned { cookie } => Ok(Some(
            Outcome::of_rule(Verdict::Steered, claimed.slot).opening(cookie),
        )),
        // A steered rule opens 127.0.0.0/8 on no device.
        Steering::Refused if addr.is_loopback_of(packet.family) && !packet.on_loopback() => {
            Err(Verdict::CannotSteer)
        }
        Steering::Refused => Ok(None),
    }
}
