//! The start-up table: what was loaded, what fits, where it listens, how to try it. Pure formatting.

use std::fmt::Write as _;
use std::path::PathBuf;

/// What the table shows.
#[derive(Clone, Debug, PartialEq)]
pub struct StartupTable {
    /// First of the names the API answers to.
    pub model: String,
    /// Where it was loaded from, when that differs from the name.
    pub source: Option<String>,
    /// The device in words: `cpu (16 threads, avx512)`.
    pub device: String,
    /// Number format of activations.
    pub dtype: String,
    /// Bytes of weights on the device.
    pub weight_bytes: u64,
    /// Tokens that the KV cache holds.
    pub kv_tokens: u64,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Longest context in tokens; at least 1.
    pub max_model_len: u32,
    /// Most requests that run at once.
    pub max_num_seqs: u32,
    pub address: Address,
    /// Whether requests need a key.
    pub needs_key: bool,
    /// Whether the model has a chat template; else the curl line asks for a completion.
    pub has_chat: bool,
    /// Seconds from process start until now.
    pub startup_s: f64,
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A URL without a path, such as `http://localhost:8000`.
    Url(String),
    /// A Unix socket.
    Socket(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Url(url) => f.write_str(url),
            Address::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

impl StartupTable {
    /// The table, aligned, with a newline at the end of each line; names are bold where colours are wanted.
    pub fn render(&self, colour: bool) -> String {
        let rows = self.rows();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut out = String::new();
        for (name, value) in rows {
            let (bold, plain) = if colour { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
            let _ = writeln!(out, "  {bold}{name:<width$}{plain}  {value}");
        }
        let _ = writeln!(out, "\n{}", self.curl_line());
        out
    }

    /// How many requests of full length fit into the KV cache at once.
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    pub fn full_length_requests(&self) -> f64 {
        self.kv_tokens as f64 / f64::from(self.max_model_len.max(1))
    }

    /// A line for the shell that asks the server something.
    pub fn curl_line(&self) -> String {
        let (path, body) = self.example_request();
        let target = match &self.address {
            Address::Url(url) => format!("{url}{path}"),
            Address::Socket(socket) => {
                format!("--unix-socket {} http://localhost{path}", shell_quote(&socket.display().to_string()))
            }
        };
        let key = if self.needs_key { " -H \"Authorization: Bearer $PALLIUM_API_KEY\"" } else { "" };
        format!("curl {target}{key} -H 'Content-Type: application/json' -d {}", shell_quote(&body))
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("model", self.model.clone())];
        if let Some(source) = &self.source {
            rows.push(("from", source.clone()));
        }
        rows.push(("device", self.device.clone()));
        rows.push(("dtype", self.dtype.clone()));
        rows.push(("weights", human_size(self.weight_bytes)));
        rows.push(("KV cache", format!("{} tokens, {}", grouped(self.kv_tokens), human_size(self.kv_bytes))));
        rows.push(("context", format!("{} tokens", grouped(u64::from(self.max_model_len)))));
        rows.push((
            "fits",
            format!(
                "{:.1} requests of full length; at most {} run at once",
                self.full_length_requests(),
                self.max_num_seqs
            ),
        ));
        rows.push(("address", self.address.to_string()));
        rows.push(("ready in", format!("{:.2} s", self.startup_s)));
        rows
    }

    fn example_request(&self) -> (&'static str, String) {
        let model = serde_json::Value::from(self.model.as_str());
        if self.has_chat {
            let messages = r#"[{"role": "user", "content": "Hello"}]"#;
            ("/v1/chat/completions", format!(r#"{{"model": {model}, "messages": {messages}}}"#))
        } else {
            let rest = r#""prompt": "Once upon a time", "max_tokens": 32"#;
            ("/v1/completions", format!(r#"{{"model": {model}, {rest}}}"#))
        }
    }
}

/// A size in bytes with three digits and a binary unit: `1.50 GiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would be shown as 1000: the next unit is shorter.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A number with commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A word as a POSIX shell reads it back.
fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
