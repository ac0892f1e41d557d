//! The requests the scheduler knows, in a slab: rows are reached by index, never by hashing.

use crate::engine::types::{FinishReason, Request};
use crate::kv::prefix::PrefixChain;

use super::plan::Feed;
use super::policy::OrderKey;

/// Index into [`Rows`].
pub(crate) type RowIndex = u32;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Running { slot: u32 },
}

/// One request.
#[derive(Debug)]
pub(crate) struct Row {
    /// Prompt and generated tokens, as far as the host knows them.
    pub(crate) tokens: Vec<u32>,
    /// Length at which the row ends at the latest.
    pub(crate) target: u32,
    /// Positions whose KV is computed by steps that are committed or in flight.
    pub(crate) computed: u32,
    /// Tokens that steps in flight will sample.
    pub(crate) placeholders: u32,
    /// Steps in flight this row takes part in.
    pub(crate) in_flight: u32,
    pub(crate) stage: Stage,
    pub(crate) feed: Feed,
    /// Times it gave up its slot and pages.
    pub(crate) preemptions: u32,
    /// Proposed tokens after the last known one.
    pub(crate) drafts: Vec<u32>,
    pub(crate) key: OrderKey,
    pub(crate) chain: PrefixChain,
    pub(crate) request: Request,
}

impl Row {
    pub(crate) fn prompt_len(&self) -> u32 {
        self.request.prompt.len() as u32
    }

    /// Tokens that exist once all results in flight are in.
    #[inline]
    pub(crate) fn wanted(&self) -> u32 {
        self.tokens.len() as u32 + self.placeholders
    }

    /// Whether the host makes its next inputs out of results that are in flight: those of a host-fed row, and those
    /// of any row that verifies drafts, for how many are kept is not known before.
    #[inline]
    pub(crate) fn waits_for_host(&self) -> bool {
        self.placeholders > 0 && (self.feed == Feed::Host || self.computed >= self.wanted())
    }

    /// Appends a sampled token and says whether the request ends with it. A stop id counts before the length, an
    /// end-of-sequence id before a stop id; neither counts before `min_tokens` are out.
    #[inline]
    pub(crate) fn append(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        let params = &self.request.params;
        let generated = self.tokens.len() - self.request.prompt.len();
        if generated >= params.min_tokens as usize {
            if !params.ignore_eos && params.eos_token_ids.contains(&token) {
                return Some(FinishReason::Stop { token: None });
            }
            if params.stop_token_ids.contains(&token) {
                return Some(FinishReason::Stop { token: Some(token) });
            }
        }
        (self.tokens.len() as u32 >= self.target).then_some(FinishReason::Length)
    }
}

/// A slab of rows.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Option<Row>>,
    free: Vec<RowIndex>,
}

impl Rows {
    pub(crate) fn insert(&mut self, row: Row) -> RowIndex {
        if let Some(index) = self.free.pop() {
            self.rows[index as usize] = Some(row);
            return index;
        }
        self.rows.push(Some(row));
        self.rows.len() as RowIndex - 1
    }

    pub(crate) fn remove(&mut self, index: RowIndex) -> Option<Row> {
        let row = self.rows[index as usize].take();
        if row.is_some() {
            self.free.push(index);
        }
        row
    }

    #[inline]
    pub(crate) fn get(&self, index: RowIndex) -> Option<&Row> {
        self.rows[index as usize].as_ref()
    }
}

impl std::ops::Index<RowIndex> for Rows {
    type Output = Row;
    #[inline]
    fn index(&self, index: RowIndex) -> &Row {
        match &self.rows[index as usize] {
            Some(row) => row,
            None => panic!("row {index} has ended but is still referred to"),
        }
    }
}

impl std::ops::IndexMut<RowIndex> for Rows {
    #[inline]
    fn index_mut(&mut self, index: RowIndex) -> &mut Row {
        match &mut self.rows[index as usize] {
            Some(row) => row,
            None => panic!("row {index} has ended but is still referred to"),
        }
    }
}
