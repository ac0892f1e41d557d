//! What chat and complete share: line after line until the input ends, and the exit status that comes of it.

use std::io::Write as _;
use std::process::ExitCode;

use super::INTERRUPTED;
use super::show::ShowEnd;
use super::terminal::{Input, Terminal};

/// What came of a line.
pub enum Took {
    Nothing,
    /// The input ends here.
    Exit,
    Answer(ShowEnd),
}

/// Exit status after the one answer that was asked for.
pub fn status(end: &ShowEnd) -> ExitCode {
    match end {
        ShowEnd::Done => ExitCode::SUCCESS,
        ShowEnd::Interrupted => ExitCode::from(INTERRUPTED),
        ShowEnd::Failed(_) => ExitCode::FAILURE,
    }
}

/// Hands over each line until the input ends. A failed answer shows in the exit status where nobody sits and reads.
///
/// # Errors
/// Standard input cannot be read, or is not UTF-8.
pub async fn each_line(
    terminal: &mut Terminal,
    mut take: impl AsyncFnMut(&mut Terminal, &str) -> Took,
) -> std::io::Result<ExitCode> {
    let mut failed = false;
    loop {
        let line = match terminal.next("> ").await? {
            Input::End => break,
            Input::Interrupt => return Ok(ExitCode::from(INTERRUPTED)),
            Input::Line(line) => line,
        };
        match take(terminal, &line).await {
            Took::Nothing => {}
            Took::Exit => break,
            // Whoever pipes lines in and interrupts an answer wants all of it to end.
            Took::Answer(ShowEnd::Interrupted) if !terminal.is_interactive() => {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            Took::Answer(end) => failed |= matches!(end, ShowEnd::Failed(_)),
        }
    }
    if terminal.is_interactive() {
        let _ = writeln!(std::io::stderr());
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
