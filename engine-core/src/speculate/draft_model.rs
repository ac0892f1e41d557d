//! A draft model: a smaller model that goes ahead of the target, greedily where the target is greedy and with the same
//! noise where it draws, so that a good draft agrees at every temperature.
//!
//! **Pages.** Its keys and values lie in a pool of its own with as many pages as the target's, and its tables are copies
//! of the target's: the pages of a position have the same numbers in both pools. So whatever the scheduler decides about
//! pages (prefix hits, preemption, windows) holds for both, and nothing is allocated twice.
//!
//! **Steps.** Before a plan is launched on the target, the draft model computes the same known tokens, then one token
//! after the other for the rows that verify drafts. It never feeds its last draft to itself: when all drafts of a row
//! were accepted, the next plan's chunk begins one position earlier here. (A prefix hit on a page whose last position
//! was skipped like this and whose row ended at once reads that one position as it was, and a window whose oldest page
//! has just been given back misses a key of the position before the chunk; a prompt longer than the model's context is
//! not computed at all, and a later request that hits its prefix drafts over nothing: drafts are worse for it, answers
//! are not.)

use std::collections::VecDeque;

use crate::error::Result;
use crate::kv::TableDelta;
use crate::limits::MAX_SPECULATIVE_TOKENS;
use crate::runner::{InFlight, RequestView, Runner, StepResults};
use crate::sampling::SamplingParams;
use crate::scheduler::{Phase, PlanRow, Scheduler, StepPlan, TokenSource};

/// Drafts by a model.
pub(crate) struct ModelDrafter {
    runner: Runner,
    tokens: u32,
    /// Positions the model knows.
    max_len: u32,
    /// The target's KV group whose table each of the model's groups uses.
    groups: Vec<u32>,
    /// By row slot.
    rows: Vec<DraftRow>,
    plan: StepPlan,
    /// Place of the drafts that a step draws, its plan, and the step.
    in_flight: VecDeque<(u32, StepPlan, InFlight)>,
    spare_plans: Vec<StepPlan>,
    results: StepResults,
}

#[derive(Clone, Default)]
struct DraftRow {
    /// Positions whose keys and values are the model's.
    computed: u32,
    params: SamplingParams,
}

/// A draft is made in a chain of steps; two at once keep the device busy.
const CHAIN_DEPTH: usize = 2;

impl ModelDrafter {
    /// Drafts `tokens` tokens on `runner`, whose KV groups use the tables of these `groups` of the target.
    pub(crate) fn new(runner: Runner, slots: u32, tokens: u32, max_len: u32, groups: Vec<u32>) -> Self {
        ModelDrafter {
            runner,
            tokens,
            max_len,
            groups,
            rows: vec![DraftRow::default(); slots as usize],
            plan: StepPlan::default(),
            in_flight: VecDeque::new(),
            spare_plans: Vec::new(),
            results: StepResults::default(),
        }
    }

    /// Places for the drafts of a row that has `known` tokens.
    pub(crate) fn blanks(&self, known: u32) -> &'static [u32] {
        const BLANKS: [u32; MAX_SPECULATIVE_TOKENS] = [0; MAX_SPECULATIVE_TOKENS];
        let fits = known + self.tokens <= self.max_len;
        &BLANKS[..if fits { self.tokens as usize } else { 0 }]
    }

    /// Follows the plan and fills in its drafts.
    ///
    /// # Errors
    /// From the device.
    pub(crate) fn fill(&mut self, plan: &StepPlan, scheduler: &mut Scheduler) -> Result<()> {
        let longest = plan.rows.iter().map(|r| r.drafts).max().unwrap_or(0);
        for step in 0..longest.max(1) {
            self.plan_step(step, plan, scheduler);
            if !self.plan.is_empty() {
                self.launch(step, scheduler)?;
            }
            if self.in_flight.len() == CHAIN_DEPTH {
                self.finish_oldest(scheduler)?;
            }
        }
        while !self.in_flight.is_empty() {
            self.finish_oldest(scheduler)?;
        }
        Ok(())
    }

    /// Step 0 computes what the plan knows and draws the first drafts; each later one takes the draft before it.
    fn plan_step(&mut self, step: u32, plan: &StepPlan, scheduler: &Scheduler) {
        let mut own = self.spare_plans.pop().unwrap_or_default();
        own.clear();
        for row in &plan.rows {
            let end = row.start + row.q_len - row.drafts;
            if end + row.drafts > self.max_len || (step > 0 && step >= row.drafts) {
                continue;
            }
            own.rows.push(if step == 0 {
                self.known_chunk(row, end, scheduler)
            } else {
                after(row, end, step)
            });
        }
        own.tokens = own.rows.iter().map(|r| r.q_len).sum();
        own.generated_rows = own.rows.iter().filter(|r| r.phase == Phase::Generated).count() as u32;
        if step == 0 {
            for (group, of) in self.groups.iter().enumerate() {
                let mine = plan.table_deltas.iter().filter(|d| d.group == *of);
                own.table_deltas.extend(mine.map(|d| TableDelta { group: group as u32, ..*d }));
            }
        }
        self.plan = own;
    }

    fn known_chunk(&mut self, row: &PlanRow, end: u32, scheduler: &Scheduler) -> PlanRow {
        let own = &mut self.rows[row.slot as usize];
        if row.admitted.is_some() {
            own.computed = row.start;
            own.params = scheduler.request_in(row.slot).map(|r| plain(&r.params)).unwrap_or_default();
        }
        let start = own.computed.min(row.start);
        own.computed = end + row.drafts.saturating_sub(1);
        PlanRow {
            start,
            q_len: end - start,
            tokens_from: TokenSource::Host,
            sample: row.drafts > 0,
            sample_position: end,
            drafts: 0,
            ..*row
        }
    }

    fn launch(&mut self, place: u32, scheduler: &Scheduler) -> Result<()> {
        let rows = &self.rows;
        let view = |row: &PlanRow| RequestView {
            drafts: &[],
            params: &rows[row.slot as usize].params,
            ..RequestView::of(scheduler, row)
        };
        let step = self.runner.launch(&self.plan, &view)?;
        self.in_flight.push_back((place, std::mem::take(&mut self.plan), step));
        Ok(())
    }

    fn finish_oldest(&mut self, scheduler: &mut Scheduler) -> Result<()> {
        let Some((place, plan, step)) = self.in_flight.pop_front() else { return Ok(()) };
        self.runner.finish(step, &mut self.results)?;
        for sample in &self.results.samples {
            let drafts = scheduler.drafts_in_mut(plan.rows[sample.row as usize].slot).unwrap_or_default();
            if let (Some(draft), Some(token)) =
                (drafts.get_mut(place as usize), sample.tokens.as_slice().first())
            {
                *draft = *token;
            }
        }
        self.spare_plans.push(plan);
        Ok(())
    }
}

/// The row's next token behind its draft number `step`, which the device has.
fn after(row: &PlanRow, end: u32, step: u32) -> PlanRow {
    PlanRow {
        start: end + step - 1,
        q_len: 1,
        tokens_from: TokenSource::Device,
        sample: true,
        sample_position: end + step,
        drafts: 0,
        admitted: None,
        ..*row
    }
}

/// What of a request's sampling decides about most tokens. Its rules and penalties are left to the target: they count
/// tokens, and drafts may be taken back.
fn plain(p: &SamplingParams) -> SamplingParams {
    SamplingParams {
        temperature: p.temperature,
        top_k: p.top_k,
        top_p: p.top_p,
        min_p: p.min_p,
        seed: p.seed,
        ..SamplingParams::default()
    }
}
