//! Bounded waits: a test polls for what it needs and never sleeps to
//! synchronise.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a test waits for something that is sure to come.
pub const PATIENCE: Duration = Duration::from_secs(10);

const STEP: Duration = Duration::from_millis(1);

/// Waits until `condition` holds.
///
/// # Panics
///
/// When it does not hold within [`PATIENCE`]; the message says what was
/// waited for.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    until_some(what, || condition().then_some(()));
}

/// Waits until `attempt` returns a value.
///
/// # Panics
///
/// When it returns none within [`PATIENCE`].
#[track_caller]
pub fn until_some<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    match deadline(PATIENCE, attempt) {
        Some(value) => value,
        None => panic!("waited {} s for {what}", PATIENCE.as_secs()),
    }
}

/// Polls `attempt` until it returns a value or the time is over.
pub fn deadline<T>(patience: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(STEP);
    }
}
