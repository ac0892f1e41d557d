//! The log: `tracing` events as lines on standard error, as text or JSON.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;

use crate::cli::{LogFormat, LogLevel, LoggingArgs};

/// Starts the log. Only the first call of a process has an effect: a test, or an embedder, may have a log of
/// its own.
pub fn init(args: LoggingArgs) {
    let colour = crate::wants_colour(std::io::stderr().is_terminal());
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level_filter(args.level))
        .with_ansi(colour)
        .with_target(args.level <= LogLevel::Debug);
    let _ = match args.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        // What ends the process is printed by `run`, log or no log.
        LogLevel::Critical => LevelFilter::OFF,
    }
}
