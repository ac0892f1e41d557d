//! The command line: every flag typed, every form, every error.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod errors;
mod every_flag;
mod forms;
mod outputs;

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::{CliError, Command, Invocation, ServeArgs, parse};

/// Parses a line of words separated by spaces, without environment.
fn line(text: &str) -> Result<Invocation, CliError> {
    words(&text.split_whitespace().collect::<Vec<_>>())
}

/// Parses words, without environment.
fn words(words: &[&str]) -> Result<Invocation, CliError> {
    with_env(words, &[])
}

/// Parses words in an environment of these variables alone.
fn with_env(words: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, CliError> {
    let variables: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    parse(words.iter().map(OsString::from), &|name| variables.get(name).cloned())
}

/// The arguments of `serve` from a line that must be right.
fn serve(text: &str) -> ServeArgs {
    serve_of(line(text))
}

fn serve_of(result: Result<Invocation, CliError>) -> ServeArgs {
    match result.expect("a right command line").command {
        Command::Serve(args) => *args,
        other => panic!("serve was asked for, not {other:?}"),
    }
}

/// The message of a line that must be wrong.
fn error(text: &str) -> String {
    line(text).expect_err("a wrong command line").to_string()
}
