//! Speculation: tokens that perhaps follow are drafted, the model computes all of them in one step and keeps those it
//! would have drawn itself.
//!
//! Verification is `backend` rule 6: at each of the 1 + k positions the target's token is drawn with the noise of
//! (seed, position) and drafts count as long as they equal it. So a draft costs time when it is wrong and never changes
//! an answer; nothing here needs a probability, and no drafter needs to be right.
//!
//! A drafter works between two steps: after a commit it proposes ([`Drafter::propose`]), and before the launch of a plan
//! it may still say what the drafts are ([`Drafter::fill`]).

pub mod draft_model;
pub mod ngram;

use std::fmt;
use std::sync::Arc;

use crate::config::ModelConfig;
use crate::engine::types::RequestId;
use crate::error::{Error, Result};
use crate::limits::MAX_SPECULATIVE_TOKENS;
use crate::loader::source::WeightSource;
use crate::scheduler::{CommitOutcome, Feed, Scheduler, StepPlan};
use draft_model::ModelDrafter;
use ngram::NgramDrafter;

/// How tokens are drafted (`--speculative-config`).
#[derive(Clone, Debug)]
pub struct Speculation {
    /// Most draft tokens of a row in one step.
    pub tokens: u32,
    /// No drafts while more requests than this run.
    pub most_rows: Option<u32>,
    pub method: Method,
}

/// Who drafts.
#[derive(Clone, Debug)]
pub enum Method {
    /// What followed when the last tokens stood in the text before: `min` to `max` of them.
    Ngram { min: u32, max: u32 },
    /// A smaller model with the same vocabulary.
    Model(Box<DraftModel>),
}

/// A model that drafts.
#[derive(Clone)]
pub struct DraftModel {
    /// What the operator calls it.
    pub name: String,
    pub config: ModelConfig,
    pub source: Arc<dyn WeightSource>,
    /// Longest context it is asked about; `None`: what its configuration says.
    pub max_len: Option<u32>,
}

impl fmt::Debug for DraftModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DraftModel").field("name", &self.name).field("max_len", &self.max_len).finish()
    }
}

impl Speculation {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, its value and what would be right.
    pub fn check(&self) -> Result<()> {
        let most = MAX_SPECULATIVE_TOKENS as u32;
        in_range("num_speculative_tokens", self.tokens, 1, most)?;
        let Method::Ngram { min, max } = self.method else { return Ok(()) };
        in_range("prompt_lookup_max", max, 1, ngram::MAX_NGRAM)?;
        in_range("prompt_lookup_min", min, 1, max)
    }

    /// Bytes that loading a draft model reads.
    pub fn weight_bytes(&self) -> u64 {
        match &self.method {
            Method::Ngram { .. } => 0,
            Method::Model(model) => model.source.total_bytes(),
        }
    }
}

fn in_range(key: &str, value: u32, least: u32, most: u32) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "--speculative-config: {key} is {value}; it must be between {least} and {most}"
    )))
}

/// Drafts for one engine.
pub(crate) struct Drafter {
    most_rows: u32,
    source: DraftSource,
}

pub(crate) enum DraftSource {
    Ngram(NgramDrafter),
    Model(Box<ModelDrafter>),
}

impl Drafter {
    pub(crate) fn new(speculation: &Speculation, source: DraftSource) -> Self {
        Drafter { most_rows: speculation.most_rows.unwrap_or(u32::MAX), source }
    }

    /// How tokens of a new request reach the device.
    pub(crate) fn first_feed(&self) -> Feed {
        match self.source {
            DraftSource::Ngram(_) => Feed::Device,
            // It computes each step's tokens too, and so must know them.
            DraftSource::Model(_) => Feed::Host,
        }
    }

    /// Proposes for the rows that gained tokens in the step just committed.
    pub(crate) fn propose(&mut self, plan: &StepPlan, outcomes: &[CommitOutcome], scheduler: &mut Scheduler) {
        let enabled = scheduler.stats().running <= self.most_rows as usize;
        for outcome in outcomes.iter().filter(|o| o.finish.is_none()) {
            let slot = plan.rows[outcome.row as usize].slot;
            if scheduler.request_in(slot).is_some_and(|r| r.id == outcome.id) {
                self.propose_for(outcome.id, slot, enabled, scheduler);
            }
        }
    }

    fn propose_for(&mut self, id: RequestId, slot: u32, enabled: bool, scheduler: &mut Scheduler) {
        let tokens = scheduler.tokens_in(slot).unwrap_or_default();
        match &mut self.source {
            DraftSource::Ngram(ngram) => {
                let drafts = if enabled { ngram.draft(slot, id, tokens) } else { &[] };
                // Rows without drafts go on without waiting for the host.
                scheduler.set_feed(id, if drafts.is_empty() { Feed::Device } else { Feed::Host });
                scheduler.propose(id, drafts);
            }
            DraftSource::Model(model) => {
                let blanks = model.blanks(tokens.len() as u32);
                scheduler.propose(id, if enabled { blanks } else { &[] });
            }
        }
    }

    /// Fills in the drafts of a plan that is about to be launched.
    ///
    /// # Errors
    /// From the device.
    pub(crate) fn fill(&mut self, plan: &StepPlan, scheduler: &mut Scheduler) -> Result<()> {
        match &mut self.source {
            DraftSource::Ngram(_) => Ok(()),
            DraftSource::Model(model) => model.fill(plan, scheduler),
        }
    }
}
