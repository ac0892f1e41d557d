//! From words to flags with values. The table decides what each word is.
//!
//! Clap renders the help and the completions from the same table, but does not parse: it has no long names
//! behind one dash (`-tp 2`), no dotted names (`--speculative-config.method ngram`), no `_` for `-`, and no
//! switch with an optional `True` behind it, all of which launch scripts use.

use super::commands::{Action, CommandSpec, Positional};
use super::error::CliError;
use super::flag::{Flag, Kind, Status};
use super::suggest::nearest_weighted;
use super::value::expectation;

/// What the words after a command say, in order.
#[derive(Debug, Default)]
pub struct Lexed {
    pub sets: Vec<Set>,
    /// The first word that belongs to no flag.
    pub positional: Option<String>,
    /// `--help`, with its topic.
    pub help: Option<Option<String>>,
    pub version: bool,
    /// The flag that took the last word as one of several values: where a model may have been meant.
    pub last_word_went_to: Option<&'static str>,
}

/// One flag with one value.
#[derive(Clone, Debug)]
pub struct Set {
    pub flag: &'static Flag,
    /// As typed, for errors and notices: `-tp`, `--max_model_len`.
    pub typed: String,
    /// Keys after the flag's name: `["method"]`.
    pub keys: Vec<String>,
    /// Whether the value is added to a list (`--x.key+ value`).
    pub append: bool,
    pub value: String,
}

/// Reads the words after a command.
///
/// # Errors
/// An unknown flag (with the nearest right one), a missing or surplus value, a surplus word.
pub fn lex(spec: &'static CommandSpec, words: &[String]) -> Result<Lexed, CliError> {
    let mut lexer = Lexer { spec, words, at: 0, out: Lexed::default() };
    while let Some(word) = lexer.next() {
        if word == "--" {
            while let Some(word) = lexer.next() {
                lexer.positional(word)?;
            }
        } else if looks_like_flag(word) {
            lexer.flag(word)?;
        } else {
            lexer.positional(word)?;
        }
    }
    Ok(lexer.out)
}

/// Whether a word is a flag and not a value: `-tp` and `--x` are, `-1`, `-` and `- be brief` are not.
pub fn looks_like_flag(word: &str) -> bool {
    let Some(rest) = word.strip_prefix('-') else { return false };
    let begins = rest.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic());
    let name = rest.split('=').next().unwrap_or(rest);
    begins && !name.contains(char::is_whitespace)
}

struct Lexer<'a> {
    spec: &'static CommandSpec,
    words: &'a [String],
    at: usize,
    out: Lexed,
}

/// A flag as typed, taken apart.
struct Typed {
    flag: &'static Flag,
    typed: String,
    keys: Vec<String>,
    append: bool,
    negated: bool,
    inline: Option<String>,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    /// The next word when it can be a value.
    fn next_value(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at).filter(|word| !looks_like_flag(word))?;
        self.at += 1;
        Some(word)
    }

    fn positional(&mut self, word: &str) -> Result<(), CliError> {
        let command = self.spec.name();
        match (&self.out.positional, self.spec.positional) {
            (_, Positional::None) => {
                Err(CliError::new(word, format!("pallium {command} takes no word of its own")))
            }
            (Some(first), _) => Err(CliError::new(
                word,
                format!(
                    "one word too many: pallium {command} has '{first}' already; quote a name with spaces"
                ),
            )),
            (None, _) => {
                self.out.positional = Some(word.to_owned());
                Ok(())
            }
        }
    }

    fn flag(&mut self, word: &str) -> Result<(), CliError> {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        match name {
            "--help" | "-h" => {
                self.out.help = Some(inline);
                return Ok(());
            }
            "--version" | "-V" => {
                self.out.version = true;
                return Ok(());
            }
            _ => {}
        }
        let typed = take_apart(self.spec, name, inline)?;
        if let Status::Refused(instead) = typed.flag.status {
            return Err(CliError::new(typed.typed, format!("is not supported; {instead}")));
        }
        match typed.flag.kind {
            Kind::Bool => self.switch(typed),
            Kind::List => self.list(typed),
            _ => self.single(typed),
        }
    }

    fn switch(&mut self, typed: Typed) -> Result<(), CliError> {
        // Older scripts write `--enable-chunked-prefill False` and `--x=true`.
        let follows = self.words.get(self.at).filter(|word| {
            matches!(word.as_str(), "True" | "False" | "true" | "false") && typed.inline.is_none()
        });
        let value = typed.inline.clone().or_else(|| follows.cloned());
        if follows.is_some() {
            self.at += 1;
        }
        let value = match (value, typed.negated) {
            (None, negated) => (!negated).to_string(),
            (Some(value), false) => value,
            (Some(_), true) => {
                return Err(CliError::new(typed.typed, "takes no value: it turns the flag off by itself"));
            }
        };
        self.push(typed, value);
        Ok(())
    }

    fn single(&mut self, typed: Typed) -> Result<(), CliError> {
        let value = match typed.inline.clone() {
            Some(value) => value,
            None => match (self.next_value(), typed.flag.bare) {
                (Some(value), _) => value.to_owned(),
                (None, Some(bare)) => bare.to_owned(),
                (None, None) => return Err(missing_value(&typed)),
            },
        };
        self.push(typed, value);
        Ok(())
    }

    fn list(&mut self, typed: Typed) -> Result<(), CliError> {
        let mut values: Vec<String> = typed.inline.clone().into_iter().collect();
        if values.is_empty() {
            while let Some(value) = self.next_value() {
                values.push(value.to_owned());
            }
        }
        if values.is_empty() {
            return Err(missing_value(&typed));
        }
        if values.len() > 1 && self.at == self.words.len() {
            self.out.last_word_went_to = Some(typed.flag.name);
        }
        for value in values {
            let set = Typed { keys: Vec::new(), typed: typed.typed.clone(), inline: None, ..typed };
            self.push(set, value);
        }
        Ok(())
    }

    fn push(&mut self, typed: Typed, value: String) {
        let Typed { flag, typed, keys, append, .. } = typed;
        self.out.sets.push(Set { flag, typed, keys, append, value });
    }
}

/// Finds the flag of a name as typed (`--max_model_len`, `--no-x`, `--x.key+`, `-tp`, `-O3`).
fn take_apart(spec: &'static CommandSpec, name: &str, inline: Option<String>) -> Result<Typed, CliError> {
    let (path, append) = match name.strip_suffix('+') {
        Some(path) => (path, true),
        None => (name, false),
    };
    let mut keys = path.split('.');
    let base = keys.next().unwrap_or(path);
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    let typed = name.to_owned();
    let (flag, negated, inline) = match base.strip_prefix("--") {
        Some(long) => {
            let (flag, negated) = long_flag(spec, long)?;
            (flag, negated, inline)
        }
        None => {
            let (flag, attached) = short_flag(spec, base)?;
            (flag, false, inline.or(attached))
        }
    };
    let dotted = !keys.is_empty() || append;
    if dotted && flag.kind != Kind::Json && !(append && flag.kind == Kind::List) {
        return Err(CliError::new(typed, format!("takes no keys: --{} is no JSON flag", flag.name)));
    }
    if keys.iter().any(String::is_empty) {
        return Err(CliError::new(typed, format!("a key is missing, as in --{}.key", flag.name)));
    }
    Ok(Typed { flag, typed, keys, append, negated, inline })
}

fn long_flag(spec: &'static CommandSpec, long: &str) -> Result<(&'static Flag, bool), CliError> {
    let name = long.replace('_', "-");
    if let Some(flag) = spec.flag(&name) {
        return Ok((flag, false));
    }
    if let Some(flag) = name.strip_prefix("no-").and_then(|name| spec.flag(name)) {
        return match flag.kind {
            Kind::Bool => Ok((flag, true)),
            _ => Err(CliError::new(
                format!("--{long}"),
                format!("--{} is no switch; it takes a value", flag.name),
            )),
        };
    }
    Err(unknown_flag(spec, &format!("--{long}"), &name))
}

/// A single-dash name, or one letter with a number behind it (`-O3`).
fn short_flag(spec: &'static CommandSpec, base: &str) -> Result<(&'static Flag, Option<String>), CliError> {
    if let Some(flag) = spec.short_flag(base) {
        return Ok((flag, None));
    }
    if let (Some(letter), Some(number)) = (base.get(..2), base.get(2..))
        && !number.is_empty()
        && number.chars().all(|c| c.is_ascii_digit())
        && let Some(flag) = spec.short_flag(letter)
    {
        return Ok((flag, Some(number.to_owned())));
    }
    Err(unknown_flag(spec, base, base.trim_start_matches('-')))
}

/// How much likelier a flag of the short help is meant than another: `--max-len` is --max-model-len.
const COMMON_BONUS: f64 = 0.08;

/// The error for a name that no flag of the command has.
pub fn unknown_flag(spec: &CommandSpec, typed: &str, name: &str) -> CliError {
    let flags = spec.flags();
    let mut candidates: Vec<(String, f64)> = Vec::new();
    for flag in flags.iter().filter(|flag| flag.is_current()) {
        let bonus = if flag.common { COMMON_BONUS } else { 0.0 };
        candidates.push((flag.name.to_owned(), bonus));
        if flag.kind == Kind::Bool {
            candidates.push((format!("no-{}", flag.name), bonus));
        }
    }
    let command = spec.name();
    if let Some(owner) = owner_of(spec, name) {
        return CliError::new(typed, format!("is a flag of pallium {owner}, not of pallium {command}"));
    }
    match nearest_weighted(name, candidates.iter().map(|(name, bonus)| (name.as_str(), *bonus))) {
        Some(near) => CliError::new(typed, format!("unknown flag; did you mean --{near}?")),
        None => CliError::new(typed, format!("unknown flag; pallium {command} --help=all lists them")),
    }
}

/// Another command with a flag of exactly this name.
fn owner_of(spec: &CommandSpec, name: &str) -> Option<String> {
    let others = super::commands::COMMANDS.iter().filter(|other| {
        other.action != spec.action && other.is_shown() && !matches!(other.action, Action::Refused(_))
    });
    others.into_iter().find(|other| other.flag(name).is_some_and(Flag::is_current)).map(CommandSpec::name)
}

fn missing_value(typed: &Typed) -> CliError {
    CliError::new(typed.typed.clone(), format!("a value is missing; give {}", expectation(&typed.flag.kind)))
}
