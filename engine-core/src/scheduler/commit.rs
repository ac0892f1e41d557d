//! [`Scheduler::commit`]: the results of a step come in.

use super::Scheduler;
use super::plan::{CommitOutcome, RowResult, StepPlan};
use super::rows::{RowIndex, Stage};
use crate::engine::types::{RequestId, TokenBatch};
use crate::kv::faults::planted;

/// What the scheduler remembers of a step in flight.
#[derive(Debug, Default)]
pub(super) struct StepRecord {
    step: u64,
    rows: Vec<Planned>,
}

/// A row of a step in flight. Its request may have ended since: then the slab has no row, or another id, at `index`.
#[derive(Clone, Copy, Debug)]
struct Planned {
    id: RequestId,
    index: RowIndex,
    /// Positions computed when the step is done, drafts not among them.
    end: u32,
    drafts: u32,
    sample: bool,
}

impl StepRecord {
    pub(super) fn with_capacity(rows: u32) -> Self {
        StepRecord { step: 0, rows: Vec::with_capacity(rows as usize) }
    }
}

impl Scheduler {
    /// Brings in the results of the oldest step in flight: appends tokens, ends requests, frees what they held, makes
    /// full pages known to the prefix cache. `results` has one entry for each row that sampled, in the order of the
    /// plan's rows; those of requests that have ended are dropped. `out` gets one entry for each request that gained
    /// a token; it is not cleared.
    ///
    /// # Panics
    /// If `step` is not the oldest step in flight, or if `results` is not what its plan asked for.
    pub fn commit(&mut self, step: u64, results: &[RowResult], out: &mut Vec<CommitOutcome>) {
        let Some(mut record) = self.in_flight.pop_front() else { panic!("step {step} is not in flight") };
        assert_eq!(record.step, step, "steps are committed in the order they were planned");
        let mut results = results.iter();
        let mut ended = false;
        for (at, planned) in record.rows.iter().enumerate() {
            let tokens = if planned.sample { expect_result(results.next(), at, planned) } else { &[] };
            ended |= self.commit_row(at as u32, planned, tokens, out);
        }
        assert!(results.next().is_none(), "step {step} has more results than rows that sampled");
        record.rows.clear();
        self.spare_records.push(record);
        if ended {
            let rows = &self.rows;
            self.running.retain(|index| rows.get(*index).is_some());
        }
    }

    /// Remembers a plan until its commit.
    pub(super) fn remember(&mut self, plan: &StepPlan) {
        let mut record = self.spare_records.pop().unwrap_or_default();
        record.step = plan.step;
        record.rows.extend(plan.rows.iter().map(|row| Planned {
            id: row.id,
            index: self.slot_rows[row.slot as usize].unwrap_or(RowIndex::MAX),
            end: row.start + row.q_len - row.drafts,
            drafts: row.drafts,
            sample: row.sample,
        }));
        self.in_flight.push_back(record);
    }

    /// True when the request ended while it was running.
    #[inline]
    fn commit_row(
        &mut self,
        at: u32,
        planned: &Planned,
        tokens: &[u32],
        out: &mut Vec<CommitOutcome>,
    ) -> bool {
        if self.rows.get(planned.index).is_none_or(|row| row.request.id != planned.id) {
            return false;
        }
        if planned.drafts > 0 {
            self.drafts.count(planned.drafts, tokens.len().saturating_sub(1));
        }
        let keep_refused = planted!(self.planted, KeepRefusedDrafts);
        let row = &mut self.rows[planned.index];
        row.in_flight -= 1;
        let mut accepted = TokenBatch::default();
        let mut finish = None;
        if planned.sample && row.placeholders > 0 {
            row.placeholders -= 1;
            for token in tokens {
                accepted.push(*token);
                finish = row.append(*token);
                if finish.is_some() {
                    break;
                }
            }
        }
        // Each accepted token but the last was a draft whose KV is right; the KV of refused drafts is overwritten.
        let drafts_kept = (accepted.as_slice().len() as u32).saturating_sub(1);
        let computed = planned.end + if keep_refused { planned.drafts } else { drafts_kept };
        // Drafts follow the token that was last when they were proposed.
        if planned.sample {
            row.drafts.clear();
        }
        if let Stage::Running { slot } = row.stage {
            if planned.drafts > 0 {
                row.computed = computed;
            }
            self.kv.register(slot, &mut row.chain, &row.tokens, computed, row.request.prompt.len());
        }
        if !accepted.as_slice().is_empty() {
            let preemptions = row.preemptions;
            out.push(CommitOutcome { id: planned.id, row: at, tokens: accepted, preemptions, finish });
        }
        finish.is_some() && self.end(planned.index)
    }
}

fn expect_result<'a>(result: Option<&'a RowResult>, at: usize, planned: &Planned) -> &'a [u32] {
    match result {
        Some(result) if result.row as usize == at => {
            let tokens = result.tokens.as_slice();
            let most = 1 + planned.drafts as usize;
            assert!(
                (1..=most).contains(&tokens.len()),
                "row {at}: {} tokens, 1 to {most} possible",
                tokens.len()
            );
            tokens
        }
        other => panic!("row {at} has sampled, but the next result is {other:?}"),
    }
}
