//! Progress bars on long work: downloads, loading, benches. They show on a terminal only, never beside JSON
//! logs, and never slow the work down (at most ten draws a second).

use std::borrow::Cow;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::choices::LogFormat;

/// One bar, or nothing when nobody would see it. Clones move the same bar, from any thread.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
}

/// Most draws a second.
const DRAWS_PER_S: u8 = 10;

impl Progress {
    /// A bar over bytes: size, speed and time left. `total_bytes` may be unknown (0).
    pub fn bytes(label: impl Into<Cow<'static, str>>, total_bytes: u64, format: LogFormat) -> Self {
        let known = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let unknown = "{prefix} {bytes} {bytes_per_sec}";
        Progress::new(label.into(), total_bytes, if total_bytes == 0 { unknown } else { known }, format)
    }

    /// A bar over steps of equal weight, such as requests or layers.
    pub fn steps(label: impl Into<Cow<'static, str>>, total: u64, format: LogFormat) -> Self {
        Progress::new(label.into(), total, "{prefix} [{bar:30}] {pos}/{len} {per_sec} {eta}", format)
    }

    /// A bar that is never shown.
    pub fn hidden() -> Self {
        Progress { bar: ProgressBar::hidden() }
    }

    fn new(label: Cow<'static, str>, total: u64, template: &str, format: LogFormat) -> Self {
        if format == LogFormat::Json || !std::io::stderr().is_terminal() {
            return Progress::hidden();
        }
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_S);
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target);
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(label);
        Progress { bar }
    }

    /// Moves on by `amount`.
    pub fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }

    /// Moves to `position`, as when a download resumes.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Writes a line above the bar; nothing when it is not shown.
    pub fn line(&self, text: impl AsRef<str>) {
        self.bar.println(text);
    }

    /// Takes the bar off the terminal.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Whether anybody sees it.
    pub fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }
}
