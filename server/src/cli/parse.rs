//! [`parse`]: from the words of a command line to a typed [`Command`].

use std::ffi::OsString;

use super::args::{LoggingArgs, ServeArgs};
use super::args_client::{BenchArgs, ChatArgs, CompletionsArgs, DoctorArgs, PullArgs, SessionArgs};
use super::choices::{Choice, Shell};
use super::commands::{self, Action, COMMANDS, CommandSpec, Positional};
use super::error::CliError;
use super::help::{self, HelpText};
use super::lex::{Lexed, lex, looks_like_flag};
use super::resolve::resolve;
use super::sources::Env;
use super::suggest::nearest;
use super::{build, build_client, docs};

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    pub command: Command,
    /// Lines for the user about flags that are older, or without effect; one each.
    pub notices: Vec<String>,
}

/// One command with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Serve(Box<ServeArgs>),
    Chat(Box<ChatArgs>),
    Complete(Box<SessionArgs>),
    Bench(Box<BenchArgs>),
    Doctor(Box<DoctorArgs>),
    Pull(Box<PullArgs>),
    Completions(CompletionsArgs),
    /// Text for standard output.
    Help(HelpText),
    /// Text of docs/cli.md.
    Docs(String),
    Version,
}

impl Command {
    /// How this command logs; `None` for those that only print.
    pub fn logging(&self) -> Option<LoggingArgs> {
        match self {
            Command::Serve(args) => Some(args.logging),
            Command::Chat(args) => Some(args.session.logging),
            Command::Complete(args) => Some(args.logging),
            Command::Bench(args) => Some(match args.as_ref() {
                BenchArgs::Latency(args) => args.logging,
                BenchArgs::Throughput(args) => args.logging,
                BenchArgs::Serve(args) => args.logging,
                BenchArgs::Startup(args) => args.logging,
                BenchArgs::MakeCheckpoint(args) => args.logging,
            }),
            Command::Doctor(args) => Some(args.logging),
            Command::Pull(args) => Some(args.logging),
            Command::Completions(_) | Command::Help(_) | Command::Docs(_) | Command::Version => None,
        }
    }
}

/// Parses a command line.
///
/// `args` are the words after the program's name; `env` reads one environment variable.
///
/// # Errors
/// The first thing that is wrong, named with its value and what would be right.
pub fn parse(args: impl Iterator<Item = OsString>, env: Env<'_>) -> Result<Invocation, CliError> {
    let words = args.map(utf8).collect::<Result<Vec<String>, CliError>>()?;
    let plain = |command| Ok(Invocation { command, notices: Vec::new() });
    match words.first().map(String::as_str) {
        None | Some("help" | "--help" | "-h") => {
            let topic: Vec<String> = words.iter().skip(1).cloned().collect();
            plain(Command::Help(help_for(&topic)?))
        }
        Some("version" | "--version" | "-V") => plain(Command::Version),
        Some(word) if word.starts_with("--help=") => run(serve_spec(), &words, env),
        // `pallium --model M` is `pallium serve --model M`.
        Some(word) if looks_like_flag(word) => run(serve_spec(), &words, env),
        Some("bench") if words.len() == 1 || looks_like_flag(&words[1]) => {
            plain(Command::Help(help::bench_overview()))
        }
        Some(word) => match commands::find(&words) {
            Some((spec, named_by)) => run(spec, &words[named_by..], env),
            None => Err(unknown_command(word, &words)),
        },
    }
}

fn run(spec: &'static CommandSpec, words: &[String], env: Env<'_>) -> Result<Invocation, CliError> {
    if let Action::Refused(instead) = spec.action {
        return Err(CliError::new(format!("pallium {}", spec.name()), instead));
    }
    let mut lexed = match lex(spec, words) {
        // Whoever asks for help gets it, whatever else is wrong.
        Err(_) if words.iter().any(|word| word == "--help" || word == "-h") => {
            Lexed { help: Some(None), ..Lexed::default() }
        }
        other => other?,
    };
    if lexed.version {
        return Ok(Invocation { command: Command::Version, notices: Vec::new() });
    }
    if let Some(topic) = lexed.help.take() {
        let command = Command::Help(help::command_help(spec, topic.as_deref())?);
        return Ok(Invocation { command, notices: Vec::new() });
    }
    let word = lexed.positional.clone();
    let swallowed = lexed.last_word_went_to;
    let mut flags = resolve(spec, lexed, env)?;
    let command = build_command(spec, word.as_deref(), &mut flags)?;
    let mut notices = std::mem::take(&mut flags.notices);
    if spec.action == Action::Serve {
        check_foreign_variables(&command, env, &mut notices)?;
    }
    if let Some(flag) = swallowed
        && spec.positional == Positional::Flag("model")
        && !flags.is_given("model")
    {
        notices.push(format!(
            "--{flag}: took the last word as one of its values, so no MODEL is given; put MODEL before the flags"
        ));
    }
    Ok(Invocation { command, notices })
}

fn build_command(
    spec: &'static CommandSpec,
    word: Option<&str>,
    flags: &mut super::resolve::Resolved,
) -> Result<Command, CliError> {
    let bench = |args| Command::Bench(Box::new(args));
    Ok(match spec.action {
        Action::Serve => Command::Serve(Box::new(build::serve_args(flags)?)),
        Action::Chat => Command::Chat(Box::new(build_client::chat_args(flags)?)),
        Action::Complete => Command::Complete(Box::new(build_client::session_args(flags)?)),
        Action::BenchLatency => bench(BenchArgs::Latency(build_client::bench_latency_args(flags)?)),
        Action::BenchThroughput => bench(BenchArgs::Throughput(build_client::bench_throughput_args(flags)?)),
        Action::BenchServe => bench(BenchArgs::Serve(build_client::bench_serve_args(flags)?)),
        Action::BenchStartup => bench(BenchArgs::Startup(build_client::bench_startup_args(flags)?)),
        Action::MakeCheckpoint => {
            bench(BenchArgs::MakeCheckpoint(build_client::make_checkpoint_args(flags)?))
        }
        Action::Doctor => Command::Doctor(Box::new(build_client::doctor_args(flags)?)),
        Action::Pull => Command::Pull(Box::new(build_client::pull_args(flags)?)),
        Action::Completions => Command::Completions(CompletionsArgs { shell: shell(word)? }),
        Action::Docs => Command::Docs(docs_text(word)?),
        Action::Refused(instead) => return Err(CliError::new(spec.name(), instead)),
    })
}

fn utf8(word: OsString) -> Result<String, CliError> {
    word.into_string()
        .map_err(|word| CliError::new(word.to_string_lossy(), "is not UTF-8; command lines are text here"))
}

fn serve_spec() -> &'static CommandSpec {
    commands::by_action(Action::Serve)
}

fn help_for(topic: &[String]) -> Result<HelpText, CliError> {
    match (topic.first(), commands::find(topic)) {
        (None, _) => Ok(help::overview()),
        (Some(_), Some((spec, _))) if spec.is_shown() => help::command_help(spec, None),
        (Some(word), _) if word == "bench" => Ok(help::bench_overview()),
        (Some(word), _) => Err(unknown_command(word, topic)),
    }
}

fn unknown_command(word: &str, words: &[String]) -> CliError {
    let shown: Vec<String> = COMMANDS.iter().filter(|s| s.is_shown()).map(CommandSpec::name).collect();
    if let ("bench", Some(which)) = (word, words.get(1)) {
        let benches = shown.iter().filter_map(|name| name.strip_prefix("bench "));
        let list = benches.clone().collect::<Vec<_>>().join(", ");
        let hint =
            nearest(which, benches).map(|near| format!("did you mean bench {near}? ")).unwrap_or_default();
        return CliError::new(format!("bench {which}"), format!("unknown bench; {hint}there are {list}"));
    }
    let firsts = shown.iter().filter_map(|name| name.split(' ').next());
    match nearest(word, firsts) {
        Some(near) => CliError::new(word, format!("unknown command; did you mean pallium {near}?")),
        None => CliError::new(word, format!("unknown command; to serve a model: pallium serve {word}")),
    }
}

fn shell(word: Option<&str>) -> Result<Shell, CliError> {
    let list = Shell::NAMES.join(", ");
    match word {
        None => Err(CliError::new("pallium completions", format!("needs a shell; give one of {list}"))),
        Some(word) => Shell::from_name(word)
            .ok_or_else(|| CliError::new(word, format!("is no shell known here; give one of {list}"))),
    }
}

fn docs_text(word: Option<&str>) -> Result<String, CliError> {
    match word {
        Some("cli") => Ok(docs::markdown()),
        _ => Err(CliError::new("pallium docs", "prints one document: pallium docs cli")),
    }
}

/// Variables of vLLM that are not read here. A key that would be ignored leaves the server open, which nobody
/// who sets it wants: that is an error. The others are worth a notice.
fn check_foreign_variables(
    command: &Command,
    env: Env<'_>,
    notices: &mut Vec<String>,
) -> Result<(), CliError> {
    let Command::Serve(args) = command else { return Ok(()) };
    if env("VLLM_API_KEY").is_some_and(|key| !key.is_empty()) && args.frontend.api_key.is_empty() {
        return Err(CliError::new(
            "VLLM_API_KEY",
            "is set and not read here, so the server would be open; set PALLIUM_API_KEY in its place, or unset it",
        ));
    }
    for (theirs, ours) in FOREIGN_VARIABLES {
        if env(theirs).is_some_and(|value| !value.is_empty()) {
            notices.push(format!("{theirs}: not read here; {ours}"));
        }
    }
    Ok(())
}

const FOREIGN_VARIABLES: &[(&str, &str)] = &[
    ("VLLM_LOGGING_LEVEL", "set PALLIUM_LOG_LEVEL"),
    ("VLLM_ATTENTION_BACKEND", "Pallium picks its kernels itself"),
    ("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "set PALLIUM_HF_OVERRIDES to change the model's own limit"),
    ("VLLM_CPU_KVCACHE_SPACE", "set PALLIUM_KV_CACHE_MEMORY_BYTES"),
    ("VLLM_CPU_OMP_THREADS_BIND", "set PALLIUM_THREADS, and the process's affinity from outside"),
    ("VLLM_BATCH_INVARIANT", "set PALLIUM_BATCH_INVARIANT"),
];
