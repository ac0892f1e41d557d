//! [`CliError`]: what is wrong with a command line, in one line.

/// What is wrong with what was typed: `error: --port: 70000 is too large; the most is 65535`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// What the message is about: a flag as typed, an environment variable, a key of a file. May be empty.
    pub subject: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl CliError {
    /// An error about `subject`.
    pub fn new(subject: impl Into<String>, message: impl Into<String>) -> Self {
        CliError { subject: subject.into(), message: message.into() }
    }

    /// The whole line; `error:` is red where colours are wanted.
    pub fn render(&self, colour: bool) -> String {
        let label = if colour { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" };
        if self.subject.is_empty() {
            format!("{label} {}", self.message)
        } else {
            format!("{label} {}: {}", self.subject, self.message)
        }
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for CliError {}
