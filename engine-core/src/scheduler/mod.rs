//! Who runs in the next step, with which pages.
//!
//! There is no prefill or decode phase: each row has tokens computed and tokens wanted, and each step hands out a
//! token budget until all have caught up. `schedule()` may be called before the results of the step before are
//! known; `commit()` brings them in, in order.

pub mod plan;

pub use plan::{Admitted, CommitOutcome, Feed, Phase, PlanRow, RowResult, StepPlan, TokenSource};
