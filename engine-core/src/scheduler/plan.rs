//! [`StepPlan`]: what one step computes, as data. The scheduler fills it, the runner packs it, every rank gets the
//! same one.

pub use crate::backend::Phase;
use crate::engine::types::{FinishReason, RequestId, TokenBatch};
use crate::kv::TableDelta;

/// Where the token ids of a row's chunk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Known to the host: `Scheduler::tokens(id)[start..start + q_len - drafts]`, then the row's drafts.
    Host,
    /// Not known yet: the token sampled last in this slot. `q_len` is 1.
    Device,
}

/// How a row's next token reaches the device (`backend`, rule 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Device to device: the row may be planned again before its last token is known.
    Device,
    /// The host is needed between two steps (grammar mask, drafts made on the host): the row is planned only when it
    /// has no result in flight.
    Host,
}

/// The row has just entered its slot: sampler state and counts of the slot must be reset before it samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Leading positions whose KV came from the prefix cache; equals the row's `start`.
    pub cached_tokens: u32,
    /// The request ran before and was preempted.
    pub resumed: bool,
}

/// One row of a step: a chunk of consecutive positions of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRow {
    pub id: RequestId,
    /// Row of every device-side table; the request keeps it while it runs. `< max_num_seqs`.
    pub slot: u32,
    /// First position computed.
    pub start: u32,
    /// Positions computed; at least 1. A chunk never crosses the border from prompt to generated tokens.
    pub q_len: u32,
    /// Recomputed generated tokens keep [`Phase::Generated`].
    pub phase: Phase,
    pub tokens_from: TokenSource,
    /// Logits and a token are wanted for the chunk's last position (and for each draft's).
    pub sample: bool,
    /// Position of the first token this row samples (`start + q_len - drafts` when it samples): with the request's
    /// seed, the key of the draw. A preempted and recomputed row gets the same position and so the same token.
    pub sample_position: u32,
    /// How many tokens at the end of the chunk are drafts to verify (`Scheduler::drafts_in(slot)`); 0 without
    /// speculation. The row then samples `1 + drafts` positions.
    pub drafts: u32,
    /// Set in the first step of this stay in the slot.
    pub admitted: Option<Admitted>,
}

/// What one step computes. Owned by the caller and refilled by `Scheduler::schedule`, so that its vectors keep their
/// capacity.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Number of the step; commits come in the same order. Meaningless when `rows` is empty.
    pub step: u64,
    /// [`Phase::Generated`] rows first, then [`Phase::Prompt`] rows; each request at most once.
    pub rows: Vec<PlanRow>,
    /// How many of `rows` are [`Phase::Generated`].
    pub generated_rows: u32,
    /// Changes of the device's page tables; to be applied before this step's attention. Each (group, slot, index)
    /// occurs at most once, and there are at most [`most_table_deltas`].
    pub table_deltas: Vec<TableDelta>,
    /// Sum of `q_len`.
    pub tokens: u32,
    /// Requests that lost their slot and pages in this step and will be recomputed.
    pub preempted: Vec<RequestId>,
}

impl StepPlan {
    /// Nothing to compute: not a step, must neither be launched nor committed.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Forgets the last step, keeps the capacity.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.table_deltas.clear();
        self.preempted.clear();
        self.generated_rows = 0;
        self.tokens = 0;
    }
}

/// Most table deltas of one step: what bounds the upload of a plan. Each row takes new pages for its chunk and drops
/// those its earlier chunk moved out of a window; the cached pages of rows admitted together fill at most one row of
/// `pages_per_row` entries in each group.
pub fn most_table_deltas(
    groups: u32,
    rows: u32,
    tokens: u32,
    pages_per_row: u32,
    steps_in_flight: u32,
) -> u32 {
    groups * ((steps_in_flight + 2) * (rows + tokens) + pages_per_row)
}

/// Tokens sampled for one row of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowResult {
    /// Index in [`StepPlan::rows`].
    pub row: u32,
    /// The sampled tokens: one, or up to `1 + drafts` when drafts were verified.
    pub tokens: TokenBatch,
}

/// What a commit did for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOutcome {
    pub id: RequestId,
    /// Index in [`StepPlan::rows`] of the committed step.
    pub row: u32,
    /// Tokens accepted, in order; the stopping token is among them. May be fewer than were sampled.
    pub tokens: TokenBatch,
    /// Times the request was preempted so far.
    pub preemptions: u32,
    /// Set when the request has ended; its pages and slot are free and its id is forgotten.
    pub finish: Option<FinishReason>,
}
