//! The captures of a world: whatever a test does, every checksum is looked at.

use std::thread;

use crate::{Capture, Keep, Netns, Packet, Report, Watch};

/// A capture in each namespace of a world. Dropping it is [`Watchers::verify`].
#[derive(Default)]
pub struct Watchers(Vec<(String, Capture)>);

impl Watchers {
    /// Looks at every packet of each namespace, named for the complaint.
    #[track_caller]
    pub fn start<'a>(namespaces: impl IntoIterator<Item = (&'a str, &'a Netns)>) -> Self {
        let start =
            |(name, ns): (&str, &Netns)| (name.to_owned(), Capture::start(ns, Keep::Nothing));
        Self(namespaces.into_iter().map(start).collect())
    }

    /// Checks other packets than all.
    #[track_caller]
    pub fn filter(&self, watch: Watch) {
        for (_, capture) in &self.0 {
            capture.filter(&watch.filter());
        }
    }

    /// Forgives wrong checksums that the test itself sends.
    pub fn forgive(&self, forgiven: impl Fn(&Packet) -> bool + Clone + Send + 'static) {
        for (_, capture) in &self.0 {
            capture.forgive(forgiven.clone());
        }
    }

    /// Ends the captures and tells what they found, in their order.
    ///
    /// # Panics
    ///
    /// When a checksum was wrong.
    #[track_caller]
    pub fn verify(&mut self) -> Vec<Report> {
        let mut complaints = String::new();
        let mut reports = Vec::new();
        for (name, capture) in self.0.drain(..) {
            let report = capture.finish();
            if report.dropped > 0 {
                eprintln!(
                    "the capture of the {name} was too slow for {} packets",
                    report.dropped
                );
            }
            if report.wrong > 0 {
                complaints += &format!("{} wrong checksums at the {name}\n", report.wrong);
            }
            for fault in &report.faults {
                complaints += &format!("  {fault}\n");
            }
            reports.push(report);
        }
        match (complaints.is_empty(), thread::panicking()) {
            (true, _) => {}
            (false, true) => eprintln!("{complaints}"),
            (false, false) => panic!("{complaints}"),
        }
        reports
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.verify();
    }
}
