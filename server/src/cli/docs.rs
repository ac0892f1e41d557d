//! docs/cli.md, written from the flag table: `pallium docs cli > docs/cli.md`. A test fails when the
//! committed file differs.

use std::fmt::Write as _;

use super::commands::{COMMANDS, CommandSpec};
use super::flag::{Flag, Group, Kind, Map, Status};
use super::flags;
use super::value::expectation;

const HEAD: &str = "\
# Command line

<!-- Written by `pallium docs cli > docs/cli.md` from the flag table; a test fails when the two differ. -->

`pallium --model M`, `pallium serve --model M` and `pallium serve M` are one command. Without a model, `serve`
and `chat` use the bundled one. `pallium COMMAND --help` shows the flags that most people need,
`--help=all` all of them, `--help=GROUP` or `--help=FLAG` some.

- `_` and `-` are the same in names: `--max_model_len` is `--max-model-len`. `--flag=value` and `--flag value`
  are the same.
- A switch `--x` is turned off by `--no-x` (or `--x=false`).
- Numbers may be written `32k` (32,000) or `32K` (32,768), with k, m, g, t and K, M, G, T, and `1.5k`. Sizes
  may also be written `8GiB` or `8GB`.
- A flag that takes several values takes them side by side (`--api-key a b`), as several flags, or as one JSON
  list.
- A flag that takes JSON takes single keys too: `--hf-overrides.rope_theta 1e6`, and a `+` adds to a list:
  `--x.key+ value`.
- Every flag has an environment twin: `PALLIUM_` and its name in capitals, `PALLIUM_MAX_MODEL_LEN` for
  `--max-model-len`. Lists are separated by commas there.
- `--config file.yaml` reads flags from a file, one `name: value` a line.
- The command line wins over the environment, the environment over the file, the file over the default.
- Colours show on a terminal and never with `NO_COLOR`.

Flag names, defaults and habits are those of `vllm serve`. What the last column says of a flag whose function
this version lacks: *only* the values named are accepted and others are refused; *without effect* flags are
accepted with a notice.
";

/// The whole document.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    out.push_str("\n## Commands\n\n| Command | For |\n| --- | --- |\n");
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        line(&mut out, &[&format!("`pallium {}`", spec.name()), spec.about]);
    }
    out.push_str("\nNot offered, each with what to use instead:\n\n| Command | Instead |\n| --- | --- |\n");
    for spec in COMMANDS {
        if let super::commands::Action::Refused(instead) = spec.action {
            line(&mut out, &[&format!("`{}`", spec.name()), instead]);
        }
    }
    section(&mut out, "Flags of the server: serve", flags::SERVER);
    section(&mut out, &format!("Flags of the engine: {}", engine_commands()), flags::ENGINE);
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        let own: Vec<Group> = own_groups(spec);
        if !own.is_empty() {
            section(&mut out, &format!("Flags of {}", spec.name()), &own);
        }
    }
    older(&mut out);
    out
}

/// Groups of a command that are neither the server's nor the engine's.
fn own_groups(spec: &CommandSpec) -> Vec<Group> {
    let shared = |name: &str| flags::SERVER.iter().chain(flags::ENGINE).any(|group| group.name == name);
    spec.all_groups().filter(|group| !shared(group.name) && group.name != "Config").copied().collect()
}

fn engine_commands() -> String {
    let takes_engine = |spec: &&CommandSpec| spec.all_groups().any(|group| group.name == "ModelConfig");
    let names: Vec<String> = COMMANDS.iter().filter(takes_engine).map(CommandSpec::name).collect();
    names.join(", ")
}

fn section(out: &mut String, title: &str, groups: &[Group]) {
    let _ = write!(out, "\n## {title}\n");
    for group in groups.iter().filter(|group| group.flags.iter().any(Flag::is_current)) {
        let _ = write!(out, "\n### {}\n\n{}.\n\n", group.name, group.about);
        out.push_str("| Flag | Value | Default | Meaning |\n| --- | --- | --- | --- |\n");
        for flag in group.flags.iter().filter(|flag| flag.is_current()) {
            let status = status_words(flag);
            line(
                out,
                &[&names(flag), &value_words(flag), &default_words(flag), &format!("{}{status}", flag.help)],
            );
        }
    }
}

fn names(flag: &Flag) -> String {
    let mut names = format!("`--{}`", flag.name);
    for alias in flag.aliases {
        let _ = write!(names, " `{alias}`");
    }
    names
}

fn value_words(flag: &Flag) -> String {
    match flag.kind {
        Kind::Bool => "switch".to_owned(),
        Kind::Choice(words) => words.join(", "),
        Kind::Human { what, min, .. } => format!("{what}, at least {min}"),
        Kind::HumanOrAuto { what, .. } => format!("{what}, or auto (-1)"),
        Kind::Bytes => "a size".to_owned(),
        Kind::Json => "JSON".to_owned(),
        Kind::List => "words".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::Path => "path".to_owned(),
        ref kind => expectation(kind),
    }
}

fn default_words(flag: &Flag) -> String {
    match (flag.kind, flag.default) {
        (Kind::Bool, _) | (_, "") => flag.shown_default(),
        (_, default) => format!("`{default}`"),
    }
}

fn status_words(flag: &Flag) -> String {
    match flag.status {
        Status::Neutral { values, later } => {
            let words: Vec<String> =
                values.iter().filter(|v| !v.is_empty()).map(|value| format!("`{value}`")).collect();
            match (flag.kind, words.is_empty()) {
                (Kind::Bool, _) => format!(". *Only off:* {later}"),
                (_, true) => format!(". *Only unset:* {later}"),
                (_, false) => format!(". *Only {}:* {later}", words.join(" or ")),
            }
        }
        Status::Note(why) => format!(". *Without effect:* {why}"),
        _ => String::new(),
    }
}

fn older(out: &mut String) {
    out.push_str("\n## Older names\n\nStill understood, with one notice each.\n\n");
    out.push_str("| Flag | Now |\n| --- | --- |\n");
    let rows = || flags::ENGINE.iter().flat_map(|group| group.flags.iter());
    for flag in rows() {
        match flag.status {
            Status::Mapped(Map::To(target)) => line(out, &[&names(flag), &format!("`--{target}`")]),
            Status::Mapped(Map::Negate(target)) => line(out, &[&names(flag), &format!("`--no-{target}`")]),
            Status::Mapped(Map::By(text, _)) => line(out, &[&names(flag), text]),
            Status::Accepted(why) => line(out, &[&names(flag), &format!("without effect: {why}")]),
            _ => {}
        }
    }
    for flag in rows() {
        for (old, new) in flag.renamed_values {
            line(out, &[&format!("`--{} {old}`", flag.name), &format!("`{new}`")]);
        }
    }
    out.push_str("\n## Refused\n\n| Flag | Why, and what to use |\n| --- | --- |\n");
    for flag in rows() {
        if let Status::Refused(instead) = flag.status {
            line(out, &[&names(flag), instead]);
        }
        for (values, instead) in flag.refused_values {
            line(out, &[&format!("`--{}` {}", flag.name, values.join(", ")), instead]);
        }
    }
}

/// One row of a table; bars inside cells are escaped.
fn line(out: &mut String, cells: &[&str]) {
    out.push('|');
    for cell in cells {
        let _ = write!(out, " {} |", cell.replace('|', "\\|"));
    }
    out.push('\n');
}
