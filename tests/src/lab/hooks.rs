//! Where a frame meets the programs of a lab.

use std::time::Duration;

use portfwd::{
    Error,
    dataplane::{Dataplane, Entrance, Side, Trial},
    host::devices::Link,
};
use portfwd_common::{RuleCounters, Verdict};

use super::{LO, Lab, Seen};
use crate::{
    Netns,
    frame::{Bytes, ETHERNET},
};

/// Both hooks of a device.
pub struct Hooks<'a> {
    lab: &'a mut Lab,
    entrance: Entrance,
}

impl<'a> Hooks<'a> {
    pub(super) fn new(lab: &'a mut Lab, ifindex: u32, link: Link) -> Self {
        Self {
            lab,
            entrance: Entrance {
                side: Side::Ingress,
                link,
                ifindex,
                ingress_ifindex: 0,
                gso_size: 0,
            },
        }
    }

    /// What arrives here comes from a target: no client is served.
    pub fn back(mut self) -> Self {
        self.entrance.side = Side::Back;
        self
    }

    /// The packet is a GSO packet with this many payload bytes in a segment.
    pub fn segmented(mut self, gso_size: u32) -> Self {
        self.entrance.gso_size = gso_size;
        self
    }

    /// This host only forwards the packet.
    #[track_caller]
    pub fn forwarded(mut self) -> Self {
        self.entrance.ingress_ifindex = self.lab.ns.ifindex("bare0");
        self
    }

    /// A frame arrives.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn arrives(self, frame: impl Bytes) -> Seen {
        self.see(&frame.bytes())
    }

    /// This host sends a frame.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn leaves(mut self, frame: impl Bytes) -> Seen {
        self.entrance.side = Side::Egress;
        self.see(&frame.bytes())
    }

    /// A frame arrives, and meets XDP before it meets TC.
    #[must_use = "say what became of it"]
    #[track_caller]
    pub fn meets_xdp(self, frame: impl Bytes) -> Seen {
        let ifindex = self.entrance.ifindex;
        self.see_by(&frame.bytes(), |plane, frame| {
            plane.run_xdp_once(ifindex, frame)
        })
    }

    /// The frames arrive one after the other, without a look at any.
    #[track_caller]
    pub fn all_arrive(self, frames: impl Iterator<Item = Vec<u8>> + Send) {
        self.run(frames);
    }

    /// This host sends the frames one after the other, without a look at any.
    #[track_caller]
    pub fn all_leave(mut self, frames: impl Iterator<Item = Vec<u8>> + Send) {
        self.entrance.side = Side::Egress;
        self.run(frames);
    }

    #[track_caller]
    fn run(self, frames: impl Iterator<Item = Vec<u8>> + Send) {
        let Self { lab, entrance } = self;
        lab.ns.enter(|| {
            for frame in frames {
                let _trial = lab
                    .plane
                    .run_once(entrance, &frame)
                    .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
            }
        });
    }

    /// How long the program runs on a frame that arrives, on average of so
    /// many passes; each runs on what the one before it made, and each must
    /// end with this verdict.
    #[track_caller]
    pub fn takes(self, verdict: Verdict, frame: impl Bytes, passes: u32) -> Duration {
        let Self { lab, entrance } = self;
        let frame = on_device(&lab.ns, entrance, &frame.bytes());
        let (before, _) = lab.counts();
        let plane = &mut lab.plane;
        let trial = lab
            .ns
            .enter(|| plane.run_again(entrance, &frame, passes))
            .unwrap_or_else(|error| panic!("{error}"));
        let (after, _) = lab.counts();
        assert_eq!(counted(&before, &after), [(verdict, u64::from(passes))]);
        trial.duration
    }

    #[track_caller]
    fn see(self, frame: &[u8]) -> Seen {
        let entrance = self.entrance;
        self.see_by(frame, |plane, frame| plane.run_once(entrance, frame))
    }

    #[track_caller]
    fn see_by(
        self,
        frame: &[u8],
        run: impl FnOnce(&mut Dataplane, &[u8]) -> Result<Trial, Error> + Send,
    ) -> Seen {
        let Self { lab, entrance } = self;
        let frame = on_device(&lab.ns, entrance, frame);
        let (verdicts, rules) = lab.counts();
        let plane = &mut lab.plane;
        let trial = lab
            .ns
            .enter(|| run(plane, &frame))
            .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
        let (verdicts_after, rules_after) = lab.counts();
        let counted = counted(&verdicts, &verdicts_after);
        let [(verdict, 1)] = counted[..] else {
            panic!("one packet has one verdict, not {counted:?}");
        };
        let rules = rules.into_iter().zip(rules_after);
        Seen {
            frame,
            link: entrance.link,
            trial,
            verdict,
            rules: rules.map(|(before, after)| less(after, before)).collect(),
        }
    }
}

/// The verdicts that were counted in between, and how often.
fn counted(before: &[(Verdict, u64)], after: &[(Verdict, u64)]) -> Vec<(Verdict, u64)> {
    before
        .iter()
        .zip(after)
        .map(|((verdict, before), (_, after))| (*verdict, after - before))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// A frame as it looks on the device.
#[track_caller]
fn on_device(ns: &Netns, entrance: Entrance, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if entrance.ifindex == LO {
        frame[..12].fill(0);
    }
    if entrance.link == Link::Bare {
        frame.drain(..ETHERNET);
        if entrance.side != Side::Egress {
            // A run takes the first bytes for the frame's destination.
            let [a, b, c, d, e, f] = frame[..6] else {
                unreachable!("six bytes");
            };
            ns.ip(&format!(
                "link set bare0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
            ));
        }
    }
    frame
}

fn less(after: RuleCounters, before: RuleCounters) -> RuleCounters {
    RuleCounters {
        packets: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
        packets_back: after.packets_back - before.packets_back,
        bytes_back: after.bytes_back - before.bytes_back,
        connections: after.connections - before.connections,
    }
}
