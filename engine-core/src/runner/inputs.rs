//! The packed upload: one host buffer a step, one copy, every device-side input a view of it.

use crate::backend::{AttnPlan, SampleRow};
use crate::tensor::{DType, Tensor};

/// Sizes of one step's inputs. Equal shapes have equal layouts, so a captured graph's views stay valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct StepShape {
    /// Sequences, padding included (S).
    pub rows: u32,
    /// Tokens, padding included (T).
    pub tokens: u32,
    /// Logits rows (L).
    pub logits: u32,
    /// Page-table changes.
    pub deltas: u32,
    /// Words of sampler records.
    pub record_words: u32,
    /// Prompt positions whose log-probabilities are wanted.
    pub prompt_logits: u32,
    /// Logits rows that come with a draft to verify, or none: 0 or `logits`.
    pub drafts: u32,
}

impl StepShape {
    /// A pure decode step of `rows` rows: `q_len` tokens each, all sampled and all but the last of a row drafts; every
    /// row may gain as many pages per group as its tokens can begin.
    pub fn decode(rows: u32, q_len: u32, groups: u32, page_tokens: u32) -> Self {
        let tokens = rows * q_len;
        let pages = 1 + (q_len - 1).div_ceil(page_tokens);
        StepShape {
            rows,
            tokens,
            logits: tokens,
            deltas: rows * groups * pages,
            drafts: if q_len > 1 { tokens } else { 0 },
            ..StepShape::default()
        }
    }
}

/// Words every section starts on: 256 bytes.
const ALIGN_WORDS: u32 = 64;

/// One section of the upload, in words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    pub at: u32,
    pub len: u32,
}

impl Section {
    /// As a range of the word buffer.
    pub fn range(self) -> std::ops::Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }
}

/// Where everything lies in the upload of one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub staged: Section,
    pub src: Section,
    pub rows: Section,
    pub start: Section,
    pub cu_q: Section,
    pub logit_rows: Section,
    pub sample: Section,
    pub draft: Section,
    pub deltas: Section,
    pub records: Section,
    pub prompt_rows: Section,
    pub prompt_ids: Section,
    /// One per attention plan.
    pub plans: Vec<Section>,
    pub words: u32,
}

impl Layout {
    /// The layout of a shape under these plans.
    pub fn new(shape: &StepShape, plans: &[AttnPlan]) -> Self {
        let mut layout = Layout::default();
        layout.set(shape, plans);
        layout
    }

    /// Becomes the layout of a shape under these plans, without allocating when it was one of as many plans before.
    pub fn set(&mut self, shape: &StepShape, plans: &[AttnPlan]) {
        let mut words = 0;
        let mut section = |len: u32| {
            let at = words;
            words += len.next_multiple_of(ALIGN_WORDS);
            Section { at, len }
        };
        self.staged = section(shape.tokens);
        self.src = section(shape.tokens);
        self.rows = section(shape.rows);
        self.start = section(shape.rows);
        self.cu_q = section(shape.rows + 1);
        self.logit_rows = section(shape.logits);
        self.sample = section(shape.logits * SampleRow::WORDS as u32);
        self.draft = section(shape.drafts);
        self.deltas = section(shape.deltas * 2);
        self.records = section(shape.record_words);
        self.prompt_rows = section(shape.prompt_logits);
        self.prompt_ids = section(shape.prompt_logits);
        self.plans.clear();
        self.plans.extend(plans.iter().map(|p| section(p.upload_bytes().div_ceil(4) as u32)));
        self.words = words;
    }
}

/// Device views of an upload.
#[derive(Clone, Copy, Debug)]
pub struct Views {
    pub staged: Tensor,
    pub src: Tensor,
    pub rows: Tensor,
    pub start: Tensor,
    pub cu_q: Tensor,
    pub logit_rows: Tensor,
    pub sample: Tensor,
    /// `None` when the step verifies nothing.
    pub draft: Option<Tensor>,
    pub deltas: Tensor,
    pub records: Tensor,
    pub prompt_rows: Tensor,
    pub prompt_ids: Tensor,
}

impl Views {
    /// Views of `buffer` [words] u32.
    pub fn of(buffer: Tensor, l: &Layout) -> Self {
        let words = |s: Section| buffer.cols_at(s.at, s.len);
        let ints = |s: Section| words(s).cast_bits(DType::I32);
        let table = |s: Section, cols: u32, dtype| words(s).cast_bits(dtype).view(&[s.len / cols, cols]);
        Views {
            staged: ints(l.staged),
            src: ints(l.src),
            rows: ints(l.rows),
            start: ints(l.start),
            cu_q: ints(l.cu_q),
            logit_rows: ints(l.logit_rows),
            sample: table(l.sample, SampleRow::WORDS as u32, DType::U32),
            draft: (l.draft.len > 0).then(|| ints(l.draft)),
            deltas: table(l.deltas, 2, DType::I32),
            records: words(l.records),
            prompt_rows: ints(l.prompt_rows),
            prompt_ids: ints(l.prompt_ids),
        }
    }
}
