//! Who runs in the next step, with which pages.
//!
//! There is no prefill or decode phase: each row has tokens computed and tokens wanted, and each step hands out a
//! token budget until all have caught up. Running rows come first, in the order of service, and each keeps at least
//! one token of the budget; then, unless pages were short, waiting requests are admitted. When pages are short the
//! last running row is preempted: its pages are freed and it is recomputed later, from what the prefix cache still
//! has.
//!
//! **Steps in flight.** [`Scheduler::schedule`] may be called again before [`Scheduler::commit`] has brought in the
//! results of the step before, up to `max_steps_in_flight` steps. A token that is sampled but not yet known is a
//! *placeholder*: its row is planned for the next position with [`TokenSource::Device`]. Ends by length are known
//! beforehand and nothing is planned past them. An end by a stop id is learnt at commit, when the row may already be
//! planned once more; that step then owns the page it writes and its result is dropped. A row that is preempted with
//! results in flight gets them at commit and is admitted again only after.
//!
//! **Drafts.** A row that the host feeds may be given tokens that perhaps follow ([`Scheduler::propose`]): its next chunk
//! ends with them and samples behind each. Their pages are those of any chunk; where pages run out a row gives up its
//! drafts before any row has to go. What is accepted counts as computed at commit; the KV of the rest is overwritten, and no such page was shared.
//!
//! **Rows that wait for the host.** A row with a result in flight whose next inputs the host makes cannot be planned.
//! A step without it costs about as much as one with it, for the weights are read once a step; so when one running
//! row in `SchedulerConfig::host_wait_share` or more waits like this, no step is planned until they are back. Else rows
//! would fall into groups that take turns. When fewer wait, nobody else is held up for them.
//!
//! **Order.** Steps must reach the device in the order of their plans, on one queue, and be committed in that order.
//! Pages freed by one call are handed out by the next; the queue's order makes that safe.

mod budget;
mod commit;
pub mod config;
pub mod plan;
pub mod policy;
mod preempt;
mod queue;
mod rows;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

pub use config::{ChunkedPrefill, SchedulerConfig};
pub use plan::{
    Admitted, CommitOutcome, Feed, Phase, PlanRow, RowResult, StepPlan, TokenSource, most_table_deltas,
};
pub use policy::SchedulingPolicy;

use crate::Result;
use crate::engine::types::{DraftCounts, Refused, Request, RequestId};
use crate::kv::faults::Planted;
use crate::kv::{KvConfig, KvManager};
use crate::limits::MAX_SPECULATIVE_TOKENS;
use commit::StepRecord;
use policy::OrderKey;
use queue::WaitingQueue;
use rows::{Row, RowIndex, Rows, Stage};

/// Figures for metrics; counters run since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Requests in a slot.
    pub running: usize,
    /// Requests that wait, preempted ones among them.
    pub waiting: usize,
    /// Pages held by running requests.
    pub kv_pages_used: u32,
    /// Pages there are, without the null page.
    pub kv_pages: u32,
    /// Times a request was preempted.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache, at first admissions.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
    pub drafts: DraftCounts,
}

/// The scheduler of one engine, with its KV pages. Belongs to the engine thread.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvManager,
    rows: Rows,
    ids: HashMap<RequestId, RowIndex>,
    waiting: WaitingQueue,
    /// In the order of service.
    running: Vec<RowIndex>,
    free_slots: Vec<u32>,
    /// Row of each slot in use.
    slot_rows: Vec<Option<RowIndex>>,
    arrivals: u64,
    next_step: u64,
    in_flight: VecDeque<StepRecord>,
    spare_records: Vec<StepRecord>,
    /// Prompt rows of the step being planned; they go behind the generated ones.
    prompt_rows: Vec<PlanRow>,
    /// The first waiting request was short of pages when this many had been released: no use trying before more are.
    short_of_pages: Option<(RequestId, u64)>,
    preemptions: u64,
    prefix_queries: u64,
    prefix_hits: u64,
    drafts: DraftCounts,
    planted: Planted,
}

impl Scheduler {
    /// A scheduler with nothing to do.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when the settings contradict each other.
    pub fn new(config: SchedulerConfig, kv: KvConfig) -> Result<Self> {
        config.check()?;
        let slots = config.max_num_seqs;
        Ok(Scheduler {
            kv: KvManager::new(kv, slots)?,
            rows: Rows::default(),
            ids: HashMap::new(),
            waiting: WaitingQueue::default(),
            running: Vec::with_capacity(slots as usize),
            free_slots: (0..slots).rev().collect(),
            slot_rows: vec![None; slots as usize],
            arrivals: 0,
            next_step: 0,
            in_flight: VecDeque::with_capacity(config.max_steps_in_flight),
            spare_records: (0..config.max_steps_in_flight)
                .map(|_| StepRecord::with_capacity(slots))
                .collect(),
            prompt_rows: Vec::with_capacity(slots as usize),
            short_of_pages: None,
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            drafts: DraftCounts::default(),
            planted: Planted::default(),
            config,
        })
    }

    /// Whether a request could ever run, and whether the queue has room for it now.
    ///
    /// # Errors
    /// [`Refused`] with the text for the client.
    pub fn admit_check(&self, request: &Request) -> std::result::Result<(), Refused> {
        self.can_ever_fit(request)?;
        let (queued, limit) = (self.waiting.len(), self.config.max_queued_requests);
        if queued >= limit {
            return Err(Refused::QueueFull { queued, limit });
        }
        match self.config.max_queued_tokens {
            Some(limit) if queued > 0 && self.waiting.tokens() + request.prompt.len() > limit => {
                Err(Refused::QueueTokensFull { queued: self.waiting.tokens(), limit })
            }
            _ => Ok(()),
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// Those of [`Self::admit_check`].
    ///
    /// # Panics
    /// If a request with this id is still known.
    pub fn add(&mut self, request: Request, feed: Feed) -> std::result::Result<(), Refused> {
        self.admit_check(&request)?;
        assert!(!self.ids.contains_key(&request.id), "{:?} is given out twice", request.id);
        let key = OrderKey::new(self.config.policy, request.priority, self.arrivals);
        self.arrivals += 1;
        let (id, prompt) = (request.id, request.prompt.len());
        let row = self.rows.insert(Row {
            tokens: request.prompt.to_vec(),
            target: self.target(&request),
            computed: 0,
            placeholders: 0,
            in_flight: 0,
            stage: Stage::Waiting,
            feed,
            preemptions: 0,
            drafts: Vec::new(),
            key,
            chain: self.kv.chain(request.cache_salt.as_deref()),
            request,
        });
        self.ids.insert(id, row);
        self.waiting.insert(key, row, prompt);
        Ok(())
    }

    /// Ends a request at once: its pages and slot are free for the next step, its results in flight will be dropped.
    /// False when the id is not known (any more).
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(&row) = self.ids.get(&id) else { return false };
        if self.end(row) {
            self.running.retain(|r| *r != row);
        }
        true
    }

    /// From the next step on, the request's tokens reach the device this way. A row that turns host-fed with results
    /// in flight is planned again once they are in.
    pub fn set_feed(&mut self, id: RequestId, feed: Feed) {
        let Some(&row) = self.ids.get(&id) else { return };
        let row = &mut self.rows[row];
        row.feed = feed;
        if feed == Feed::Device {
            row.drafts.clear();
        }
    }

    /// Proposes tokens to follow the last known one of a [`Feed::Host`] row; they are verified in its next step and
    /// forgotten when that is committed. Does nothing when the request is not running, not host-fed or has a result
    /// in flight. At most `limits::MAX_SPECULATIVE_TOKENS` are taken.
    pub fn propose(&mut self, id: RequestId, drafts: &[u32]) {
        let Some(&row) = self.ids.get(&id) else { return };
        let row = &mut self.rows[row];
        if row.feed == Feed::Host && row.placeholders == 0 && row.stage != Stage::Waiting {
            row.drafts.clear();
            row.drafts.extend_from_slice(&drafts[..drafts.len().min(MAX_SPECULATIVE_TOKENS)]);
        }
    }

    /// Prompt and generated tokens of a request, as far as they are known.
    pub fn tokens(&self, id: RequestId) -> Option<&[u32]> {
        self.ids.get(&id).map(|row| self.rows[*row].tokens.as_slice())
    }

    /// The request in a slot that is in use.
    pub fn request_in(&self, slot: u32) -> Option<&Request> {
        self.row_in(slot).map(|row| &row.request)
    }

    /// [`Self::tokens`] of the request in a slot that is in use.
    pub fn tokens_in(&self, slot: u32) -> Option<&[u32]> {
        self.row_in(slot).map(|row| row.tokens.as_slice())
    }

    /// Drafts of the request in a slot; the plan's row says how many of them it verifies.
    pub fn drafts_in(&self, slot: u32) -> Option<&[u32]> {
        self.row_in(slot).map(|row| row.drafts.as_slice())
    }

    /// The same to be filled in, between a plan that has room for proposed drafts and its launch.
    pub fn drafts_in_mut(&mut self, slot: u32) -> Option<&mut [u32]> {
        let row = self.slot_rows.get(slot as usize).copied()??;
        Some(self.rows[row].drafts.as_mut_slice())
    }

    /// Whether any request is known.
    pub fn has_work(&self) -> bool {
        !self.ids.is_empty()
    }

    /// The prompt's length of a request that has never had a slot, if this is one.
    pub fn waits_for_first_admission(&self, id: RequestId) -> Option<usize> {
        let row = &self.rows[*self.ids.get(&id)?];
        (matches!(row.stage, Stage::Waiting) && row.preemptions == 0).then_some(row.request.prompt.len())
    }

    /// Steps planned and not committed.
    pub fn steps_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Ids of all requests known, in no order; for a shutdown.
    pub fn request_ids(&self) -> impl Iterator<Item = RequestId> {
        self.ids.keys().copied()
    }

    /// Figures for metrics.
    pub fn stats(&self) -> SchedulerStats {
        let pool = self.kv.pool();
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_pages_used: pool.usable() - pool.free(),
            kv_pages: pool.usable(),
            preemptions: self.preemptions,
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            drafts: self.drafts,
        }
    }

    /// Most table deltas a plan of this scheduler has.
    pub fn most_table_deltas(&self) -> u32 {
        let shortest = self.kv.groups().iter().map(|g| g.page_tokens).min().unwrap_or(1);
        most_table_deltas(
            self.kv.groups().len() as u32,
            self.config.max_num_seqs,
            self.config.max_num_batched_tokens,
            self.config.max_model_len.div_ceil(shortest),
            self.config.max_steps_in_flight as u32,
        )
    }

    /// The settings.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Pages, tables and prefix cache, for figures and checks.
    pub fn kv(&self) -> &KvManager {
        &self.kv
    }

    /// Forgets all cached prefixes; running requests keep their pages.
    pub fn reset_prefix_cache(&mut self) {
        self.kv.clear_prefix_cache();
    }

    /// Plants a fault, to show that the simulation notices it.
    #[cfg(debug_assertions)]
    pub fn plant(&mut self, fault: crate::kv::faults::Fault) {
        self.planted.fault = Some(fault);
        self.kv.planted.fault = Some(fault);
    }

    fn can_ever_fit(&self, request: &Request) -> std::result::Result<(), Refused> {
        let (prompt, length) = (request.prompt.len(), self.config.max_model_len);
        if prompt == 0 || request.params.max_tokens == 0 {
            return Err(Refused::NeverFits(
                "a request needs a prompt and at least one token to generate".to_owned(),
            ));
        }
        if prompt >= length as usize {
            return Err(Refused::NeverFits(format!(
                "the prompt has {prompt} tokens; with one token to generate it must be below the context length of \
                 {length} tokens (--max-model-len)"
            )));
        }
        let (positions, chunk) = (self.target(request) - 1, self.config.most_chunk_tokens());
        let (needed, usable) = (self.kv.most_pages(positions, chunk), self.kv.pool().usable());
        if needed > u64::from(usable) {
            return Err(Refused::NeverFits(format!(
                "the request may grow to {positions} tokens and needs {needed} KV pages; there are {usable}, enough for \
                 {} tokens; shorten the prompt or max_tokens, or raise --kv-cache-memory-bytes",
                self.kv.most_tokens(chunk)
            )));
        }
        Ok(())
    }

    fn target(&self, request: &Request) -> u32 {
        (request.prompt.len() as u32).saturating_add(request.params.max_tokens).min(self.config.max_model_len)
    }

    fn row_in(&self, slot: u32) -> Option<&Row> {
        self.slot_rows.get(slot as usize)?.map(|row| &self.rows[row])
    }

    /// Forgets a request and frees what it holds. True when it was running: then the caller must take it out of
    /// `running`.
    fn end(&mut self, index: RowIndex) -> bool {
        let Some(row) = self.rows.remove(index) else { return false };
        self.ids.remove(&row.request.id);
        match row.stage {
            Stage::Waiting => {
                self.waiting.remove(row.key);
                false
            }
            Stage::Running { slot } => {
                self.free_slot(slot);
                true
            }
        }
    }

    fn free_slot(&mut self, slot: u32) {
        self.kv.release(slot);
        self.slot_rows[slot as usize] = None;
        self.free_slots.push(slot);
    }
}
