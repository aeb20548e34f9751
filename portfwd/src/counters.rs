//! Counters for people: from the maps to a table.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use portfwd_common::{RuleCounters, Verdict};

use crate::rule::RuleSpec;

/// Every counter of a forwarder at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The rules by slot.
    pub rules: Vec<RuleRow>,
    /// Runs of the programs by verdict, all of them.
    pub verdicts: Vec<(Verdict, u64)>,
}

/// The counters of one rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleRow {
    /// The rule as it prints.
    pub rule: String,
    /// Its name.
    pub name: Option<String>,
    /// What it did.
    pub counters: RuleCounters,
}

impl Snapshot {
    pub(crate) fn new(
        specs: &[RuleSpec],
        counters: Vec<RuleCounters>,
        verdicts: Vec<(Verdict, u64)>,
    ) -> Self {
        let row = |(spec, counters): (&RuleSpec, RuleCounters)| RuleRow {
            rule: spec.rule.to_string(),
            name: spec.name.clone(),
            counters,
        };
        Self {
            rules: specs.iter().zip(counters).map(row).collect(),
            verdicts,
        }
    }

    fn rule_table(&self) -> Table {
        let mut table = table(&[
            "id",
            "rule",
            "name",
            "connections",
            "packets",
            "bytes",
            "packets back",
            "bytes back",
        ]);
        for (id, row) in (1..).zip(&self.rules) {
            let RuleCounters {
                packets,
                bytes,
                packets_back,
                bytes_back,
                connections,
            } = row.counters;
            let name = row.name.as_deref().unwrap_or("-").to_owned();
            let mut cells = vec![id.to_string(), row.rule.clone(), name];
            let counts = [connections, packets, bytes, packets_back, bytes_back];
            cells.extend(counts.map(|count: u64| count.to_string()));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn verdict_table(&self) -> Table {
        let mut table = table(&["verdict", "count", "action", "meaning"]);
        for (verdict, count) in self.verdicts.iter().filter(|(_, count)| *count > 0) {
            table.add_row([
                verdict.label(),
                &count.to_string(),
                verdict.action().as_str(),
                verdict.help(),
            ]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl fmt::Display for Snapshot {
    /// Two tables with an empty line between and after them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}\n\n{}\n",
            self.rule_table().trim_fmt(),
            self.verdict_table().trim_fmt()
        )
    }
}

fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(headings.to_vec());
    table
}
