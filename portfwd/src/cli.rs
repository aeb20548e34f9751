//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use ipnet::IpNet;
use portfwd::{
    Error, Interfaces,
    accelerate::Mode,
    rule::{Nat, Rule, RuleSpec, check_sources, source},
};
use portfwd_common::settings::{DEFAULT_MAX_FLOWS, MOST_FLOWS};

const RULES: &str = "\
Rules: [LISTEN:]PORTS:(PORTS | TARGET[:PORTS])[/PROTO]
  80:5000                     port 80 of every address of this host to port 5000 on this host
  80:127.0.0.1:5000           to a service that listens on 127.0.0.1 only
  80:10.0.0.5:8080            to another host, container or VM
  80:10.0.0.5                 the same; the port is kept
  192.0.2.1:80:5000           of one address
  8000-8999:18000-18999/udp   a range: 8123 goes to 18123
  20000-50000:443/udp         many ports to one
  53:5353/tcp+udp             both protocols; without /PROTO it is tcp

Example: portfwd -i eth0 80:5000

Exit codes: 0 done, 1 something about this machine, 2 the command line is wrong.";

/// Forwards ports inside the Linux kernel until Ctrl-C.
#[derive(Parser, Debug)]
#[command(
    name = "portfwd",
    version,
    after_help = RULES,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// The same, said in full: attach, forward, detach on Ctrl-C
    #[command(after_help = RULES)]
    Run(Run),
}

/// What `portfwd run` was told.
#[derive(Args, Debug)]
pub struct Run {
    /// What to forward, see below
    #[arg(value_name = "RULE")]
    pub rules: Vec<String>,
    /// Take network traffic from this device; repeatable; `any` is every layer-3 device
    #[arg(short, long = "iface", value_name = "IFACE", value_parser = NonEmptyStringValueParser::new())]
    ifaces: Vec<String>,
    /// What carries packets to other hosts: tc, and xdp beside it where a device has it (auto); xdp
    /// in the driver or in the stack (xdp-generic) on the devices of -i, or an error; tc alone
    #[arg(
        short,
        long,
        default_value = "auto",
        hide_possible_values = true,
        value_name = "auto|xdp|xdp-generic|tc"
    )]
    mode: ModeName,
    /// Replace an XDP program that is on a device already, until the end
    #[arg(long)]
    pub force: bool,
    /// Work in this network namespace: a name of `ip netns`, or a path
    #[arg(long, value_name = "NAME|PATH", value_parser = NonEmptyStringValueParser::new())]
    pub netns: Option<String>,
    /// Give the rule a name
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Serve only these sources
    #[arg(long, value_name = "CIDR[,CIDR]...", value_delimiter = ',')]
    from: Vec<String>,
    /// The client's address on the way to another host: kept where replies are sure to come back
    /// (auto), replaced by this host's (masquerade), or always kept (preserve)
    #[arg(
        long,
        default_value = "auto",
        hide_possible_values = true,
        value_name = "auto|masquerade|preserve"
    )]
    nat: NatMode,
    /// Do not serve clients on this host
    #[arg(long)]
    pub no_local: bool,
    /// With rules to other hosts, serve those programs on this host that are of this control group
    /// (cgroup2); without it, all. Services on this host serve the programs of every group
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Make room for so many flows
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_MAX_FLOWS,
        value_parser = flows
    )]
    pub max_flows: u32,
    /// Print the counters every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stats: Option<u32>,
    /// Print new flows and what is changed on the host
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    later: Later,
}

/// Options of the contract that are not built yet.
#[derive(Args, Debug)]
struct Later {
    #[arg(long, hide = true)]
    json: bool,
    #[arg(short = 'f', long, hide = true)]
    config: Option<OsString>,
    #[arg(long, hide = true)]
    kill: bool,
    #[arg(long, hide = true)]
    watch: bool,
    #[arg(long, hide = true)]
    dry_run: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum ModeName {
    Auto,
    Xdp,
    XdpGeneric,
    Tc,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Auto => Self::Auto,
            ModeName::Xdp => Self::Xdp,
            ModeName::XdpGeneric => Self::XdpGeneric,
            ModeName::Tc => Self::Tc,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum NatMode {
    Auto,
    Masquerade,
    Preserve,
}

impl From<NatMode> for Nat {
    fn from(mode: NatMode) -> Self {
        match mode {
            NatMode::Auto => Self::Auto,
            NatMode::Masquerade => Self::Masquerade,
            NatMode::Preserve => Self::Preserve,
        }
    }
}

/// In characters: longer ones break the table.
const LONGEST_NAME: usize = 64;

/// Verbs of the contract that are not built yet.
const LATER: [&str; 18] = [
    "up",
    "down",
    "add",
    "del",
    "list",
    "flows",
    "stats",
    "status",
    "apply",
    "save",
    "check",
    "explain",
    "doctor",
    "ports",
    "import",
    "enable",
    "disable",
    "completions",
];

/// Reads the command line. Help and version print and end the process.
///
/// # Errors
///
/// [`Error::Text`], in one sentence.
pub fn parse() -> Result<Run, Error> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(verb) = words.get(1).and_then(|word| word.to_str())
        && LATER.contains(&verb)
    {
        return Err(verb_not_yet(verb));
    }
    let cli = Cli::try_parse_from(words).or_else(|error| match error.use_stderr() {
        false => error.exit(),
        true => Err(one_sentence(&error)),
    })?;
    let run = match cli.verb {
        Some(Verb::Run(run)) => run,
        None => cli.run,
    };
    run.check()?;
    Ok(run)
}

fn verb_not_yet(verb: &str) -> Error {
    not_yet(&format!("`{verb}`"), "`portfwd run` is what there is")
}

fn not_yet(what: &str, instead: &str) -> Error {
    Error::text(format!("{what} is not yet built; {instead}"))
}

/// Clap's first paragraph says what is wrong; the usage below is `--help`.
fn one_sentence(error: &clap::Error) -> Error {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let sentence = words.join(" ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    Error::text(format!("{sentence}; try `portfwd --help`"))
}

impl Run {
    fn check(&self) -> Result<(), Error> {
        let Later {
            json,
            config,
            kill,
            watch,
            dry_run,
        } = &self.later;
        let given = [
            ("--json", *json),
            ("--config", config.is_some()),
            ("--kill", *kill),
            ("--watch", *watch),
            ("--dry-run", *dry_run),
        ];
        if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
            return Err(not_yet(&format!("`{option}`"), "leave it out"));
        }
        if let Some(word) = self.rules.iter().find(|rule| is_word(rule)) {
            return Err(no_rule(word));
        }
        if self.no_local && self.ifaces.iter().any(|name| name == "lo") {
            return Err(Error::text(
                "`--iface lo` serves clients on this host and `--no-local` does not; \
                 leave one of them out",
            ));
        }
        if self.no_local && self.cgroup.is_some() {
            return Err(Error::text(
                "`--cgroup` says which programs on this host are served and `--no-local` serves \
                 none; leave one of them out",
            ));
        }
        if self.force && self.mode() == Mode::Tc {
            return Err(Error::text(
                "`--force` replaces XDP programs and `--mode tc` uses none; leave one of them out",
            ));
        }
        Ok(())
    }

    /// Whether XDP forwards beside TC.
    pub fn mode(&self) -> Mode {
        self.mode.into()
    }

    /// The rules with the options that hold for each of them.
    ///
    /// # Errors
    ///
    /// [`Error::Text`].
    pub fn specs(&self) -> Result<Vec<RuleSpec>, Error> {
        if self.rules.is_empty() {
            return Err(Error::text(
                "there is no rule; type one, such as `portfwd 80:5000`",
            ));
        }
        if let (Some(name), true) = (&self.name, self.rules.len() > 1) {
            return Err(Error::text(format!(
                "`--name {name}` stands with {} rules, and a name is one rule's; \
                 leave it out or type one rule",
                self.rules.len()
            )));
        }
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let from: Vec<IpNet> = self
            .from
            .iter()
            .map(|text| source(text))
            .collect::<Result<_, _>>()?;
        self.rules
            .iter()
            .map(|text| {
                let rule: Rule = text.parse()?;
                let spec = RuleSpec {
                    name: self.name.clone(),
                    from: from.clone(),
                    nat: self.nat.into(),
                    ..RuleSpec::from(rule)
                };
                check_sources(&spec)?;
                Ok(spec)
            })
            .collect()
    }

    /// Where network traffic is taken.
    pub fn interfaces(&self) -> Interfaces {
        if self.ifaces.is_empty() || self.ifaces.iter().any(|name| name == "any") {
            Interfaces::Any
        } else {
            Interfaces::Named(self.ifaces.clone())
        }
    }
}

/// A word is no rule: a verb behind an option is read as one.
fn is_word(text: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || c == '-';
    text.starts_with(char::is_alphabetic) && text.chars().all(allowed)
}

fn no_rule(word: &str) -> Error {
    if LATER.contains(&word) {
        return verb_not_yet(word);
    }
    if word == "run" {
        return Error::text(
            "`run` stands behind options or rules; type it first, as in \
             `portfwd run -i eth0 80:5000`",
        );
    }
    Error::text(format!(
        "`{word}` is no command and no rule; try `portfwd --help`"
    ))
}

/// A name has its place in a line of a table.
fn check_name(name: &str) -> Result<(), Error> {
    if name.contains(char::is_control) {
        return Err(Error::text(format!(
            "`--name {name}` holds a control character; type letters, digits and signs only"
        )));
    }
    let length = name.chars().count();
    if length > LONGEST_NAME {
        return Err(Error::text(format!(
            "`--name {name}` is {length} characters long, and a name has at most \
             {LONGEST_NAME}; type a shorter one"
        )));
    }
    Ok(())
}

fn flows(text: &str) -> Result<u32, String> {
    whole_number(text, MOST_FLOWS, "--max-flows 262144")
}

fn seconds(text: &str) -> Result<u32, String> {
    whole_number(text, u32::MAX, "--stats 10")
}

fn whole_number(text: &str, most: u32, example: &str) -> Result<u32, String> {
    let number = text.parse().ok();
    number
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| format!("type a whole number from 1 to {most}, as in `{example}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(words: &[&str]) -> Result<(), Error> {
        let cli = Cli::try_parse_from([&["portfwd"], words].concat());
        cli.unwrap_or_else(|error| panic!("{error}")).run.check()
    }

    #[test]
    fn options_of_programs_on_this_host_stand_against_serving_none() {
        for option in [["--cgroup", "/sys/fs/cgroup"], ["--iface", "lo"]] {
            let words = [&option[..], &["80:5000"]].concat();
            assert_eq!(checked(&words), Ok(()));
            let error = checked(&[&words[..], &["--no-local"]].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.to_string();
            assert!(message.contains(option[0]), "{message}");
            assert!(message.contains("`--no-local`"), "{message}");
        }
    }
}
