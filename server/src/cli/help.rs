//! `--help`: rendered by clap from the table. Without a topic it shows the flags that most people need and
//! the names of the groups; `--help=Group`, `--help=flag` and `--help=all` show the rest.

use clap::{Arg, ArgAction, builder::StyledStr};

use super::commands::{COMMANDS, CommandSpec, Positional};
use super::error::CliError;
use super::flag::{Flag, Group, Kind, Status};
use super::suggest::nearest;
use super::value::expectation;

/// A text with and without colours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelpText {
    plain: String,
    ansi: String,
}

impl HelpText {
    /// The text for a terminal that shows colours, or for anything else.
    pub fn render(&self, colour: bool) -> &str {
        if colour { &self.ansi } else { &self.plain }
    }
}

impl From<StyledStr> for HelpText {
    fn from(text: StyledStr) -> Self {
        HelpText { plain: text.to_string(), ansi: text.ansi().to_string() }
    }
}

/// `pallium --help`.
pub fn overview() -> HelpText {
    let mut root = bare_command("pallium")
        .about("Serves large language models to many users at once.")
        .override_usage("pallium COMMAND [FLAGS]\n       pallium serve [MODEL] [FLAGS]")
        .after_help(
            "pallium COMMAND --help shows a command's flags, pallium COMMAND --help=all all of them.\n\
             pallium serve without a MODEL serves the bundled one; pallium --version shows the version.",
        );
    let mut seen = Vec::new();
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        let is_bench = spec.path.len() > 1;
        let about = if is_bench { "Measure latency, throughput, serving or start-up" } else { spec.about };
        if !seen.contains(&spec.path[0]) {
            root = root.subcommand(bare_command(spec.path[0]).about(about));
            seen.push(spec.path[0]);
        }
    }
    root.render_help().into()
}

/// `pallium bench --help`.
pub fn bench_overview() -> HelpText {
    let mut root = bare_command("pallium bench")
        .about("Measure latency, throughput, serving or start-up.")
        .override_usage("pallium bench COMMAND [FLAGS]")
        .after_help("pallium bench COMMAND --help shows a command's flags.");
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown() && spec.path[0] == "bench") {
        root = root.subcommand(bare_command(spec.path[1]).about(spec.about));
    }
    root.render_help().into()
}

/// `pallium COMMAND --help[=TOPIC]`.
///
/// # Errors
/// The topic is neither a group nor a flag, and no flag's name contains it.
pub fn command_help(spec: &'static CommandSpec, topic: Option<&str>) -> Result<HelpText, CliError> {
    let mut command = bare_command(&format!("pallium {}", spec.name()))
        .about(spec.about)
        .override_usage(usage(spec))
        .after_help(after_help(spec, topic.is_none()));
    let wanted = topic_of(spec, topic);
    let mut shown = 0;
    for group in spec.all_groups() {
        for flag in group.flags.iter().filter(|flag| is_asked_for(flag, group, wanted)) {
            let shadowed = spec.flag(flag.name).is_none_or(|first| !std::ptr::eq(first, flag));
            if !shadowed {
                command = command.arg(help_arg(flag, group, wanted));
                shown += 1;
            }
        }
    }
    match topic {
        Some(topic) if shown == 0 => Err(unknown_topic(spec, topic)),
        _ => Ok(command.render_help().into()),
    }
}

/// Names of the groups that have flags to show.
pub fn group_names(spec: &CommandSpec) -> Vec<&'static str> {
    spec.all_groups().filter(|g| g.flags.iter().any(Flag::is_current)).map(|g| g.name).collect()
}

fn bare_command(name: &str) -> clap::Command {
    clap::Command::new(name.to_owned())
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .max_term_width(110)
}

fn usage(spec: &CommandSpec) -> String {
    let word = match spec.positional {
        Positional::None => String::new(),
        Positional::Flag(name) => format!(" [{}]", name.to_uppercase()),
        Positional::Word(word) => format!(" {word}"),
    };
    let flags = if spec.groups.is_empty() { "" } else { " [FLAGS]" };
    format!("pallium {}{word}{flags}", spec.name())
}

fn after_help(spec: &CommandSpec, is_overview: bool) -> String {
    if spec.groups.is_empty() {
        return String::new();
    }
    let rules = "A switch --x is turned off by --no-x. Every flag has an environment twin (PALLIUM_PORT for \
                 --port) and may stand in a --config file; the command line wins.";
    if !is_overview {
        return rules.to_owned();
    }
    let groups = group_names(spec).join(", ");
    let name = spec.name();
    format!(
        "{rules}\n\nThese are the flags that most people need. More: pallium {name} --help=all, \
         --help=FLAG, or --help=GROUP with one of {groups}."
    )
}

/// What `--help=` asks for.
#[derive(Clone, Copy)]
enum Topic<'a> {
    /// The flags that most people need.
    Common,
    All,
    Group(&'static str),
    Flag(&'static str),
    /// Flags with this in their name.
    Part(&'a str),
}

/// A group's name (with or without `Config`) before a flag's, a flag's before a part of one.
fn topic_of<'a>(spec: &'static CommandSpec, topic: Option<&'a str>) -> Topic<'a> {
    let Some(topic) = topic else { return Topic::Common };
    let topic = topic.trim_start_matches('-');
    if topic.eq_ignore_ascii_case("all") {
        return Topic::All;
    }
    let same = |name: &str| {
        let short = name.strip_suffix("Config").unwrap_or(name);
        name.eq_ignore_ascii_case(topic) || short.eq_ignore_ascii_case(topic)
    };
    if let Some(group) = spec.all_groups().find(|group| same(group.name)) {
        return Topic::Group(group.name);
    }
    match spec.flag(&topic.replace('_', "-")) {
        Some(flag) => Topic::Flag(flag.name),
        None => Topic::Part(topic),
    }
}

fn is_asked_for(flag: &Flag, group: &Group, topic: Topic<'_>) -> bool {
    match topic {
        Topic::Common => flag.common,
        Topic::All => flag.is_current(),
        Topic::Group(name) => group.name == name,
        Topic::Flag(name) => flag.name == name,
        Topic::Part(part) => part.len() > 2 && flag.name.contains(part) && flag.is_current(),
    }
}

fn help_arg(flag: &'static Flag, group: &'static Group, topic: Topic<'_>) -> Arg {
    let detail = !matches!(topic, Topic::Common | Topic::All);
    let arg = Arg::new(flag.name).long(flag.name).help_heading(group.name).help(help_line(flag, detail));
    match flag.kind {
        Kind::Bool => arg.action(ArgAction::SetTrue),
        Kind::List => arg.value_name(flag.kind.placeholder()).num_args(1..),
        _ => arg.value_name(flag.kind.placeholder()),
    }
}

fn help_line(flag: &Flag, detail: bool) -> String {
    let mut line = flag.help.to_owned();
    match flag.status {
        Status::Active => {}
        Status::Neutral { later, .. } => line.push_str(&format!(" ({later})")),
        Status::Note(why) => line.push_str(&format!(" (without effect: {why})")),
        Status::Mapped(_) => line.push_str("An older name, still understood"),
        Status::Accepted(why) => line.push_str(&format!("An older name, without effect: {why}")),
        Status::Refused(instead) => line.push_str(&format!("Refused: {instead}")),
    }
    if let Kind::Choice(words) = flag.kind {
        line.push_str(&format!(" [{}]", words.join(", ")));
    }
    if !flag.shown_default().is_empty() {
        line.push_str(&format!(" [default: {}]", flag.shown_default()));
    }
    if !flag.aliases.is_empty() {
        line.push_str(&format!(" [also: {}]", flag.aliases.join(", ")));
    }
    if detail {
        if flag.takes_value() && !matches!(flag.kind, Kind::Choice(_)) {
            line.push_str(&format!(" [value: {}]", expectation(&flag.kind)));
        }
        if let Some(name) = flag.env_name() {
            line.push_str(&format!(" [env: {name}]"));
        }
    }
    line
}

fn unknown_topic(spec: &'static CommandSpec, topic: &str) -> CliError {
    let names = group_names(spec).into_iter().chain(spec.flags().into_iter().map(|flag| flag.name));
    let hint = nearest(topic, names).map(|near| format!("did you mean --help={near}? ")).unwrap_or_default();
    CliError::new(
        format!("--help={topic}"),
        format!("no group or flag has this name; {hint}groups are {}", group_names(spec).join(", ")),
    )
}
