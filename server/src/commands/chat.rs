//! `pallium chat`: a conversation in the terminal.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::answer::{Answerer, Endpoint};
use super::lines::{Took, each_line, status};
use super::show::{ShowEnd, Shown, Stats, show};
use super::terminal::Terminal;
use super::{put_sampling, tell};
use crate::cli::ChatArgs;
use crate::model::StartError;

const HELP: &str = "/clear starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer";

/// Talks until the input ends.
///
/// # Errors
/// The model cannot be loaded, or the server cannot be reached.
pub fn run(args: &ChatArgs) -> Result<ExitCode, StartError> {
    let answerer = Answerer::open(&args.session.target, args.session.logging.format)?;
    answerer.runtime().block_on(talk(args, &answerer))
}

async fn talk(args: &ChatArgs, answerer: &Answerer) -> Result<ExitCode, StartError> {
    let mut terminal = Terminal::new()?;
    let mut chat = Chat { args, answerer, messages: Vec::new() };
    chat.clear();
    if let Some(message) = &args.session.quick {
        return Ok(status(&chat.turn(&mut terminal, message).await));
    }
    if terminal.is_interactive() {
        tell(&format!("{} on {}; {HELP}", answerer.model(), answerer.place()));
    }
    let ended = each_line(&mut terminal, async |terminal, line| {
        match Order::of(line) {
            Order::Say(message) => return Took::Answer(chat.turn(terminal, message).await),
            Order::Exit => return Took::Exit,
            Order::Nothing => {}
            Order::Clear => chat.clear(),
            Order::Help => tell(HELP),
            Order::Unknown => tell(&format!("{}: no such order; {HELP}", line.trim())),
        }
        Took::Nothing
    });
    Ok(ended.await?)
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Order<'a> {
    Say(&'a str),
    Nothing,
    Clear,
    Exit,
    Help,
    /// A slash and letters that are no order.
    Unknown,
}

impl Order<'_> {
    fn of(line: &str) -> Order<'_> {
        let line = line.trim();
        let is_order = line
            .strip_prefix('/')
            .is_some_and(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase()));
        match line {
            "" => Order::Nothing,
            "/clear" => Order::Clear,
            "/exit" | "/quit" | "/bye" => Order::Exit,
            "/help" => Order::Help,
            _ if is_order => Order::Unknown,
            text => Order::Say(text),
        }
    }
}

struct Chat<'a> {
    args: &'a ChatArgs,
    answerer: &'a Answerer,
    messages: Vec<Value>,
}

impl Chat<'_> {
    /// Back to the system prompt.
    fn clear(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.args.system_prompt {
            self.messages.push(json!({"role": "system", "content": system}));
        }
    }

    /// One message and its answer. What was said before an interruption stays in the conversation; a message
    /// that got no answer does not.
    async fn turn(&mut self, terminal: &mut Terminal, message: &str) -> ShowEnd {
        self.messages.push(json!({"role": "user", "content": message}));
        let stats = if self.args.session.stats { Stats::Print } else { Stats::No };
        let body = self.body();
        let (shown, end) = show(self.answerer, terminal, Endpoint::Chat, body, stats).await;
        match &end {
            ShowEnd::Failed(reason) => tell(&format!("error: {reason}")),
            ShowEnd::Done if shown.finish.as_deref() == Some("length") && terminal.is_interactive() => {
                tell("[cut off: the longest answer, or the model's context, is reached]");
            }
            _ => {}
        }
        self.remember(shown, &end);
        end
    }

    fn remember(&mut self, shown: Shown, end: &ShowEnd) {
        if *end == ShowEnd::Done || !shown.text.is_empty() {
            self.messages.push(json!({"role": "assistant", "content": shown.text}));
        } else {
            self.messages.pop();
        }
    }

    fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("messages".to_owned(), Value::Array(self.messages.clone()));
        if let Some(max_tokens) = self.args.session.max_tokens {
            body.insert("max_tokens".to_owned(), max_tokens.into());
        }
        put_sampling(&self.args.session.sampling, &mut body);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_word_after_a_slash_is_an_order() {
        for (line, wanted) in [
            ("  ", Order::Nothing),
            ("/clear ", Order::Clear),
            ("/exit", Order::Exit),
            ("/help", Order::Help),
            ("/claer", Order::Unknown),
            ("/usr/bin: what is there?", Order::Say("/usr/bin: what is there?")),
            (" hello ", Order::Say("hello")),
            ("/", Order::Say("/")),
        ] {
            assert_eq!(Order::of(line), wanted);
        }
    }
}
