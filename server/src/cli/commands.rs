//! The commands: their names, what they are for, and which groups of flags they take.

use super::flag::{Flag, Group};
use super::flags;

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct CommandSpec {
    /// Words that name it: `["bench", "latency"]`.
    pub path: &'static [&'static str],
    /// Other first words that name it.
    pub aliases: &'static [&'static str],
    pub about: &'static str,
    pub action: Action,
    /// Groups in the order of lookup: an earlier flag shadows a later one of the same name.
    pub groups: &'static [&'static [Group]],
    /// What the first word after the command is, if it takes one.
    pub positional: Positional,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Serve,
    Chat,
    Complete,
    BenchLatency,
    BenchThroughput,
    BenchServe,
    BenchStartup,
    MakeCheckpoint,
    Doctor,
    Pull,
    Completions,
    /// Prints docs/cli.md; not shown in the help.
    Docs,
    /// Known and refused; the clause says what to use.
    Refused(&'static str),
}

/// The first word after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positional {
    None,
    /// The value of this flag.
    Flag(&'static str),
    /// A word that the command needs, by its placeholder.
    Word(&'static str),
}

const MODEL: Positional = Positional::Flag("model");

/// Every command.
pub const COMMANDS: &[CommandSpec] = &[
    command(
        &["serve"],
        "Serve a model over HTTP with OpenAI's API",
        Action::Serve,
        MODEL,
        &[flags::SERVER, flags::ENGINE],
    ),
    command(
        &["chat"],
        "Talk to a model, on a server or in this process",
        Action::Chat,
        MODEL,
        &[flags::CHAT, flags::ENGINE],
    ),
    command(
        &["complete"],
        "Let a model continue a text",
        Action::Complete,
        MODEL,
        &[flags::COMPLETE, flags::ENGINE],
    ),
    command(
        &["bench", "latency"],
        "Measure one batch in this process",
        Action::BenchLatency,
        MODEL,
        &[flags::BENCH_LATENCY, flags::ENGINE],
    ),
    command(
        &["bench", "throughput"],
        "Measure many requests in this process",
        Action::BenchThroughput,
        MODEL,
        &[flags::BENCH_THROUGHPUT, flags::ENGINE],
    ),
    command(
        &["bench", "serve"],
        "Measure a running server",
        Action::BenchServe,
        MODEL,
        &[flags::BENCH_SERVE],
    ),
    command(
        &["bench", "startup"],
        "Measure the time from process start to the first token",
        Action::BenchStartup,
        MODEL,
        &[flags::BENCH_STARTUP, flags::ENGINE],
    ),
    command(
        &["bench", "make-checkpoint"],
        "Write random weights of a model's shape",
        Action::MakeCheckpoint,
        MODEL,
        &[flags::BENCH_MAKE_CHECKPOINT],
    ),
    CommandSpec {
        aliases: &["collect-env"],
        ..command(
            &["doctor"],
            "Show what this machine has, what each backend found and what would fit",
            Action::Doctor,
            MODEL,
            &[flags::DOCTOR, flags::ENGINE],
        )
    },
    command(&["pull"], "Download a model", Action::Pull, MODEL, &[flags::PULL]),
    command(
        &["completions"],
        "Print completions for a shell",
        Action::Completions,
        Positional::Word("SHELL"),
        &[],
    ),
    command(&["docs"], "Print docs/cli.md", Action::Docs, Positional::Word("cli"), &[]),
    refused(&["run-batch"], "batches from files are not in this version; send them to a server"),
    refused(&["launch"], "a server without a model is not in this version; use serve"),
    refused(&["preload"], "weights are mapped from the page cache and need no daemon; use serve"),
    refused(&["snapshot"], "start-up is short enough without process images; use serve"),
    refused(&["download-kernels"], "kernels are part of the program; nothing is to be downloaded"),
    refused(&["bench", "forward"], "use bench latency"),
    refused(&["bench", "mm-processor"], "multimodal models are not in this version"),
    refused(&["bench", "sweep"], "run bench serve from a shell loop"),
];

const fn command(
    path: &'static [&'static str],
    about: &'static str,
    action: Action,
    positional: Positional,
    groups: &'static [&'static [Group]],
) -> CommandSpec {
    CommandSpec { path, aliases: &[], about, action, groups, positional }
}

const fn refused(path: &'static [&'static str], instead: &'static str) -> CommandSpec {
    command(path, "", Action::Refused(instead), Positional::None, &[])
}

impl CommandSpec {
    /// `bench latency`.
    pub fn name(&self) -> String {
        self.path.join(" ")
    }
    /// Whether help, completions and docs show it.
    pub fn is_shown(&self) -> bool {
        !matches!(self.action, Action::Docs | Action::Refused(_))
    }
    /// Its groups of flags, in the order of lookup.
    pub fn all_groups(&self) -> impl Iterator<Item = &'static Group> {
        self.groups.iter().flat_map(|groups| groups.iter())
    }
    /// Its flags, without those that an earlier one of the same name shadows.
    pub fn flags(&self) -> Vec<&'static Flag> {
        let mut flags: Vec<&'static Flag> = Vec::new();
        for flag in self.all_groups().flat_map(|group| group.flags.iter()) {
            if !flags.iter().any(|known| known.name == flag.name) {
                flags.push(flag);
            }
        }
        flags
    }
    /// The flag of this long name, without dashes in front.
    pub fn flag(&self, name: &str) -> Option<&'static Flag> {
        let all = || self.all_groups().flat_map(|group| group.flags.iter());
        all()
            .find(|flag| flag.name == name)
            .or_else(|| all().find(|flag| flag.aliases.iter().any(|a| a.strip_prefix("--") == Some(name))))
    }
    /// The flag of this single-dash spelling, dash included.
    pub fn short_flag(&self, typed: &str) -> Option<&'static Flag> {
        self.all_groups().flat_map(|group| group.flags.iter()).find(|flag| flag.aliases.contains(&typed))
    }
}

/// The command of one or two words at the start of `words`, with how many words name it.
pub fn find(words: &[String]) -> Option<(&'static CommandSpec, usize)> {
    COMMANDS.iter().find_map(|spec| {
        let by_path =
            words.len() >= spec.path.len() && spec.path.iter().zip(words).all(|(part, word)| part == word);
        if by_path {
            return Some((spec, spec.path.len()));
        }
        words.first().filter(|word| spec.aliases.contains(&word.as_str())).map(|_| (spec, 1))
    })
}

/// The command that does `action`.
///
/// # Panics
/// Never for an action of the table; a test looks each up.
pub fn by_action(action: Action) -> &'static CommandSpec {
    COMMANDS.iter().find(|spec| spec.action == action).unwrap_or(&COMMANDS[0])
}
