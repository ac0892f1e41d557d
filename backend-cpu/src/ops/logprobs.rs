//! LogProbs: log-probabilities of a given id and of the best ids, without sorting the vocabulary.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::OpKind;

use super::{Kernel, spoil_last};
use crate::memory::View;
use crate::simd::{Simd, math};
use crate::threads::Worker;

/// Most best ids of one row.
pub(crate) const MOST_BEST: usize = 512;

/// Where log-probabilities of logits rows go; see `engine_core::backend::LogprobsOut`.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub ids: View,
    pub values: View,
    pub ranks: View,
}

/// ids [L] of logits [L, V].
pub(crate) struct LogProbs {
    pub logits: View,
    pub ids: View,
    pub out: Out,
}

impl Kernel for LogProbs {
    const OP: OpKind = OpKind::LogProbs;
    fn serial(&self, _: u32) -> bool {
        self.logits.rows() == 1
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, _: u32) {
        let rows = self.logits.rows();
        let mut next = 0;
        while let Some(i) = if rows == 1 { (next == 0).then_some(0) } else { w.claim(rows) } {
            next += 1;
            let id = *self.ids.ptr::<i32>().add(i);
            if id >= 0 {
                write_row::<S>(self.logits.row(i), self.logits.cols(), id as u32, &self.out, i);
            }
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.out.values)
    }
}

/// Writes row `i` of `out` for `id` under the raw logits [V].
#[inline(always)]
pub(crate) unsafe fn write_row<S: Simd>(logits: *const f32, vocab: usize, id: u32, out: &Out, i: usize) {
    assert!((id as usize) < vocab, "token id {id} in a vocabulary of {vocab}");
    let top = out.ids.cols() - 1;
    let mut best = Best { pairs: [(f32::NEG_INFINITY, 0); MOST_BEST], len: 0, wanted: top.min(vocab) };
    let own = *logits.add(id as usize);
    let (log_sum, greater) = scan::<S>(logits, vocab, own, &mut best);
    let (ids, values) = (out.ids.row::<i32>(i), out.values.row::<f32>(i));
    *ids = id as i32;
    *values = own - log_sum;
    for (j, (value, id)) in best.pairs.iter().enumerate().take(best.len) {
        *ids.add(1 + j) = *id as i32;
        *values.add(1 + j) = value - log_sum;
    }
    *out.ranks.ptr::<i32>().add(i) = 1 + greater as i32;
}

/// Log-sum-exp of the row and how many are greater than `own`; the best go into `best`.
#[inline(always)]
unsafe fn scan<S: Simd>(logits: *const f32, vocab: usize, own: f32, best: &mut Best) -> (f32, u32) {
    let whole = vocab - vocab % S::W;
    let mut top = S::splat(f32::NEG_INFINITY);
    let mut greater = 0;
    for i in (0..whole).step_by(S::W) {
        let x = S::load(logits.add(i));
        top = S::max(top, x);
        greater += S::mask_bits(S::gt(x, S::splat(own))).count_ones();
        if best.wanted > 0 {
            let mut hits = S::mask_bits(S::gt(x, S::splat(best.threshold())));
            while hits != 0 {
                let lane = hits.trailing_zeros() as usize;
                best.offer(*logits.add(i + lane), (i + lane) as u32);
                hits &= hits - 1;
            }
        }
    }
    let mut highest = S::highest(top);
    for i in whole..vocab {
        let x = *logits.add(i);
        highest = highest.max(x);
        greater += u32::from(x > own);
        best.offer(x, i as u32);
    }
    let mut sums = [S::zero(); 4];
    let m = S::splat(highest);
    for (n, i) in (0..whole).step_by(S::W).enumerate() {
        sums[n % 4] = S::add(sums[n % 4], math::exp::<S>(S::sub(S::load(logits.add(i)), m)));
    }
    let mut sum = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
    for i in whole..vocab {
        sum += (*logits.add(i) - highest).exp();
    }
    (highest + sum.ln(), greater)
}

/// The best so far, best first; ids come in rising order, so that an equal never displaces an earlier one.
struct Best {
    pairs: [(f32, u32); MOST_BEST],
    len: usize,
    wanted: usize,
}

impl Best {
    #[inline(always)]
    fn threshold(&self) -> f32 {
        if self.len < self.wanted { f32::NEG_INFINITY } else { self.pairs[self.wanted - 1].0 }
    }

    fn offer(&mut self, value: f32, id: u32) {
        if self.wanted == 0 || (self.len == self.wanted && value <= self.threshold()) {
            return;
        }
        let at = self.pairs[..self.len].partition_point(|p| p.0 >= value);
        self.len = (self.len + 1).min(self.wanted);
        self.pairs.copy_within(at..self.len - 1, at + 1);
        self.pairs[at] = (value, id);
    }
}
