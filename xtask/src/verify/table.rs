//! What there is beside what may be.

use std::collections::BTreeMap;

use super::{
    budgets::{Budgets, Paths},
    sizes::{Size, Sizes},
};

/// Prints the programs, then the paths.
pub fn print(sizes: &Sizes, paths: &Paths, budgets: &Budgets) {
    let programs = sizes.largest();
    let compared = budgets.compared(&sizes.machine);
    let mut rows = vec![Vec::from(["program".to_owned()])];
    rows[0].extend(Size::COLUMNS.map(String::from));
    for (name, size) in &programs {
        let budget = budgets.programs.get(name).map(Size::columns);
        let mut row = vec![name.clone()];
        for (at, size) in size.columns().into_iter().enumerate() {
            let budget = budget
                .and_then(|budget| budget[at])
                .filter(|_| at < compared);
            row.push(cell(size, budget));
        }
        rows.push(row);
    }
    align(&rows);
    if programs.values().any(|size| size.verified.is_none()) {
        println!("verified instructions are not told by this kernel: it has to be 5.16 or later");
    }
    if compared < Size::COLUMNS.len() {
        println!(
            "only instructions are compared: this is {}, the budgets are from {}",
            sizes.machine, budgets.machine
        );
    }
    println!();
    let mut rows = vec![["path", "calls", "of which"].map(String::from).to_vec()];
    for (name, calls) in paths {
        let budget = budgets.paths.get(name).map(|calls| calls.values().sum());
        rows.push(vec![
            name.clone(),
            cell(Some(calls.values().sum()), budget),
            by_helper(calls),
        ]);
    }
    align(&rows);
}

/// `2 check_mtu, lookup (DRAFT, 2 FLOWS)`: a helper that is called for maps is named
/// once.
fn by_helper(calls: &BTreeMap<String, u32>) -> String {
    let times = |count: u32, name: &str| match count {
        1 => name.to_owned(),
        _ => format!("{count} {name}"),
    };
    let mut helpers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut words = Vec::new();
    for (call, count) in calls {
        match call.split_once(' ') {
            Some((helper, map)) => helpers.entry(helper).or_default().push(times(*count, map)),
            None => words.push(times(*count, call)),
        }
    }
    let of_maps = helpers.into_iter();
    words.extend(of_maps.map(|(helper, maps)| format!("{helper} ({})", maps.join(", "))));
    words.join(", ")
}

fn cell(actual: Option<u32>, budget: Option<u32>) -> String {
    match (actual, budget) {
        (Some(actual), Some(budget)) => format!("{actual} / {budget}"),
        (Some(actual), None) => actual.to_string(),
        (None, _) => "-".into(),
    }
}

/// The last column is as wide as it likes.
fn align(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        rows.iter()
            .filter_map(|row| row.get(at))
            .map(String::len)
            .max()
    };
    let widths: Vec<_> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line = cells.map(|(cell, width)| format!("{cell:width$}  "));
        println!("{}", line.collect::<String>().trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_for_maps_stand_together() {
        let calls = [
            ("check_mtu", 2),
            ("fib_lookup", 1),
            ("lookup DRAFT", 1),
            ("lookup FLOWS", 2),
            ("update NEW", 2),
        ];
        let calls = calls.map(|(call, count)| (call.to_owned(), count)).into();
        assert_eq!(
            by_helper(&calls),
            "2 check_mtu, fib_lookup, lookup (DRAFT, 2 FLOWS), update (2 NEW)"
        );
    }

    #[test]
    fn what_has_no_budget_stands_alone() {
        assert_eq!(cell(Some(90), Some(100)), "90 / 100");
        assert_eq!(cell(Some(90), None), "90");
        assert_eq!(cell(None, Some(100)), "-");
    }
}
