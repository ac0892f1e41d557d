//! Gemm: `out = residual + scale · act(x · Wᵀ + bias + add)` over dense weights.
//!
//! Few rows (one tile): every worker claims runs of panels and streams each once from memory, prefetching; this is
//! the decode step, bound by bandwidth. More rows: a block of 128 or 256 steps of K of a panel is widened to f32 into the
//! first-level cache and met by all tiles there, while the next block is prefetched from memory. Activations that
//! fit the second-level cache stay there over a whole panel; more of them (prefill, bound by arithmetic) are cut into
//! blocks of rows and of K that stay there while the panels of a claim pass by.
//! Activations are interleaved by tile once per op ([k][R]), so that a tile reads them as one stream of broadcasts.
//! Which way is taken never shows in the bits: see [`super::gemm_tile`]. Where there are AMX tiles, bfloat16 goes
//! the ways of [`super::gemm_amx`].
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use std::ops::Range;

use engine_core::DType;
use engine_core::backend::{Activation, OpKind};

use super::gemm_tile::{self, Kind, Tile, expand};
use super::{BLOCK, Kernel, MyRows, Packed, load_block, spoil_last};
use crate::memory::View;
use crate::simd::{Simd, SimdPath, amx};
use crate::threads::Worker;
use crate::weights::PANEL;

/// Shared memory of a stream for interleaved activations.
pub(crate) const WORK_BYTES: usize = 16 << 20;
/// Largest K: what a private copy of two rows and a claim's results leave room for.
pub(crate) const MAX_K: usize = 128 << 10;
/// Rows whose activations each worker interleaves for itself, sparing a barrier.
pub(super) const PRIVATE_ROWS: usize = 2;
/// Bytes of weights a claim streams when there are few rows.
pub(super) const CLAIM_BYTES: usize = 512 << 10;
/// How far ahead weights are prefetched.
const AHEAD: usize = 2048;
/// Tiles that share the prefetching of a block.
const PREFETCH_SHARES: usize = 4;
/// Steps of K in a block that several tiles meet, at most.
const K_BLOCK: usize = 256;
/// The same for few tiles, which are over before a block of that size is there from memory: with its activations and
/// the next block it leaves room in a first-level cache of 32 KiB.
const SMALL_K_BLOCK: usize = 128;
/// Tiles that are few.
const FEW_TILES: usize = 4;
/// Bytes of activations that stay in the second-level cache.
const A_BYTES: usize = 1 << 20;
/// Rows whose results a worker keeps until they are whole.
pub(super) const RESULT_ROWS: usize = 256;
/// Panels a claim handles at most.
pub(super) const MOST_PANELS: usize = 16;

const PRIVATE_AT: usize = 0;
const PRIVATE_BYTES: usize = PRIVATE_ROWS * MAX_K * 4;
pub(super) const RESULTS_AT: usize = PRIVATE_BYTES;
const RESULTS_BYTES: usize = MOST_PANELS * RESULT_ROWS * PANEL * 4;
const EXPANDED_AT: usize = RESULTS_AT + RESULTS_BYTES;
/// Private memory a worker needs.
pub(crate) const SCRATCH_BYTES: usize = EXPANDED_AT + K_BLOCK * PANEL * 4;

/// A product with its epilogue.
pub(crate) struct Gemm {
    pub x: View,
    pub w: *const u8,
    pub dtype: DType,
    pub n: usize,
    pub k: usize,
    pub panels: usize,
    pub panel_bytes: usize,
    /// Gate and up interleaved in each panel.
    pub gate_up: bool,
    /// [N] f32, or null; whole pages, so reading a panel past N is harmless.
    pub bias: *const f32,
    pub add: Option<View>,
    pub act: Activation,
    pub scale: Option<f32>,
    pub residual: Option<View>,
    pub out: View,
    pub work: *mut u8,
    pub path: SimdPath,
}

/// How a product is cut. Follows from shapes and path only.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    kind: Kind,
    /// Rows of a tile.
    tile: usize,
    /// K as it is walked: even for pairs.
    k: usize,
    /// Rows handled between two packings of activations.
    super_rows: usize,
}

/// Packed rows that a claim handles together.
struct Rows {
    a: *const u8,
    tiles: Range<usize>,
}

impl Kernel for Gemm {
    const OP: OpKind = OpKind::Gemm;

    fn way(&self) -> usize {
        let cut = self.cut();
        let in_pairs = matches!(cut.kind, Kind::Dot | Kind::Tiles);
        2 * usize::from(in_pairs) + usize::from(self.x.rows() > cut.tile)
    }

    fn phases(&self) -> u32 {
        let cut = self.cut();
        let supers = self.x.rows().div_ceil(cut.super_rows).max(1) as u32;
        if self.packs_privately(&cut) { 1 } else { 2 * supers }
    }

    fn serial(&self, _: u32) -> bool {
        // Tiny products (test models): a barrier costs more than the work.
        self.is_tiny()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let cut = self.cut();
        let rows = self.x.rows();
        if self.packs_privately(&cut) {
            let a = w.scratch().add(PRIVATE_AT);
            if cut.kind == Kind::Tiles {
                self.pack_own_tiles::<S>(a, rows);
            } else {
                self.pack_tile::<S>(&cut, 0, rows, 0..cut.k, a);
            }
            return self.multiply::<S>(w, &cut, &Packed { a, first: 0, count: rows });
        }
        let first = (phase / 2) as usize * cut.super_rows;
        let count = cut.super_rows.min(rows - first);
        if phase.is_multiple_of(2) {
            self.pack::<S>(w, &cut, first, count);
        } else {
            self.multiply::<S>(w, &cut, &Packed { a: self.work, first, count });
        }
    }

    unsafe fn spoil(&self) {
        spoil_last(&self.out)
    }
}

impl Gemm {
    fn packs_privately(&self, cut: &Cut) -> bool {
        match cut.kind {
            Kind::Tiles => self.x.rows() <= cut.tile && cut.kind.act_bytes(cut.k, cut.tile) <= PRIVATE_BYTES,
            _ => self.x.rows() <= PRIVATE_ROWS,
        }
    }

    /// Too little work to share.
    pub(super) fn is_tiny(&self) -> bool {
        self.x.rows() * self.panels * self.panel_bytes <= 32 << 10
    }

    fn cut(&self) -> Cut {
        let kind = match self.dtype {
            DType::F32 => Kind::F32,
            DType::F16 => Kind::F16,
            _ if self.path == SimdPath::Avx512Bf16 && self.x.dtype == DType::Bf16 => Kind::Dot,
            _ if self.path == SimdPath::Amx && self.x.dtype == DType::Bf16 => Kind::Tiles,
            _ => Kind::Pairs,
        };
        let most = if self.path.lanes() == 16 { 12 } else { 6 };
        let tile = match kind {
            Kind::Tiles => amx::ROWS,
            _ => gemm_tile::even(self.x.rows(), most),
        };
        let k = if self.dtype == DType::Bf16 { self.k.next_multiple_of(2) } else { self.k };
        let fit = WORK_BYTES / kind.act_bytes(k, tile).max(1);
        Cut { kind, tile, k, super_rows: fit.max(1) * tile }
    }

    /// Interleaves `count` rows from `first` on into the shared memory.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, w: &Worker<'_>, cut: &Cut, first: usize, count: usize) {
        if cut.kind == Kind::Tiles {
            return self.pack_tiles::<S>(w, first, count);
        }
        let tiles = count.div_ceil(cut.tile);
        let pieces = cut.k.div_ceil(K_BLOCK);
        let mut items = MyRows::new(w, self.serial(0), tiles * pieces, 4096);
        while let Some(i) = items.next() {
            let (tile, piece) = (i / pieces, i % pieces);
            let row = first + tile * cut.tile;
            let rows = cut.tile.min(first + count - row);
            let ks = piece * K_BLOCK..cut.k.min((piece + 1) * K_BLOCK);
            self.pack_tile::<S>(
                cut,
                row,
                rows,
                ks,
                self.work.add(tile * cut.kind.act_bytes(cut.k, cut.tile)),
            );
        }
    }

    /// Steps `ks` of `rows` rows from `row` on, interleaved; rows past the last and steps past K are zeros.
    #[inline(always)]
    unsafe fn pack_tile<S: Simd>(&self, cut: &Cut, row: usize, rows: usize, ks: Range<usize>, into: *mut u8) {
        if cut.kind == Kind::Dot {
            return self.pack_pairs(cut, row, rows, ks, into.cast());
        }
        let into = into.cast::<f32>();
        let tile = cut.tile;
        let mut block = [0.0f32; BLOCK];
        for r in 0..tile {
            for i in ks.clone().step_by(BLOCK) {
                let n = BLOCK.min(ks.end - i);
                let have = if r < rows { n.min(self.k.saturating_sub(i)) } else { 0 };
                if have > 0 {
                    load_block::<S, _>(self.x.dtype, self.x.row(row + r), i, have, &mut block);
                }
                block[have..n].fill(0.0);
                for (j, x) in block.iter().enumerate().take(n) {
                    *into.add((i + j) * tile + r) = *x;
                }
            }
        }
    }

    /// As [`Gemm::pack_tile`] for pairs of bfloat16.
    unsafe fn pack_pairs(&self, cut: &Cut, row: usize, rows: usize, ks: Range<usize>, into: *mut u32) {
        for r in 0..cut.tile {
            let x = self.x.row::<u16>(row + r.min(rows - 1));
            for pair in ks.start / 2..ks.end.div_ceil(2) {
                let get =
                    |k: usize| if r < rows && k < self.k { u32::from(x.add(k).read_unaligned()) } else { 0 };
                *into.add(pair * cut.tile + r) = get(2 * pair) | get(2 * pair + 1) << 16;
            }
        }
    }

    /// Panels times packed rows.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, w: &Worker<'_>, cut: &Cut, rows: &Packed) {
        if cut.kind == Kind::Tiles {
            return self.multiply_tiles::<S>(w, rows);
        }
        let share = self.panels.div_ceil(w.count * 4).max(1);
        let run = if rows.count <= cut.tile {
            (CLAIM_BYTES / self.panel_bytes.max(1)).next_multiple_of(2).clamp(1, MOST_PANELS)
        } else {
            MOST_PANELS
        };
        let run = run.min(share.next_multiple_of(2));
        let claims = self.panels.div_ceil(run);
        let mut items = MyRows::new(w, self.serial(0), claims, 4096);
        while let Some(c) = items.next() {
            let panels = c * run..self.panels.min((c + 1) * run);
            if rows.count <= cut.tile {
                self.stream::<S>(w, cut, rows, panels);
            } else {
                self.blocked::<S>(w, cut, rows, panels);
            }
        }
    }

    /// One tile of rows: each panel is read once, front to back.
    #[inline(always)]
    unsafe fn stream<S: Simd>(&self, w: &Worker<'_>, cut: &Cut, rows: &Packed, panels: Range<usize>) {
        let c = w.scratch().add(RESULTS_AT).cast::<f32>();
        let c_next = cut.tile * PANEL;
        let mut p = panels.start;
        while p < panels.end {
            let two = S::W == 16 && cut.tile <= 3 && p + 1 < panels.end;
            let b = self.w.add(p * self.panel_bytes);
            let (ahead, ahead_step) = (b.wrapping_add(AHEAD), cut.kind.panel_bytes(2) / 2);
            let (b_next, k) = (self.panel_bytes, cut.k);
            let t = Tile { a: rows.a, b, b_next, k, c, c_next, fresh: true, ahead, ahead_step };
            gemm_tile::run::<S>(cut.kind, cut.tile, two, &t);
            for i in 0..if two { 2 } else { 1 } {
                self.finish_rows::<S>(c.add(i * c_next), rows.first, rows.count, p + i);
            }
            p += if two { 2 } else { 1 };
        }
    }

    /// Many rows.
    #[inline(always)]
    unsafe fn blocked<S: Simd>(&self, w: &Worker<'_>, cut: &Cut, rows: &Packed, panels: Range<usize>) {
        let c = w.scratch().add(RESULTS_AT).cast::<f32>();
        let wide = w.scratch().add(EXPANDED_AT).cast::<f32>();
        let tiles = rows.count.div_ceil(cut.tile);
        let k_block = if tiles <= FEW_TILES { SMALL_K_BLOCK } else { K_BLOCK };
        let block = (RESULT_ROWS / cut.tile).clamp(1, tiles);
        let stays = tiles == block && cut.kind.act_bytes(cut.k, rows.count) <= A_BYTES;
        // One panel after the other where all activations stay in the cache, else all of the claim together.
        let together = if stays { 1 } else { panels.len() };
        for start in (0..tiles).step_by(block) {
            let some_rows = Rows { a: rows.a, tiles: start..tiles.min(start + block) };
            let height = some_rows.tiles.len() * cut.tile;
            let mut p = panels.start;
            while p < panels.end {
                let some = p..panels.end.min(p + together);
                let sums = |panel: usize| c.add((panel - p) * height * PANEL);
                for k in (0..cut.k).step_by(k_block) {
                    for i in some.clone() {
                        let next = if stays {
                            self.w.wrapping_add(i * self.panel_bytes + cut.kind.panel_bytes(k + k_block))
                        } else {
                            self.w.wrapping_add((i + 1) * self.panel_bytes + cut.kind.panel_bytes(k))
                        };
                        let ks = k..cut.k.min(k + k_block);
                        self.block::<S>(cut, &some_rows, i, ks, wide, sums(i), next);
                    }
                }
                let begin = start * cut.tile;
                let count = rows.count.min(begin + height) - begin;
                for i in some.clone() {
                    self.finish_rows::<S>(sums(i), rows.first + begin, count, i);
                }
                p = some.end;
            }
        }
    }

    /// One block of K of one panel with some tiles of rows; `next` is prefetched meanwhile.
    #[inline(always)]
    unsafe fn block<S: Simd>(
        &self,
        cut: &Cut,
        rows: &Rows,
        panel: usize,
        ks: Range<usize>,
        wide: *mut f32,
        c: *mut f32,
        next: *const u8,
    ) {
        let (k, steps) = (ks.start, ks.len());
        let mut b = self.w.add(panel * self.panel_bytes + cut.kind.panel_bytes(k));
        let mut kind = cut.kind;
        if matches!(kind, Kind::F16 | Kind::Pairs) {
            let source = b;
            S::vectorize(
                #[inline(always)]
                || expand::<S>(kind, source, steps, wide),
            );
            (kind, b) = (Kind::F32, wide.cast());
        }
        let tile_bytes = cut.kind.act_bytes(cut.k, cut.tile);
        // The first tiles share the prefetching of the next block, so that none asks for more than memory gives.
        let shares = rows.tiles.len().min(PREFETCH_SHARES);
        let next_bytes = cut.kind.panel_bytes(steps);
        for tile in rows.tiles.clone() {
            let share = tile - rows.tiles.start;
            let ahead = if share < shares {
                next.wrapping_add(share * (next_bytes / shares))
            } else {
                std::ptr::null()
            };
            let t = Tile {
                a: rows.a.add(tile * tile_bytes + cut.kind.act_bytes(k, cut.tile)),
                b,
                b_next: 0,
                k: steps,
                c: c.add((tile - rows.tiles.start) * cut.tile * PANEL),
                c_next: 0,
                fresh: k == 0,
                ahead,
                ahead_step: next_bytes / shares / steps,
            };
            gemm_tile::run::<S>(kind, cut.tile, false, &t);
        }
    }
}
