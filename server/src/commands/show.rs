//! One answer on standard output as it comes.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::answer::{Answerer, Endpoint};
use super::events::Delta;
use super::terminal::Terminal;

/// What was shown.
#[derive(Debug, Default)]
pub struct Shown {
    /// The answer without its reasoning.
    pub text: String,
    pub finish: Option<String>,
    timing: Timing,
}

/// How showing it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum ShowEnd {
    Done,
    /// Ctrl-C.
    Interrupted,
    /// The reason, in one sentence.
    Failed(String),
}

/// Whether figures are printed after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stats {
    Print,
    No,
}

#[derive(Debug, Default)]
struct Timing {
    first: Option<Duration>,
    total: Duration,
    tokens: Option<u64>,
}

/// Asks and prints until the answer ends, Ctrl-C comes or something fails. A line break follows in every case.
pub async fn show(
    answerer: &Answerer,
    terminal: &mut Terminal,
    endpoint: Endpoint,
    body: Map<String, Value>,
    stats: Stats,
) -> (Shown, ShowEnd) {
    let mut shown = Shown::default();
    let end = tokio::select! {
        result = print_answer(answerer, endpoint, body, &mut shown) => match result {
            Ok(()) => ShowEnd::Done,
            Err(reason) => ShowEnd::Failed(reason),
        },
        () = terminal.interrupted() => ShowEnd::Interrupted,
    };
    if end == ShowEnd::Done || !shown.text.is_empty() {
        let _ = writeln!(std::io::stdout());
    }
    if stats == Stats::Print && end == ShowEnd::Done {
        let _ = writeln!(std::io::stderr(), "{}", shown.timing.line());
    }
    (shown, end)
}

async fn print_answer(
    answerer: &Answerer,
    endpoint: Endpoint,
    body: Map<String, Value>,
    shown: &mut Shown,
) -> Result<(), String> {
    let started = Instant::now();
    let mut printer = Printer::new();
    let mut answer = answerer.ask(endpoint, body).await?;
    while let Some(delta) = answer.next().await {
        let delta = delta?;
        let says_something = !delta.text.is_empty() || !delta.reasoning.is_empty();
        if says_something {
            shown.timing.first.get_or_insert_with(|| started.elapsed());
        }
        printer.print(&delta).map_err(|e| format!("standard output: {e}"))?;
        shown.text.push_str(&delta.text);
        shown.timing.tokens = delta.completion_tokens.or(shown.timing.tokens);
        shown.finish = delta.finish.or(shown.finish.take());
    }
    shown.timing.total = started.elapsed();
    printer.finish().map_err(|e| format!("standard output: {e}"))
}

/// Puts reasoning between marks, and keeps control characters away from a terminal.
struct Printer {
    thinking: bool,
    to_terminal: bool,
}

impl Printer {
    fn new() -> Self {
        Printer { thinking: false, to_terminal: std::io::stdout().is_terminal() }
    }

    fn print(&mut self, delta: &Delta) -> std::io::Result<()> {
        let text = self.marked(delta);
        if text.is_empty() {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match self.to_terminal {
            true => out.write_all(without_control(&text).as_bytes())?,
            false => out.write_all(text.as_bytes())?,
        }
        out.flush()
    }

    fn marked(&mut self, delta: &Delta) -> String {
        let mut text = String::new();
        if !delta.reasoning.is_empty() {
            if !std::mem::replace(&mut self.thinking, true) {
                text.push_str("<think>");
            }
            text.push_str(&delta.reasoning);
        }
        if !delta.text.is_empty() {
            if std::mem::take(&mut self.thinking) {
                text.push_str("</think>\n");
            }
            text.push_str(&delta.text);
        }
        text
    }

    fn finish(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.thinking) {
            std::io::stdout().write_all(b"</think>")?;
        }
        Ok(())
    }
}

/// A model's text must not move the cursor or rename the window.
fn without_control(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

impl Timing {
    fn line(&self) -> String {
        let Some(first) = self.first else { return "[no tokens]".to_owned() };
        let mut line = format!("[TTFT {:.1} ms", first.as_secs_f64() * 1e3);
        if let Some(tokens) = self.tokens {
            let total_s = self.total.as_secs_f64();
            if total_s > 0.0 {
                // Of the whole answer: several tokens may have come with the first one.
                line.push_str(&format!(", {:.1} tok/s", tokens as f64 / total_s));
            }
            line.push_str(&format!(", {tokens} tokens"));
        }
        line.push(']');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(reasoning: &str, text: &str) -> Delta {
        Delta { reasoning: reasoning.to_owned(), text: text.to_owned(), ..Delta::default() }
    }

    #[test]
    fn reasoning_stands_between_marks() {
        let mut printer = Printer { thinking: false, to_terminal: false };
        let said: String = [delta("", ""), delta("a", ""), delta("b", ""), delta("", "c"), delta("", "d")]
            .iter()
            .map(|d| printer.marked(d))
            .collect();
        assert_eq!(said, "<think>ab</think>\ncd");
        assert!(!printer.thinking);
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(without_control("a\u{1b}]0;x\u{7}\tb\n\u{9b}é"), "a]0;x\tb\né");
    }

    #[test]
    fn figures_are_those_of_the_answer() {
        let timing = Timing {
            first: Some(Duration::from_millis(20)),
            total: Duration::from_millis(1100),
            tokens: Some(11),
        };
        assert_eq!(timing.line(), "[TTFT 20.0 ms, 10.0 tok/s, 11 tokens]");
        assert_eq!(Timing::default().line(), "[no tokens]");
    }
}
