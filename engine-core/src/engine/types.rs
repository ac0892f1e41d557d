//! What crosses the boundary between the server and the engine thread. Token ids only; no user text.

use std::sync::Arc;
use std::time::Instant;

use crate::limits::MAX_SPECULATIVE_TOKENS;
use crate::sampling::SamplingParams;

/// Name of a request, unique for the life of the engine. The server hands them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One sequence to generate. `n > 1` is several requests with one prompt.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: RequestId,
    /// Prompt ids; at least one, all inside the vocabulary.
    pub prompt: Arc<[u32]>,
    pub params: SamplingParams,
    /// Smaller runs first under the priority policy; ignored under FCFS.
    pub priority: i32,
    /// Prefix-cache tenant: requests share cached pages only when their salts are equal.
    pub cache_salt: Option<Arc<str>>,
    /// When the server accepted it.
    pub arrival: Instant,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-sequence id, or a stop id (given), or a stop string (decided by the server).
    Stop { token: Option<u32> },
    /// `max_tokens` or the context length was reached.
    Length,
    /// Aborted by the client or the server.
    Abort,
    /// The engine failed; the text goes to the client.
    Error(EngineFailure),
}

/// Why the engine ended a request that was not at fault itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineFailure {
    /// The device was lost; the process is going down.
    DeviceLost,
    /// The engine is shutting down and the drain limit has passed.
    ShuttingDown,
    /// The engine dropped the request without a terminal event: a bug, reported as such.
    Dropped,
}

/// Log-probability detail of one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The sampled (or given) token: id, log-probability, rank (1 is the most likely).
    pub token: u32,
    pub logprob: f32,
    pub rank: u32,
    /// The best ids with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// What one step did for one request.
#[derive(Clone, Debug)]
pub struct RowOutput {
    pub id: RequestId,
    /// Newly accepted tokens, in order. Usually one; none when only a terminal event is reported.
    pub tokens: TokenBatch,
    /// One entry per token when asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Prompt log-probabilities, with the first output only: entry i is of prompt token i; the first is `None`.
    pub prompt_logprobs: Option<Box<Vec<Option<TokenLogprobs>>>>,
    /// Times the request was preempted so far; zero in an output without tokens.
    pub preemptions: u32,
    /// Set exactly once, on the last output of the request.
    pub finish: Option<FinishReason>,
    /// With the first output only: what happened before it.
    pub first: Option<FirstOutput>,
}

/// Facts reported with a request's first output.
#[derive(Clone, Copy, Debug)]
pub struct FirstOutput {
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// Seconds between arrival and the first time it was scheduled.
    pub queue_s: f64,
}

/// A few tokens without a heap allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    len: u8,
    ids: [u32; Self::CAPACITY],
}

impl TokenBatch {
    /// Most tokens one row can gain in one step (1 + drafts).
    pub const CAPACITY: usize = 1 + MAX_SPECULATIVE_TOKENS;

    /// Appends one token.
    ///
    /// # Panics
    /// If it is full: a step gains at most `CAPACITY` tokens by construction.
    pub fn push(&mut self, id: u32) {
        assert!((self.len as usize) < Self::CAPACITY, "more than {} tokens in one step", Self::CAPACITY);
        self.ids[self.len as usize] = id;
        self.len += 1;
    }
    /// The tokens.
    pub fn as_slice(&self) -> &[u32] {
        &self.ids[..self.len as usize]
    }
}

impl From<u32> for TokenBatch {
    fn from(id: u32) -> Self {
        let mut b = TokenBatch::default();
        b.push(id);
        b
    }
}

/// Everything one step produced, sent to the server in one message.
#[derive(Clone, Debug, Default)]
pub struct StepOutputs {
    pub rows: Vec<RowOutput>,
    pub stats: StepStats,
}

/// The engine's figures after a step, for metrics. Counters run since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    pub running: u32,
    pub waiting: u32,
    pub kv_pages_used: u32,
    pub kv_pages: u32,
    pub preemptions: u64,
    /// Tokens looked up and found in the prefix cache.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// Tokens this step computed: of prompts, and of generated positions.
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
    pub steps: u64,
    pub drafts: DraftCounts,
}

/// What speculation came to since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Times that drafts of a row were verified.
    pub drafts: u64,
    /// Draft tokens verified.
    pub tokens: u64,
    /// Draft tokens accepted.
    pub accepted: u64,
    /// Draft tokens accepted, by their place in the draft.
    pub accepted_at: [u64; MAX_SPECULATIVE_TOKENS],
}

impl DraftCounts {
    /// Draft tokens that were not what the model said.
    pub fn refused(&self) -> u64 {
        self.tokens - self.accepted
    }

    /// Counts one row whose first `accepted` of `drafts` draft tokens were right.
    pub fn count(&mut self, drafts: u32, accepted: usize) {
        self.drafts += 1;
        self.tokens += u64::from(drafts);
        self.accepted += accepted as u64;
        self.accepted_at[..accepted].iter_mut().for_each(|n| *n += 1);
    }
}

/// Where the engine thread delivers its outputs: called once per step, must not block.
/// The server turns it into per-request streams.
pub trait OutputSink: Send {
    /// Takes one step's outputs. `outputs.rows` may be drained; the vector's capacity is reused.
    fn deliver(&mut self, outputs: &mut StepOutputs);
    /// The engine is gone for good; every request still open has failed for this reason.
    fn engine_lost(&mut self, reason: &str);
}

/// Why a request was refused at submission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue's bound in requests is reached: 503 with Retry-After.
    #[error("the queue is full: {queued} requests wait and --max-num-queued-reqs is {limit}")]
    QueueFull { queued: usize, limit: usize },
    /// The queue's bound in tokens is reached: 503 with Retry-After.
    #[error("the queue is full: {queued} prompt tokens wait and --max-num-queued-tokens is {limit}")]
    QueueTokensFull { queued: usize, limit: usize },
    /// It can never fit: 400.
    #[error("{0}")]
    NeverFits(String),
    /// The engine is shutting down or lost: 503 or 500.
    #[error("the engine is not running")]
    NotRunning,
}
