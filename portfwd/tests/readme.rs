//! What the README shows can be typed.

use std::{fs, path::Path, process::Command};

use portfwd::rule::{Rule, not_yet};

#[test]
fn every_rule_of_the_rule_table_is_served() {
    let readme = readme();
    let rules: Vec<&str> = first_cells(section(&readme, "Rules")).collect();
    assert!(rules.len() > 5, "the rule table is not found: {rules:?}");
    for text in rules {
        assert_served(text);
    }
}

#[test]
fn the_option_table_is_what_help_shows() {
    let readme = readme();
    let help = Command::new(env!("CARGO_BIN_EXE_portfwd"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut shown: Vec<&str> = long_options(&help).collect();
    shown.retain(|option| !["--help", "--version"].contains(option));
    let cells: Vec<&str> = first_cells(section(&readme, "Options")).collect();
    let mut told: Vec<&str> = cells.iter().flat_map(|cell| long_options(cell)).collect();
    shown.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, shown);
}

#[test]
fn every_xtask_command_is_one_that_ci_runs() {
    let readme = readme();
    let ci = read(".ci/run");
    let run: Vec<&str> = ci
        .lines()
        .map(|line| line.trim().trim_end_matches(" &"))
        .collect();
    let commands: Vec<&str> = typed(&readme, "cargo xtask ").collect();
    assert!(commands.len() > 2, "no commands are found: {commands:?}");
    for command in commands {
        assert!(run.contains(&command), "`{command}` is not in .ci/run");
    }
}

/// `PORTFWD_TCP` is read after the command line and before anything is
/// touched: where it is all that is wrong, the rest is right.
#[test]
fn every_portfwd_command_is_read() {
    let readme = readme();
    let commands: Vec<&str> = typed(&readme, "sudo portfwd ").collect();
    assert!(!commands.is_empty(), "no commands are found");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().skip(2).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_portfwd"))
            .args(&words)
            .env("PORTFWD_TCP", "nothing-at-all")
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}: {error}");
        assert!(error.contains("nothing-at-all"), "{command}: {error}");
        assert_served(words.last().unwrap());
    }
}

/// A rule that is served today.
fn assert_served(text: &str) {
    let rule: Rule = text.parse().unwrap_or_else(|error| panic!("{error}"));
    not_yet(&rule).unwrap_or_else(|error| panic!("{error}"));
}

/// The text between a heading and the next one.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, after) = text
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("there is no section {heading}"));
    after.split("\n## ").next().unwrap_or_default()
}

/// What stands in backquotes in the first cells of tables.
fn first_cells(section: &str) -> impl Iterator<Item = &str> {
    section.lines().filter_map(|line| {
        let (cell, _) = line.strip_prefix("| `")?.split_once("` |")?;
        Some(cell)
    })
}

/// Lines of code blocks that begin so.
fn typed<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let blocks = text.split("\n```").skip(1).step_by(2);
    blocks.flat_map(move |block| block.lines().filter(move |line| line.starts_with(start)))
}

fn long_options(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
        .filter(|word| word.starts_with("--") && word.len() > 2)
}

fn readme() -> String {
    read("README.md")
}

fn read(name: &str) -> String {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
