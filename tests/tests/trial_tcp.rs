//! One packet at a time, without a wire: which TCP is steered to its listener,
//! which is rewritten where the kernel cannot steer, and what opens a connection.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use portfwd::plan::TcpMechanism;
use portfwd_common::Verdict;
use portfwd_tests::{
    Capture, Family, Frame, Keep, Lab, Wire,
    frame::ip_header,
    lab::{FROM, MECHANISMS, ack, client_at, host_at, syn},
    until,
};

#[test]
fn tcp_is_steered_without_a_changed_byte() {
    for tcp in [TcpMechanism::Steer, TcpMechanism::SteerOrRewrite] {
        let mut lab = Lab::new(tcp, "80:5000 81:5001");
        let _service = lab.tcp_service(5000);
        for family in Family::BOTH {
            lab.arrives(syn(family, 80))
                .stays(Verdict::Steered)
                .counts_for(0);
            // It completes no handshake.
            lab.arrives(ack(family, 80)).is(Verdict::Stray);
            lab.arrives(syn(family, 81)).is(Verdict::NoListener);
            lab.arrives(ack(family, 81)).is(Verdict::NoListener);
            strays(&mut lab, family);
        }
    }
}

#[test]
fn tcp_is_rewritten_where_the_kernel_cannot_steer() {
    let mut lab = Lab::new(TcpMechanism::Rewrite, "80:5000 81:5001");
    let _service = lab.tcp_service(5000);
    for family in Family::BOTH {
        strays(&mut lab, family);
        // It opens with the handshake's end, and only the right one.
        lab.arrives(syn(family, 80))
            .becomes(Verdict::Rewritten, syn(family, 5000))
            .counts_for(0);
        let answer = |port| Frame::syn_ack(host_at(family, port), client_at(family, FROM));
        lab.leaves(answer(5000))
            .becomes(Verdict::Restored, answer(80))
            .counts_back_for(0);
        let wrong = |port| ack(family, port).with_tcp(|header| header.acknowledgment_number = 99);
        lab.arrives(wrong(80))
            .becomes(Verdict::Rewritten, wrong(5000))
            .counts_for(0);
        lab.arrives(ack(family, 80))
            .becomes(Verdict::Rewritten, ack(family, 5000))
            .opens(0);
        lab.arrives(ack(family, 80))
            .becomes(Verdict::Rewritten, ack(family, 5000))
            .counts_for(0);
        // A reset of a flow goes with it.
        let reset = |port| ack(family, port).with_tcp(|header| header.rst = true);
        lab.arrives(reset(80))
            .becomes(Verdict::Rewritten, reset(5000))
            .counts_for(0);
        lab.arrives(syn(family, 81)).is(Verdict::NoListener);
    }
}

/// Segments of no connection that open none.
fn strays(lab: &mut Lab, family: Family) {
    let bare = || Frame::tcp(client_at(family, FROM), host_at(family, 80));
    let frames = [
        bare(),
        bare().with_tcp(|header| header.rst = true),
        bare().with_tcp(|header| header.fin = true),
        syn(family, 80).with_tcp(|header| header.ack = true),
        ack(family, 80).with_tcp(|header| header.rst = true),
    ];
    for frame in frames {
        lab.arrives(frame).is(Verdict::Stray);
    }
}

#[test]
fn an_acknowledged_syn_cookie_is_steered_and_opens_the_connection() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000");
    lab.ns.sysctl("net.ipv4.tcp_syncookies", 2);
    // A run cannot send a cookie: the socket that does has the dialled port,
    // and the target has sent one lately.
    let _services = (lab.tcp_service(80), lab.tcp_service(5000));
    let capture = Capture::start(&lab.ns, Keep::Everything);
    let wire = Wire::new(&lab.ns, "wire", [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    for family in Family::BOTH {
        for port in [5000, 80] {
            wire.send(&syn(family, port));
        }
        let cookie = |port| {
            let answer = capture.wait_for("a SYN-ACK", |packet| {
                packet.comes_from(host_at(family, port))
            });
            let at = ip_header(family) + 4;
            let [a, b, c, d] = answer.bytes[at..at + 4] else {
                unreachable!("four bytes");
            };
            u32::from_be_bytes([a, b, c, d])
        };
        cookie(5000);
        let acknowledging = |number: u32| {
            ack(family, 80).with_tcp(|header| {
                header.sequence_number = 1001;
                header.acknowledgment_number = number;
            })
        };
        let next = cookie(80).wrapping_add(1);
        lab.arrives(acknowledging(next))
            .stays(Verdict::Steered)
            .opens(0);
        lab.arrives(acknowledging(next ^ 0x8000_0000))
            .is(Verdict::Stray);
    }
}

#[test]
fn the_acknowledgement_of_a_half_open_connection_opens_it() {
    let mut lab = Lab::new(TcpMechanism::Steer, "80:5000");
    let _listener = lab.tcp_service(80);
    let wire = Wire::new(&lab.ns, "wire", [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    for family in Family::BOTH {
        // Nobody has the client's address, so nothing disturbs the handshake.
        wire.send(&syn(family, 80));
        until("the listener to see the SYN", || {
            lab.arrives(syn(family, 80)).verdict() == Verdict::Connected
        });
        lab.arrives(syn(family, 80))
            .stays(Verdict::Connected)
            .counts_for(0);
        lab.arrives(ack(family, 80))
            .stays(Verdict::Connected)
            .opens(0);
    }
}

#[test]
fn a_connection_that_the_kernel_knows_is_left_alone() {
    for tcp in MECHANISMS {
        let mut lab = Lab::new(tcp, "80:5000");
        let _target = lab.tcp_service(5000);
        let steered = tcp != TcpMechanism::Rewrite;
        // In place of a steered one: the socket has the dialled port too.
        let listener = lab.tcp_service(80);
        for family in Family::BOTH {
            let end = SocketAddr::new(family.loopback(), 80);
            let client = lab
                .ns
                .enter(|| TcpStream::connect(end))
                .expect("it listens");
            let (server, _) = listener.accept().expect("a connection");
            let from = client.local_addr().expect("its address");
            let data = |from, to| Frame::tcp(from, to).with_tcp(|header| header.ack = true);

            let arriving = lab.lo().arrives(data(from, end)).stays(Verdict::Connected);
            if steered {
                arriving.counts_for(0);
                lab.lo()
                    .leaves(data(end, from))
                    .stays(Verdict::Connected)
                    .counts_back_for(0);
            } else {
                arriving.counts_for_none();
                lab.lo().leaves(data(end, from)).is(Verdict::NoRule);
            }
            // TIME_WAIT is on the side that closes first, which is the server's.
            drop(server);
            drained(&client);
            drop(client);
            let seen = lab.lo().arrives(data(from, end)).stays(Verdict::Connected);
            if steered {
                seen.counts_for(0);
            } else {
                seen.counts_for_none();
            }
        }
    }
}

/// Reads to the end of the stream.
fn drained(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end of a stream");
    let _closed = stream.write(b"");
}
