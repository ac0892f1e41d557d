//! The real engine behind [`EngineClient`]: the engine thread's handle and what was fixed at start-up.

use std::time::Duration;

use engine_core::engine::handle::{EngineHandle, EngineState};
use engine_core::engine::types::{Refused, Request, RequestId};

use super::{EngineClient, EngineHealth, EngineInfo, EngineStats};

/// A handle with its facts.
pub struct LiveEngine {
    handle: EngineHandle,
    info: EngineInfo,
}

impl LiveEngine {
    /// Wraps the handle of a running engine.
    pub fn new(handle: EngineHandle, info: EngineInfo) -> Self {
        LiveEngine { handle, info }
    }
}

impl EngineClient for LiveEngine {
    fn submit(&self, request: Request) -> Result<(), Refused> {
        self.handle.submit(request)
    }

    fn abort(&self, id: RequestId) {
        self.handle.abort(id);
    }

    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn stats(&self) -> EngineStats {
        let figures = self.handle.figures();
        let step = figures.last_step;
        EngineStats {
            running: u64::from(step.running),
            waiting: self.waiting(),
            kv_cache_usage: f64::from(step.kv_pages_used) / f64::from(step.kv_pages.max(1)),
            prefix_cache_queries: step.prefix_queries,
            prefix_cache_hits: step.prefix_hits,
            preemptions: step.preemptions,
            iteration_tokens: figures.step_tokens.counts,
            iteration_tokens_sum: figures.step_tokens.sum,
        }
    }

    fn health(&self) -> EngineHealth {
        let failure = match self.handle.state() {
            EngineState::Running => None,
            EngineState::Stopped => Some("the engine has stopped".to_string()),
            EngineState::Lost => Some("the engine lost its device".to_string()),
        };
        let running = u64::from(self.handle.figures().last_step.running);
        let stalled = self.handle.stalled_for();
        // Work in hand may not have reached its first step yet.
        let open_requests = (running + self.waiting()).max(u64::from(stalled.is_some()));
        EngineHealth { failure, open_requests, since_progress: stalled.unwrap_or(Duration::ZERO) }
    }
}

impl LiveEngine {
    /// Preempted rows wait in the scheduler, new ones in the inbox; the larger figure holds both.
    fn waiting(&self) -> u64 {
        (self.handle.queued() as u64).max(u64::from(self.handle.figures().last_step.waiting))
    }
}
