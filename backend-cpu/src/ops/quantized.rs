//! QuantizedMatmul: `out = residual + scale · act(x · Wᵀ + bias + add)` over strips of codes.
//!
//! Two ways, by the type of x and the format alone. Rows of 16-bit numbers are rounded to int8 and meet codes as bytes
//! where the machine multiplies bytes and the format has them: [`super::quantized_bytes`]. Else, and so for float32,
//! arithmetic is that of f32 on the very numbers that the format's specification says: a block of K of a panel is
//! expanded to f32 in the first-level cache and met there by every tile of rows through the register tiles of the dense
//! product, so that a row's bits depend on its own numbers only: each output is one
//! accumulator that takes k = 0, 1, 2, .. in turn, whatever the number of rows. Codes are read once for up to
//! [`RESULT_ROWS`] rows.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::DType;
use engine_core::backend::OpKind;

use super::gemm::{Gemm, MOST_PANELS, PRIVATE_ROWS, RESULT_ROWS, RESULTS_AT, WORK_BYTES};
use super::gemm_tile::{self, Kind, Tile};
use super::quantized_bytes::{self, Layout};
use super::quantized_expand::expand;
use super::{BLOCK, Kernel, MyRows, Packed, load_block, spoil_last};
use crate::simd::dot8::ByteDot;
use crate::simd::{Simd, SimdPath};
use crate::strips::{Bytes, STRIP, Strips};
use crate::threads::Worker;
use crate::weights::PANEL;

/// Steps of K expanded at once: half a chunk, 16 KiB as f32.
const K_BLOCK: usize = 128;
/// Elements of shared activations packed by one claim.
const PACK_STEPS: usize = 256;

const EXPANDED_AT: usize = RESULTS_AT + RESULT_ROWS * PANEL * 4;
/// Private memory a worker needs.
pub(crate) const SCRATCH_BYTES: usize = {
    let expanded = EXPANDED_AT + K_BLOCK * PANEL * 4;
    if expanded > quantized_bytes::SCRATCH_BYTES { expanded } else { quantized_bytes::SCRATCH_BYTES }
};

/// A product with its epilogue.
pub(crate) struct QuantizedMatmul {
    /// Operands and epilogue; its `w` is where the strips start.
    pub gemm: Gemm,
    /// Of the weight, which outlives the kernel.
    pub strips: *const Strips,
    /// How bytes are multiplied, for products in bytes.
    pub dot: Option<ByteDot>,
}

impl Kernel for QuantizedMatmul {
    const OP: OpKind = OpKind::QuantizedMatmul;

    fn way(&self) -> usize {
        let (in_bytes, tile) = self.layout().map_or((0, self.tile()), |(layout, _)| (2, layout.tile));
        in_bytes + usize::from(self.gemm.x.rows() > tile)
    }

    fn phases(&self) -> u32 {
        let supers = self.gemm.x.rows().div_ceil(self.super_rows()).max(1) as u32;
        if self.packs_privately() { 1 } else { 2 * supers }
    }

    fn serial(&self, _: u32) -> bool {
        self.is_tiny()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let (private, rows) = (self.packs_privately(), self.gemm.x.rows());
        let first = (phase / 2) as usize * self.super_rows();
        let count = self.super_rows().min(rows - first);
        let a = if private { w.scratch() } else { self.gemm.work };
        if private || phase.is_multiple_of(2) {
            self.pack::<S>(w, private, first, count, a);
        }
        if private || !phase.is_multiple_of(2) {
            self.multiply::<S>(w, &Packed { a, first, count });
        }
    }

    unsafe fn spoil(&self) {
        spoil_last(&self.gemm.out)
    }
}

impl QuantizedMatmul {
    /// Whether a product with rows of `dtype` may be made in bytes, and how; float32 asks for its own arithmetic.
    pub fn bytes_of(strips: &Strips, dtype: DType, path: SimdPath) -> Option<ByteDot> {
        ByteDot::of(path).filter(|_| dtype != DType::F32 && strips.bytes.is_some())
    }

    /// Tiny products (test models): a barrier costs more than the work.
    pub(super) fn is_tiny(&self) -> bool {
        self.gemm.x.rows() * self.gemm.n * self.gemm.k <= 16 << 10
    }

    fn packs_privately(&self) -> bool {
        self.gemm.x.rows() <= PRIVATE_ROWS
    }

    /// The layout of a product in bytes.
    fn layout(&self) -> Option<(Layout, &Bytes)> {
        // SAFETY: the weight outlives the kernel.
        let bytes = unsafe { &*self.strips }.bytes.as_ref().filter(|_| self.dot.is_some())?;
        Some((Layout::new(bytes, self.gemm.x.rows(), self.gemm.k, self.gemm.path), bytes))
    }

    /// Rows of a tile of the product in f32. Follows from shapes and path only.
    fn tile(&self) -> usize {
        let most = if self.gemm.path.lanes() == 16 { 12 } else { 6 };
        gemm_tile::even(self.gemm.x.rows(), most)
    }

    /// Rows handled between two packings of activations.
    fn super_rows(&self) -> usize {
        match self.layout() {
            Some((layout, _)) => layout.super_rows(),
            None => (WORK_BYTES / (self.gemm.k * self.tile() * 4).max(1)).max(1) * self.tile(),
        }
    }

    /// Packs `count` rows from `first` on into `into`: all of them by this worker, or what it claims.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, w: &Worker<'_>, private: bool, first: usize, count: usize, into: *mut u8) {
        let alone = private || self.is_tiny();
        if let Some((layout, bytes)) = self.layout() {
            let rows = count.next_multiple_of(layout.tile);
            let mut items = MyRows::new(w, alone, rows, self.gemm.k);
            return self.pack_bytes::<S>(&mut items, &layout, bytes, (first, count), into.cast());
        }
        let (tile, k) = (self.tile(), self.gemm.k);
        let (tiles, pieces) = (count.div_ceil(tile), k.div_ceil(PACK_STEPS));
        let mut items = MyRows::new(w, alone, tiles * pieces, 4096);
        while let Some(i) = items.next() {
            let (t, piece) = (i / pieces, i % pieces);
            let row = first + t * tile;
            let rows = tile.min(first + count - row);
            let ks = piece * PACK_STEPS..k.min((piece + 1) * PACK_STEPS);
            self.pack_tile::<S>(tile, row, rows, ks, into.cast::<f32>().add(t * k * tile));
        }
    }

    /// Steps `ks` of `rows` rows from `row` on, interleaved; rows past the last are zeros.
    #[inline(always)]
    unsafe fn pack_tile<S: Simd>(
        &self,
        tile: usize,
        row: usize,
        rows: usize,
        ks: std::ops::Range<usize>,
        into: *mut f32,
    ) {
        let x = &self.gemm.x;
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

    /// Panels times packed rows.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, w: &Worker<'_>, rows: &Packed) {
        match (self.dot, self.layout()) {
            (Some(ByteDot::Direct), Some((l, _))) => self.multiply_bytes::<S, S::Direct>(w, &l, rows),
            (Some(ByteDot::Widening), Some((l, _))) => self.multiply_bytes::<S, S::Widening>(w, &l, rows),
            _ => {
                let tile = self.tile();
                let run = self.claim_panels(w);
                let mut items = MyRows::new(w, self.is_tiny(), self.gemm.panels.div_ceil(run), 4096);
                while let Some(c) = items.next() {
                    for panel in c * run..self.gemm.panels.min((c + 1) * run) {
                        self.expanded::<S>(w, tile, rows, panel);
                    }
                }
            }
        }
    }

    /// Panels that a worker claims at once.
    pub(super) fn claim_panels(&self, w: &Worker<'_>) -> usize {
        self.gemm.panels.div_ceil(w.count * 4).clamp(1, MOST_PANELS)
    }

    /// One panel in f32 with all packed rows, as many at a time as results are kept for.
    #[inline(always)]
    unsafe fn expanded<S: Simd>(&self, w: &Worker<'_>, tile: usize, rows: &Packed, panel: usize) {
        let c = w.scratch().add(RESULTS_AT).cast::<f32>();
        let wide = w.scratch().add(EXPANDED_AT).cast::<f32>();
        let (tiles, block) = (rows.count.div_ceil(tile), (RESULT_ROWS / tile).max(1));
        for start in (0..tiles).step_by(block) {
            let some = start..tiles.min(start + block);
            for k in (0..self.gemm.k).step_by(K_BLOCK) {
                let steps = K_BLOCK.min(self.gemm.k - k);
                self.expand_panel::<S>(panel, k, steps, wide);
                for i in some.clone() {
                    let t = Tile {
                        a: rows.a.add((i * self.gemm.k + k) * tile * 4),
                        b: wide.cast(),
                        b_next: 0,
                        k: steps,
                        c: c.add((i - start) * tile * PANEL),
                        c_next: 0,
                        fresh: k == 0,
                        ahead: std::ptr::null(),
                        ahead_step: 0,
                    };
                    gemm_tile::run::<S>(Kind::F32, tile, false, &t);
                }
            }
            let begin = start * tile;
            let count = rows.count.min(some.end * tile) - begin;
            self.gemm.finish_rows::<S>(c, rows.first + begin, count, panel);
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
