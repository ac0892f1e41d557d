//! What the server counts, under vLLM's metric names, labels and buckets, so that existing dashboards work.
//!
//! Token and request figures are taken in the fan-out task, from the same rows the clients get; gauges and
//! scheduler counters come from [`EngineStats`] at the time of the scrape.

mod http;
mod registry;
mod render;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use engine_core::engine::types::{FinishReason, Refused, RowOutput};

pub use http::{HttpMetrics, Route};
pub use registry::{Counter, Histogram};

use registry::one_two_five;

use crate::fanout::Timing;

const TTFT_BOUNDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const ITL_BOUNDS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E_BOUNDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// Every counter and histogram of the server.
#[derive(Debug)]
pub struct Metrics {
    pub prompt_tokens: Counter,
    pub prompt_tokens_cached: Counter,
    pub generation_tokens: Counter,
    /// By [`Outcome`].
    success: [Counter; Outcome::NAMES.len()],
    rejected_requests: Counter,
    rejected_tokens: Counter,
    rejected_by_key: Counter,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    request_max_num_generation_tokens: Histogram,
    request_params_max_tokens: Histogram,
    request_params_n: Histogram,
    request_prefill_kv_computed_tokens: Histogram,
    request_num_preemptions: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    pub http: HttpMetrics,
    /// HTTP requests for the model that are in work (`/load`).
    in_work: AtomicU64,
    /// Rung when a request comes into work.
    began: tokio::sync::Notify,
}

/// What is known of one sequence while it runs.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    arrival: Instant,
    prompt_tokens: u32,
    max_tokens: u32,
    generated: u32,
    cached_tokens: u32,
    preemptions: u32,
    queue: Duration,
    /// First and latest output.
    times: Option<(Instant, Instant)>,
}

impl RequestRecord {
    /// A sequence that arrives now.
    pub fn new(prompt_tokens: u32, max_tokens: u32) -> Self {
        RequestRecord {
            arrival: Instant::now(),
            prompt_tokens,
            max_tokens,
            generated: 0,
            cached_tokens: 0,
            preemptions: 0,
            queue: Duration::ZERO,
            times: None,
        }
    }

    /// Where its time went until now; `None` without a token.
    pub fn timing(&self) -> Option<Timing> {
        let (first, last) = self.times?;
        let scheduled = self.arrival + self.queue;
        Some(Timing {
            queue: self.queue,
            prefill: first.saturating_duration_since(scheduled),
            decode: last.saturating_duration_since(first),
        })
    }
}

/// The `finished_reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stop,
    Length,
    Abort,
    Error,
    Repetition,
}

impl Outcome {
    /// Label values in the order of the variants.
    pub const NAMES: [&'static str; 5] = ["stop", "length", "abort", "error", "repetition"];
}

impl From<FinishReason> for Outcome {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop { .. } => Outcome::Stop,
            FinishReason::Length => Outcome::Length,
            FinishReason::Abort => Outcome::Abort,
            FinishReason::Error(_) => Outcome::Error,
        }
    }
}

impl Metrics {
    /// All at zero.
    #[expect(clippy::new_without_default, reason = "a default of metrics says nothing")]
    pub fn new() -> Self {
        // A scrape shows the bounds up to the context length, which the engine knows once it has started.
        let tokens = || Histogram::of_counts(&one_two_five(u64::from(u32::MAX)));
        let e2e = || Histogram::of_seconds(&E2E_BOUNDS);
        Metrics {
            prompt_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            generation_tokens: Counter::default(),
            success: Default::default(),
            rejected_requests: Counter::default(),
            rejected_tokens: Counter::default(),
            rejected_by_key: Counter::default(),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            request_max_num_generation_tokens: tokens(),
            request_params_max_tokens: tokens(),
            request_params_n: Histogram::of_counts(&[1, 2, 5, 10, 20]),
            request_prefill_kv_computed_tokens: tokens(),
            request_num_preemptions: Histogram::of_counts(&[1, 2, 3, 4, 5, 10, 20]),
            time_to_first_token: Histogram::of_seconds(&TTFT_BOUNDS),
            inter_token_latency: Histogram::of_seconds(&ITL_BOUNDS),
            time_per_output_token: Histogram::of_seconds(&ITL_BOUNDS),
            e2e_latency: e2e(),
            queue_time: e2e(),
            inference_time: e2e(),
            prefill_time: e2e(),
            decode_time: e2e(),
            http: HttpMetrics::new(),
            in_work: AtomicU64::new(0),
            began: tokio::sync::Notify::new(),
        }
    }

    /// Takes one row of a step that was delivered at `now`.
    pub fn row_output(&self, record: &mut RequestRecord, row: &RowOutput, now: Instant) {
        if let Some(first) = row.first {
            record.cached_tokens = first.cached_tokens.min(record.prompt_tokens);
            record.queue = Duration::try_from_secs_f64(first.queue_s).unwrap_or_default();
            self.prompt_tokens.add(u64::from(record.prompt_tokens));
            self.prompt_tokens_cached.add(u64::from(record.cached_tokens));
        }
        let tokens = row.tokens.as_slice().len() as u32;
        if tokens == 0 {
            return;
        }
        self.generation_tokens.add(u64::from(tokens));
        record.generated += tokens;
        record.preemptions = row.preemptions;
        record.times = match record.times {
            None => {
                self.time_to_first_token.observe(now.saturating_duration_since(record.arrival));
                Some((now, now))
            }
            Some((first, last)) => {
                self.inter_token_latency.observe(now.saturating_duration_since(last));
                Some((first, now))
            }
        };
    }

    /// Takes the end of one sequence.
    pub fn request_finished(&self, record: &RequestRecord, reason: FinishReason) {
        self.success[Outcome::from(reason) as usize].add(1);
        self.request_prompt_tokens.observe_count(u64::from(record.prompt_tokens));
        self.request_generation_tokens.observe_count(u64::from(record.generated));
        self.request_params_max_tokens.observe_count(u64::from(record.max_tokens));
        self.e2e_latency.observe(record.arrival.elapsed());
        self.request_num_preemptions.observe_count(u64::from(record.preemptions));
        let Some(Timing { queue, prefill, decode }) = record.timing() else { return };
        let computed = record.prompt_tokens - record.cached_tokens;
        self.request_prefill_kv_computed_tokens.observe_count(u64::from(computed));
        self.queue_time.observe(queue);
        self.prefill_time.observe(prefill);
        self.inference_time.observe(prefill + decode);
        self.decode_time.observe(decode);
        if record.generated > 1 {
            self.time_per_output_token.observe(decode / (record.generated - 1));
        }
    }

    /// Takes the end of one prompt with all its `n` sequences, the longest of which has this many tokens.
    pub fn prompt_finished(&self, n: u32, longest_tokens: u32) {
        self.request_params_n.observe_count(u64::from(n));
        self.request_max_num_generation_tokens.observe_count(u64::from(longest_tokens));
    }

    /// Counts a request that the queue bounds turned away.
    pub fn refused(&self, why: &Refused) {
        match why {
            Refused::QueueFull { .. } => self.rejected_requests.add(1),
            Refused::QueueTokensFull { .. } => self.rejected_tokens.add(1),
            Refused::NeverFits(_) | Refused::NotRunning => {}
        }
    }

    /// Counts a request that the limit of one key turned away.
    pub fn refused_by_key(&self) {
        self.rejected_by_key.add(1);
    }

    /// Requests that ended this way.
    pub fn finished(&self, outcome: Outcome) -> u64 {
        self.success[outcome as usize].get()
    }

    /// One more model request is in work.
    pub fn work_started(&self) {
        self.in_work.fetch_add(1, Relaxed);
        self.began.notify_one();
    }

    /// Until a model request has come into work since the last call.
    pub async fn work_began(&self) {
        self.began.notified().await;
    }

    /// One model request less is in work.
    pub fn work_ended(&self) {
        self.in_work.fetch_sub(1, Relaxed);
    }

    /// Model requests in work.
    pub fn in_work(&self) -> u64 {
        self.in_work.load(Relaxed)
    }
}
