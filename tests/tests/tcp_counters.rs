//! Connections, packets and bytes of TCP rules are counted exactly.

use etherparse::{LaxIpSlice, TcpHeaderSlice};
use portfwd_tests::{Capture, Family, Keep, Listen, Manner, Packet, Tcp, Way, World};

#[test]
fn connections_are_counted_exactly_and_a_flood_of_syns_is_none() {
    for tcp in Tcp::BOTH {
        let world = World::direct();
        let server = world.host.tcp_server_builder(Listen::DualStack, 5000);
        let _service = server.backlog(8).start();
        for syncookies in 1..=2 {
            world.host.ns.sysctl("net.ipv4.tcp_syncookies", syncookies);
            let portfwd = world.host.portfwd_with(tcp, "80:5000");
            let mut talks = Vec::new();
            for _ in 0..2 {
                for way in Way::ALL {
                    talks.extend((0..5).map(|_| world.tcp(way, 80).assert_served()));
                }
                // The second round meets a full queue.
                for family in Family::BOTH {
                    world.forge_syns(family, 80, 200);
                }
            }
            drop(talks);
            for way in Way::ALL {
                world.tcp(way, 80).assert_served();
            }
            let output = portfwd.stop();
            let connections = output.rule_counter("80:5000", "connections");
            assert_eq!(connections, Some(66), "{tcp:?} {syncookies}\n{output}");
        }
    }
}

#[test]
fn packets_and_bytes_are_counted_as_on_the_wire() {
    for tcp in Tcp::BOTH {
        for family in Family::BOTH {
            let world = World::direct();
            let server = world.host.tcp_server_builder(Listen::DualStack, 5000);
            let _service = server.manner(Manner::Echo).start();
            let portfwd = world.host.portfwd_with(tcp, "80:5000");
            let capture = Capture::start(&world.client.ns, Keep::Everything);
            let talk = world.tcp(Way::Remote(family), 80).open().expect("served");
            talk.exchange(4 << 20).expect("echoed");
            world.host.ns.until_connections_end();
            let output = portfwd.stop();
            let report = capture.finish();
            assert_eq!(report.dropped, 0, "the capture has to be complete");
            let port_80 = |packet: &&Packet| {
                packet
                    .view()
                    .is_some_and(|view| view.source.port() == 80 || view.destination.port() == 80)
            };
            let mut expected = [Wired::default(); 2];
            for packet in report.packets.iter().filter(port_80) {
                expected[usize::from(!packet.outgoing)].add(packet);
            }
            assert!(expected[0].merged && expected[1].merged, "nothing was GSO");
            let count = |column| output.rule_counter("80:5000", column).expect("a counter");
            let counted = ["packets", "bytes", "packets back", "bytes back"].map(count);
            let expected = expected.map(|wired| [wired.packets, wired.bytes]);
            assert_eq!(
                counted.as_slice(),
                expected.as_flattened(),
                "{tcp:?} {family:?}\n{output}"
            );
        }
    }
}

/// The largest packet of the worlds' devices.
const MTU: usize = 1500;

/// What packets are on the wire, after a device has cut them.
#[derive(Clone, Copy, Default)]
struct Wired {
    packets: u64,
    bytes: u64,
    merged: bool,
}

impl Wired {
    fn add(&mut self, packet: &Packet) {
        let (ip, _) = LaxIpSlice::from_slice(&packet.bytes).expect("an IP packet");
        let segment = ip.payload().payload;
        let tcp = TcpHeaderSlice::from_slice(segment).expect("a TCP segment");
        let payload = segment.len() - tcp.slice().len();
        let headers = packet.bytes.len() - payload;
        let segments = payload.div_ceil(MTU - headers).max(1);
        self.packets += segments as u64;
        self.bytes += (payload + segments * headers) as u64;
        self.merged |= segments > 1;
    }
}
