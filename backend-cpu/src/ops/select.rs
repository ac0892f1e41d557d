//! Where top-k and top-p cut a row, without sorting the vocabulary.
//!
//! Order means larger value first, among equals the smaller id. A cut is the last element kept. It is found by
//! narrowing a bracket of values: one pass counts and weighs what lies above eight thresholds, until few enough
//! elements remain between two of them to be sorted.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use std::cmp::Ordering;

use crate::simd::Simd;

/// The last element kept: everything greater is kept too, and equals of no greater id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cut {
    pub value: f32,
    pub id: u32,
}

impl Cut {
    /// Keeps everything above -∞.
    pub const ALL: Cut = Cut { value: f32::MIN, id: u32::MAX };

    /// Whether `(value, id)` is kept.
    #[inline(always)]
    pub fn keeps(&self, value: f32, id: u32) -> bool {
        value > self.value || (value == self.value && id <= self.id)
    }
}

/// What is added up over the elements from the top on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Each counts 1.
    Count,
    /// Each counts its weight.
    Weight,
}

/// A row of `len` values, their weights (arrays a multiple of 16 long; padding is -∞ and 0), and room for `len` pairs.
pub(crate) struct Row {
    pub values: *const f32,
    pub weights: *const f32,
    pub len: usize,
    pub pairs: *mut (f32, u32),
    pub highest: f32,
}

const THRESHOLDS: usize = 8;
/// Elements that are sorted rather than narrowed further.
const FEW: usize = 1024;
const MOST_PASSES: usize = 12;

impl Row {
    /// The first element, from the top, at which the measure reaches `wanted` (> 0).
    #[inline(always)]
    pub unsafe fn cut<S: Simd>(&self, measure: Measure, wanted: f64) -> Cut {
        // The cut lies in (low, high]; `above` is the measure of what is greater than `high`.
        let (mut low, mut high) = (f32::NEG_INFINITY, self.highest);
        let (mut above, mut below_count, mut above_count) = (0.0f64, self.len, 0usize);
        for pass in 0..MOST_PASSES {
            if below_count - above_count <= FEW {
                break;
            }
            let thresholds: [f32; THRESHOLDS] = std::array::from_fn(|i| {
                if pass == 0 || low == f32::NEG_INFINITY {
                    high - (1u32 << (2 * i)) as f32 * 0.25
                } else {
                    high - (high - low) * (i + 1) as f32 / (THRESHOLDS + 1) as f32
                }
            });
            let (counts, weights) = self.measure_above::<S>(&thresholds);
            let reached = |i: usize| match measure {
                Measure::Count => counts[i] as f64 >= wanted,
                Measure::Weight => weights[i] >= wanted,
            };
            let first = (0..THRESHOLDS).find(|i| reached(*i)).unwrap_or(THRESHOLDS);
            let (old_low, old_high) = (low, high);
            if first < THRESHOLDS {
                low = thresholds[first];
                below_count = counts[first];
            }
            if first > 0 {
                high = thresholds[first - 1];
                above_count = counts[first - 1];
                above = match measure {
                    Measure::Count => above_count as f64,
                    Measure::Weight => weights[first - 1],
                };
            }
            if low == old_low && high == old_high {
                break;
            }
        }
        self.walk(measure, wanted, low, high, above)
    }

    #[inline(always)]
    unsafe fn measure_above<S: Simd>(
        &self,
        t: &[f32; THRESHOLDS],
    ) -> ([usize; THRESHOLDS], [f64; THRESHOLDS]) {
        let mut counts = [0usize; THRESHOLDS];
        let mut sums = [S::zero(); THRESHOLDS];
        let mut i = 0;
        while i < self.len {
            let (x, w) = (S::load(self.values.add(i)), S::load(self.weights.add(i)));
            for j in 0..THRESHOLDS {
                let m = S::gt(x, S::splat(t[j]));
                counts[j] += S::mask_bits(m).count_ones() as usize;
                sums[j] = S::add(sums[j], S::select(m, w, S::zero()));
            }
            i += S::W;
        }
        let mut weights = [0.0f64; THRESHOLDS];
        for j in 0..THRESHOLDS {
            weights[j] = f64::from(S::sum(sums[j]));
        }
        (counts, weights)
    }

    /// Sorts what lies in (low, high] and walks down it.
    unsafe fn walk(&self, measure: Measure, wanted: f64, low: f32, high: f32, above: f64) -> Cut {
        let mut n = 0;
        for i in 0..self.len {
            let x = *self.values.add(i);
            if x > low && x <= high {
                *self.pairs.add(n) = (x, i as u32);
                n += 1;
            }
        }
        let pairs = std::slice::from_raw_parts_mut(self.pairs, n);
        pairs.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)));
        let mut total = above;
        for (value, id) in pairs.iter() {
            total += match measure {
                Measure::Count => 1.0,
                Measure::Weight => f64::from(*self.weights.add(*id as usize)),
            };
            if total >= wanted {
                return Cut { value: *value, id: *id };
            }
        }
        pairs.last().map_or(Cut::ALL, |(value, id)| Cut { value: *value, id: *id })
    }

    /// Weight of everything a cut keeps.
    pub unsafe fn weight_of(&self, cut: Cut) -> f64 {
        let mut sum = 0.0f64;
        for i in 0..self.len {
            if cut.keeps(*self.values.add(i), i as u32) {
                sum += f64::from(*self.weights.add(i));
            }
        }
        sum
    }
}
