//! The packed download: sampled ids and log-probabilities of one step, and how to read them.

use super::inputs::StepShape;
use crate::backend::LogprobsOut;
use crate::engine::types::{TokenBatch, TokenLogprobs};
use crate::tensor::{DType, Tensor};

/// What a step brings back, in words of the output buffer: ids [L], then, when wanted, log-probabilities of the
/// sampled rows (ids, values [L, 1 + top], ranks [L]) and of prompt positions (the same for P).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputShape {
    pub logits: u32,
    pub prompt: u32,
    /// Best ids per sampled row, when any row wants log-probabilities.
    pub top: Option<u32>,
    /// Best ids per prompt position.
    pub prompt_top: u32,
}

impl OutputShape {
    /// Of a step shape.
    pub fn new(shape: &StepShape, top: Option<u32>, prompt_top: u32) -> Self {
        OutputShape { logits: shape.logits, prompt: shape.prompt_logits, top, prompt_top }
    }

    fn sampled_at(&self) -> u32 {
        self.logits
    }
    fn prompt_at(&self) -> u32 {
        self.logits + self.top.map_or(0, |top| block_words(self.logits, top))
    }

    /// Words of the download.
    pub fn words(&self) -> u32 {
        let prompt = if self.prompt == 0 { 0 } else { block_words(self.prompt, self.prompt_top) };
        self.prompt_at() + prompt
    }

    /// Where the sampled ids go: [L] i32.
    pub fn ids(&self, buffer: Tensor) -> Tensor {
        buffer.cols_at(0, self.logits).cast_bits(DType::I32)
    }

    /// Where log-probabilities of sampled rows `first..first + count` go.
    pub fn sampled(&self, buffer: Tensor, first: u32, count: u32) -> Option<LogprobsOut> {
        self.top.map(|top| block(buffer, self.sampled_at(), self.logits, top, first, count))
    }

    /// Where those of prompt positions go.
    pub fn prompt(&self, buffer: Tensor, first: u32, count: u32) -> LogprobsOut {
        block(buffer, self.prompt_at(), self.prompt, self.prompt_top, first, count)
    }
}

fn block_words(rows: u32, top: u32) -> u32 {
    rows * (2 * (1 + top) + 1)
}

/// Rows `first..first + count` of a block of `rows` log-probability rows at word `at`.
fn block(buffer: Tensor, at: u32, rows: u32, top: u32, first: u32, count: u32) -> LogprobsOut {
    let cols = 1 + top;
    let table = |at: u32, dtype| {
        buffer.cols_at(at + first * cols, count * cols).cast_bits(dtype).view(&[count, cols])
    };
    LogprobsOut {
        ids: table(at, DType::I32),
        values: table(at + rows * cols, DType::F32),
        ranks: buffer.cols_at(at + 2 * rows * cols + first, count).cast_bits(DType::I32),
    }
}

/// What one row sampled: a token, and one more behind each accepted draft.
#[derive(Clone, Debug)]
pub struct RowSample {
    /// Index in the plan's rows.
    pub row: u32,
    pub tokens: TokenBatch,
    /// One entry a token, when wanted.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Log-probabilities of the prompt positions one row computed in one step.
#[derive(Clone, Debug)]
pub struct PromptPart {
    /// Index in the plan's rows.
    pub row: u32,
    /// Prompt index of the first entry (the token whose probability it is).
    pub first: u32,
    pub entries: Vec<TokenLogprobs>,
}

/// Everything one step brought back.
#[derive(Debug, Default)]
pub struct StepResults {
    pub samples: Vec<RowSample>,
    pub prompts: Vec<PromptPart>,
}

/// Reads words of a finished download.
#[derive(Clone, Copy)]
pub struct Words<'a>(pub &'a [u8]);

impl Words<'_> {
    /// Word `i` as bits.
    pub fn get(&self, i: u32) -> u32 {
        let at = i as usize * 4;
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

impl OutputShape {
    /// Row `i` of the sampled block with the `n` best ids.
    pub fn read_sampled(&self, w: Words<'_>, i: u32, n: u32) -> Option<TokenLogprobs> {
        self.top.map(|top| read(w, self.sampled_at(), self.logits, top, i, n))
    }

    /// Row `i` of the prompt block with the `n` best ids.
    pub fn read_prompt(&self, w: Words<'_>, i: u32, n: u32) -> TokenLogprobs {
        read(w, self.prompt_at(), self.prompt, self.prompt_top, i, n)
    }
}

fn read(w: Words<'_>, at: u32, rows: u32, top: u32, i: u32, n: u32) -> TokenLogprobs {
    let cols = 1 + top;
    let ids = at + i * cols;
    let values = at + rows * cols + i * cols;
    let pair = |c: u32| (w.get(ids + c), f32::from_bits(w.get(values + c)));
    let (token, logprob) = pair(0);
    let rank = w.get(at + 2 * rows * cols + i);
    TokenLogprobs { token, logprob, rank, top: (1..=n.min(top)).map(pair).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_without_overlap() {
        let o = OutputShape { logits: 3, prompt: 2, top: Some(4), prompt_top: 1 };
        assert_eq!(o.prompt_at(), 3 + 3 * 11);
        assert_eq!(o.words(), 3 + 33 + 2 * 5);
        let b = Tensor::from_raw(0, 0, 0, &[o.words()], DType::U32);
        let s = o.sampled(b, 1, 2).map(|l| (l.ids.at_bytes(), l.values.at_bytes(), l.ranks.at_bytes()));
        assert_eq!(s, Some((4 * (3 + 5), 4 * (3 + 15 + 5), 4 * (3 + 30 + 1))));
        let p = o.prompt(b, 0, 2);
        assert_eq!(p.ranks.at_bytes() + p.ranks.extent_bytes(), 4 * u64::from(o.words()));
    }

    #[test]
    fn a_row_reads_what_was_written_for_it() {
        let o = OutputShape { logits: 2, prompt: 0, top: Some(2), prompt_top: 0 };
        let mut words = vec![0u32; o.words() as usize];
        words[2 + 3..2 + 6].copy_from_slice(&[7, 8, 9]);
        for (i, v) in [-0.5f32, -0.25, -2.0].iter().enumerate() {
            words[2 + 6 + 3 + i] = v.to_bits();
        }
        words[2 + 12 + 1] = 2;
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let got = o.read_sampled(Words(&bytes), 1, 1);
        assert_eq!(got, Some(TokenLogprobs { token: 7, logprob: -0.5, rank: 2, top: vec![(8, -0.25)] }));
    }
}
