//! Preemption by recompute: the row served last gives up its slot and pages and waits at its place in the queue. It
//! keeps its tokens; results in flight still reach it.

use super::Scheduler;
use super::plan::StepPlan;
use super::rows::{RowIndex, Stage};
use crate::kv::faults::planted;

impl Scheduler {
    /// Preempts the last row in the order of service and returns it. Rows are planned in that order, so it has no
    /// place in the step being planned.
    pub(super) fn preempt_last(&mut self, plan: &mut StepPlan) -> Option<RowIndex> {
        let victim = self.running.pop()?;
        let row = &mut self.rows[victim];
        let Stage::Running { slot } = row.stage else { unreachable!("a waiting row among the running") };
        row.stage = Stage::Waiting;
        row.computed = 0;
        row.preemptions += 1;
        row.drafts.clear();
        if planted!(self.planted, DropInFlight) {
            row.placeholders = 0;
        }
        plan.preempted.push(row.request.id);
        self.waiting.insert(row.key, victim, row.request.prompt.len());
        self.preemptions += 1;
        self.free_slot(slot);
        Some(victim)
    }
}
