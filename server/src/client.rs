//! [`EngineClient`]: all that the HTTP side knows of an engine. One implementation wraps the engine thread's
//! handle; [`mock`] is an engine without a model, for tests and for measuring the server alone.

pub mod mock;

use std::time::Duration;

use engine_core::engine::types::{DraftCounts, Refused, Request, RequestId};

use crate::cli::SchedulingPolicy;

/// An engine that takes requests. Every method may be called from any thread and none blocks.
/// Outputs arrive at the [`engine_core::engine::types::OutputSink`] the engine was started with.
pub trait EngineClient: Send + Sync {
    /// Queues one sequence.
    ///
    /// # Errors
    /// [`Refused`] when a queue bound is reached, when it can never fit, or when the engine is not running.
    fn submit(&self, request: Request) -> Result<(), Refused>;
    /// Ends a request. Unknown and finished ids are ignored.
    fn abort(&self, id: RequestId);
    /// What was fixed at start-up.
    fn info(&self) -> &EngineInfo;
    /// Counters and gauges now; cheap enough for every scrape.
    fn stats(&self) -> EngineStats;
    /// Whether it lives and makes progress.
    fn health(&self) -> EngineHealth;
}

/// Facts about the engine that do not change while it runs.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// Names the model is served under; the first is reported in answers.
    pub model_names: Vec<String>,
    /// Where the checkpoint came from (`root` in `/v1/models`).
    pub model_root: String,
    /// Longest prompt plus answer, in tokens.
    pub max_model_len: u32,
    /// Number of rows of the output head; every token id is below it.
    pub vocab_size: u32,
    /// Ids that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Most log-probabilities a request may ask for per token (`--max-logprobs`); `None` is the vocabulary.
    pub max_logprobs: Option<u32>,
    /// How the queue is ordered; `priority` is refused unless it is the priority policy.
    pub scheduling_policy: SchedulingPolicy,
    /// Tokens that can be in the KV cache at once.
    pub kv_cache_tokens: u64,
    /// Most tokens drafted for a row in one step; `None`: no speculation.
    pub draft_tokens: Option<u32>,
    /// Label pairs of the `vllm:cache_config_info` gauge, such as `("block_size", "16")`.
    pub cache_config: Vec<(String, String)>,
}

/// Upper bounds of the `vllm:iteration_tokens_total` buckets.
pub const ITERATION_TOKENS_BOUNDS: [u64; 13] =
    [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Gauges and counters of the engine at one moment. Counters count from start-up.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Rows that are running.
    pub running: u64,
    /// Requests that wait for pages or a row.
    pub waiting: u64,
    /// Share of KV pages in use, 0 to 1.
    pub kv_cache_usage: f64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there.
    pub prefix_cache_hits: u64,
    /// Times a running row was put back for recomputation.
    pub preemptions: u64,
    /// What speculation came to.
    pub drafts: DraftCounts,
    /// Steps per number of tokens computed: one count per bound of [`ITERATION_TOKENS_BOUNDS`], then the rest.
    pub iteration_tokens: [u64; ITERATION_TOKENS_BOUNDS.len() + 1],
    /// Sum of the tokens of all steps.
    pub iteration_tokens_sum: u64,
}

/// Whether the engine lives and steps.
#[derive(Clone, Debug)]
pub struct EngineHealth {
    /// Why it is dead; `None` while it lives.
    pub failure: Option<String>,
    /// Requests it holds, running or waiting.
    pub open_requests: u64,
    /// Time since a step ended, or since it last got work after being idle.
    pub since_progress: Duration,
}
