//! Lines and Ctrl-C from whoever sits at the terminal, or lines from a file or pipe.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use tokio::sync::mpsc;

/// Where lines and interrupts come from.
pub struct Terminal {
    /// `None` until somebody asks for a line.
    lines: Option<mpsc::Receiver<std::io::Result<String>>>,
    interrupts: mpsc::Receiver<()>,
    interactive: bool,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the end of the file.
    End,
}

impl Terminal {
    /// Takes Ctrl-C over from the system. Call it inside a runtime.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn new() -> std::io::Result<Self> {
        let (sender, interrupts) = mpsc::channel(2);
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).await.is_ok() {} });
        Ok(Terminal { lines: None, interrupts, interactive: std::io::stdin().is_terminal() })
    }

    /// Whether a person types.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Shows the prompt to a person and waits for a line.
    ///
    /// # Errors
    /// Standard input cannot be read, or is not UTF-8.
    pub async fn next(&mut self, prompt: &str) -> std::io::Result<Input> {
        if self.interactive {
            let mut out = std::io::stderr();
            let _ = write!(out, "{prompt}").and_then(|()| out.flush());
        }
        if self.lines.is_none() {
            self.lines = Some(read_lines()?);
        }
        let Some(lines) = &mut self.lines else { return Ok(Input::End) };
        tokio::select! {
            line = lines.recv() => line.map_or(Ok(Input::End), |line| line.map(Input::Line)),
            Some(()) = self.interrupts.recv() => Ok(Input::Interrupt),
        }
    }

    /// Waits for Ctrl-C.
    pub async fn interrupted(&mut self) {
        if self.interrupts.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads on a thread of its own: a blocked read cannot be taken back, and must not hold up the program's end.
fn read_lines() -> std::io::Result<mpsc::Receiver<std::io::Result<String>>> {
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    Ok(receiver)
}
