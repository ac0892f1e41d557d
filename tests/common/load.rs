//! A driver for tests that need steps but no device: every row that samples gets a token that never ends it.

use std::sync::Arc;
use std::time::Instant;

use engine_core::engine::types::{Request, RequestId, TokenBatch};
use engine_core::kv::{GroupSpec, KvConfig, PrefixCaching};
use engine_core::sampling::SamplingParams;
use engine_core::scheduler::{CommitOutcome, Feed, RowResult, Scheduler, SchedulerConfig, StepPlan};

/// A scheduler with an endless supply of tokens.
pub struct Load {
    pub scheduler: Scheduler,
    pub plan: StepPlan,
    pub outcomes: Vec<CommitOutcome>,
    spare: Vec<Vec<RowResult>>,
    /// Results of the step in flight.
    in_flight: Option<(u64, Vec<RowResult>)>,
    added: u64,
}

impl Load {
    /// An idle engine.
    pub fn new(
        config: SchedulerConfig,
        groups: Vec<GroupSpec>,
        pages: u32,
        prefix_caching: PrefixCaching,
    ) -> Self {
        let rows = config.max_num_seqs as usize;
        let kv = KvConfig { groups, pages, prefix_caching, hash_key: [1, 2] };
        Load {
            scheduler: Scheduler::new(config, kv).expect("the settings are right"),
            plan: StepPlan::default(),
            outcomes: Vec::with_capacity(rows),
            spare: vec![Vec::with_capacity(rows), Vec::with_capacity(rows)],
            in_flight: None,
            added: 0,
        }
    }

    /// Queues a request of the given lengths; no two prompts share a prefix.
    pub fn add(&mut self, prompt: u32, max_tokens: u32) {
        self.added += 1;
        let request = Request {
            id: RequestId(self.added),
            prompt: (0..prompt).map(|i| i ^ (self.added as u32) << 16).collect::<Arc<[u32]>>(),
            params: SamplingParams { max_tokens, eos_token_ids: vec![u32::MAX], ..SamplingParams::default() },
            priority: 0,
            cache_salt: None,
            arrival: Instant::now(),
        };
        self.scheduler.add(request, Feed::Device).expect("the request fits");
    }

    /// Plans one step and commits the one before: two steps in flight, as the engine does. False when all is done.
    pub fn step(&mut self) -> bool {
        self.scheduler.schedule(&mut self.plan);
        let before = self.in_flight.take();
        let planned = !self.plan.is_empty();
        if planned {
            let results = self.sample();
            self.in_flight = Some((self.plan.step, results));
        }
        if let Some((step, results)) = before {
            self.commit(step, results);
        }
        planned || self.scheduler.has_work()
    }

    /// Commits the step that has just been planned: one step in flight.
    pub fn commit_planned(&mut self) {
        let results = self.sample();
        self.commit(self.plan.step, results);
    }

    fn sample(&mut self) -> Vec<RowResult> {
        let mut results = self.spare.pop().unwrap_or_default();
        results.clear();
        let sampled = self.plan.rows.iter().enumerate().filter(|(_, row)| row.sample);
        results.extend(
            sampled
                .map(|(i, row)| RowResult { row: i as u32, tokens: TokenBatch::from(row.sample_position) }),
        );
        results
    }

    fn commit(&mut self, step: u64, results: Vec<RowResult>) {
        self.outcomes.clear();
        self.scheduler.commit(step, &results, &mut self.outcomes);
        self.spare.push(results);
    }
}
