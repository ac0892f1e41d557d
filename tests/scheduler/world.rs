//! The simulated engine: arrivals, aborts, steps in flight, and what each request must look like at every moment.

use std::collections::{BTreeMap, VecDeque};

use engine_core::engine::types::{FinishReason, Refused, Request, RequestId};
use engine_core::kv::PrefixCaching;
use engine_core::kv::faults::Fault;
use engine_core::scheduler::{
    CommitOutcome, Feed, PlanRow, RowResult, Scheduler, SchedulingPolicy, StepPlan,
};

use crate::checks;
use crate::device::Device;
use crate::oracle::Oracle;
use crate::setup::{Setup, draw_request, draw_setup};
use tests::rng::Rng;

/// What the scheduler did wrong.
pub type Violation = String;

/// Returns a [`Violation`] unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// Where a request is, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Waiting,
    Running { slot: u32, computed: u32, last_planned: u64 },
}

/// A request that has not ended.
pub struct Live {
    pub request: Request,
    pub oracle: Oracle,
    pub feed: Feed,
    /// A row whose drafts are in flight waits for the host, whatever feeds it.
    pub drafts_in_flight: bool,
    pub stage: Stage,
    /// Tokens known to the host.
    pub known: u32,
    /// Tokens that steps in flight sample.
    pub placeholders: u32,
    pub in_flight: u32,
    pub preempted: bool,
    /// Length it may not exceed.
    pub target: u32,
}

/// What a run went through; a simulation that never preempts shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    pub steps: u64,
    pub ended: u64,
    pub aborted_waiting: u64,
    pub aborted_running: u64,
    pub refused: u64,
    pub preempted: u64,
    pub resumed: u64,
    pub cached_tokens: u64,
    pub ended_unseen: u64,
    pub ended_while_preempted: u64,
    pub drafts_accepted: u64,
    pub drafts_refused: u64,
    pub drafts_of_preempted: u64,
    pub ended_among_drafts: u64,
    pub feeds_changed: u64,
    pub window_pages_freed: u64,
    pub partial_prompts: u64,
}

/// One engine with its load.
pub struct World {
    pub setup: Setup,
    pub scheduler: Scheduler,
    pub live: BTreeMap<RequestId, Live>,
    pub coverage: Coverage,
    /// Steps planned so far.
    pub step: u64,
    device: Device,
    rng: Rng,
    plan: StepPlan,
    flight: VecDeque<InFlight>,
    arrived: u32,
    outcomes: Vec<CommitOutcome>,
    /// The sequences that ended last.
    ended: VecDeque<Vec<u32>>,
}

struct InFlight {
    step: u64,
    rows: Vec<PlanRow>,
    results: Vec<RowResult>,
}

impl World {
    /// The engine of a seed, with a fault if asked for.
    pub fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = Rng::new(seed);
        let setup = draw_setup(&mut rng);
        let scheduler = Scheduler::new(setup.config.clone(), setup.kv.clone());
        let scheduler = plant(scheduler.unwrap_or_else(|e| panic!("{setup:?}: {e}")), fault);
        let tagged = setup.kv.prefix_caching == PrefixCaching::PromptPages;
        World {
            device: Device::new(&setup.kv.groups, setup.kv.pages, setup.config.max_num_seqs, tagged),
            scheduler,
            live: BTreeMap::new(),
            coverage: Coverage::default(),
            step: 0,
            rng,
            plan: StepPlan::default(),
            flight: VecDeque::new(),
            arrived: 0,
            outcomes: Vec::new(),
            ended: VecDeque::new(),
            setup,
        }
    }

    /// Runs until every request has ended.
    pub fn run(mut self) -> Result<Coverage, Violation> {
        while self.arrived < self.setup.requests || !self.live.is_empty() || !self.flight.is_empty() {
            self.turn().map_err(|v| format!("step {}: {v}", self.step))?;
        }
        check!(!self.scheduler.has_work(), "requests are left over");
        let (free, usable) = (self.scheduler.kv().pool().free(), self.scheduler.kv().pool().usable());
        check!(free == usable, "{free} of {usable} pages are free at the end");
        self.coverage.steps = self.step;
        Ok(self.coverage)
    }

    fn turn(&mut self) -> Result<(), Violation> {
        while self.arrived < self.setup.requests && self.rng.percent(self.setup.arrival) {
            self.arrive()?;
            if self.rng.percent(60) {
                break;
            }
        }
        if self.rng.percent(self.setup.abort) {
            self.abort()?;
        }
        self.change_feeds();
        self.propose();
        let planned = self.plan_step()?;
        let early = self.rng.percent(self.setup.early_commit);
        while !self.flight.is_empty() && (!planned || early || self.flight.len() >= self.setup.depth) {
            self.commit()?;
            if !early {
                break;
            }
        }
        Ok(())
    }

    fn arrive(&mut self) -> Result<(), Violation> {
        let (request, feed) = draw_request(&mut self.rng, &self.setup, u64::from(self.arrived), &self.ended);
        self.arrived += 1;
        let target =
            (request.prompt.len() as u32 + request.params.max_tokens).min(self.setup.config.max_model_len);
        let chunk = self.setup.config.max_num_batched_tokens;
        let may_need: u32 = self.setup.kv.groups.iter().map(|g| g.most_pages(target - 1, chunk)).sum();
        match self.scheduler.add(request.clone(), feed) {
            Ok(()) => {}
            Err(Refused::NeverFits(_)) => {
                check!(may_need >= self.setup.kv.pages, "refused although {may_need} pages are enough");
                self.coverage.refused += 1;
                return Ok(());
            }
            Err(other) => return Err(format!("refused: {other}")),
        }
        let tagged = self.setup.kv.prefix_caching == PrefixCaching::PromptPages;
        let live = Live {
            oracle: Oracle::new(&request, tagged),
            feed,
            drafts_in_flight: false,
            stage: Stage::Waiting,
            known: request.prompt.len() as u32,
            placeholders: 0,
            in_flight: 0,
            preempted: false,
            target,
            request,
        };
        self.live.insert(live.request.id, live);
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Violation> {
        let ids: Vec<_> = self.live.keys().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let id = self.rng.pick(&ids);
        check!(self.scheduler.abort(id), "{id:?} is not known to abort()");
        check!(!self.scheduler.abort(id), "{id:?} can be aborted twice");
        match self.live.remove(&id).map(|live| live.stage) {
            Some(Stage::Waiting) => self.coverage.aborted_waiting += 1,
            _ => self.coverage.aborted_running += 1,
        }
        checks::pages(self)
    }

    /// Some rows find out that they have drafts to propose, or none, whatever they have in flight.
    fn change_feeds(&mut self) {
        for (id, live) in &mut self.live {
            if self.rng.percent(self.setup.changing) {
                live.feed = if live.feed == Feed::Host { Feed::Device } else { Feed::Host };
                self.scheduler.set_feed(*id, live.feed);
                self.coverage.feeds_changed += 1;
            }
        }
    }

    /// Gives some host-fed rows drafts: right ones, with a wrong one here and there.
    fn propose(&mut self) {
        for (id, live) in &mut self.live {
            if live.feed == Feed::Host && self.rng.percent(30) {
                let count = self.rng.between(1, 5) as usize;
                let known = live.known as usize;
                live.oracle.grow_to(known + count);
                let wrong = u32::from(self.rng.percent(40));
                let mut drafts = live.oracle.tokens[known..known + count].to_vec();
                drafts[count / 2] += wrong;
                self.scheduler.propose(*id, &drafts);
            }
        }
    }

    /// Plans a step and runs it; false when there was nothing to plan.
    fn plan_step(&mut self) -> Result<bool, Violation> {
        let mut plan = std::mem::take(&mut self.plan);
        self.scheduler.schedule(&mut plan);
        checks::plan(self, &plan)?;
        self.take_over(&plan);
        checks::pages(self)?;
        checks::written_pages(self, &plan)?;
        if plan.is_empty() {
            check!(self.live.is_empty() || !self.flight.is_empty(), "nothing runs and nothing will");
            self.plan = plan;
            return Ok(false);
        }
        checks::not_starved(self)?;
        let results = self.device.run(&plan, &self.scheduler)?;
        self.check_kv(&plan)?;
        self.flight.push_back(InFlight { step: plan.step, rows: plan.rows.clone(), results });
        self.step += 1;
        self.plan = plan;
        Ok(true)
    }

    /// Brings the outside view up to date with a plan that has passed its checks.
    fn take_over(&mut self, plan: &StepPlan) {
        for id in &plan.preempted {
            if let Some(live) = self.live.get_mut(id) {
                live.stage = Stage::Waiting;
                live.preempted = true;
                self.coverage.preempted += 1;
            }
        }
        for row in &plan.rows {
            let Some(live) = self.live.get_mut(&row.id) else { continue };
            if let Some(admitted) = row.admitted {
                self.coverage.cached_tokens += u64::from(admitted.cached_tokens);
                self.coverage.resumed += u64::from(admitted.resumed);
            }
            let end = row.start + row.q_len;
            self.coverage.partial_prompts += u64::from(end < live.request.prompt.len() as u32);
            live.stage = Stage::Running { slot: row.slot, computed: end, last_planned: self.step };
            live.placeholders += u32::from(row.sample);
            live.in_flight += 1;
            live.drafts_in_flight = row.drafts > 0;
        }
        self.coverage.window_pages_freed += plan.table_deltas.iter().filter(|d| d.page == 0).count() as u64;
    }

    /// Every position that a planned row reads must hold what the sequence alone would have put there.
    fn check_kv(&mut self, plan: &StepPlan) -> Result<(), Violation> {
        for row in &plan.rows {
            let Some(live) = self.live.get_mut(&row.id) else { continue };
            let end = row.start + row.q_len - row.drafts;
            live.oracle.grow_to(end as usize);
            for (g, group) in self.setup.kv.groups.iter().enumerate() {
                for position in group.first_read(row.start)..end {
                    let found = self.device.read(g, row.slot, position)?;
                    let right = live.oracle.kv[position as usize];
                    check!(found == right, "{row:?} reads wrong KV at position {position} in group {g}");
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Violation> {
        let Some(flight) = self.flight.pop_front() else { return Ok(()) };
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.clear();
        self.scheduler.commit(flight.step, &flight.results, &mut outcomes);
        let mut next = outcomes.iter();
        for (at, row) in flight.rows.iter().enumerate() {
            let Some(live) = self.live.get_mut(&row.id) else {
                self.coverage.ended_unseen += 1;
                continue;
            };
            live.in_flight -= 1;
            live.drafts_in_flight &= row.drafts == 0;
            if !row.sample {
                continue;
            }
            live.placeholders -= 1;
            let Some(outcome) = next.next().filter(|o| o.row == at as u32 && o.id == row.id) else {
                return Err(format!("the result of {row:?} is lost"));
            };
            self.check_outcome(row, outcome)?;
        }
        check!(next.next().is_none(), "an outcome for a row that did not sample or has ended");
        self.outcomes = outcomes;
        checks::pages(self)
    }

    /// The tokens are those of the sequence alone, and it ends exactly where that ends.
    fn check_outcome(&mut self, row: &PlanRow, outcome: &CommitOutcome) -> Result<(), Violation> {
        let (id, tokens) = (row.id, outcome.tokens.as_slice());
        let Some(live) = self.live.get_mut(&id) else { return Err(format!("{id:?} has ended before")) };
        let mut finish: Option<FinishReason> = None;
        for token in tokens {
            check!(finish.is_none(), "{id:?} has tokens after its end");
            live.known += 1;
            live.oracle.grow_to(live.known as usize);
            let right = live.oracle.tokens[live.known as usize - 1];
            check!(*token == right, "{id:?} has token {token} at {}, alone it has {right}", live.known - 1);
            finish = live.oracle.end_at(&live.request, live.known as usize, self.setup.config.max_model_len);
        }
        check!(finish == outcome.finish, "{id:?} ends with {:?}, alone with {finish:?}", outcome.finish);
        self.coverage.drafts_accepted += tokens.len() as u64 - 1;
        self.coverage.drafts_refused +=
            u64::from(finish.is_none()) * (u64::from(row.drafts) + 1 - tokens.len() as u64);
        self.coverage.drafts_of_preempted += u64::from(row.drafts > 0 && live.stage == Stage::Waiting);
        self.coverage.ended_among_drafts += u64::from(finish.is_some() && tokens.len() as u32 <= row.drafts);
        if let Stage::Running { computed, .. } = &mut live.stage
            && row.drafts > 0
        {
            *computed = row.sample_position + tokens.len() as u32 - 1;
        }
        if finish.is_some() {
            self.coverage.ended += 1;
            self.coverage.ended_while_preempted += u64::from(live.stage == Stage::Waiting);
            let mut sequence = std::mem::take(&mut live.oracle.tokens);
            sequence.truncate(live.known as usize);
            self.ended.push_back(sequence);
            if self.ended.len() > 4 {
                self.ended.pop_front();
            }
            self.live.remove(&id);
            check!(self.scheduler.tokens(id).is_none(), "{id:?} has ended but is still known");
        } else {
            let known = self.scheduler.tokens(id).map(|t| t.len() as u32);
            check!(known == Some(live.known), "{id:?} has {known:?} tokens, not {}", live.known);
        }
        Ok(())
    }

    /// The order in which requests are to be served.
    pub fn key(&self, live: &Live) -> (i32, u64) {
        match self.setup.config.policy {
            SchedulingPolicy::Fcfs => (0, live.request.id.0),
            SchedulingPolicy::Priority => (live.request.priority, live.request.id.0),
        }
    }
}

#[cfg(debug_assertions)]
fn plant(mut scheduler: Scheduler, fault: Option<Fault>) -> Scheduler {
    if let Some(fault) = fault {
        scheduler.plant(fault);
    }
    scheduler
}

#[cfg(not(debug_assertions))]
fn plant(scheduler: Scheduler, fault: Option<Fault>) -> Scheduler {
    assert!(fault.is_none(), "faults exist in debug builds only");
    scheduler
}
