//! How many tokens a row computes in a step: the token budget of the step, the cap of one chunk, the border between
//! prompt and generated tokens.

use super::config::{ChunkedPrefill, SchedulerConfig};
use super::plan::{Phase, TokenSource};
use super::rows::Row;

/// Tokens a step may still hand out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBudget {
    left: u32,
}

impl TokenBudget {
    pub(crate) fn new(max_num_batched_tokens: u32) -> Self {
        TokenBudget { left: max_num_batched_tokens }
    }
    pub(crate) fn left(self) -> u32 {
        self.left
    }
    /// What the next row may take when each of the `rows` running rows after it keeps one token, so that no row is
    /// starved by another row's prompt.
    pub(crate) fn allowance(self, rows: usize) -> u32 {
        self.left - rows as u32
    }
    pub(crate) fn spend(&mut self, tokens: u32) {
        self.left -= tokens;
    }
}

/// A row's next consecutive positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) start: u32,
    pub(crate) q_len: u32,
    pub(crate) phase: Phase,
    pub(crate) tokens_from: TokenSource,
    pub(crate) sample: bool,
    /// Drafts at the end of the chunk.
    pub(crate) drafts: u32,
}

impl Chunk {
    /// The same chunk with nothing to verify.
    pub(crate) fn without_drafts(self) -> Chunk {
        Chunk { q_len: self.q_len - self.drafts, drafts: 0, ..self }
    }
}

impl SchedulerConfig {
    /// The next chunk of `row` when `start` positions are computed and at most `allowance` tokens may be taken;
    /// `None` when the row has nothing to compute before its results in flight are known, or nothing at all.
    #[inline]
    pub(crate) fn next_chunk(&self, row: &Row, start: u32, allowance: u32) -> Option<Chunk> {
        let wanted = row.wanted();
        if wanted >= row.target || row.waits_for_host() || allowance == 0 {
            return None;
        }
        let prompt = row.prompt_len();
        let (phase, end) = if start < prompt { (Phase::Prompt, prompt) } else { (Phase::Generated, wanted) };
        let most = allowance.min(self.most_chunk_tokens());
        let known = (end - start).min(most);
        let sample = start + known == wanted;
        // A draft at position p needs a further token at p + 1, which must not lie past the target.
        let room = (most - known).min(row.target - 1 - wanted);
        let drafts = if sample && phase == Phase::Generated { room.min(row.drafts.len() as u32) } else { 0 };
        let unknown = start >= row.tokens.len() as u32;
        Some(Chunk {
            start,
            q_len: known + drafts,
            phase,
            tokens_from: if unknown { TokenSource::Device } else { TokenSource::Host },
            sample,
            drafts,
        })
    }

    /// Most tokens of one row in one step.
    pub(crate) fn most_chunk_tokens(&self) -> u32 {
        match self.chunked_prefill {
            ChunkedPrefill::On { long_prefill_token_threshold: Some(cap) } => {
                cap.min(self.max_num_batched_tokens)
            }
            _ => self.max_num_batched_tokens,
        }
    }
}
