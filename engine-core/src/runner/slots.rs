//! What the runner remembers of the request in each row slot: the constant part of its sampling row.

use crate::backend::{SampleRow, SlotRecord};
use crate::sampling::SamplingParams;
use crate::scheduler::{PlanRow, Scheduler};

/// What the runner needs to know of a request when it packs a row.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// Prompt and generated ids known to the host.
    pub tokens: &'a [u32],
    pub prompt_len: u32,
    /// Proposed ids; the plan's row says how many of them it verifies.
    pub drafts: &'a [u32],
    pub params: &'a SamplingParams,
}

impl<'a> RequestView<'a> {
    /// Of the request that a row of a plan belongs to.
    ///
    /// # Panics
    /// If no request is in the row's slot.
    pub(crate) fn of(scheduler: &'a Scheduler, row: &PlanRow) -> Self {
        match (scheduler.request_in(row.slot), scheduler.tokens_in(row.slot)) {
            (Some(request), Some(tokens)) => RequestView {
                tokens,
                prompt_len: request.prompt.len() as u32,
                drafts: scheduler.drafts_in(row.slot).unwrap_or_default(),
                params: &request.params,
            },
            _ => panic!("slot {} of the plan has no request", row.slot),
        }
    }

    fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len as usize]
    }
}

/// A row slot's sampling template.
#[derive(Clone, Copy, Debug)]
pub struct SlotState {
    row: SampleRow,
    prompt_len: u32,
    min_tokens: u32,
    /// Log-probabilities wanted per generated token.
    pub logprobs: Option<u32>,
}

impl SlotState {
    /// A slot nobody is in.
    pub const EMPTY: SlotState =
        SlotState { row: SampleRow::PADDING, prompt_len: 0, min_tokens: 0, logprobs: None };

    /// The slot of a request that has just been admitted.
    pub fn new(slot: u32, request: &RequestView<'_>) -> Self {
        let p = request.params;
        let mut flags = 0;
        let mut set = |when: bool, flag: u32| flags |= if when { flag } else { 0 };
        let penalties =
            p.presence_penalty != 0.0 || p.frequency_penalty != 0.0 || p.repetition_penalty != 1.0;
        set(p.temperature == 0.0, SampleRow::GREEDY);
        set(penalties, SampleRow::PENALTIES);
        set(has_rules(p), SampleRow::RULES);
        let row = SampleRow {
            slot: slot as i32,
            flags,
            temperature: p.temperature,
            top_k: p.top_k,
            top_p: p.top_p,
            min_p: p.min_p,
            presence: p.presence_penalty,
            frequency: p.frequency_penalty,
            repetition: p.repetition_penalty,
            seed: p.seed,
            position: 0,
        };
        SlotState { row, prompt_len: request.prompt_len, min_tokens: p.min_tokens, logprobs: p.logprobs }
    }

    /// The packed row for drawing the token at `position`.
    pub fn sample_row(&self, position: u32) -> SampleRow {
        let generated = position - self.prompt_len;
        let masked = if generated < self.min_tokens { SampleRow::MASK_STOPS } else { 0 };
        SampleRow { position, flags: self.row.flags | masked, ..self.row }
    }
}

fn has_rules(p: &SamplingParams) -> bool {
    !p.logit_bias.is_empty() || p.allowed_token_ids.is_some() || !p.bad_words.is_empty()
}

/// Appends the record that resets a slot for a newly admitted (or resumed) request.
pub fn write_record(slot: u32, request: &RequestView<'_>, stops: &mut Vec<u32>, into: &mut Vec<u32>) {
    let p = request.params;
    stops.clear();
    if p.min_tokens > 0 {
        stops.extend(p.eos_token_ids.iter().chain(&p.stop_token_ids));
    }
    let output = &request.tokens[request.prompt_len as usize..];
    SlotRecord {
        slot,
        prompt: if p.repetition_penalty != 1.0 || !p.bad_words.is_empty() { request.prompt() } else { &[] },
        output: if p.needs_history() { output } else { &[] },
        bias: &p.logit_bias,
        allowed: p.allowed_token_ids.as_deref(),
        stops,
        bad_words: &p.bad_words,
    }
    .write(into);
}
