//! The budgets: read, written, compared.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::sizes::{Machine, Size, Sizes};

/// Helper calls by name, by the path of a packet.
pub type Paths = BTreeMap<String, BTreeMap<String, u32>>;

const HEAD: &str = "\
# What each program may take, and what each kind of packet may call: `cargo xtask verify` compares.
#
# Programs: instructions in the object with what they call, instructions that the verifier walks,
# instructions that the kernel is left with, and bytes of machine code; the most of the ways in which
# TCP is carried. `-v` is the program with the log of new flows, where that is another.
# All but the first depend on the kernel and the machine: they are compared on these alone.
#
# Paths: helpers that a packet's program calls, as the corridor counts them on the host; lookups in
# arrays too, though the kernel does them in line. A flow's packet without another word is a later
# one, of which nothing is new but itself; `sent on` is the egress program of the device it leaves by.
#
# A budget is not raised to make a check pass, but for a reason that the commit tells. After that:
# `cargo xtask verify --write` takes what is there now and a tenth more, and calls as they are.
";

/// What `budgets.toml` holds.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Where the sizes were taken.
    pub machine: Machine,
    pub programs: BTreeMap<String, Size>,
    pub paths: Paths,
}

impl Budgets {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Budgets that hold for what is there, with a tenth of room for the sizes.
    pub fn of(sizes: &Sizes, paths: &Paths) -> Self {
        let programs = sizes.largest().into_iter();
        Self {
            machine: sizes.machine.clone(),
            programs: programs
                .map(|(name, size)| (name, with_room(size)))
                .collect(),
            paths: paths.clone(),
        }
    }

    /// The columns of [`Size`] that are compared on this machine.
    pub fn compared(&self, machine: &Machine) -> usize {
        if self.machine == *machine {
            Size::COLUMNS.len()
        } else {
            1
        }
    }

    /// A sentence for each program and path that is past its budget, or has none,
    /// and for each budget of what is not there.
    pub fn faults(&self, sizes: &Sizes, paths: &Paths) -> Vec<String> {
        let programs = sizes.largest();
        let compared = self.compared(&sizes.machine);
        let mut faults = Vec::new();
        for (name, size) in &programs {
            let what = format!("program {name}");
            faults.extend(match self.programs.get(name) {
                Some(budget) => past(&what, &over(size, budget, compared)),
                None => Some(without_budget(&what)),
            });
        }
        faults.extend(gone("program", &self.programs, &programs));
        for (name, calls) in paths {
            let what = format!("path `{name}`");
            faults.extend(match self.paths.get(name) {
                Some(budget) => past(&what, &more_calls(calls, budget)),
                None => Some(without_budget(&what)),
            });
        }
        faults.extend(gone("path", &self.paths, paths));
        faults
    }
}

/// As it stands in the file: a line for each program and path.
impl fmt::Display for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, arch } = &self.machine;
        writeln!(f, "{HEAD}\n[machine]\nkernel = {kernel:?}\narch = {arch:?}")?;
        writeln!(f, "\n[programs]")?;
        for (name, size) in &self.programs {
            let columns = Size::COLUMNS.into_iter().zip(size.columns());
            let known = columns.filter_map(|(column, size)| Some((column, size?)));
            writeln!(f, "{name:?} = {}", entry(known))?;
        }
        writeln!(f, "\n[paths]")?;
        for (name, calls) in &self.paths {
            let calls = calls.iter().map(|(call, count)| (&**call, *count));
            writeln!(f, "{name:?} = {}", entry(calls))?;
        }
        Ok(())
    }
}

fn entry<'a>(values: impl Iterator<Item = (&'a str, u32)>) -> String {
    let values = values.map(|(name, value)| match name.contains(' ') {
        true => format!("{name:?} = {value}"),
        false => format!("{name} = {value}"),
    });
    format!("{{ {} }}", values.collect::<Vec<_>>().join(", "))
}

fn with_room(size: Size) -> Size {
    Size {
        instructions: rounded(size.instructions),
        verified: size.verified.map(rounded),
        translated: size.translated.map(rounded),
        jitted: size.jitted.map(rounded),
    }
}

/// A tenth more, rounded up to three digits.
fn rounded(size: u32) -> u32 {
    let more = size + size.div_ceil(10);
    let unit = 10_u32.pow(more.checked_ilog10().unwrap_or(0).saturating_sub(2));
    more.next_multiple_of(unit)
}

/// `verified 80 of 70` for each column past its budget. A column without a budget was
/// unknown where the budgets were taken.
fn over(size: &Size, budget: &Size, compared: usize) -> Vec<String> {
    let both = size.columns().into_iter().zip(budget.columns());
    let columns = Size::COLUMNS.into_iter().zip(both).take(compared);
    let over = columns.filter_map(|(column, (size, budget))| {
        let (size, budget) = (size?, budget?);
        (size > budget).then(|| format!("{column} {size} of {budget}"))
    });
    over.collect()
}

fn more_calls(calls: &BTreeMap<String, u32>, budget: &BTreeMap<String, u32>) -> Vec<String> {
    let more = calls.iter().filter_map(|(call, count)| {
        let budget = budget.get(call).copied().unwrap_or_default();
        (*count > budget).then(|| format!("{call} {count} of {budget}"))
    });
    more.collect()
}

fn past(what: &str, over: &[String]) -> Option<String> {
    (!over.is_empty()).then(|| format!("{what} is past its budget: {}", over.join(", ")))
}

fn without_budget(what: &str) -> String {
    format!(
        "{what} has no budget: add one to xtask/budgets.toml, which `cargo xtask verify --write` does"
    )
}

/// A budget that is left behind would be another program's one day.
fn gone<B, T>(
    kind: &str,
    budgets: &BTreeMap<String, B>,
    there: &BTreeMap<String, T>,
) -> Vec<String> {
    let gone = budgets.keys().filter(|name| !there.contains_key(*name));
    gone.map(|name| {
        format!("budget `{name}` is of no {kind} that there is: remove it from xtask/budgets.toml")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::sizes::{Load, Program};

    const SIZE: Size = Size {
        instructions: 90,
        verified: Some(1000),
        translated: Some(100),
        jitted: Some(500),
    };

    fn load(log_flows: bool, programs: &[(&str, Size)]) -> Load {
        let programs = programs.iter().map(|(name, size)| Program {
            name: (*name).into(),
            size: *size,
        });
        Load {
            tcp: "steered".into(),
            log_flows,
            programs: programs.collect(),
        }
    }

    fn sizes(programs: &[(&str, Size)]) -> Sizes {
        let machine = Machine {
            kernel: "6.18".into(),
            arch: "x86_64".into(),
        };
        Sizes {
            machine,
            loads: vec![load(false, programs), load(true, programs)],
        }
    }

    fn paths(name: &str, calls: &[(&str, u32)]) -> Paths {
        let calls = calls.iter().map(|(call, count)| ((*call).into(), *count));
        [(name.into(), calls.collect())].into()
    }

    #[test]
    fn what_is_written_is_read_and_holds() {
        let sizes = sizes(&[("in", SIZE), ("out", Size::default())]);
        let paths = paths("UDP, first", &[("lookup FLOWS", 2), ("fib_lookup", 1)]);
        let budgets = Budgets::of(&sizes, &paths);
        let read = Budgets::parse(&budgets.to_string()).expect("it was just written");
        assert_eq!(read.faults(&sizes, &paths), [""; 0]);
    }

    #[test]
    fn a_file_with_a_slip_is_no_budget() {
        let text = Budgets::of(&sizes(&[("in", SIZE)]), &Paths::new()).to_string();
        for (word, slip) in [
            ("verified", "verifed"),
            ("[paths]", "[path]"),
            ("550", "-1"),
        ] {
            assert!(Budgets::parse(&text.replace(word, slip)).is_err(), "{slip}");
        }
    }

    #[test]
    fn a_budget_is_a_tenth_more_in_three_digits() {
        for (size, budget) in [
            (0, 0),
            (1, 2),
            (54, 60),
            (100, 110),
            (951, 1050),
            (77_882, 85_700),
        ] {
            assert_eq!(rounded(size), budget, "{size}");
        }
    }

    #[test]
    fn a_program_past_its_budget_is_one_sentence() {
        let paths = Paths::new();
        let budgets = Budgets::of(&sizes(&[("in", SIZE)]), &paths);
        let grown = Size {
            verified: Some(1101),
            jitted: Some(551),
            ..SIZE
        };
        assert_eq!(
            budgets.faults(&sizes(&[("in", grown)]), &paths),
            ["program in is past its budget: verified 1101 of 1100, jitted 551 of 550"]
        );
    }

    #[test]
    fn the_largest_way_to_load_a_program_counts() {
        let mut sizes = sizes(&[("in", SIZE)]);
        let larger = Size {
            verified: Some(2000),
            ..SIZE
        };
        sizes.loads.push(load(true, &[("in", larger)]));
        assert_eq!(
            Vec::from_iter(sizes.largest()),
            [("in".into(), SIZE), ("in -v".into(), larger)]
        );
    }

    #[test]
    fn on_another_machine_only_the_object_is_compared() {
        let paths = Paths::new();
        let budgets = Budgets::of(&sizes(&[("in", SIZE)]), &paths);
        let larger = Size {
            verified: None,
            translated: Some(1000),
            ..SIZE
        };
        let mut elsewhere = sizes(&[("in", larger)]);
        assert_eq!(budgets.faults(&elsewhere, &paths).len(), 1);
        elsewhere.machine.kernel = "5.10".into();
        assert_eq!(budgets.faults(&elsewhere, &paths), [""; 0]);
        for load in &mut elsewhere.loads {
            load.programs[0].size.instructions = 1000;
        }
        assert_eq!(
            budgets.faults(&elsewhere, &paths),
            ["program in is past its budget: instructions 1000 of 99"]
        );
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_compared() {
        let paths = Paths::new();
        let budgets = Budgets::of(&sizes(&[("in", SIZE)]), &paths);
        let untold = Size {
            verified: None,
            jitted: None,
            ..SIZE
        };
        assert_eq!(budgets.faults(&sizes(&[("in", untold)]), &paths), [""; 0]);
    }

    #[test]
    fn a_new_program_needs_a_budget_and_a_gone_one_none() {
        let before = Budgets::of(&sizes(&[("in", SIZE)]), &paths("first", &[]));
        let faults = before.faults(&sizes(&[("xdp", SIZE)]), &paths("second", &[]));
        let starts = [
            "program xdp has no budget",
            "budget `in` is of no program",
            "path `second` has no budget",
            "budget `first` is of no path",
        ];
        assert_eq!(faults.len(), starts.len());
        for (fault, start) in faults.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault}");
        }
    }

    #[test]
    fn a_path_may_call_no_helper_more_often_and_no_other() {
        let sizes = sizes(&[]);
        let budgets = Budgets::of(&sizes, &paths("first", &[("fib_lookup", 1), ("clock", 2)]));
        let fewer = paths("first", &[("clock", 1)]);
        assert_eq!(budgets.faults(&sizes, &fewer), [""; 0]);
        let more = paths("first", &[("clock", 3), ("redirect", 1)]);
        assert_eq!(
            budgets.faults(&sizes, &more),
            ["path `first` is past its budget: clock 3 of 2, redirect 1 of 0"]
        );
    }
}
