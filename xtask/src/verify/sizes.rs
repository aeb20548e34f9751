//! What the programs take, as `portfwd-sizes` prints it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Every way to load the object, on one kernel.
#[derive(Serialize, Deserialize, Debug)]
pub struct Sizes {
    #[serde(flatten)]
    pub machine: Machine,
    pub loads: Vec<Load>,
}

/// What the sizes depend on besides the programs.
#[derive(Serialize, Deserialize, PartialEq, Eq, Clone, Debug)]
pub struct Machine {
    /// First two numbers of the kernel's release.
    pub kernel: String,
    /// As Rust names it.
    pub arch: String,
}

/// One way to load the object.
#[derive(Serialize, Deserialize, Debug)]
pub struct Load {
    pub tcp: String,
    pub log_flows: bool,
    pub programs: Vec<Program>,
}

/// One program in it.
#[derive(Serialize, Deserialize, Debug)]
pub struct Program {
    pub name: String,
    #[serde(flatten)]
    pub size: Size,
}

/// What a program takes.
#[derive(Serialize, Deserialize, PartialEq, Eq, Clone, Copy, Default, Debug)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Instructions that the kernel is given.
    pub instructions: u32,
    /// Instructions that the verifier walks; unknown below 5.16.
    pub verified: Option<u32>,
    /// Instructions that the kernel is left with.
    pub translated: Option<u32>,
    /// Bytes of machine code; none where the kernel interprets.
    pub jitted: Option<u32>,
}

impl Sizes {
    /// The most that each program takes, however TCP is carried. With `-v` it is a
    /// program of its own, where it is another.
    pub fn largest(&self) -> BTreeMap<String, Size> {
        let plain = self.largest_of(false);
        let verbose = self.largest_of(true);
        let differing = verbose
            .into_iter()
            .filter(|(name, size)| plain.get(name) != Some(size))
            .map(|(name, size)| (format!("{name} -v"), size));
        let differing: Vec<_> = differing.collect();
        plain.into_iter().chain(differing).collect()
    }

    fn largest_of(&self, log_flows: bool) -> BTreeMap<String, Size> {
        let mut largest: BTreeMap<String, Size> = BTreeMap::new();
        let loads = self.loads.iter().filter(|load| load.log_flows == log_flows);
        for program in loads.flat_map(|load| &load.programs) {
            let size = largest.entry(program.name.clone()).or_default();
            *size = size.max(program.size);
        }
        largest
    }
}

impl Size {
    /// The names of the columns.
    pub const COLUMNS: [&str; 4] = ["instructions", "verified", "translated", "jitted"];

    /// Its columns; none where the kernel does not tell.
    pub fn columns(&self) -> [Option<u32>; 4] {
        [
            Some(self.instructions),
            self.verified,
            self.translated,
            self.jitted,
        ]
    }

    fn max(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.max(other.instructions),
            verified: self.verified.max(other.verified),
            translated: self.translated.max(other.translated),
            jitted: self.jitted.max(other.jitted),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} on {}", self.kernel, self.arch)
    }
}
