//! From a command line to a running command.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use crate::cli::{
    self, BenchArgs, BenchServeArgs, CliError, Command, Invocation, LogFormat, LoggingArgs, ServeArgs,
};
use crate::commands;
use crate::model::StartError;

/// Exit status of a command line that is wrong, as shells and clap have it.
const USAGE: u8 = 2;

/// Runs the program. `args` are all words, the program's name first.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let started = Instant::now();
    let env = |name: &str| std::env::var(name).ok();
    match cli::parse(args.skip(1), &env) {
        Ok(invocation) => dispatch(invocation, started),
        Err(error) => {
            report_error(&error);
            ExitCode::from(USAGE)
        }
    }
}

/// Whether text on this stream may have colours.
pub fn wants_colour(is_terminal: bool) -> bool {
    // Any value counts, but an empty one: no-color.org.
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn dispatch(invocation: Invocation, started: Instant) -> ExitCode {
    if let Some(logging) = invocation.command.logging() {
        crate::logging::init(logging);
        report_notices(&invocation.notices, logging);
        report_notices(&cli::unknown_variables(variable_names()), logging);
    }
    match invocation.command {
        Command::Help(text) => print_text(text.render(wants_colour(std::io::stdout().is_terminal()))),
        Command::Docs(text) => print_text(&text),
        Command::Version => print_text(&format!("pallium {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completions(args) => print_text(&cli::completions::script(args.shell)),
        Command::Serve(args) => serve(&args, started),
        Command::Chat(args) => ended(commands::chat::run(&args)),
        Command::Complete(args) => ended(commands::complete::run(&args)),
        Command::Bench(args) => bench(&args),
        Command::Doctor(args) => ended(commands::doctor::run(&args)),
        Command::Pull(args) => ended(commands::pull::run(&args).map(|()| ExitCode::SUCCESS)),
    }
}

/// Names of the environment's variables, those that are text.
fn variable_names() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

fn serve(args: &ServeArgs, started: Instant) -> ExitCode {
    ended(crate::serve::serve(args, started).map(ExitCode::from))
}

fn bench(args: &BenchArgs) -> ExitCode {
    let done = match args {
        BenchArgs::Serve(args) => return bench_serve(args),
        BenchArgs::Latency(args) => crate::bench::latency::run(args),
        BenchArgs::Throughput(args) => crate::bench::throughput::run(args),
        BenchArgs::Startup(args) => crate::bench::startup::run(args),
        BenchArgs::MakeCheckpoint(args) => crate::bench::checkpoint::run(args),
    };
    ended(done.map(|()| ExitCode::SUCCESS))
}

/// The exit status of a command; why it failed goes to standard error.
fn ended(result: Result<ExitCode, StartError>) -> ExitCode {
    result.unwrap_or_else(|error| {
        report_error(&CliError::new("", error.to_string()));
        ExitCode::FAILURE
    })
}

/// Fails when no request was answered, so that scripts notice.
fn bench_serve(args: &BenchServeArgs) -> ExitCode {
    match crate::bench::serve::run(args) {
        Ok(report) if report.completed() > 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            report_error(&CliError::new("pallium bench serve", reason));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output. A reader that went away (`pallium --help | head`) is no error.
fn print_text(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            report_error(&CliError::new("standard output", error.to_string()));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn report_error(error: &CliError) {
    let _ = writeln!(std::io::stderr(), "{}", error.render(wants_colour(std::io::stderr().is_terminal())));
}

/// Notices go to standard error, in the shape of the log.
fn report_notices(notices: &[String], logging: LoggingArgs) {
    for notice in notices {
        match logging.format {
            LogFormat::Json => tracing::warn!("{notice}"),
            LogFormat::Text => {
                let _ = writeln!(std::io::stderr(), "note: {notice}");
            }
        }
    }
}
