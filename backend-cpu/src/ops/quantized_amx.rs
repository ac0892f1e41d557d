//! The products of [`super::quantized_bytes`] by AMX tiles: the sums of all runs of a chunk by 16 rows and 16 outputs,
//! then their scales, row by row in vectors. The sums are exact, so that one row, which is faster by vectors alone, has
//! the same bits.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use super::quantized::QuantizedMatmul;
use super::quantized_bytes::{Chunk8, Layout, SUMS_AT, Tile8};
use crate::simd::amx::{self, ByteRuns};
use crate::simd::dot8::Dot8;
use crate::simd::{Simd, SimdPath};
use crate::strips::STRIP;
use crate::threads::Worker;
use crate::weights::PANEL;

/// Rows of a tile.
pub(super) const TILE: usize = amx::ROWS;
/// Steps of K that a tile of bytes has at most, and at least here.
pub(super) const MOST_STEP: usize = 64;
const LEAST_STEP: usize = 32;
/// Bytes of the sums of a run.
pub(super) const SUM_BYTES: usize = TILE * STRIP * 4;
/// Fewer rows are faster by vectors: a tile takes as long for one row as for sixteen.
const LEAST_ROWS: usize = 5;

/// Whether so many rows go this way; `run` steps of K share a scale, of `quads` · 4.
pub(super) fn takes(path: SimdPath, rows: usize, run: usize, quads: usize) -> bool {
    let whole = run >= LEAST_STEP && (4 * quads).is_multiple_of(run);
    path == SimdPath::Amx && rows >= LEAST_ROWS && whole && amx::has_bytes()
}

impl QuantizedMatmul {
    /// A chunk with a tile of 16 rows.
    #[inline(always)]
    pub(super) unsafe fn meet_amx<S: Simd, D: Dot8<S>>(
        &self,
        w: &Worker<'_>,
        l: &Layout,
        codes: &Chunk8,
        t: &Tile8,
    ) {
        let sums = w.scratch().add(SUMS_AT).cast::<i32>();
        amx::multiply_bytes(&ByteRuns {
            a: t.x.cast(),
            b: codes.codes,
            c: sums,
            runs: codes.quads / t.run_quads,
            steps: t.run_quads / l.step_quads,
            step_bytes: l.step_quads * 4,
            signed: codes.signed,
        });
        D::vectorize(
            #[inline(always)]
            || scale_sums::<S>(codes, t, sums.cast()),
        );
    }
}

/// The runs' sums by their scales, added in turn to the results of 16 rows.
#[inline(always)]
unsafe fn scale_sums<S: Simd>(w: &Chunk8, t: &Tile8, sums: *const u32) {
    for lane in (0..STRIP).step_by(S::W) {
        let mut acc = [S::zero(); TILE];
        if !t.fresh {
            for r in 0..TILE {
                acc[r] = S::load(t.c.add(r * PANEL + lane));
            }
        }
        for run in 0..w.quads / t.run_quads {
            let sums = sums.add(run * TILE * STRIP + lane);
            let scaled = t.runs.add(run * t.run_words).cast::<f32>();
            let scale = S::load(w.scales.add(run * STRIP + lane));
            for r in 0..TILE {
                let sum = S::to_float(S::iload(sums.add(r * STRIP)));
                acc[r] = S::fma(sum, S::mul(scale, S::splat(*scaled.add(r))), acc[r]);
            }
            if !w.offsets.is_null() {
                let offset = S::load(w.offsets.add(run * STRIP + lane));
                for r in 0..TILE {
                    acc[r] = S::fma(offset, S::splat(*scaled.add(TILE + r)), acc[r]);
                }
            }
        }
        for r in 0..TILE {
            S::store(t.c.add(r * PANEL + lane), acc[r]);
        }
    }
}
