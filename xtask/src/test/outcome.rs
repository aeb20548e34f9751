//! What came out of a test executable, read from what it prints.

use std::{
    process::{ExitCode, ExitStatus},
    time::Duration,
};

/// The result of one test executable.
#[derive(Debug, Default)]
pub struct Outcome {
    label: String,
    count: Count,
    /// Read line by line since the last summary, which is more reliable: what a test's children
    /// print may stand in the middle of such a line.
    since: Count,
    failures: Vec<String>,
    summaries: u32,
    seconds: f32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Outcome {
    /// Nothing has come out yet.
    pub fn new(label: String) -> Self {
        Self {
            label,
            ..Self::default()
        }
    }

    /// One test, and all that is wrong.
    pub fn of_one(label: String, failures: Vec<String>, took: Duration) -> Self {
        let failed = failures.len() as u32;
        Self {
            label,
            count: Count {
                passed: u32::from(failed == 0),
                failed,
                skipped: 0,
            },
            failures,
            seconds: took.as_secs_f32(),
            ..Self::default()
        }
    }

    /// Takes a line of the output into account.
    pub fn read(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.count.add(Count::of_summary(summary));
            self.since = Count::default();
            self.summaries += 1;
        } else if let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            match result.split(',').next().unwrap_or_default().trim() {
                "ok" => self.since.passed += 1,
                "ignored" => self.since.skipped += 1,
                "FAILED" => {
                    self.since.failed += 1;
                    self.failures.push(name.to_owned());
                }
                _ => {}
            }
        }
    }

    /// The executable came to its end with this status.
    pub fn end(&mut self, status: ExitStatus, took: Duration) {
        let failed = self.count.failed + self.since.failed;
        if self.summaries == 0 || (!status.success() && failed == 0) {
            return self.crash(format!("ended early ({status})"), took);
        }
        self.close(took);
    }

    /// The executable did not come to its end: one more failure.
    pub fn crash(&mut self, why: String, took: Duration) {
        self.since.failed += 1;
        self.failures.push(why);
        self.close(took);
    }

    fn close(&mut self, took: Duration) {
        self.count.add(std::mem::take(&mut self.since));
        self.seconds = took.as_secs_f32();
    }
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads `FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; …`.
    fn of_summary(text: &str) -> Self {
        let words: Vec<_> = text.split_whitespace().collect();
        let before = |word: &str| {
            let mut pairs = words
                .windows(2)
                .filter(|pair| pair[1].trim_end_matches(';') == word);
            pairs
                .next()
                .and_then(|pair| pair[0].parse().ok())
                .unwrap_or(0)
        };
        Self {
            passed: before("passed"),
            failed: before("failed"),
            skipped: before("ignored"),
        }
    }
}

/// Prints the table and the last line; the code is a failure's if anything failed.
pub fn summarise(outcomes: &[Outcome]) -> ExitCode {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.label.len())
        .max()
        .unwrap_or(0);
    println!();
    for outcome in outcomes {
        for failure in &outcome.failures {
            println!("FAILED {}: {failure}", outcome.label);
        }
    }
    println!("{:width$}  passed  failed  skipped  seconds", "tests");
    let mut sum = Count::default();
    for Outcome {
        label,
        count,
        seconds,
        ..
    } in outcomes
    {
        let Count {
            passed,
            failed,
            skipped,
        } = count;
        println!("{label:width$}  {passed:6}  {failed:6}  {skipped:7}  {seconds:7.1}");
        sum.add(*count);
    }
    println!(
        "{} passed, {} failed, {} skipped",
        sum.passed, sum.failed, sum.skipped
    );
    if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn outcome(lines: &[&str], status: i32) -> (u32, u32, u32) {
        let mut outcome = Outcome::new("t".into());
        lines.iter().for_each(|line| outcome.read(line));
        outcome.end(ExitStatus::from_raw(status), Duration::ZERO);
        (
            outcome.count.passed,
            outcome.count.failed,
            outcome.count.skipped,
        )
    }

    #[test]
    fn the_summary_is_believed_where_a_line_is_torn() {
        let lines = [
            "test a ... ok",
            "test b ... noise of a childok",
            "test c ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 9 filtered out",
        ];
        assert_eq!(outcome(&lines, 101 << 8), (2, 1, 4));
    }

    #[test]
    fn several_summaries_add_up() {
        let summary = "test result: ok. 3 passed; 0 failed; 1 ignored";
        assert_eq!(outcome(&[summary, summary], 0), (6, 0, 2));
    }

    #[test]
    fn an_executable_that_dies_has_failed() {
        let lines = [
            "test a - should panic ... ok",
            "test b ... ignored, needs 6.6",
            "test c ... ",
        ];
        assert_eq!(outcome(&lines, 11), (1, 1, 1));
        assert_eq!(outcome(&[], 0), (0, 1, 0));
    }

    #[test]
    fn a_bad_exit_after_good_results_is_a_failure() {
        assert_eq!(
            outcome(&["test result: ok. 1 passed; 0 failed"], 1 << 8),
            (1, 1, 0)
        );
    }
}
