//! Sample: from raw logits to one token per row; see `engine_core::backend::Sample` for the order of work.
//!
//! Logits are read where they are unless a rule changes them; then a copy in the worker's scratch memory is edited.
//! Rows of one slot follow each other and are claimed together, since each token drawn may change the next row.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::{OpKind, SampleRow};

use super::logprobs::{self, Out};
use super::noise::gumbel;
use super::sampler::{IN_PROMPT, SamplerState, Slot};
use super::select::{Cut, Measure, Row};
use super::{Kernel, spoil_last};
use crate::memory::View;
use crate::simd::{Simd, math};
use crate::threads::Worker;

/// Elements between two looks at where the maximum is.
const STRIDE: usize = 4096;

/// Bytes of private memory for a vocabulary: edited logits, scaled logits, weights, pairs to sort.
pub(crate) fn scratch_bytes(vocab: usize) -> usize {
    padded(vocab) * (4 + 4 + 4 + 8)
}

fn padded(vocab: usize) -> usize {
    vocab.next_multiple_of(64)
}

/// See `engine_core::backend::Sample`.
pub(crate) struct Sample {
    pub logits: View,
    pub sampler: *const SamplerState,
    pub rows: View,
    pub draft: Option<View>,
    pub mask: Option<View>,
    pub ids: View,
    pub last: View,
    pub accepted: Option<View>,
    pub logprobs: Option<Out>,
}

impl Kernel for Sample {
    const OP: OpKind = OpKind::Sample;
    fn serial(&self, _: u32) -> bool {
        self.logits.rows() == 1
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, _: u32) {
        let count = self.logits.rows();
        assert!(w.scratch_bytes() >= scratch_bytes(self.logits.cols()));
        if count == 1 {
            return self.slot_rows::<S>(w, 0, count);
        }
        while let Some(i) = w.claim(count) {
            if i == 0 || self.row(i - 1).slot != self.row(i).slot || self.row(i).slot < 0 {
                self.slot_rows::<S>(w, i, count);
            }
        }
    }
    unsafe fn spoil(&self) {
        let rows = self.logits.rows();
        for i in 0..rows {
            let id = self.ids.ptr::<i32>().add(i);
            if *id >= 0 {
                *id = (*id + 1) % self.logits.cols() as i32;
            }
        }
        if let Some(out) = &self.logprobs {
            spoil_last(&out.values);
        }
    }
}

impl Sample {
    unsafe fn row(&self, i: usize) -> SampleRow {
        SampleRow::read(std::slice::from_raw_parts(self.rows.row::<u32>(i), SampleRow::WORDS))
    }

    /// All rows of the slot of row `start`.
    #[inline(always)]
    unsafe fn slot_rows<S: Simd>(&self, w: &Worker<'_>, start: usize, count: usize) {
        let ids = self.ids.ptr::<i32>();
        let slot = self.row(start).slot;
        if slot < 0 {
            *ids.add(start) = -1;
            return;
        }
        let mut end = start + 1;
        while end < count && self.row(end).slot == slot {
            end += 1;
        }
        let slot = slot as usize;
        assert!(slot < self.last.cols(), "row slot {slot} of {}", self.last.cols());
        let mut i = start;
        while i < end {
            let row = self.row(i);
            let id = self.one::<S>(w, i, slot, &row);
            if let Some(out) = &self.logprobs {
                logprobs::write_row::<S>(self.logits.row(i), self.logits.cols(), id, out, i);
            }
            (*self.sampler).push(slot, row.flags, id);
            *ids.add(i) = id as i32;
            *self.last.ptr::<i32>().add(slot) = id as i32;
            i += 1;
            let draft = self.draft.as_ref().map_or(-1, |d| *d.ptr::<i32>().add(i - 1));
            if draft >= 0 && draft != id as i32 {
                break;
            }
        }
        if let Some(accepted) = &self.accepted {
            *accepted.ptr::<i32>().add(slot) = i as i32 - end as i32;
        }
        for i in i..end {
            *ids.add(i) = -1;
        }
    }

    #[inline(always)]
    unsafe fn one<S: Simd>(&self, w: &Worker<'_>, i: usize, slot: usize, row: &SampleRow) -> u32 {
        let vocab = self.logits.cols();
        let edits = SampleRow::PENALTIES | SampleRow::RULES | SampleRow::MASK_STOPS | SampleRow::MASKED;
        let mut logits: *const f32 = self.logits.row(i);
        if row.flags & edits != 0 {
            let copy = w.scratch().cast::<f32>();
            std::ptr::copy_nonoverlapping(logits, copy, vocab);
            self.edit(copy, i, slot, row);
            logits = copy;
        }
        let job = Draw { logits, vocab, row, scratch: w.scratch().cast::<f32>().add(padded(vocab)) };
        S::vectorize(
            #[inline(always)]
            || job.run::<S>(),
        )
    }

    /// Allowed ids, bad words, stop ids, bias, mask, penalties.
    unsafe fn edit(&self, logits: *mut f32, i: usize, slot: usize, row: &SampleRow) {
        let vocab = self.logits.cols();
        let logits = std::slice::from_raw_parts_mut(logits, vocab);
        let state: &Slot = (*self.sampler).slot(slot);
        let masked = f32::NEG_INFINITY;
        let rules = row.flags & SampleRow::RULES != 0;
        if rules && !state.all_allowed {
            let raw = std::slice::from_raw_parts(self.logits.row::<f32>(i), vocab);
            logits.fill(masked);
            state.allowed.iter().for_each(|id| logits[*id as usize] = raw[*id as usize]);
        }
        if rules {
            state.each_bad_id(|id| logits[id as usize] = masked);
        }
        if row.flags & SampleRow::MASK_STOPS != 0 {
            state.stops.iter().for_each(|id| logits[*id as usize] = masked);
        }
        if rules {
            state.bias.iter().for_each(|(id, bias)| logits[*id as usize] += bias);
        }
        if let (true, Some(mask)) = (row.flags & SampleRow::MASKED != 0, &self.mask) {
            let words = mask.row::<u32>(i);
            for (word, logits) in logits.chunks_mut(32).enumerate() {
                let word = *words.add(word);
                for (bit, logit) in logits.iter_mut().enumerate().filter(|_| word != u32::MAX) {
                    if word >> bit & 1 == 0 {
                        *logit = masked;
                    }
                }
            }
        }
        if row.flags & SampleRow::PENALTIES != 0 {
            let counts = std::slice::from_raw_parts((*self.sampler).counts(slot), vocab);
            penalize(logits, counts, row);
        }
    }
}

fn penalize(logits: &mut [f32], counts: &[u16], row: &SampleRow) {
    for (logits, counts) in logits.chunks_mut(32).zip(counts.chunks(32)) {
        if counts.iter().fold(0, |all, c| all | c) == 0 {
            continue;
        }
        for (logit, count) in logits.iter_mut().zip(counts).filter(|(_, c)| **c != 0) {
            *logit = if *logit > 0.0 { *logit / row.repetition } else { *logit * row.repetition };
            let generated = count & !IN_PROMPT;
            if generated > 0 {
                *logit -= row.frequency * f32::from(generated);
                *logit -= row.presence;
            }
        }
    }
}

/// One row, its rules applied.
struct Draw<'a> {
    logits: *const f32,
    vocab: usize,
    row: &'a SampleRow,
    /// Room for scaled logits, weights, and pairs.
    scratch: *mut f32,
}

impl Draw<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) -> u32 {
        if self.row.flags & SampleRow::GREEDY != 0 {
            return argmax::<S>(self.logits, self.vocab).1;
        }
        let by = 1.0 / self.row.temperature;
        let filtered = self.row.min_p > 0.0 || self.row.top_k > 0 || self.row.top_p < 1.0;
        if !filtered {
            return self.draw::<S, false>(self.logits, by, Cut::ALL);
        }
        let cut = self.cut::<S>(by);
        self.draw::<S, true>(self.scratch, 1.0, cut)
    }

    /// Scaled logits into the scratch (those that min-p drops as -∞), and where top-k and top-p end.
    #[inline(always)]
    unsafe fn cut<S: Simd>(&self, by: f32) -> Cut {
        let (values, room) = (self.scratch, padded(self.vocab));
        let weights = values.add(room);
        let highest = argmax::<S>(self.logits, self.vocab).0 * by;
        let least = S::splat(self.row.min_p);
        let (never, m) = (S::splat(f32::NEG_INFINITY), S::splat(highest));
        let mut sums = S::zero();
        let mut i = 0;
        while i < room {
            let x = if i + S::W <= self.vocab {
                S::load(self.logits.add(i))
            } else {
                let mut lanes = [f32::NEG_INFINITY; 16];
                for (j, lane) in lanes.iter_mut().enumerate().take(self.vocab.saturating_sub(i)) {
                    *lane = *self.logits.add(i + j);
                }
                S::load(lanes.as_ptr())
            };
            let x = S::mul(x, S::splat(by));
            let weight = math::exp::<S>(S::sub(x, m));
            let kept = S::ge(weight, least);
            let weight = S::select(kept, weight, S::zero());
            S::store(values.add(i), S::select(kept, x, never));
            S::store(weights.add(i), weight);
            sums = S::add(sums, weight);
            i += S::W;
        }
        let pairs = values.add(2 * room).cast();
        let row = Row { values, weights, len: self.vocab, pairs, highest };
        let mut cut = Cut::ALL;
        let mut total = f64::from(S::sum(sums));
        if self.row.top_k > 0 && (self.row.top_k as usize) < self.vocab {
            cut = row.cut::<S>(Measure::Count, f64::from(self.row.top_k));
            total = row.weight_of(cut);
        }
        if self.row.top_p < 1.0 {
            let wanted = (f64::from(self.row.top_p) * total).max(f64::MIN_POSITIVE);
            let by_mass = row.cut::<S>(Measure::Weight, wanted);
            if cut.keeps(by_mass.value, by_mass.id) {
                cut = by_mass;
            }
        }
        cut
    }

    /// Gumbel-max over what the cut keeps: argmax of value · by + noise, ties to the smaller id.
    #[inline(always)]
    unsafe fn draw<S: Simd, const CUT: bool>(&self, values: *const f32, by: f32, cut: Cut) -> u32 {
        let mut best = S::splat(f32::NEG_INFINITY);
        let mut at = S::from_bits(S::isplat(0));
        let (never, by) = (S::splat(f32::NEG_INFINITY), S::splat(by));
        let (mut best_tail, mut tail_id) = (f32::NEG_INFINITY, u32::MAX);
        let mut id = 0;
        while id < self.vocab {
            let whole = id + 4 * S::W <= self.vocab;
            let mut lanes = [f32::NEG_INFINITY; 64];
            if !whole {
                for (j, lane) in lanes.iter_mut().enumerate().take(self.vocab - id) {
                    *lane = *values.add(id + j);
                }
            }
            let from = if whole { values.add(id) } else { lanes.as_ptr() };
            let mut x = [S::zero(); 4];
            let mut any = 0;
            for (v, x) in x.iter_mut().enumerate() {
                *x = S::load(from.add(v * S::W));
                if CUT {
                    let floor = S::splat(cut.value);
                    let first = id + v * S::W;
                    // Equals of the cut are few: they are looked at one by one.
                    let equal = S::mask_bits(S::eq(*x, floor));
                    let mut kept = [f32::NEG_INFINITY; 16];
                    if equal != 0 {
                        S::store(kept.as_mut_ptr(), *x);
                        for (lane, kept) in kept.iter_mut().enumerate().take(S::W) {
                            if !cut.keeps(*kept, (first + lane) as u32) {
                                *kept = f32::NEG_INFINITY;
                            }
                        }
                        *x = S::load(kept.as_ptr());
                    } else {
                        *x = S::select(S::gt(*x, floor), *x, never);
                    }
                    any |= S::mask_bits(S::gt(*x, never));
                }
            }
            if CUT && any == 0 {
                id += 4 * S::W;
                continue;
            }
            let noise = gumbel::<S>(self.row.seed, self.row.position, (id / 4) as u32);
            for v in 0..4 {
                let score = S::add(S::mul(x[v], by), noise[v]);
                let better = S::gt(score, best);
                best = S::select(better, score, best);
                at = S::select(better, S::from_bits(S::isplat((id + v * S::W) as u32)), at);
            }
            id += 4 * S::W;
        }
        let (mut scores, mut ids) = ([f32::NEG_INFINITY; 16], [0u32; 16]);
        S::store(scores.as_mut_ptr(), best);
        S::istore(ids.as_mut_ptr(), S::bits(at));
        for lane in 0..S::W {
            let id = ids[lane] + lane as u32;
            if scores[lane] > best_tail || (scores[lane] == best_tail && id < tail_id) {
                (best_tail, tail_id) = (scores[lane], id);
            }
        }
        tail_id.min(self.vocab as u32 - 1)
    }
}

/// The greatest value and its smallest id.
#[inline(always)]
unsafe fn argmax<S: Simd>(values: *const f32, len: usize) -> (f32, u32) {
    let (mut highest, mut block) = (f32::NEG_INFINITY, 0);
    let mut start = 0;
    while start < len {
        let end = len.min(start + STRIDE);
        let mut top = [S::splat(f32::NEG_INFINITY); 4];
        let mut i = start;
        while i + 4 * S::W <= end {
            for (v, top) in top.iter_mut().enumerate() {
                *top = S::max(*top, S::load(values.add(i + v * S::W)));
            }
            i += 4 * S::W;
        }
        let mut here = S::highest(S::max(S::max(top[0], top[1]), S::max(top[2], top[3])));
        while i < end {
            here = here.max(*values.add(i));
            i += 1;
        }
        if here > highest {
            (highest, block) = (here, start);
        }
        start = end;
    }
    let mut id = block;
    while id < len && *values.add(id) != highest {
        id += 1;
    }
    (highest, if id < len { id as u32 } else { 0 })
}
