//! The figures: what is printed, and what is written as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::Outcome;
use super::dataset::Sample;
use crate::cli::BenchServeArgs;

/// The figures of one run.
#[derive(Debug)]
pub struct Report {
    model: String,
    duration: Duration,
    requests: Vec<Measured>,
    peak_tokens_per_s: f64,
    peak_requests: u32,
}

/// One request, in seconds.
#[derive(Debug, Default)]
struct Measured {
    input_len: u64,
    output_len: u64,
    ttft: f64,
    latency: f64,
    itls: Vec<f64>,
    error: Option<String>,
}

impl Measured {
    fn tpot(&self) -> Option<f64> {
        (self.output_len > 1).then(|| (self.latency - self.ttft) / (self.output_len - 1) as f64)
    }
}

/// What is measured per request (or per gap): name on the command line, heading, name in figures.
const METRICS: [(&str, &str, &str); 4] = [
    ("ttft", "Time to First Token", "TTFT"),
    ("tpot", "Time per Output Token (excl. 1st token)", "TPOT"),
    ("itl", "Inter-token Latency", "ITL"),
    ("e2el", "End-to-end Latency", "E2EL"),
];
const WIDTH: usize = 50;

impl Report {
    pub(super) fn new(
        model: String,
        samples: &[Sample],
        outcomes: Vec<Outcome>,
        duration: Duration,
        peak_requests: u32,
    ) -> Report {
        let peak_tokens_per_s = peak_tokens(&outcomes);
        let requests = samples.iter().zip(outcomes).map(|(s, o)| measured(s, o)).collect();
        Report { model, duration, requests, peak_tokens_per_s, peak_requests }
    }

    /// Requests that were answered.
    pub fn completed(&self) -> usize {
        self.good().count()
    }

    /// The first error.
    pub fn first_error(&self) -> Option<&str> {
        self.requests.iter().find_map(|r| r.error.as_deref())
    }

    /// Answered requests per second.
    pub fn request_throughput(&self) -> f64 {
        self.completed() as f64 / self.duration.as_secs_f64()
    }

    /// Generated tokens per second.
    pub fn output_throughput(&self) -> f64 {
        self.total(|r| r.output_len) as f64 / self.duration.as_secs_f64()
    }

    /// The printed block.
    pub fn text(&self, args: &BenchServeArgs) -> String {
        let mut out = String::new();
        title(&mut out, "Serving Benchmark Result", '=');
        let (input, output) = (self.total(|r| r.input_len), self.total(|r| r.output_len));
        let seconds = self.duration.as_secs_f64();
        whole(&mut out, "Successful requests:", self.completed() as u64);
        whole(&mut out, "Failed requests:", (self.requests.len() - self.completed()) as u64);
        if let Some(most) = args.max_concurrency {
            whole(&mut out, "Maximum request concurrency:", u64::from(most));
        }
        if args.request_rate.is_finite() {
            decimal(&mut out, "Request rate configured (RPS):", args.request_rate);
        }
        decimal(&mut out, "Benchmark duration (s):", seconds);
        whole(&mut out, "Total input tokens:", input);
        whole(&mut out, "Total generated tokens:", output);
        decimal(&mut out, "Request throughput (req/s):", self.request_throughput());
        if let Some(goodput) = self.goodput(args) {
            decimal(&mut out, "Request goodput (req/s):", goodput);
        }
        decimal(&mut out, "Output token throughput (tok/s):", self.output_throughput());
        decimal(&mut out, "Peak output token throughput (tok/s):", self.peak_tokens_per_s);
        decimal(&mut out, "Peak concurrent requests:", f64::from(self.peak_requests));
        decimal(&mut out, "Total token throughput (tok/s):", (input + output) as f64 / seconds);
        for (key, heading, name) in METRICS {
            if !args.percentile_metrics.iter().any(|m| m == key) {
                continue;
            }
            let values = self.values_ms(key);
            title(&mut out, heading, '-');
            decimal(&mut out, &format!("Mean {name} (ms):"), mean(&values));
            decimal(&mut out, &format!("Median {name} (ms):"), percentile(&values, 50.0));
            for p in &args.metric_percentiles {
                decimal(&mut out, &format!("P{p} {name} (ms):"), percentile(&values, *p));
            }
        }
        let _ = writeln!(out, "{}", "=".repeat(WIDTH));
        if let Some(error) = self.first_error() {
            let _ = writeln!(out, "First error: {error}");
        }
        out
    }

    /// The figures as JSON, with vLLM's keys.
    pub fn json(&self, args: &BenchServeArgs) -> Map<String, Value> {
        let (input, output) = (self.total(|r| r.input_len), self.total(|r| r.output_len));
        let seconds = self.duration.as_secs_f64();
        let rate = if args.request_rate.is_finite() { json!(args.request_rate) } else { json!("inf") };
        let head = json!({
            "date": unix_s(),
            "backend": args.backend.name(),
            "endpoint_type": args.backend.name(),
            "label": args.results.label,
            "model_id": self.model,
            "tokenizer_id": args.tokenizer,
            "num_prompts": self.requests.len(),
            "request_rate": rate,
            "burstiness": args.burstiness,
            "max_concurrency": args.max_concurrency,
            "duration": seconds,
            "completed": self.completed(),
            "failed": self.requests.len() - self.completed(),
            "total_input_tokens": input,
            "total_output_tokens": output,
            "request_throughput": self.request_throughput(),
            "request_goodput": self.goodput(args),
            "output_throughput": self.output_throughput(),
            "total_token_throughput": (input + output) as f64 / seconds,
            "max_output_tokens_per_s": self.peak_tokens_per_s,
            "max_concurrent_requests": self.peak_requests,
            "rtfx": 0.0
        });
        let mut map = head.as_object().cloned().unwrap_or_default();
        for (key, _, _) in METRICS {
            let values = self.values_ms(key);
            map.insert(format!("mean_{key}_ms"), json!(mean(&values)));
            map.insert(format!("median_{key}_ms"), json!(percentile(&values, 50.0)));
            map.insert(format!("std_{key}_ms"), json!(deviation(&values)));
            for p in &args.metric_percentiles {
                map.insert(format!("p{p}_{key}_ms"), json!(percentile(&values, *p)));
            }
        }
        if args.results.save_detailed {
            map.extend(self.details());
        }
        map.extend(args.results.metadata.iter().map(|(k, v)| (k.clone(), json!(v))));
        map
    }

    /// Writes the result file when asked for.
    ///
    /// # Errors
    /// One sentence naming the file.
    pub fn save(&self, args: &BenchServeArgs) -> Result<(), String> {
        let results = &args.results;
        if !results.save_result && !results.append_result {
            return Ok(());
        }
        let name = results.filename.clone().unwrap_or_else(|| self.default_name(args));
        let path = results.dir.clone().unwrap_or_default().join(name);
        let fail = |e: std::io::Error| format!("{}: {e}", path.display());
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let line = Value::Object(self.json(args)).to_string() + "\n";
        if results.append_result {
            use std::io::Write;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
            return file.and_then(|mut f| f.write_all(line.as_bytes())).map_err(fail);
        }
        std::fs::write(&path, line).map_err(fail)
    }

    fn default_name(&self, args: &BenchServeArgs) -> String {
        let label = args.results.label.as_deref().unwrap_or(args.backend.name());
        let model = self.model.rsplit('/').next().unwrap_or_default();
        let concurrency = args.max_concurrency.map(|c| format!("-concurrency{c}")).unwrap_or_default();
        format!("{label}-{}qps{concurrency}-{model}-{}.json", args.request_rate, unix_s())
    }

    fn good(&self) -> impl Iterator<Item = &Measured> {
        self.requests.iter().filter(|r| r.error.is_none())
    }

    fn total(&self, of: impl Fn(&Measured) -> u64) -> u64 {
        self.good().map(of).sum()
    }

    fn values_ms(&self, metric: &str) -> Vec<f64> {
        let mut values: Vec<f64> = match metric {
            "ttft" => self.good().map(|r| r.ttft).collect(),
            "tpot" => self.good().filter_map(Measured::tpot).collect(),
            "itl" => self.good().flat_map(|r| r.itls.iter().copied()).collect(),
            _ => self.good().map(|r| r.latency).collect(),
        };
        values.iter_mut().for_each(|v| *v *= 1e3);
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    /// Requests per second that were within every limit.
    fn goodput(&self, args: &BenchServeArgs) -> Option<f64> {
        if args.goodput.is_empty() {
            return None;
        }
        let limits: HashMap<&str, f64> = args.goodput.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let within = |r: &&Measured| {
            let under = |key: &str, value: f64| limits.get(key).is_none_or(|limit| value * 1e3 <= *limit);
            under("ttft", r.ttft) && under("tpot", r.tpot().unwrap_or(0.0)) && under("e2el", r.latency)
        };
        Some(self.good().filter(within).count() as f64 / self.duration.as_secs_f64())
    }

    fn details(&self) -> Map<String, Value> {
        let list = |of: &dyn Fn(&Measured) -> Value| self.requests.iter().map(of).collect::<Vec<_>>();
        let details = json!({
            "input_lens": list(&|r| json!(r.input_len)),
            "output_lens": list(&|r| json!(r.output_len)),
            "ttfts": list(&|r| json!(r.ttft)),
            "itls": list(&|r| json!(r.itls)),
            "errors": list(&|r| json!(r.error.as_deref().unwrap_or_default()))
        });
        details.as_object().cloned().unwrap_or_default()
    }
}

fn measured(sample: &Sample, outcome: Outcome) -> Measured {
    let reply = outcome.reply;
    let at = &reply.tokens_at;
    let since = |t: Option<&std::time::Instant>| t.map_or(0.0, |t| (*t - outcome.start).as_secs_f64());
    let error = reply.error.or_else(|| at.is_empty().then(|| "the answer has no tokens".to_string()));
    Measured {
        input_len: reply.prompt_tokens.unwrap_or(u64::from(sample.prompt_len)),
        output_len: reply.completion_tokens.unwrap_or(at.len() as u64),
        ttft: since(at.first()),
        latency: since(at.last()),
        itls: at.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect(),
        error,
    }
}

/// Most events with text within one second of the run.
fn peak_tokens(outcomes: &[Outcome]) -> f64 {
    let Some(start) = outcomes.iter().map(|o| o.start).min() else { return 0.0 };
    let mut per_second: HashMap<u64, u64> = HashMap::new();
    for at in outcomes.iter().flat_map(|o| &o.reply.tokens_at) {
        *per_second.entry((*at - start).as_secs()).or_default() += 1;
    }
    per_second.values().max().map_or(0.0, |n| *n as f64)
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (squares / values.len().max(1) as f64).sqrt()
}

/// Of ascending values, between neighbours in proportion.
fn percentile(values: &[f64], percent: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = percent / 100.0 * last as f64;
    let (low, high) = (values[at.floor() as usize], values[(at.ceil() as usize).min(last)]);
    low + (high - low) * at.fract()
}

fn title(out: &mut String, text: &str, fill: char) {
    let text = if fill == '=' { format!(" {text} ") } else { text.to_string() };
    let left = WIDTH.saturating_sub(text.len()) / 2;
    let right = WIDTH.saturating_sub(text.len() + left);
    let rule = |n: usize| fill.to_string().repeat(n);
    let _ = writeln!(out, "{}{text}{}", rule(left), rule(right));
}

fn whole(out: &mut String, name: &str, value: u64) {
    let _ = writeln!(out, "{name:<40} {value:<10}");
}

fn decimal(out: &mut String, name: &str, value: f64) {
    let _ = writeln!(out, "{name:<40} {value:<10.2}");
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_interpolated() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(percentile(&values, 50.0), 2.5);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 100.0), 4.0);
        assert_eq!(percentile(&[], 99.0), 0.0);
        assert_eq!(mean(&values), 2.5);
        assert!((deviation(&values) - 1.118).abs() < 1e-3);
    }

    #[test]
    fn titles_fill_fifty_columns() {
        let mut out = String::new();
        title(&mut out, "Serving Benchmark Result", '=');
        title(&mut out, "Inter-token Latency", '-');
        assert_eq!(
            out,
            "============ Serving Benchmark Result ============\n---------------Inter-token Latency----------------\n"
        );
    }
}
