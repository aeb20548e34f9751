//! What XDP does not know passes as it came, to the TC program of the device.

use portfwd::plan::TcpMechanism;
use portfwd_common::Verdict;
use portfwd_tests::{
    Family, Lab,
    lab::{ack, syn, to_client, to_host},
};

#[test]
fn what_belongs_to_no_known_flow_is_left_to_tc() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000 53:5353/udp");
    for family in Family::BOTH {
        for frame in [
            syn(family, 80),
            ack(family, 80),
            to_host(family, 53),
            to_host(family, 54),
            to_client(family, 5353),
        ] {
            lab.eth0().meets_xdp(frame).is(Verdict::Deferred);
        }
    }
}
