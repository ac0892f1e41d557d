//! An engine under test: starts one over any backend, collects what it delivers.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use engine_core::backend::Backend;
use engine_core::config::ModelConfig;
use engine_core::engine::build::Running;
use engine_core::engine::types::{
    FinishReason, OutputSink, Refused, Request, RequestId, StepOutputs, StepStats, TokenLogprobs,
};
use engine_core::engine::{EngineOptions, start};
use engine_core::loader::source::WeightSource;
use engine_core::sampling::SamplingParams;

/// What one request got.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    pub finish: Option<FinishReason>,
    pub cached_tokens: u32,
    /// Terminal events seen: must be 1 in the end.
    pub ends: u32,
}

#[derive(Default)]
struct Board {
    requests: HashMap<RequestId, Collected>,
    stats: StepStats,
    lost: Option<String>,
}

/// Where the engine's outputs land.
#[derive(Clone, Default)]
pub struct Collector {
    board: Arc<(Mutex<Board>, Condvar)>,
}

impl OutputSink for Collector {
    fn deliver(&mut self, outputs: &mut StepOutputs) {
        let (board, changed) = &*self.board;
        let mut board = board.lock().unwrap();
        board.stats = outputs.stats;
        for row in outputs.rows.drain(..) {
            let c = board.requests.entry(row.id).or_default();
            assert_eq!(c.ends, 0, "{:?} gets output after its end", row.id);
            c.tokens.extend(row.tokens.as_slice());
            c.logprobs.extend(row.logprobs);
            c.cached_tokens += row.first.map_or(0, |f| f.cached_tokens);
            if let Some(p) = row.prompt_logprobs {
                c.prompt_logprobs = Some(*p);
            }
            if let Some(finish) = row.finish {
                c.finish = Some(finish);
                c.ends += 1;
            }
        }
        changed.notify_all();
    }

    fn engine_lost(&mut self, reason: &str) {
        self.board.0.lock().unwrap().lost = Some(reason.to_owned());
        self.board.1.notify_all();
    }
}

/// An engine and what it delivered.
pub struct TestEngine {
    pub running: Running,
    collector: Collector,
    next_id: std::cell::Cell<u64>,
}

impl TestEngine {
    /// Starts an engine.
    pub fn start(
        backend: Arc<dyn Backend>,
        config: &ModelConfig,
        source: &dyn WeightSource,
        options: &EngineOptions,
    ) -> Self {
        let collector = Collector::default();
        let running = start(backend, config, source, options, Box::new(collector.clone()), &|_| {}).unwrap();
        TestEngine { running, collector, next_id: std::cell::Cell::new(1) }
    }

    /// Submits one request and returns its id.
    pub fn submit(&self, prompt: &[u32], params: SamplingParams) -> RequestId {
        self.submit_with(prompt, params, 0)
    }

    /// The same with a priority.
    pub fn submit_with(&self, prompt: &[u32], params: SamplingParams, priority: i32) -> RequestId {
        self.try_submit(prompt, params, priority).unwrap()
    }

    /// The same for requests that may be refused.
    ///
    /// # Errors
    /// The engine's refusal.
    pub fn try_submit(
        &self,
        prompt: &[u32],
        params: SamplingParams,
        priority: i32,
    ) -> Result<RequestId, Refused> {
        let id = RequestId(self.next_id.replace(self.next_id.get() + 1));
        let prompt = prompt.into();
        let arrival = Instant::now();
        self.running.handle.submit(Request { id, prompt, params, priority, cache_salt: None, arrival })?;
        Ok(id)
    }

    /// Waits until every one of `ids` has ended; what they got, in the order of `ids`.
    ///
    /// # Panics
    /// If the engine is lost, or they take longer than a minute.
    pub fn wait(&self, ids: &[RequestId]) -> Vec<Collected> {
        let (board, changed) = &*self.collector.board;
        let done = |b: &mut Board| {
            b.lost.is_none() && ids.iter().any(|id| b.requests.get(id).is_none_or(|c| c.ends == 0))
        };
        let guard = board.lock().unwrap();
        let (mut guard, timeout) = changed.wait_timeout_while(guard, Duration::from_secs(60), done).unwrap();
        assert_eq!(guard.lost, None, "the engine is lost");
        assert!(!timeout.timed_out(), "requests did not end within a minute");
        ids.iter().map(|id| guard.requests.remove(id).unwrap()).collect()
    }

    /// Waits until the engine is lost; what `ids` got until then, and why it was lost.
    ///
    /// # Panics
    /// If that takes longer than a minute.
    pub fn wait_lost(&self, ids: &[RequestId]) -> (Vec<Collected>, String) {
        let (board, changed) = &*self.collector.board;
        let guard = board.lock().unwrap();
        let running = |b: &mut Board| b.lost.is_none();
        let (mut guard, timeout) =
            changed.wait_timeout_while(guard, Duration::from_secs(60), running).unwrap();
        assert!(!timeout.timed_out(), "the engine was not lost within a minute");
        let got = ids.iter().map(|id| guard.requests.remove(id).unwrap_or_default()).collect();
        (got, guard.lost.clone().unwrap_or_default())
    }

    /// One request alone, from start to end.
    pub fn generate(&self, prompt: &[u32], params: SamplingParams) -> Collected {
        let id = self.submit(prompt, params);
        self.wait(&[id]).remove(0)
    }

    /// The engine's figures after its last step.
    pub fn stats(&self) -> StepStats {
        self.collector.board.0.lock().unwrap().stats
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        self.running.handle.stop();
    }
}
