//! The command line: one table of flags (`flags`), and everything that reads it.
//!
//! ```text
//! words ── lex ──► sets ─┐
//! PALLIUM_ variables ────┼─ resolve ──► one value per flag ── build ──► typed arguments
//! --config file ─────────┘
//! ```
//! The command line wins over the environment, the environment over the file, the file over the default.
//! `help`, `completions` and `docs` render the same table. Nothing here starts anything: [`parse`] is a
//! function of its arguments, the environment and the `--config` file.

pub mod args;
pub mod args_client;
mod build;
mod build_client;
pub mod choices;
pub mod commands;
pub mod completions;
pub mod docs;
pub mod error;
pub mod flag;
pub mod flags;
pub mod help;
mod lex;
mod parse;
pub mod progress;
mod resolve;
mod sources;
pub mod startup;
mod suggest;
#[cfg(test)]
mod tests;
pub mod value;

pub use args::*;
pub use args_client::*;
pub use choices::*;
pub use error::CliError;
pub use help::HelpText;
pub use parse::{Command, Invocation, parse};
pub use sources::unknown_variables;
