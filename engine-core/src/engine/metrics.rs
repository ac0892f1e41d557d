//! The engine's figures, written by the engine thread after each step and read by anyone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::types::{DraftCounts, StepStats};
use crate::limits::MAX_SPECULATIVE_TOKENS;

/// Upper bounds of the tokens-per-step histogram.
pub const STEP_TOKENS_BOUNDS: [u64; 13] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Tokens computed per step, as a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTokens {
    /// Steps per bound of [`STEP_TOKENS_BOUNDS`], then the rest; not cumulative.
    pub counts: [u64; STEP_TOKENS_BOUNDS.len() + 1],
    pub sum: u64,
}

/// The engine's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineFigures {
    pub last_step: StepStats,
    pub step_tokens: StepTokens,
}

/// Where the engine thread publishes. Single writer; a reader may see a step half published, never torn values.
#[derive(Default)]
pub(super) struct Board {
    cells: [AtomicU64; 13],
    accepted_at: [AtomicU64; MAX_SPECULATIVE_TOKENS],
    counts: [AtomicU64; STEP_TOKENS_BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Board {
    /// After a step.
    pub(super) fn publish(&self, s: &StepStats) {
        let values = [
            u64::from(s.running),
            u64::from(s.waiting),
            u64::from(s.kv_pages_used),
            u64::from(s.kv_pages),
            s.preemptions,
            s.prefix_queries,
            s.prefix_hits,
            u64::from(s.prompt_tokens),
            u64::from(s.generated_tokens),
            s.steps,
            s.drafts.drafts,
            s.drafts.tokens,
            s.drafts.accepted,
        ];
        for (cell, value) in self.cells.iter().zip(values) {
            cell.store(value, Relaxed);
        }
        for (cell, value) in self.accepted_at.iter().zip(s.drafts.accepted_at) {
            cell.store(value, Relaxed);
        }
        let tokens = u64::from(s.prompt_tokens + s.generated_tokens);
        if tokens > 0 {
            let bucket = STEP_TOKENS_BOUNDS.partition_point(|b| *b < tokens);
            self.counts[bucket].fetch_add(1, Relaxed);
            self.sum.fetch_add(tokens, Relaxed);
        }
    }

    /// For a scrape.
    pub(super) fn read(&self) -> EngineFigures {
        let cell = |i: usize| self.cells[i].load(Relaxed);
        EngineFigures {
            last_step: StepStats {
                running: cell(0) as u32,
                waiting: cell(1) as u32,
                kv_pages_used: cell(2) as u32,
                kv_pages: cell(3) as u32,
                preemptions: cell(4),
                prefix_queries: cell(5),
                prefix_hits: cell(6),
                prompt_tokens: cell(7) as u32,
                generated_tokens: cell(8) as u32,
                steps: cell(9),
                drafts: DraftCounts {
                    drafts: cell(10),
                    tokens: cell(11),
                    accepted: cell(12),
                    accepted_at: std::array::from_fn(|i| self.accepted_at[i].load(Relaxed)),
                },
            },
            step_tokens: StepTokens {
                counts: std::array::from_fn(|i| self.counts[i].load(Relaxed)),
                sum: self.sum.load(Relaxed),
            },
        }
    }
}
