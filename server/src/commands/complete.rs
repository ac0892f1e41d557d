//! `pallium complete`: each line is a text that the model continues.

use std::process::ExitCode;

use serde_json::{Map, Value};

use super::answer::{Answerer, Endpoint};
use super::lines::{Took, each_line, status};
use super::show::{ShowEnd, Stats, show};
use super::terminal::Terminal;
use super::{put_sampling, tell};
use crate::cli::SessionArgs;
use crate::model::StartError;

/// Completes until the input ends.
///
/// # Errors
/// The model cannot be loaded, or the server cannot be reached.
pub fn run(args: &SessionArgs) -> Result<ExitCode, StartError> {
    let answerer = Answerer::open(&args.target, args.logging.format)?;
    answerer.runtime().block_on(complete(args, &answerer))
}

async fn complete(args: &SessionArgs, answerer: &Answerer) -> Result<ExitCode, StartError> {
    let mut terminal = Terminal::new()?;
    if let Some(prompt) = &args.quick {
        return Ok(status(&one(args, answerer, &mut terminal, prompt).await));
    }
    if terminal.is_interactive() {
        let (model, place) = (answerer.model(), answerer.place());
        tell(&format!(
            "{model} on {place}; type the start of a text; Ctrl-D ends, Ctrl-C stops a completion"
        ));
    }
    let ended = each_line(&mut terminal, async |terminal, line| match line {
        "" => Took::Nothing,
        line if line.trim() == "/exit" => Took::Exit,
        line => Took::Answer(one(args, answerer, terminal, line).await),
    });
    Ok(ended.await?)
}

async fn one(args: &SessionArgs, answerer: &Answerer, terminal: &mut Terminal, prompt: &str) -> ShowEnd {
    let mut body = Map::new();
    body.insert("prompt".to_owned(), prompt.into());
    // Null, not absent: absent would be 16.
    body.insert("max_tokens".to_owned(), args.max_tokens.map_or(Value::Null, Value::from));
    put_sampling(&args.sampling, &mut body);
    let stats = if args.stats { Stats::Print } else { Stats::No };
    let (_, end) = show(answerer, terminal, Endpoint::Completions, body, stats).await;
    if let ShowEnd::Failed(reason) = &end {
        tell(&format!("error: {reason}"));
    }
    end
}
