//! [`Scheduler::schedule`]: from the state to the next [`StepPlan`].

use super::Scheduler;
use super::budget::{Chunk, TokenBudget};
use super::config::ChunkedPrefill;
use super::plan::{Admitted, Phase, PlanRow, StepPlan};
use super::rows::{RowIndex, Stage};
use crate::kv::PrefixHit;
use crate::kv::faults::planted;

/// One page in so many stays free when a request is admitted beside others, so that rows which need a page soon do
/// not preempt it at once.
const WATERMARK: u32 = 100;

impl Scheduler {
    /// Plans the next step into `plan`. An empty plan means that there is nothing to compute now; it is no step and
    /// must not be committed.
    ///
    /// # Panics
    /// If `max_steps_in_flight` steps wait for their commit.
    pub fn schedule(&mut self, plan: &mut StepPlan) {
        let (in_flight, most) = (self.in_flight.len(), self.config.max_steps_in_flight);
        assert!(in_flight < most, "{in_flight} steps are in flight, the most there may be");
        plan.clear();
        if self.waits_for_host() {
            return;
        }
        let mut budget = TokenBudget::new(self.config.max_num_batched_tokens);
        self.plan_running(plan, &mut budget);
        if plan.preempted.is_empty() {
            self.admit_waiting(plan, &mut budget);
        }
        self.close(plan, budget);
    }

    /// Whether so many running rows wait for the host that a step is better planned when they are back.
    fn waits_for_host(&self) -> bool {
        let waiting = self.running.iter().filter(|index| self.rows[**index].waits_for_host()).count();
        waiting > 0 && waiting * self.config.host_wait_share >= self.running.len()
    }

    fn plan_running(&mut self, plan: &mut StepPlan, budget: &mut TokenBudget) {
        let mut i = 0;
        while i < self.running.len() {
            let index = self.running[i];
            i += 1;
            let row = &self.rows[index];
            let allowance = budget.allowance(self.running.len() - i);
            let Some(chunk) = self.config.next_chunk(row, row.computed, allowance) else { continue };
            let Stage::Running { slot } = row.stage else { unreachable!("a waiting row among the running") };
            if let Some(chunk) = self.extend_or_preempt(index, slot, chunk, plan) {
                self.push(index, slot, chunk, None, plan);
                budget.spend(chunk.q_len);
            }
        }
    }

    /// Gets the chunk its pages, at the price of its drafts first and then of rows served later; `None` when the row
    /// itself had to go.
    #[inline]
    fn extend_or_preempt(
        &mut self,
        index: RowIndex,
        slot: u32,
        mut chunk: Chunk,
        plan: &mut StepPlan,
    ) -> Option<Chunk> {
        loop {
            let without = if planted!(self.planted, NoPagesForDrafts) { chunk.drafts } else { 0 };
            let end = chunk.start + chunk.q_len - without;
            if self.kv.extend(slot, chunk.start, end, &mut plan.table_deltas) {
                return Some(chunk);
            }
            if chunk.drafts > 0 {
                chunk = chunk.without_drafts();
            } else if self.preempt_last(plan) == Some(index) {
                return None;
            }
        }
    }

    fn admit_waiting(&mut self, plan: &mut StepPlan, budget: &mut TokenBudget) {
        let mut cached_entries = 0;
        while budget.left() > 0 && !self.free_slots.is_empty() {
            let Some(index) = self.waiting.first() else { return };
            let Some((hit, chunk)) = self.fits_now(index, budget.left()) else { return };
            cached_entries += self.kv.table_entries(hit.tokens);
            if cached_entries > self.kv.table_entries(self.config.max_model_len) {
                return;
            }
            self.admit(index, hit, chunk, plan);
            budget.spend(chunk.q_len);
        }
    }

    /// What the request would start with, if it can be admitted in this step.
    fn fits_now(&mut self, index: RowIndex, allowance: u32) -> Option<(PrefixHit, Chunk)> {
        let resume_too_soon = planted!(self.planted, ResumeTooSoon);
        if self.rows[index].in_flight > 0 && !resume_too_soon {
            return None;
        }
        let id = self.rows[index].request.id;
        if !self.running.is_empty() && self.short_of_pages == Some((id, self.kv.releases())) {
            return None;
        }
        let hit = self.find_prefix(index);
        if !self.pages_suffice(index, hit) {
            self.short_of_pages = Some((id, self.kv.releases()));
            return None;
        }
        let row = &self.rows[index];
        let chunk = self.config.next_chunk(row, hit.tokens, allowance)?;
        let whole = chunk.phase == Phase::Generated || chunk.start + chunk.q_len == row.prompt_len();
        (whole || self.config.chunked_prefill != ChunkedPrefill::Off).then_some((hit, chunk))
    }

    /// The request's cached prefix. Whoever wants log-probabilities of its prompt must compute all of it.
    fn find_prefix(&mut self, index: RowIndex) -> PrefixHit {
        let row = &mut self.rows[index];
        if row.request.params.prompt_logprobs.is_some() {
            return PrefixHit::default();
        }
        let prompt = row.request.prompt.len();
        self.kv.find_prefix(&mut row.chain, &row.tokens, prompt)
    }

    /// Whether all known tokens of the request would find pages, beside those that running prompts have yet to take.
    fn pages_suffice(&self, index: RowIndex, hit: PrefixHit) -> bool {
        let chunk = self.config.most_chunk_tokens();
        let all = self.kv.most_pages(self.rows[index].tokens.len() as u32, chunk);
        let missing = all.saturating_sub(u64::from(hit.pages)) + u64::from(hit.idle_pages);
        if self.running.is_empty() {
            return missing <= u64::from(self.kv.pool().free());
        }
        let promised: u64 = self.running.iter().map(|row| self.pages_promised(*row)).sum();
        let watermark = u64::from(self.kv.pool().usable() / WATERMARK);
        missing + promised + watermark <= u64::from(self.kv.pool().free())
    }

    /// Pages a running row still needs for the tokens it had when it was admitted.
    fn pages_promised(&self, index: RowIndex) -> u64 {
        let row = &self.rows[index];
        let Stage::Running { slot } = row.stage else { return 0 };
        let known = row.tokens.len() as u32;
        if row.computed >= known {
            return 0;
        }
        let all = self.kv.most_pages(known, self.config.most_chunk_tokens());
        all.saturating_sub(u64::from(self.kv.held_pages(slot)))
    }

    fn admit(&mut self, index: RowIndex, hit: PrefixHit, chunk: Chunk, plan: &mut StepPlan) {
        let Some(slot) = self.free_slots.pop() else { unreachable!("admission needs a free slot") };
        let row = &mut self.rows[index];
        row.stage = Stage::Running { slot };
        row.computed = hit.tokens;
        self.waiting.remove(row.key);
        self.kv.admit(slot, &mut row.chain, &row.tokens, hit, row.target, &mut plan.table_deltas);
        let extended = self.kv.extend(slot, chunk.start, chunk.start + chunk.q_len, &mut plan.table_deltas);
        assert!(extended, "pages were counted before admission");
        let resumed = row.preemptions > 0;
        if !resumed && row.request.params.prompt_logprobs.is_none() {
            self.prefix_queries += row.tokens.len() as u64;
            self.prefix_hits += u64::from(hit.tokens);
        }
        reserve(&mut row.tokens, row.target);
        self.slot_rows[slot as usize] = Some(index);
        let key = row.key;
        let at = self.running.partition_point(|other| self.rows[*other].key < key);
        self.running.insert(at, index);
        self.push(index, slot, chunk, Some(Admitted { cached_tokens: hit.tokens, resumed }), plan);
    }

    /// Puts the chunk into the plan and counts it as computed.
    #[inline]
    fn push(
        &mut self,
        index: RowIndex,
        slot: u32,
        chunk: Chunk,
        admitted: Option<Admitted>,
        plan: &mut StepPlan,
    ) {
        let row = &mut self.rows[index];
        let Chunk { start, q_len, phase, tokens_from, sample, drafts } = chunk;
        row.computed = start + q_len;
        row.placeholders += u32::from(sample);
        row.in_flight += 1;
        let planned = PlanRow {
            id: row.request.id,
            slot,
            start,
            q_len,
            phase,
            tokens_from,
            sample,
            sample_position: start + q_len - drafts,
            drafts,
            admitted,
        };
        match phase {
            Phase::Generated => plan.rows.push(planned),
            Phase::Prompt => self.prompt_rows.push(planned),
        }
    }

    fn close(&mut self, plan: &mut StepPlan, budget: TokenBudget) {
        plan.generated_rows = plan.rows.len() as u32;
        plan.rows.append(&mut self.prompt_rows);
        plan.tokens = self.config.max_num_batched_tokens - budget.left();
        plan.step = self.next_step;
        if plan.is_empty() {
            // Deltas of rows that were preempted after all; nobody reads those slots.
            plan.table_deltas.clear();
            return;
        }
        debug_assert!(plan.table_deltas.len() <= self.most_table_deltas() as usize, "too many table deltas");
        self.next_step += 1;
        self.remember(plan);
    }
}

/// Makes room for the tokens to come, so that a decode step allocates nothing; very long rows grow by doubling.
fn reserve(tokens: &mut Vec<u32>, target: u32) {
    const MOST: u32 = 65_536;
    tokens.reserve((target.min(MOST) as usize).saturating_sub(tokens.len()));
}
