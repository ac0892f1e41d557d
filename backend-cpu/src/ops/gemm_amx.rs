//! The products of [`super::gemm`] by AMX tiles: bfloat16 weights and activations, f32 sums.
//!
//! Activations are cut into tiles of 16 rows × 32 steps of K once per op. Up to 16 rows: a panel is streamed from
//! memory in one loop over K. More: a block of [`BLOCK_STEPS`] steps of a panel stays in the first-level cache and
//! is met by all tiles of a block of rows, whose activations stay in the second-level cache, while the next block of
//! weights is prefetched. Where not even one block of rows fits for all of K, K is cut into slabs and the sums of
//! all panels of a claim wait in the second-level cache between slabs.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use std::ops::Range;

use super::gemm::{CLAIM_BYTES, Gemm, MOST_PANELS, RESULT_ROWS, RESULTS_AT};
use super::{MyRows, Packed};
use crate::simd::Simd;
use crate::simd::amx::{self, PANEL_STEP_BYTES, ROWS, Run, STEPS, TILE_BYTES, Tiles};
use crate::threads::Worker;
use crate::weights::PANEL;

/// Tile steps of a block of a panel: 16 KiB, which stay in the first-level cache beside as much of a pair of activation
/// tiles and the sums of both.
const BLOCK_STEPS: usize = 8;
/// Tile steps packed by one claim.
const PIECE_STEPS: usize = 32;
/// Bytes of activations meant to stay in the second-level cache.
const SLAB_BYTES: usize = 1 << 20;
/// How far ahead of a streamed panel memory is asked for.
const AHEAD: usize = 4096;
/// Cache lines of a panel that a tile step reads.
const STEP_LINES: usize = PANEL_STEP_BYTES / 64;

/// Tile steps of K, the last maybe partial.
pub(super) fn steps_of(k: usize) -> usize {
    k.div_ceil(STEPS)
}

/// Bytes of `tiles` activation tiles over all of K.
pub(super) fn act_bytes(k: usize, tiles: usize) -> usize {
    steps_of(k) * tiles * TILE_BYTES
}

/// Activations as [block of K][tile of rows][step][16][32].
#[derive(Clone, Copy)]
struct Acts {
    at: *const u8,
    tiles: usize,
    /// Tile steps of K.
    steps: usize,
}

impl Acts {
    /// Tile `tile` at step `step`.
    fn tile(&self, tile: usize, step: usize) -> *const u8 {
        let (block, within) = (step / BLOCK_STEPS * BLOCK_STEPS, step % BLOCK_STEPS);
        let steps = BLOCK_STEPS.min(self.steps - block);
        self.at.wrapping_add((block * self.tiles + tile * steps + within) * TILE_BYTES)
    }
}

/// A block of K of a panel.
struct Block {
    panel: usize,
    steps: Range<usize>,
    /// Where its sums are: [rows][32].
    c: *mut f32,
    /// What is read next.
    next: *const u8,
}

impl Gemm {
    /// Cuts `count` rows from `first` on into tiles, in pieces that all workers claim; rows past the last and steps
    /// past K are zeros.
    #[inline(always)]
    pub(super) unsafe fn pack_tiles<S: Simd>(&self, w: &Worker<'_>, first: usize, count: usize) {
        let acts = self.acts(self.work, count);
        let pieces = acts.steps.div_ceil(PIECE_STEPS);
        let mut items = MyRows::new(w, self.is_tiny(), acts.tiles * pieces, 4096);
        while let Some(i) = items.next() {
            self.pack_piece(&acts, first, count, i / pieces, i % pieces);
        }
    }

    /// As [`Gemm::pack_tiles`], all of it by this worker.
    #[inline(always)]
    pub(super) unsafe fn pack_own_tiles<S: Simd>(&self, into: *mut u8, count: usize) {
        let acts = self.acts(into, count);
        for tile in 0..acts.tiles {
            for piece in 0..acts.steps.div_ceil(PIECE_STEPS) {
                self.pack_piece(&acts, 0, count, tile, piece);
            }
        }
    }

    fn acts(&self, at: *const u8, count: usize) -> Acts {
        Acts { at, tiles: count.div_ceil(ROWS), steps: steps_of(self.k) }
    }

    /// Some steps of a tile, step by step: sixteen streams in, one out.
    #[inline(always)]
    unsafe fn pack_piece(&self, acts: &Acts, first: usize, count: usize, tile: usize, piece: usize) {
        let row = |r: usize| self.x.row::<u16>(first + (tile * ROWS + r).min(count - 1)).cast_const();
        let rows: [*const u16; ROWS] = std::array::from_fn(row);
        for step in piece * PIECE_STEPS..acts.steps.min((piece + 1) * PIECE_STEPS) {
            let into = acts.tile(tile, step).cast_mut().cast::<u16>();
            let have = STEPS.min(self.k - step * STEPS);
            for (r, x) in rows.iter().enumerate() {
                let into = into.add(r * STEPS);
                if tile * ROWS + r >= count {
                    std::ptr::write_bytes(into, 0, STEPS);
                } else if have == STEPS {
                    std::ptr::copy_nonoverlapping(x.add(step * STEPS), into, STEPS);
                } else {
                    std::ptr::write_bytes(into, 0, STEPS);
                    std::ptr::copy_nonoverlapping(x.add(step * STEPS), into, have);
                }
            }
        }
    }

    /// Panels times packed rows.
    #[inline(always)]
    pub(super) unsafe fn multiply_tiles<S: Simd>(&self, w: &Worker<'_>, rows: &Packed) {
        let acts = self.acts(rows.a, rows.count);
        let share = self.panels.div_ceil(w.count * 4).max(1);
        let wanted = if acts.tiles == 1 { CLAIM_BYTES / self.panel_bytes.max(1) } else { MOST_PANELS };
        let run = wanted.next_multiple_of(2).clamp(1, MOST_PANELS).min(share.next_multiple_of(2));
        let c = w.scratch().add(RESULTS_AT).cast::<f32>();
        // SAFETY: this path is only bound where tiles are permitted.
        let tiles = Tiles::shape();
        let mut items = MyRows::new(w, self.is_tiny(), self.panels.div_ceil(run), 4096);
        while let Some(claim) = items.next() {
            let panels = claim * run..self.panels.min((claim + 1) * run);
            if acts.tiles == 1 {
                self.stream_tiles::<S>(&acts, rows, panels, c);
            } else {
                self.blocked_tiles::<S>(&acts, rows, panels, c);
            }
        }
        drop(tiles);
    }

    /// One tile of rows: two panels at a time, front to back.
    #[inline(always)]
    unsafe fn stream_tiles<S: Simd>(&self, acts: &Acts, rows: &Packed, panels: Range<usize>, c: *mut f32) {
        let mut panel = panels.start;
        while panel < panels.end {
            let two = panel + 1 < panels.end;
            self.stream_panels(acts, panel, two, c);
            for i in 0..1 + usize::from(two) {
                self.finish_rows::<S>(c.add(i * ROWS * PANEL), rows.first, rows.count, panel + i);
            }
            panel += 1 + usize::from(two);
        }
    }

    /// The sums of one tile of rows and one panel, or two.
    unsafe fn stream_panels(&self, acts: &Acts, panel: usize, two: bool, c: *mut f32) {
        let b = self.w.add(panel * self.panel_bytes);
        let (whole, a) = (self.k / STEPS, [acts.tile(0, 0); 2]);
        let ahead = b.wrapping_add(AHEAD);
        let run = Run { a, b, steps: whole, c, fresh: true, ahead, lines: STEP_LINES };
        if whole > 0 {
            if two { amx::multiply_16x2(&run, self.panel_bytes) } else { amx::multiply_16(&run) }
        }
        if whole == acts.steps {
            return;
        }
        let (a, fresh) = ([acts.tile(0, whole); 2], whole == 0);
        for i in 0..1 + usize::from(two) {
            let (tail, c) = (self.tail(panel + i), c.add(i * ROWS * PANEL));
            amx::multiply_16(&Run { a, b: tail.0.as_ptr(), steps: 1, c, fresh, lines: 0, ..run });
        }
    }

    /// Many tiles of rows.
    #[inline(always)]
    unsafe fn blocked_tiles<S: Simd>(&self, acts: &Acts, rows: &Packed, panels: Range<usize>, c: *mut f32) {
        const TILES: usize = RESULT_ROWS / ROWS;
        let slab = (SLAB_BYTES / TILE_BYTES / acts.tiles.min(TILES)).next_multiple_of(BLOCK_STEPS);
        // One panel after the other where all of K stays in the cache, else all of the claim together.
        let together = if acts.steps <= slab { 1 } else { panels.len() };
        for tile in (0..acts.tiles).step_by(TILES) {
            let tiles = tile..acts.tiles.min(tile + TILES);
            let (begin, end) = (tile * ROWS, rows.count.min(tiles.end * ROWS));
            let mut p = panels.start;
            while p < panels.end {
                let some = p..panels.end.min(p + together);
                let sums = |panel: usize| c.add((panel - p) * tiles.len() * ROWS * PANEL);
                for start in (0..acts.steps).step_by(slab) {
                    let steps = start..acts.steps.min(start + slab);
                    for panel in some.clone() {
                        self.slab(acts, panel, steps.clone(), tiles.clone(), sums(panel));
                    }
                }
                for panel in some.clone() {
                    self.finish_rows::<S>(sums(panel), rows.first + begin, end - begin, panel);
                }
                p = some.end;
            }
        }
    }

    /// Some steps of K of a panel with some tiles of rows, block by block.
    unsafe fn slab(&self, acts: &Acts, panel: usize, steps: Range<usize>, tiles: Range<usize>, c: *mut f32) {
        for start in steps.clone().step_by(BLOCK_STEPS) {
            let end = steps.end.min(start + BLOCK_STEPS);
            // The panel goes on, or the next one is entered at the slab's start.
            let next = if end < steps.end {
                panel * self.panel_bytes + end * PANEL_STEP_BYTES
            } else {
                (panel + 1) * self.panel_bytes
                    + if steps.len() < acts.steps { steps.start * PANEL_STEP_BYTES } else { 0 }
            };
            let block = Block { panel, steps: start..end, c, next: self.w.wrapping_add(next) };
            self.meet(acts, &block, tiles.clone());
        }
    }

    /// One block of a panel with some tiles of rows.
    unsafe fn meet(&self, acts: &Acts, block: &Block, tiles: Range<usize>) {
        let pairs = tiles.len().div_ceil(2);
        let lines = STEP_LINES.div_ceil(pairs);
        let whole = block.steps.end.min(self.k / STEPS) - block.steps.start;
        let b = self.w.add(block.panel * self.panel_bytes + block.steps.start * PANEL_STEP_BYTES);
        let tail = (whole < block.steps.len()).then(|| self.tail(block.panel));
        let mut tile = tiles.start;
        for pair in 0..pairs {
            let c = block.c.add(2 * pair * ROWS * PANEL);
            let is_two = tile + 1 < tiles.end;
            let at = |step| [acts.tile(tile, step), acts.tile(tile + usize::from(is_two), step)];
            // The first pairs share the prefetching of what comes next.
            let lines = if (pair + 1) * lines <= STEP_LINES { lines } else { 0 };
            let ahead = block.next.wrapping_add(pair * lines * whole * 64);
            let fresh = block.steps.start == 0;
            let run = Run { a: at(block.steps.start), b, steps: whole, c, fresh, ahead, lines };
            if whole > 0 {
                if is_two { amx::multiply_32(&run) } else { amx::multiply_16(&run) }
            }
            if let Some(tail) = &tail {
                let (a, fresh) = (at(block.steps.start + whole), fresh && whole == 0);
                let run = Run { a, b: tail.0.as_ptr(), steps: 1, fresh, lines: 0, ..run };
                if is_two { amx::multiply_32(&run) } else { amx::multiply_16(&run) }
            }
            tile += 2;
        }
    }

    /// The last, partial step of a panel, with zeros past K: what lies there belongs to others.
    unsafe fn tail(&self, panel: usize) -> Tail {
        let mut tail = Tail([0; PANEL_STEP_BYTES]);
        let at = self.k / STEPS * PANEL_STEP_BYTES;
        let from = self.w.add(panel * self.panel_bytes + at);
        std::ptr::copy_nonoverlapping(from, tail.0.as_mut_ptr(), self.panel_bytes - at);
        tail
    }
}

#[repr(align(64))]
struct Tail([u8; PANEL_STEP_BYTES]);
