//! Completions for shells, written by clap_complete from the flag table.

use clap::{Arg, ArgAction, ValueHint};

use super::choices::{Choice, DeviceKind, Shell};
use super::commands::{COMMANDS, CommandSpec, Positional};
use super::flag::{Flag, Kind};

/// The script that a shell loads to complete `pallium`.
pub fn script(shell: Shell) -> String {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Powershell => clap_complete::Shell::PowerShell,
        Shell::Elvish => clap_complete::Shell::Elvish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut command_tree(), "pallium", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The whole command line as clap sees it: shown commands, current flags.
pub fn command_tree() -> clap::Command {
    let mut root = clap::Command::new("pallium").version(env!("CARGO_PKG_VERSION"));
    let mut bench = clap::Command::new("bench").about("Measure latency, throughput, serving or start-up");
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        match spec.path {
            [_, which] => bench = bench.subcommand(subcommand(which, spec)),
            [name, ..] => root = root.subcommand(subcommand(name, spec)),
            [] => {}
        }
    }
    root.subcommand(bench)
}

fn subcommand(name: &'static str, spec: &CommandSpec) -> clap::Command {
    let mut command = clap::Command::new(name).about(spec.about);
    for flag in spec.flags().into_iter().filter(|flag| flag.is_current()) {
        command = command.arg(flag_arg(spec, flag));
        if flag.kind == Kind::Bool {
            let name = format!("no-{}", flag.name);
            command = command.arg(
                Arg::new(name.clone())
                    .long(name)
                    .help(format!("Not: {}", flag.help))
                    .action(ArgAction::SetTrue),
            );
        }
    }
    match spec.positional {
        Positional::None => command,
        Positional::Word("SHELL") => command.arg(Arg::new("SHELL").value_parser(Shell::NAMES.to_vec())),
        Positional::Word(word) => command.arg(Arg::new(word)),
        Positional::Flag(_) => command.arg(Arg::new("MODEL").value_hint(ValueHint::AnyPath)),
    }
}

fn flag_arg(spec: &CommandSpec, flag: &'static Flag) -> Arg {
    let mut arg = Arg::new(flag.name).long(flag.name).help(flag.help);
    // A single dash belongs to the first flag that has it: `chat -q` is --quick.
    let is_own = |alias: &&&str| spec.short_flag(alias).is_some_and(|first| first.name == flag.name);
    for alias in flag.aliases.iter().filter(is_own) {
        let mut letters = alias.trim_start_matches('-').chars();
        arg = match (alias.strip_prefix("--"), letters.next(), letters.next()) {
            (Some(long), _, _) => arg.visible_alias(long),
            (None, Some(letter), None) => arg.short(letter),
            // Clap has no long name behind one dash; the shell then completes the long form only.
            _ => arg,
        };
    }
    match flag.kind {
        Kind::Bool => arg.action(ArgAction::SetTrue),
        Kind::Choice(words) => arg.value_parser(words.to_vec()),
        Kind::Device => arg.value_parser(DeviceKind::NAMES.to_vec()),
        Kind::Path => arg.value_hint(ValueHint::AnyPath),
        Kind::List => arg.num_args(1..),
        _ => arg.value_name(flag.kind.placeholder()),
    }
}
