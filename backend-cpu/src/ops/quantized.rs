//! QuantizedMatmul: `out = residual + scale · act(x · Wᵀ + bias + add)` over strips of codes.
//!
//! A block of K of a panel is expanded to f32 in the first-level cache and met there by every tile of rows through
//! the register tiles of the dense product, so that a row's bits depend on its own numbers only: each output is one
//! accumulator that takes k = 0, 1, 2, .. in turn, whatever the number of rows. Codes are read once for up to
//! [`RESULT_ROWS`] rows.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::OpKind;

use super::gemm::{Gemm, WORK_BYTES};
use super::gemm_tile::{self, Kind, ROWS, Tile};
use super::quantized_expand::expand;
use super::{BLOCK, Kernel, MyRows, load_block, spoil_last};
use crate::simd::{Simd, SimdPath};
use crate::strips::{STRIP, Strips};
use crate::threads::Worker;
use crate::weights::PANEL;

/// Rows whose activations each worker interleaves for itself, sparing a barrier.
const PRIVATE_ROWS: usize = 2;
/// Largest K, for which a private copy of those rows is kept.
pub(crate) const MAX_K: usize = super::gemm::MAX_K;
/// Rows whose results a worker keeps until they are whole.
const RESULT_ROWS: usize = 256;
/// Steps of K expanded at once: half a chunk, 16 KiB as f32.
const K_BLOCK: usize = 128;
/// Panels a claim handles at most.
const MOST_PANELS: usize = 16;
/// Elements of shared activations packed by one claim.
const PACK_STEPS: usize = 256;

const RESULTS_AT: usize = PRIVATE_ROWS * MAX_K * 4;
const EXPANDED_AT: usize = RESULTS_AT + RESULT_ROWS * PANEL * 4;
/// Private memory a worker needs.
pub(crate) const SCRATCH_BYTES: usize = EXPANDED_AT + K_BLOCK * PANEL * 4;

/// A product with its epilogue.
pub(crate) struct QuantizedMatmul {
    /// Operands and epilogue; its `w` is where the strips start.
    pub gemm: Gemm,
    /// Of the weight, which outlives the kernel.
    pub strips: *const Strips,
}

/// How a product is cut. Follows from shapes and path only.
#[derive(Clone, Copy)]
struct Cut {
    /// Rows of a tile.
    tile: usize,
    /// Rows handled between two packings of activations.
    super_rows: usize,
}

impl Kernel for QuantizedMatmul {
    const OP: OpKind = OpKind::QuantizedMatmul;

    fn phases(&self) -> u32 {
        let supers = self.gemm.x.rows().div_ceil(self.cut().super_rows).max(1) as u32;
        if self.packs_privately() { 1 } else { 2 * supers }
    }

    fn serial(&self, _: u32) -> bool {
        // Tiny products (test models): a barrier costs more than the work.
        self.gemm.x.rows() * self.gemm.n * self.gemm.k <= 16 << 10
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let cut = self.cut();
        let rows = self.gemm.x.rows();
        if self.packs_privately() {
            let a = w.scratch().cast::<f32>();
            self.pack_tile::<S>(&cut, 0, rows, 0..self.gemm.k, a);
            return self.multiply::<S>(w, &cut, a, 0, rows);
        }
        let first = (phase / 2) as usize * cut.super_rows;
        let count = cut.super_rows.min(rows - first);
        let work = self.gemm.work.cast::<f32>();
        if phase.is_multiple_of(2) {
            self.pack::<S>(w, &cut, first, count, work);
        } else {
            self.multiply::<S>(w, &cut, work, first, count);
        }
    }

    unsafe fn spoil(&self) {
        spoil_last(&self.gemm.out)
    }
}

impl QuantizedMatmul {
    fn packs_privately(&self) -> bool {
        self.gemm.x.rows() <= PRIVATE_ROWS
    }

    fn cut(&self) -> Cut {
        let most = if matches!(self.gemm.path, SimdPath::Avx512 | SimdPath::Avx512Bf16 | SimdPath::Amx) {
            12
        } else {
            6
        };
        let rows = self.gemm.x.rows().max(1);
        let even = rows.div_ceil(rows.div_ceil(most));
        let tile = ROWS.into_iter().find(|r| *r >= even).unwrap_or(most).min(most);
        let fit = WORK_BYTES / (self.gemm.k * tile * 4).max(1);
        Cut { tile, super_rows: fit.max(1) * tile }
    }

    /// Interleaves `count` rows from `first` on into `into` [tile][k][R].
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, w: &Worker<'_>, cut: &Cut, first: usize, count: usize, into: *mut f32) {
        let (tiles, k) = (count.div_ceil(cut.tile), self.gemm.k);
        let pieces = k.div_ceil(PACK_STEPS);
        let mut items = MyRows::new(w, self.serial(0), tiles * pieces, 4096);
        while let Some(i) = items.next() {
            let (tile, piece) = (i / pieces, i % pieces);
            let row = first + tile * cut.tile;
            let rows = cut.tile.min(first + count - row);
            let ks = piece * PACK_STEPS..k.min((piece + 1) * PACK_STEPS);
            self.pack_tile::<S>(cut, row, rows, ks, into.add(tile * k * cut.tile));
        }
    }

    /// Steps `ks` of `rows` rows from `row` on, interleaved; rows past the last are zeros.
    #[inline(always)]
    unsafe fn pack_tile<S: Simd>(
        &self,
        cut: &Cut,
        row: usize,
        rows: usize,
        ks: std::ops::Range<usize>,
        into: *mut f32,
    ) {
        let (tile, x) = (cut.tile, &self.gemm.x);
        let mut block = [0.0f32; BLOCK];
        for r in 0..tile {
            for i in ks.clone().step_by(BLOCK) {
                let n = BLOCK.min(ks.end - i);
                match &(*self.strips).order {
                    _ if r >= rows => block[..n].fill(0.0),
                    None => load_block::<S, _>(x.dtype, x.row(row + r), i, n, &mut block),
                    Some(order) => {
                        let mut one = [0.0f32; 16];
                        for (value, k) in block.iter_mut().zip(&order[i..i + n]) {
                            load_block::<S, _>(x.dtype, x.row(row + r), *k as usize, 1, &mut one);
                            *value = one[0];
                        }
                    }
                }
                for (j, x) in block.iter().enumerate().take(n) {
                    *into.add((i + j) * tile + r) = *x;
                }
            }
        }
    }

    /// Panels times the packed rows `first..first + count`.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, w: &Worker<'_>, cut: &Cut, a: *const f32, first: usize, count: usize) {
        let share = self.gemm.panels.div_ceil(w.count * 4).max(1);
        let run = share.min(MOST_PANELS);
        let mut items = MyRows::new(w, self.serial(0), self.gemm.panels.div_ceil(run), 4096);
        while let Some(c) = items.next() {
            for panel in c * run..self.gemm.panels.min((c + 1) * run) {
                self.panel::<S>(w, cut, a, first, count, panel);
            }
        }
    }

    /// One panel with all packed rows, as many at a time as results are kept for.
    #[inline(always)]
    unsafe fn panel<S: Simd>(
        &self,
        w: &Worker<'_>,
        cut: &Cut,
        a: *const f32,
        first: usize,
        count: usize,
        panel: usize,
    ) {
        let c = w.scratch().add(RESULTS_AT).cast::<f32>();
        let wide = w.scratch().add(EXPANDED_AT).cast::<f32>();
        let tiles = count.div_ceil(cut.tile);
        let block = (RESULT_ROWS / cut.tile).max(1);
        for start in (0..tiles).step_by(block) {
            let some = start..tiles.min(start + block);
            for k in (0..self.gemm.k).step_by(K_BLOCK) {
                let steps = K_BLOCK.min(self.gemm.k - k);
                self.expand_panel::<S>(panel, k, steps, wide);
                for tile in some.clone() {
                    let t = Tile {
                        a: a.add((tile * self.gemm.k + k) * cut.tile).cast(),
                        b: wide.cast(),
                        b_next: 0,
                        k: steps,
                        c: c.add((tile - start) * cut.tile * PANEL),
                        c_next: 0,
                        fresh: k == 0,
                        ahead: std::ptr::null(),
                        ahead_step: 0,
                    };
                    gemm_tile::run::<S>(Kind::F32, cut.tile, false, &t);
                }
            }
            let begin = start * cut.tile;
            let rows = count.min(some.end * cut.tile) - begin;
            self.gemm.finish_rows::<S>(c, first + begin, rows, panel);
        }
    }

    /// Steps `k..k + steps` of both strips of a panel, rounded up to whole quads.
    #[inline(always)]
    unsafe fn expand_panel<S: Simd>(&self, panel: usize, k: usize, steps: usize, wide: *mut f32) {
        let (strips, base) = (&*self.strips, self.gemm.w);
        S::vectorize(
            #[inline(always)]
            || {
                for half in 0..PANEL / STRIP {
                    let strip = strips.strips[panel * (PANEL / STRIP) + half];
                    let wide = wide.add(half * STRIP);
                    match strip.format {
                        Some(f) => {
                            let steps = steps.next_multiple_of(4);
                            expand::<S>(&strips.formats[f], base.add(strip.at), k, steps, wide);
                        }
                        None => {
                            for step in 0..steps {
                                std::ptr::write_bytes(wide.add(step * PANEL), 0, STRIP);
                            }
                        }
                    }
                }
            },
        )
    }
}
