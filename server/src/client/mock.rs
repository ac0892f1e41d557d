//! An engine without a model: its own thread, a bounded queue, rows that step together, cancellation. Row
//! outputs are a pure function of the prompt, so tests know the answer and load tests measure the server alone.

pub mod bytes;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine_core::engine::types::{
    FinishReason, FirstOutput, OutputSink, Refused, Request, RequestId, RowOutput, StepOutputs, TokenLogprobs,
};

use crate::cli::SchedulingPolicy;

use super::{EngineClient, EngineHealth, EngineInfo, EngineStats, ITERATION_TOKENS_BOUNDS};

/// How the mock behaves.
#[derive(Clone, Debug)]
pub struct MockConfig {
    pub info: EngineInfo,
    /// Least time from one step to the next.
    pub step_time: Duration,
    /// Rows that step together.
    pub max_num_seqs: usize,
    /// Requests that may wait.
    pub max_num_queued_reqs: usize,
    /// Prompt tokens that may wait.
    pub max_num_queued_tokens: usize,
    /// Ends an answer with the first end-of-sequence id once the whole prompt was echoed.
    pub stop_after_echo: bool,
}

impl MockConfig {
    /// A model named `mock` over [`bytes::ByteCodec`]'s ids that steps as fast as it can.
    pub fn new(max_model_len: u32) -> MockConfig {
        let info = EngineInfo {
            model_names: vec!["mock".into(), "mock-alias".into()],
            model_root: "mock".into(),
            max_model_len,
            vocab_size: bytes::VOCAB_SIZE,
            eos_token_ids: vec![bytes::EOS],
            max_logprobs: Some(20),
            scheduling_policy: SchedulingPolicy::Fcfs,
            kv_cache_tokens: 1 << 20,
            draft_tokens: None,
            cache_config: vec![("block_size".into(), "16".into()), ("num_gpu_blocks".into(), "65536".into())],
        };
        MockConfig {
            info,
            step_time: Duration::ZERO,
            max_num_seqs: 4096,
            max_num_queued_reqs: 65_536,
            max_num_queued_tokens: usize::MAX,
            stop_after_echo: true,
        }
    }
}

/// Token number `position` of the answer to `prompt`: the prompt again and again.
pub fn mock_token(prompt: &[u32], position: usize) -> u32 {
    prompt[position % prompt.len()]
}

/// Handle of a running mock engine. Dropping the last one ends its thread.
pub struct MockEngine {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl MockEngine {
    /// Starts the engine thread, which delivers to `sink`.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(config: MockConfig, sink: Box<dyn OutputSink>) -> std::io::Result<MockEngine> {
        let shared = Arc::new(Shared { config, state: Mutex::default(), work: Condvar::new() });
        let theirs = shared.clone();
        let thread =
            std::thread::Builder::new().name("mock-engine".into()).spawn(move || run(&theirs, sink))?;
        Ok(MockEngine { shared, thread: Some(thread) })
    }

    /// Stops stepping while it goes on accepting, as a hung device would.
    pub fn hang(&self) {
        self.shared.lock().hung = true;
    }

    /// Ends the engine thread as a lost device would.
    pub fn lose(&self) {
        self.shared.lock().lost = true;
        self.shared.work.notify_one();
    }

    /// Requests aborted so far while they were open.
    pub fn aborted(&self) -> u64 {
        self.shared.lock().aborted
    }

    /// Requests it holds, running or waiting.
    pub fn open_requests(&self) -> usize {
        let state = self.shared.lock();
        state.running.len() + state.queue.len()
    }
}

impl Drop for MockEngine {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_one();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

impl EngineClient for MockEngine {
    fn submit(&self, request: Request) -> Result<(), Refused> {
        let config = &self.shared.config;
        let mut state = self.shared.lock();
        if state.lost || state.stopping {
            return Err(Refused::NotRunning);
        }
        if state.queue.len() >= config.max_num_queued_reqs {
            return Err(Refused::QueueFull { queued: state.queue.len(), limit: config.max_num_queued_reqs });
        }
        if state.queued_tokens + request.prompt.len() > config.max_num_queued_tokens {
            let (queued, limit) = (state.queued_tokens, config.max_num_queued_tokens);
            return Err(Refused::QueueTokensFull { queued, limit });
        }
        if request.prompt.len() as u64 >= config.info.kv_cache_tokens {
            let (have, need) = (config.info.kv_cache_tokens, request.prompt.len() + 1);
            return Err(Refused::NeverFits(format!(
                "the prompt needs {need} KV slots and the cache has {have}"
            )));
        }
        state.queued_tokens += request.prompt.len();
        if state.queue.is_empty() && state.running.is_empty() {
            state.last_step = Some(Instant::now());
        }
        state.queue.push_back(request);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn abort(&self, id: RequestId) {
        let mut state = self.shared.lock();
        state.aborts.insert(id);
        drop(state);
        self.shared.work.notify_one();
    }

    fn info(&self) -> &EngineInfo {
        &self.shared.config.info
    }

    fn stats(&self) -> EngineStats {
        let state = self.shared.lock();
        let mut stats = state.stats.clone();
        stats.running = state.running.len() as u64;
        stats.waiting = state.queue.len() as u64;
        let used: usize = state.running.iter().map(|r| r.request.prompt.len() + r.generated).sum();
        stats.kv_cache_usage = (used as f64 / self.shared.config.info.kv_cache_tokens as f64).min(1.0);
        stats
    }

    fn health(&self) -> EngineHealth {
        let state = self.shared.lock();
        EngineHealth {
            failure: state.lost.then(|| "the device was lost".to_string()),
            open_requests: (state.running.len() + state.queue.len()) as u64,
            since_progress: state.last_step.map_or(Duration::ZERO, |at| at.elapsed()),
        }
    }
}

struct Shared {
    config: MockConfig,
    state: Mutex<State>,
    work: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<Request>,
    queued_tokens: usize,
    running: Vec<Row>,
    aborts: HashSet<RequestId>,
    aborted: u64,
    stats: EngineStats,
    last_step: Option<Instant>,
    hung: bool,
    lost: bool,
    stopping: bool,
}

struct Row {
    request: Request,
    generated: usize,
}

fn run(shared: &Shared, mut sink: Box<dyn OutputSink>) {
    let mut outputs = StepOutputs::default();
    loop {
        let mut state = shared.lock();
        while !state.has_work() && !state.stopping && !state.lost {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.lost {
            state.running.clear();
            state.queue.clear();
            drop(state);
            return sink.engine_lost("the mock device was lost");
        }
        if state.stopping {
            return;
        }
        let started = Instant::now();
        state.drop_aborted();
        if !state.hung {
            state.admit(&shared.config);
            state.step(&shared.config, &mut outputs);
        }
        let hung = state.hung;
        drop(state);
        sink.deliver(&mut outputs);
        let pace = if hung { Duration::from_millis(5) } else { shared.config.step_time };
        let left = pace.saturating_sub(started.elapsed());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.running.is_empty() || !self.aborts.is_empty()
    }

    fn drop_aborted(&mut self) {
        if self.aborts.is_empty() {
            return;
        }
        let before = self.running.len() + self.queue.len();
        let aborts = std::mem::take(&mut self.aborts);
        self.running.retain(|r| !aborts.contains(&r.request.id));
        self.queue.retain(|r| !aborts.contains(&r.id));
        self.queued_tokens = self.queue.iter().map(|r| r.prompt.len()).sum();
        self.aborted += (before - self.running.len() - self.queue.len()) as u64;
    }

    fn admit(&mut self, config: &MockConfig) {
        while self.running.len() < config.max_num_seqs {
            let Some(request) = self.queue.pop_front() else { return };
            self.queued_tokens -= request.prompt.len();
            self.stats.prefix_cache_queries += request.prompt.len() as u64;
            self.running.push(Row { request, generated: 0 });
        }
    }

    fn step(&mut self, config: &MockConfig, outputs: &mut StepOutputs) {
        let mut tokens = 0;
        self.running.retain_mut(|row| {
            tokens += if row.generated == 0 { row.request.prompt.len() } else { 1 };
            let output = row.step(config);
            let open = output.finish.is_none();
            outputs.rows.push(output);
            open
        });
        let bucket = ITERATION_TOKENS_BOUNDS.partition_point(|b| *b < tokens as u64);
        self.stats.iteration_tokens[bucket] += 1;
        self.stats.iteration_tokens_sum += tokens as u64;
        self.last_step = Some(Instant::now());
    }
}

impl Row {
    fn step(&mut self, config: &MockConfig) -> RowOutput {
        let params = &self.request.params;
        let prompt = &self.request.prompt;
        let echoed = config.stop_after_echo && self.generated == prompt.len();
        let ends = echoed && !params.ignore_eos && self.generated >= params.min_tokens as usize;
        let eos = if ends { params.eos_token_ids.first().copied() } else { None };
        let token = eos.unwrap_or_else(|| mock_token(prompt, self.generated));
        let first = (self.generated == 0)
            .then(|| FirstOutput { cached_tokens: 0, queue_s: self.request.arrival.elapsed().as_secs_f64() });
        let prompt_logprobs = match (first, params.prompt_logprobs) {
            (Some(_), Some(k)) => Some(Box::new(prompt_logprobs(prompt, k, config.info.vocab_size))),
            _ => None,
        };
        self.generated += 1;
        let length = self.generated >= params.max_tokens as usize
            || prompt.len() + self.generated >= config.info.max_model_len as usize;
        let finish = if eos.is_some() {
            Some(FinishReason::Stop { token: None })
        } else if params.stop_token_ids.contains(&token) && self.generated >= params.min_tokens as usize {
            Some(FinishReason::Stop { token: Some(token) })
        } else {
            length.then_some(FinishReason::Length)
        };
        let logprobs =
            params.logprobs.map(|k| vec![logprob(token, k, config.info.vocab_size)]).unwrap_or_default();
        RowOutput {
            id: self.request.id,
            tokens: token.into(),
            logprobs,
            prompt_logprobs,
            preemptions: 0,
            finish,
            first,
        }
    }
}

fn prompt_logprobs(prompt: &[u32], k: u32, vocab_size: u32) -> Vec<Option<TokenLogprobs>> {
    prompt.iter().enumerate().map(|(i, t)| (i > 0).then(|| logprob(*t, k, vocab_size))).collect()
}

/// The sampled token first, then its successors, each a quarter less likely in log space.
fn logprob(token: u32, k: u32, vocab_size: u32) -> TokenLogprobs {
    let top = (0..k).map(|i| ((token + i) % vocab_size, -0.25 * (i + 1) as f32)).collect();
    TokenLogprobs { token, logprob: -0.25, rank: 1, top }
}
