//! results.md.

use std::fmt::Write as _;

use super::{Note, Results, table};

/// The whole file.
pub fn page(results: &Results) -> String {
    let mut text = "# Results\n\n".to_owned();
    let _ = writeln!(
        text,
        "A {} run of `cargo xtask bench`, {:.0} s. [README.md](README.md) says what is measured and \
         how to read this.\n",
        if results.quick { "quick" } else { "full" },
        results.seconds
    );
    text += "| machine | |\n| --- | --- |\n";
    for (name, value) in &results.machine {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    let _ = writeln!(text, "\n## Goals\n\n{}", table::goals(results));
    let _ = writeln!(text, "\n## Comparisons\n\n{}", table::rows(results));
    let _ = writeln!(text, "\n## Values\n\n{}", table::values(results));
    for (title, notes) in [
        ("Notes", &results.notes),
        ("Skipped", &results.skipped),
        ("Failed", &results.failed),
    ] {
        list(&mut text, title, notes);
    }
    text
}

fn list(text: &mut String, title: &str, notes: &[Note]) {
    if notes.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n## {title}\n");
    for note in notes {
        let _ = writeln!(text, "- {}, {}: {}", note.part, note.about, note.text);
    }
}
