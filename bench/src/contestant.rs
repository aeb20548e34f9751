//! Who carries the traffic of a case.

use anyhow::Result;

/// One way of carrying the traffic of a case: portfwd, a rival, a yardstick.
pub trait Contestant {
    /// Its name in tables; one contestant of a case each.
    fn name(&self) -> &str;

    /// Whether it can take part here.
    ///
    /// # Errors
    ///
    /// Why not, as it is printed behind "skipped:".
    fn available(&self) -> Result<(), String> {
        Ok(())
    }

    /// Builds all that it needs: namespaces, tables, processes. What is
    /// dropped undoes it, on panic too.
    ///
    /// # Errors
    ///
    /// What could not be built; that fails the case.
    fn start(&self) -> Result<Box<dyn Lane + '_>>;
}

/// A contestant that is ready to carry.
pub trait Lane {
    /// Carries one exchange and looks at the reply.
    ///
    /// # Errors
    ///
    /// What was wrong with the reply: nothing is timed then.
    fn prove(&mut self) -> Result<()>;

    /// Takes one sample, bounded in time.
    ///
    /// # Errors
    ///
    /// What went wrong; the case ends there.
    fn sample(&mut self) -> Result<Sample>;
}

/// What one sample says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// In the unit of the case.
    pub value: f64,
    /// The share (0 to 1) of the time in which another process had the CPU
    /// that the sample needed.
    pub disturbed: f64,
    /// What was sent and what arrived, where that was counted.
    pub traffic: Option<Traffic>,
}

impl Sample {
    /// A sample that nobody disturbed and that counts no packets.
    pub const fn of(value: f64) -> Self {
        Self {
            value,
            disturbed: 0.0,
            traffic: None,
        }
    }
}

/// Packets sent, and packets that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Handed to the first device.
    pub sent: u64,
    /// Seen by the receiver.
    pub received: u64,
}

impl Traffic {
    /// The share that was lost, 0 to 1.
    pub fn lost(self) -> f64 {
        match self.sent {
            0 => 0.0,
            sent => sent.saturating_sub(self.received) as f64 / sent as f64,
        }
    }

    /// Both together.
    pub const fn with(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            received: self.received + other.received,
        }
    }
}
