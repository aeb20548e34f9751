//! The draft of a CPU that has not seen a packet.

use portfwd_common::{Addr, Family, Flow, Proto};

use crate::{
    hook::Way,
    mss::Options,
    packet::{Packet, Tuple},
    place::Placement,
    tables::Draft,
};

const NOWHERE: Tuple = Tuple {
    src: Addr::UNSPECIFIED,
    dst: Addr::UNSPECIFIED,
    sport: 0,
    dport: 0,
};

/// The draft before the first packet.
pub(super) const EMPTY: Draft = Draft {
    packet: Packet {
        family: Family::V4,
        tuple: NOWHERE,
        proto: Proto::Tcp,
        ifindex: 0,
        transport: 0,
        headers: 0,
        len: 0,
        seq: 0,
        ack: 0,
        flags: 0,
        hops: 0,
        unsummed: false,
        unwired: 0,
    },
    placement: Placement {
        to: NOWHERE,
        slot: Flow::NO_RULE,
        generation: 0,
        flags: 0,
        side: 0,
        masquerades: false,
        target: Flow::NO_TARGET,
        ifindex: 0,
    },
    tried: 0,
    now: 0,
    sent: 0,
    way: Way {
        ifindex: 0,
        peer: false,
        link: [0; 3],
        mtu: 0,
        hop: Addr::UNSPECIFIED,
    },
    options: Options {
        bytes: [0; 64],
        at: 0,
    },
    key: NOWHERE.key(Proto::Tcp, 0),
    flow: Flow {
        src: NOWHERE.src,
        dst: NOWHERE.dst,
        sport: 0,
        dport: 0,
        hop: [0; 3],
        epoch: 0,
        reserved: 0,
        rule: Flow::NO_RULE as u16,
        generation: 0,
        target: Flow::NO_TARGET as u16,
        flags: 0,
        ifindex: 0,
        seen: 0,
        isn: 0,
    },
};
