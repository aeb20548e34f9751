//! A datagram arrives as it was sent: its checksum, its size, one of many that
//! are sent as one; and fragments, which are not forwarded.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use portfwd_tests::{
    Capture, Family, Frame, Keep, Packet, UdpListen, UdpManner, Way, World,
    frame::ETHERNET,
    until_some,
    world::{MIRROR, SERVICE},
};

#[test]
fn no_checksum_stays_none() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    let service = world.host.at(Family::V4, SERVICE);
    let _portfwd = world
        .host
        .portfwd("-i eth0 80:5000/udp 81:127.0.0.1:5000/udp");
    for (dialled, served) in [(80, service.ip()), (81, Ipv4Addr::LOCALHOST.into())] {
        let bound = SocketAddr::new(served, SERVICE);
        let socket = world
            .host
            .ns
            .enter(|| UdpSocket::bind(bound))
            .expect("free");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a timeout");
        without_checksum(&socket);

        let client = world.client.udp(Family::V4);
        let remote = world.host.at(Family::V4, dialled);
        let source = SocketAddr::new(world.client.v4.into(), client.local().port());
        let frame = Frame::udp(source, remote).payload(b"unsummed");
        let mut bytes = frame.macs(world.client.mac, world.host.mac).to_vec();
        let at = checksum_at(Family::V4);
        bytes[at..at + 2].fill(0);
        world.wire().send_bytes(&bytes);
        assert_eq!(udp_checksum(&delivered(&capture, bound, b"unsummed")), 0);

        let mut buffer = [0; 64];
        let (length, peer) = socket.recv_from(&mut buffer).expect("delivered");
        assert_eq!((&buffer[..length], peer), (&b"unsummed"[..], source));
        socket.send_to(b"back", peer).expect("sent");
        let reply = capture.wait_for("the restored answer", |packet| {
            packet.outgoing && packet.device == "eth0" && packet.comes_from(remote)
        });
        assert_eq!(udp_checksum(&reply), 0);
        let reply = until_some("the answer", || client.receive().ok());
        assert_eq!((reply.from, reply.payload), (remote, b"back".to_vec()));
    }
}

/// What is sent by the socket has no UDP checksum.
fn without_checksum(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the value is a local of the length that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let world = World::direct();
    let capture = Capture::start(&world.host.ns, Keep::Everything);
    let server = world.host.udp_server(UdpListen::DualStack, SERVICE);
    let _portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for (count, family) in (1..).zip(Family::BOTH) {
        let source = world.client.at(family, 1000);
        let (dialled, service) = (world.host.at(family, 80), world.host.at(family, SERVICE));
        let at = checksum_at(family);
        // The builder writes ones only where the sum comes out as zero.
        let payload = (0..=u16::MAX)
            .map(u16::to_be_bytes)
            .find(|payload| {
                Frame::udp(source, service).payload(payload).to_vec()[at..at + 2] == [0xff, 0xff]
            })
            .expect("one payload makes the sum zero");
        world
            .wire()
            .send(&Frame::udp(source, dialled).payload(&payload));
        assert_eq!(
            udp_checksum(&delivered(&capture, service, &payload)),
            0xffff
        );
        server.until_served(count);
    }
}

/// The stack's view of a datagram to the service, as the harness copies it
/// behind all programs.
#[track_caller]
fn delivered(capture: &Capture, service: SocketAddr, payload: &[u8]) -> Packet {
    capture.wait_for("the rewritten datagram", |packet| {
        packet.device == MIRROR
            && packet.goes_to(service)
            && packet.view().is_some_and(|view| view.payload == payload)
    })
}

/// The UDP checksum of a captured packet.
fn udp_checksum(packet: &Packet) -> u16 {
    let at = checksum_at(Family::of(packet.view().expect("UDP").source.ip())) - ETHERNET;
    u16::from_be_bytes([packet.bytes[at], packet.bytes[at + 1]])
}

/// Where a frame's UDP checksum stands.
fn checksum_at(family: Family) -> usize {
    let ip = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ETHERNET + ip + 6
}

#[test]
fn datagrams_of_all_sizes_pass_whole_in_both_directions() {
    let world = World::direct();
    for node in [&world.host, &world.client] {
        node.ns.ip("link set eth0 mtu 9000");
    }
    let _server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Echo);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let mut bytes = 0;
    for way in Way::ALL {
        let headers = if way.family() == Family::V4 { 28 } else { 48 };
        let largest = match way {
            Way::Remote(_) => 9_000 - headers,
            // As large as an IPv4 datagram gets, and as the MTU of lo is.
            Way::Loopback(_) | Way::Own(_) => {
                if headers == 28 {
                    65_507
                } else {
                    65_536 - headers
                }
            }
        };
        let client = world.udp(way);
        for size in [0, 1, 2, 1_471, 1_472, largest] {
            let payload: Vec<u8> = (0..size).map(|byte| (byte % 251) as u8).collect();
            let reply = client.ask(world.remote(way, 80), &payload);
            let reply = reply.unwrap_or_else(|error| panic!("{way:?} {size}: {error}"));
            assert!(reply.payload == payload, "{way:?} {size}");
            bytes += size as u64 + headers as u64;
        }
    }
    let output = portfwd.stop_without_loss();
    for column in ["bytes", "bytes back"] {
        let counted = output.rule_counter("80:5000/udp", column);
        assert_eq!(counted, Some(bytes), "{output}");
    }
}

/// `UDP_SEGMENT`: the stack hands the device one large packet that is many
/// datagrams on the wire.
#[test]
fn datagrams_that_are_sent_as_one_arrive_each_and_count_each() {
    let world = World::direct();
    let server = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Count);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let (mut sent, mut bytes) = (0, 0);
    for way in Way::ALL {
        let remote = world.remote(way, 80);
        let (node, any) = (world.dialler(way), way.family().any());
        let socket = node.ns.enter(|| UdpSocket::bind((any, 0))).expect("free");
        socket.connect(remote).expect("there is a route");
        in_segments(&socket, 1_000);
        // Nine whole ones and a rest.
        socket.send(&[7; 9_500]).expect("sent");
        sent += 10;
        let headers = if remote.is_ipv4() { 28 } else { 48 };
        bytes += 9_500 + 10 * headers;
        assert_eq!(server.settled(sent).count, sent, "{way:?}");
    }
    let output = portfwd.stop_without_loss();
    let count = |column| output.rule_counter("80:5000/udp", column);
    assert_eq!(count("packets"), Some(sent), "{output}");
    assert_eq!(count("bytes"), Some(bytes), "{output}");
}

/// Cuts what the socket sends into datagrams of so many bytes.
fn in_segments(socket: &UdpSocket, size: libc::c_int) {
    // SAFETY: the value is a local of the length that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A limit: later fragments carry no ports, so none is forwarded.
#[test]
fn fragments_pass_untouched() {
    let world = World::direct();
    let service = world
        .host
        .udp_server_with(UdpListen::DualStack, SERVICE, UdpManner::Echo);
    let dialled = world
        .host
        .udp_server_with(UdpListen::DualStack, 80, UdpManner::Echo);
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    let large = vec![7; 4_000];
    for (count, family) in (1..).zip(Family::BOTH) {
        let remote = world.host.at(family, 80);
        let client = world.client.udp(family);
        client.ask(remote, b"small").expect("forwarded");
        client.ask(remote, &large).expect("left alone");
        assert_eq!(
            (service.served().len(), dialled.served().len()),
            (count, count)
        );
    }
    // On lo nothing is cut.
    for way in [Way::Loopback(Family::V4), Way::Own(Family::V6)] {
        world
            .udp(way)
            .ask(world.remote(way, 80), &large)
            .expect("forwarded");
    }
    assert_eq!((service.served().len(), dialled.served().len()), (4, 2));
    let output = portfwd.stop_without_loss();
    // Three each, there and back, of both families.
    assert_eq!(output.verdict("fragment"), 12, "{output}");
}

/// The same limit on the way back.
#[test]
fn an_answer_in_fragments_comes_from_the_target_port() {
    let world = World::direct();
    let portfwd = world.host.portfwd("-i eth0 80:5000/udp");
    for family in Family::BOTH {
        let service = world.host.at(family, SERVICE);
        let socket = world
            .host
            .ns
            .enter(|| UdpSocket::bind(service))
            .expect("free");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a timeout");
        let client = world.client.udp(family);
        client
            .send(world.host.at(family, 80), b"more")
            .expect("sent");
        let (_, peer) = socket.recv_from(&mut [0; 64]).expect("forwarded");
        socket.send_to(&[7; 4_000], peer).expect("sent");
        let reply = until_some("the answer", || client.receive().ok());
        assert_eq!((reply.from, reply.payload.len()), (service, 4_000));
    }
    assert_eq!(portfwd.stop().verdict("fragment"), 6);
}
