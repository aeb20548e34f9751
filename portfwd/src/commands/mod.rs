//! The verbs, one file each.

pub mod run;
