//! What the documentation says of tables in the code is what they hold.

#[path = "../build/toolchain.rs"]
#[allow(dead_code, reason = "only the names and versions are compared")]
mod toolchain;

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use portfwd_common::{Timeouts, Verdict, names};

const HEAD: &str = "\
# Verdicts

<!-- Generated from portfwd-common/src/verdict.rs by `UPDATE_DOCS=1 cargo test --package portfwd
--test docs`. -->

Every packet that meets a program of portfwd leaves it with one verdict, and each verdict has a
counter. `pass` hands the packet on to the next program of the hook and then to the stack, `drop`
ends it, and `send` hands it to the interface that leads to another host, past the stack and its
firewall. A packet to or from another host meets a second program as it leaves. What a program of this
host sends to a rule for another host goes to the target directly and is in no rule's counter;
`dialled` counts the calls. Numbers never change and are never given to another verdict.

| number | verdict | action | meaning |
| --- | --- | --- | --- |
";

#[test]
fn the_page_of_verdicts_is_the_table() {
    let mut wanted = HEAD.to_owned();
    for verdict in Verdict::ALL {
        writeln!(
            wanted,
            "| {} | `{}` | {} | {} |",
            *verdict as u32,
            verdict.label(),
            verdict.action().as_str(),
            verdict.help()
        )
        .unwrap();
    }
    let page = page("docs/verdicts.md");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, &wanted).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&page).unwrap_or_default(),
        wanted,
        "docs/verdicts.md is not what the table says: \
         run `UPDATE_DOCS=1 cargo test --package portfwd --test docs`"
    );
}

#[test]
fn the_page_of_flows_gives_the_timeouts() {
    let Timeouts {
        tcp_half_open,
        tcp_established,
        udp_one_way,
        udp_two_way,
    } = Timeouts::DEFAULT;
    let text = read("docs/flows.md");
    for seconds in [tcp_half_open, tcp_established, udp_one_way, udp_two_way] {
        let cell = format!("| {seconds} s |");
        assert!(text.contains(&cell), "docs/flows.md lacks `{cell}`");
    }
}

#[test]
fn the_map_layout_names_every_map() {
    let text = read("ARCHITECTURE.md");
    for map in names::PINNED {
        let cell = format!("| `{map}` |");
        assert!(text.contains(&cell), "ARCHITECTURE.md lacks `{cell}`");
    }
}

#[test]
fn the_architecture_names_what_there_is() {
    let sources: Vec<PathBuf> = ["portfwd", "portfwd-common", "portfwd-ebpf"]
        .iter()
        .flat_map(|member| sources(&page(member).join("src")))
        .collect();
    let text = read("ARCHITECTURE.md");
    // In quotes: a file, and sometimes what is in it.
    let places = text.split('`').skip(1).step_by(2).filter_map(|quoted| {
        let (file, name) = quoted.split_once(": ").unwrap_or((quoted, ""));
        file.ends_with(".rs").then_some((file, name))
    });
    let mut found = 0;
    for (file, name) in places {
        let mut candidates = sources.iter().filter(|source| source.ends_with(file));
        let has = |source: &PathBuf| {
            let code = fs::read_to_string(source).expect("a source file is read");
            name.is_empty()
                || code
                    .split(|c: char| c != '_' && !c.is_alphanumeric())
                    .any(|word| word == name)
        };
        assert!(
            candidates.any(has),
            "ARCHITECTURE.md names `{file}: {name}`"
        );
        found += 1;
    }
    assert!(found > 40, "{found}");
}

#[test]
fn the_toolchains_by_hand_are_those_of_the_build() {
    let text = read("docs/development.md");
    let commands = toolchain::BY_HAND.lines().map(|line| {
        let (_, command) = line.split_once(": ").expect("what: command");
        command
    });
    for command in commands {
        let there = text
            .lines()
            .any(|line| line.trim_start_matches("sudo ") == command);
        assert!(there, "docs/development.md lacks `{command}`");
    }
}

/// The files of a folder and of those in it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .collect()
}

fn page(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(page(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
