//! The engine thread: takes messages, schedules, launches, commits, delivers. It alone owns scheduler, pages and
//! stream; it holds no lock, and sleeps when there is nothing to do.
//!
//! With async stepping, step N+1 is launched before step N's tokens are seen; `limits::MAX_STEPS_IN_FLIGHT` bounds it.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::handle::{EngineState, Message, Progress, Shared};
use super::types::{
    EngineFailure, FinishReason, FirstOutput, OutputSink, Request, RequestId, RowOutput, StepOutputs,
    StepStats, TokenBatch, TokenLogprobs,
};
use crate::error::Result;
use crate::runner::{InFlight, RequestView, Runner, StepResults};
use crate::scheduler::{CommitOutcome, Feed, Phase, PlanRow, RowResult, Scheduler, StepPlan};
use crate::speculate::Drafter;

/// Everything the engine thread owns.
pub(super) struct Engine {
    pub scheduler: Scheduler,
    pub runner: Runner,
    pub drafter: Option<Drafter>,
    pub inbox: Receiver<Message>,
    pub shared: Arc<Shared>,
    pub sink: Box<dyn OutputSink>,
    /// Steps that may be in flight: 1, or 2 with async scheduling.
    pub depth: usize,
    pub state: LoopState,
}

/// Buffers of the loop, reused from step to step.
#[derive(Default)]
pub(super) struct LoopState {
    in_flight: VecDeque<(StepPlan, InFlight)>,
    spare_plans: Vec<StepPlan>,
    results: StepResults,
    row_results: Vec<RowResult>,
    outcomes: Vec<CommitOutcome>,
    outputs: StepOutputs,
    /// What the first output of each request that has none yet reports.
    firsts: HashMap<RequestId, FirstOutput>,
    /// Prompt log-probabilities gathered so far.
    prompts: HashMap<RequestId, Vec<Option<TokenLogprobs>>>,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Step,
    Stop,
}

impl Engine {
    /// Runs until told to stop, the device is lost or a step panics. However it ends, every open request gets its
    /// terminal event.
    pub(super) fn run(mut self) {
        let steps = catch_unwind(AssertUnwindSafe(|| self.run_steps()));
        self.shared.progress(Progress::Idle);
        match steps {
            Ok(Ok(())) => self.fail_open(EngineFailure::ShuttingDown),
            Ok(Err(e)) => self.lose(&e.to_string()),
            // Which request a panic belongs to is not known, and the state is half changed: all of them end.
            Err(panic) => {
                self.lose(&format!("the engine thread panicked: {}", panic_text(&*panic)));
            }
        }
    }

    fn lose(&mut self, reason: &str) {
        self.shared.set_state(EngineState::Lost);
        self.fail_open(EngineFailure::DeviceLost);
        self.sink.engine_lost(reason);
    }

    fn run_steps(&mut self) -> Result<()> {
        while self.take_messages() == Next::Step {
            let launched = self.launch_next()?;
            let full = self.state.in_flight.len() >= self.depth;
            if full || (!launched && !self.state.in_flight.is_empty()) {
                self.finish_oldest()?;
            }
        }
        Ok(())
    }

    /// Handles every message there is; sleeps when there is neither message nor work.
    fn take_messages(&mut self) -> Next {
        loop {
            match self.inbox.try_recv() {
                Ok(message) => {
                    if self.handle(message) == Next::Stop {
                        return Next::Stop;
                    }
                }
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return Next::Stop,
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    if self.scheduler.has_work() || !self.state.in_flight.is_empty() {
                        self.shared.busy();
                        return Next::Step;
                    }
                    self.shared.progress(Progress::Idle);
                    match self.inbox.recv() {
                        Ok(message) => {
                            if self.handle(message) == Next::Stop {
                                return Next::Stop;
                            }
                        }
                        Err(_) => return Next::Stop,
                    }
                }
            }
        }
    }

    fn handle(&mut self, message: Message) -> Next {
        match message {
            Message::Submit(request) => self.submit(*request),
            Message::Abort(id) => self.abort(id),
            Message::ResetPrefixCache => self.scheduler.reset_prefix_cache(),
            Message::Stop => return Next::Stop,
        }
        Next::Step
    }

    fn submit(&mut self, request: Request) {
        let (id, prompt) = (request.id, request.prompt.len());
        let feed = self.drafter.as_ref().map_or(Feed::Device, Drafter::first_feed);
        if let Err(refused) = self.scheduler.add(request, feed) {
            // The handle has checked the same bounds; getting here means they changed in between.
            tracing::warn!("request {} refused after it was accepted: {refused}", id.0);
            self.shared.dequeue(prompt);
            self.deliver_end(id, FinishReason::Abort);
        }
    }

    fn abort(&mut self, id: RequestId) {
        let waiting = self.scheduler.waits_for_first_admission(id);
        if !self.scheduler.abort(id) {
            return;
        }
        if let Some(prompt) = waiting {
            self.shared.dequeue(prompt);
        }
        self.state.prompts.remove(&id);
        self.state.firsts.remove(&id);
        self.deliver_end(id, FinishReason::Abort);
    }

    fn deliver_end(&mut self, id: RequestId, finish: FinishReason) {
        self.state.outputs.rows.push(end_of(id, finish));
        self.publish(None);
        self.sink.deliver(&mut self.state.outputs);
        self.state.outputs.rows.clear();
    }

    /// Schedules and launches a step; false when there is nothing to compute.
    fn launch_next(&mut self) -> Result<bool> {
        let mut plan = self.state.spare_plans.pop().unwrap_or_default();
        self.scheduler.schedule(&mut plan);
        for id in &plan.preempted {
            self.state.prompts.remove(id);
        }
        if plan.is_empty() {
            self.state.spare_plans.push(plan);
            return Ok(false);
        }
        for row in &plan.rows {
            note_admission(&self.scheduler, &self.shared, &mut self.state.firsts, row);
        }
        if let Some(drafter) = &mut self.drafter {
            drafter.fill(&plan, &mut self.scheduler)?;
        }
        let scheduler = &self.scheduler;
        let step = self.runner.launch(&plan, &|row| RequestView::of(scheduler, row))?;
        self.state.in_flight.push_back((plan, step));
        Ok(true)
    }

    /// Waits for the oldest step, commits it and delivers what it produced.
    fn finish_oldest(&mut self) -> Result<()> {
        let Some((plan, step)) = self.state.in_flight.pop_front() else { return Ok(()) };
        let state = &mut self.state;
        self.runner.finish(step, &mut state.results)?;
        state.row_results.clear();
        let result = |s: &crate::runner::RowSample| RowResult { row: s.row, tokens: s.tokens };
        state.row_results.extend(state.results.samples.iter().map(result));
        state.outcomes.clear();
        self.scheduler.commit(plan.step, &state.row_results, &mut state.outcomes);
        if let Some(drafter) = &mut self.drafter {
            drafter.propose(&plan, &state.outcomes, &mut self.scheduler);
        }
        self.gather_prompts(&plan);
        self.collect_outputs(&plan);
        self.sink.deliver(&mut self.state.outputs);
        self.state.outputs.rows.clear();
        self.state.spare_plans.push(plan);
        self.shared.progress(Progress::Stepped);
        Ok(())
    }

    fn gather_prompts(&mut self, plan: &StepPlan) {
        for part in self.state.results.prompts.drain(..) {
            let row = &plan.rows[part.row as usize];
            let all = self.state.prompts.entry(row.id).or_insert_with(|| vec![None]);
            all.truncate(part.first as usize);
            all.extend(part.entries.into_iter().map(Some));
        }
    }

    /// Figures of the step just committed (`tokens` is its plan) or, after an abort, of no step.
    fn publish(&mut self, plan: Option<&StepPlan>) {
        let scheduler = self.scheduler.stats();
        let of = |phase| {
            let rows = plan.iter().flat_map(|p| &p.rows).filter(|r| r.phase == phase);
            rows.map(|r| r.q_len).sum()
        };
        let stats = &mut self.state.outputs.stats;
        // Of the step's drafts only the accepted are tokens that were generated.
        let refused = scheduler.drafts.refused().saturating_sub(stats.drafts.refused()) as u32;
        *stats = StepStats {
            running: scheduler.running as u32,
            waiting: scheduler.waiting as u32,
            kv_pages_used: scheduler.kv_pages_used,
            kv_pages: scheduler.kv_pages,
            preemptions: scheduler.preemptions,
            prefix_queries: scheduler.prefix_queries,
            prefix_hits: scheduler.prefix_hits,
            prompt_tokens: of(Phase::Prompt),
            generated_tokens: of(Phase::Generated).saturating_sub(refused),
            steps: stats.steps + u64::from(plan.is_some()),
            drafts: scheduler.drafts,
        };
        self.shared.board.publish(stats);
    }

    fn collect_outputs(&mut self, plan: &StepPlan) {
        let state = &mut self.state;
        let mut samples = state.results.samples.iter_mut();
        for outcome in &state.outcomes {
            let sample = samples.find(|s| s.row == outcome.row);
            let mut logprobs = sample.map_or_else(Vec::new, |s| std::mem::take(&mut s.logprobs));
            // A row may end in the midst of what it sampled.
            logprobs.truncate(outcome.tokens.as_slice().len());
            let prompt = if state.prompts.is_empty() { None } else { state.prompts.remove(&outcome.id) };
            state.outputs.rows.push(RowOutput {
                id: outcome.id,
                tokens: outcome.tokens,
                logprobs,
                prompt_logprobs: prompt.map(Box::new),
                preemptions: outcome.preemptions,
                finish: outcome.finish,
                first: if state.firsts.is_empty() { None } else { state.firsts.remove(&outcome.id) },
            });
        }
        self.publish(Some(plan));
    }

    /// Ends every open request for a reason of the engine's.
    fn fail_open(&mut self, why: EngineFailure) {
        let open: Vec<RequestId> = self.scheduler.request_ids().collect();
        self.state.outputs.rows.extend(open.into_iter().map(|id| end_of(id, FinishReason::Error(why))));
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Submit(r) = message {
                self.state.outputs.rows.push(end_of(r.id, FinishReason::Error(why)));
            }
        }
        self.sink.deliver(&mut self.state.outputs);
        self.state.outputs.rows.clear();
    }
}

fn end_of(id: RequestId, finish: FinishReason) -> RowOutput {
    RowOutput {
        id,
        tokens: TokenBatch::default(),
        logprobs: Vec::new(),
        prompt_logprobs: None,
        preemptions: 0,
        finish: Some(finish),
        first: None,
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// A request's first admission takes it out of the queue and starts its first output's record.
fn note_admission(
    scheduler: &Scheduler,
    shared: &Shared,
    firsts: &mut HashMap<RequestId, FirstOutput>,
    row: &PlanRow,
) {
    let Some(admitted) = row.admitted.filter(|a| !a.resumed) else { return };
    let Some(request) = scheduler.request_in(row.slot) else { return };
    shared.dequeue(request.prompt.len());
    let queue_s = request.arrival.elapsed().as_secs_f64();
    firsts.insert(row.id, FirstOutput { cached_tokens: admitted.cached_tokens, queue_s });
}
