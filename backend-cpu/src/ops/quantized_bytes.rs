//! The products of [`super::quantized`] in bytes: int8 activations times codes of up to 8 bits.
//!
//! A row of x is cut into blocks of K, each with a scale (its largest magnitude / 127) and numbers rounded to the
//! nearest of -127 to 127. A run of steps that share all scales is then an exact integer sum, in whatever order it is made.
//! What rounds stands in one order, whatever the number of rows: for the runs of K in turn,
//!
//! ```text
//! out = fma(float(Σ (code - zero) · q), scale of the run · scale of x, out)
//! out = fma(offset of the run, scale of x · Σ q, out)                        where the format has offsets
//! ```
//!
//! Weights are met a chunk of 256 steps of a strip at a time: its codes become bytes and its factors f32 in the
//! first-level cache, for every tile of rows.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use std::ops::Range;

use engine_core::DType;
use engine_core::quant::codes::Offsets;

use super::gemm::{MOST_PANELS, RESULT_ROWS, RESULTS_AT, WORK_BYTES};
use super::quantized::QuantizedMatmul;
use super::{MyRows, Packed, gemm_tile, load_block, quantized_amx};
use crate::simd::amx::Tiles;
use crate::simd::dot8::Dot8;
use crate::simd::elem::{Elem, with_elem};
use crate::simd::{Simd, SimdPath};
use crate::strips::{ByteFormat, Bytes, CHUNK, STRIP, StripFormat};
use crate::threads::Worker;
use crate::weights::PANEL;

/// Most rows of a tile, by lanes: its sums and results in registers beside the codes.
const MOST_ROWS: [usize; 2] = [4, 12];
/// Smallest block of x with a scale of its own.
const LEAST_BLOCK: usize = 32;
/// Steps of K of a piece: its activations of [`RESULT_ROWS`] rows stay in the second-level cache.
const PIECE_CHUNKS: usize = 8;
/// How far ahead of the chunk in work weights are asked for.
const AHEAD: usize = 4096;

/// Where a worker keeps a chunk's bytes and factors, behind the results.
const CODES_AT: usize = RESULTS_AT + MOST_PANELS * RESULT_ROWS * PANEL * 4;
const SCALES_AT: usize = CODES_AT + CHUNK * STRIP;
const OFFSETS_AT: usize = SCALES_AT + CHUNK / STRIP * STRIP * 4;
/// Sums of the runs of a chunk, for AMX.
pub(super) const SUMS_AT: usize = OFFSETS_AT + CHUNK / STRIP * STRIP * 4;
/// Private memory a worker needs.
pub(super) const SCRATCH_BYTES: usize = SUMS_AT + CHUNK / LEAST_BLOCK * quantized_amx::SUM_BYTES;

/// How packed activations lie. A tile of R rows is [quad of K][R] of four int8 (for AMX [step of K][R][quad]), then for
/// each run [R] scales, [R] scaled sums, and for each format [R] of what its sums start from.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Rows of a tile.
    pub tile: usize,
    /// Quads of a step of AMX tiles; 1 without them.
    pub step_quads: usize,
    pub quads: usize,
    pub run: usize,
    block: usize,
    formats: usize,
}

impl Layout {
    pub fn new(bytes: &Bytes, rows: usize, k: usize, path: SimdPath) -> Layout {
        let (quads, run) = (k.next_multiple_of(LEAST_BLOCK) / 4, bytes.run);
        let (mut tile, mut step_quads) = (quantized_amx::TILE, run.min(quantized_amx::MOST_STEP) / 4);
        if !quantized_amx::takes(path, rows, run, quads) {
            let most = MOST_ROWS[usize::from(path.lanes() == STRIP)];
            tile = gemm_tile::even(rows, most);
            step_quads = 1;
        }
        Layout { tile, step_quads, quads, run, block: run.max(LEAST_BLOCK), formats: bytes.formats.len() }
    }

    /// Whether tiles are AMX tiles.
    pub fn is_amx(&self) -> bool {
        self.step_quads > 1
    }

    /// Word of quad `quad` of lane `r` of a tile.
    fn word(&self, quad: usize, r: usize) -> usize {
        let (step, within) = (quad / self.step_quads, quad % self.step_quads);
        (step * self.tile + r) * self.step_quads + within
    }

    /// Words of one run of a tile besides its codes.
    fn run_words(&self) -> usize {
        (2 + self.formats) * self.tile
    }

    /// Words of a tile.
    fn words(&self) -> usize {
        self.quads * self.tile + (4 * self.quads).div_ceil(self.run) * self.run_words()
    }

    /// Rows that the memory shared by workers has room for.
    pub fn super_rows(&self) -> usize {
        (WORK_BYTES / (4 * self.words())).max(1) * self.tile
    }
}

/// A chunk of a strip as bytes.
pub(super) struct Chunk8 {
    /// [quad][16] of four codes.
    pub codes: *const u8,
    /// [run][16]
    pub scales: *const f32,
    /// The same, or null.
    pub offsets: *const f32,
    /// Quads of the chunk.
    pub quads: usize,
    /// Whether zeros are subtracted and codes signed.
    pub signed: bool,
    /// Whether there are codes over 127.
    wide: bool,
    /// What to bring nearer meanwhile, and how many lines of it.
    ahead: *const u8,
    lines: usize,
}

/// A tile of rows beside a chunk.
pub(super) struct Tile8 {
    pub x: *const u32,
    /// Of the chunk's first run.
    pub runs: *const u32,
    pub run_words: usize,
    pub run_quads: usize,
    /// Where in a run its format's first sums are.
    pub init_at: usize,
    /// [R][32], of the strip's first lane.
    pub c: *mut f32,
    pub fresh: bool,
}

impl QuantizedMatmul {
    /// Rounds `count` rows from `first` on to bytes, tile by tile, as many as this worker claims.
    #[inline(always)]
    pub(super) unsafe fn pack_bytes<S: Simd>(
        &self,
        items: &mut MyRows<'_>,
        l: &Layout,
        bytes: &Bytes,
        (first, count): (usize, usize),
        into: *mut u32,
    ) {
        while let Some(r) = items.next() {
            let tile = into.add(r / l.tile * l.words());
            let row = (r < count).then_some(first + r);
            self.pack_row::<S>(l, bytes, row, tile, r % l.tile);
        }
    }

    /// One row as lane `r` of a tile; zeros without a row.
    #[inline(always)]
    unsafe fn pack_row<S: Simd>(
        &self,
        l: &Layout,
        bytes: &Bytes,
        row: Option<usize>,
        tile: *mut u32,
        r: usize,
    ) {
        let mut block = [0.0f32; CHUNK];
        let mut codes = [0u32; CHUNK];
        for start in (0..4 * l.quads).step_by(l.block) {
            let n = l.block.min(4 * l.quads - start);
            self.load_steps::<S>(row, start, &mut block[..n]);
            let scale = round_block::<S>(&block, n, &mut codes);
            for (i, q) in codes[..n].as_chunks::<4>().0.iter().enumerate() {
                let word = q[0] & 255 | (q[1] & 255) << 8 | (q[2] & 255) << 16 | q[3] << 24;
                *tile.add(l.word(start / 4 + i, r)) = word;
            }
            for (i, run) in codes[..n].chunks(l.run).enumerate() {
                let sum = run.iter().fold(0i32, |sum, q| sum + *q as i32);
                let at = tile.add(l.quads * l.tile + (start / l.run + i) * l.run_words() + r);
                *at = scale.to_bits();
                *at.add(l.tile) = (scale * sum as f32).to_bits();
                for (f, format) in bytes.formats.iter().enumerate() {
                    *at.add((2 + f) * l.tile) = (-format.zero * sum) as u32;
                }
            }
        }
    }

    /// Steps of K from `start` on of a row of x as f32, zeros past its end.
    #[inline(always)]
    unsafe fn load_steps<S: Simd>(&self, row: Option<usize>, start: usize, into: &mut [f32]) {
        let x = &self.gemm.x;
        let have = row.map_or(0, |_| into.len().min(self.gemm.k.saturating_sub(start)));
        into[have..].fill(0.0);
        let Some(row) = row.filter(|_| have > 0) else { return };
        match &(*self.strips).order {
            Some(order) => with_elem!(x.dtype, E, {
                let row = x.row::<E>(row);
                for (value, k) in into.iter_mut().zip(&order[start..start + have]) {
                    *value = row.add(*k as usize).read_unaligned().to_f32();
                }
            }),
            None => {
                let mut block = [0.0f32; CHUNK];
                load_block::<S, _>(x.dtype, x.row(row), start, have, &mut block);
                into[..have].copy_from_slice(&block[..have]);
            }
        }
    }

    /// Panels times packed rows.
    #[inline(always)]
    pub(super) unsafe fn multiply_bytes<S: Simd, D: Dot8<S>>(
        &self,
        w: &Worker<'_>,
        l: &Layout,
        rows: &Packed,
    ) {
        let run = self.claim_panels(w);
        let mut items = MyRows::new(w, self.is_tiny(), self.gemm.panels.div_ceil(run), 4096);
        // SAFETY: such a layout is only chosen where tiles are permitted.
        let shaped = l.is_amx().then(|| Tiles::shape_bytes(4 * l.step_quads));
        while let Some(c) = items.next() {
            let panels = c * run..self.gemm.panels.min((c + 1) * run);
            D::vectorize(
                #[inline(always)]
                || self.claim::<S, D>(w, l, rows, panels),
            );
        }
        drop(shaped);
    }

    /// Some panels with all packed rows, as many at a time as results are kept for.
    #[inline(always)]
    unsafe fn claim<S: Simd, D: Dot8<S>>(
        &self,
        w: &Worker<'_>,
        l: &Layout,
        rows: &Packed,
        panels: Range<usize>,
    ) {
        let c = w.scratch().add(RESULTS_AT).cast::<f32>();
        let (tiles, block) = (rows.count.div_ceil(l.tile), (RESULT_ROWS / l.tile).max(1));
        let chunks = (4 * l.quads).div_ceil(CHUNK);
        // One panel after the other where its rows' activations stay in the cache, else all panels of a piece of K.
        let together = if chunks <= PIECE_CHUNKS || tiles == 1 { 1 } else { panels.len() };
        let piece = if tiles == 1 { chunks } else { PIECE_CHUNKS };
        for start in (0..tiles).step_by(block) {
            let some = start..tiles.min(start + block);
            let (begin, end) = (start * l.tile, rows.count.min(some.end * l.tile));
            let mut p = panels.start;
            while p < panels.end {
                let those = p..panels.end.min(p + together);
                let sums = |panel: usize| c.add((panel - p) * some.len() * l.tile * PANEL);
                for first in (0..chunks).step_by(piece) {
                    for panel in those.clone() {
                        for chunk in first..chunks.min(first + piece) {
                            self.chunk::<S, D>(w, l, rows, some.clone(), panel, chunk, sums(panel));
                        }
                    }
                }
                for panel in those.clone() {
                    self.gemm.finish_rows::<S>(sums(panel), rows.first + begin, end - begin, panel);
                }
                p = those.end;
            }
        }
    }

    /// One chunk of both strips of a panel with some tiles of rows.
    #[inline(always)]
    unsafe fn chunk<S: Simd, D: Dot8<S>>(
        &self,
        w: &Worker<'_>,
        l: &Layout,
        rows: &Packed,
        tiles: Range<usize>,
        panel: usize,
        chunk: usize,
        c: *mut f32,
    ) {
        let strips = &*self.strips;
        let Some(bytes) = &strips.bytes else { return };
        for half in 0..PANEL / STRIP {
            let strip = strips.strips[panel * (PANEL / STRIP) + half];
            let c = c.add(half * STRIP);
            let Some(f) = strip.format else {
                clear(c, tiles.len() * l.tile);
                continue;
            };
            let quads = (CHUNK / 4).min(l.quads - chunk * (CHUNK / 4));
            let codes = self.unpack::<S, D>(w, l, f, bytes, strip.at, chunk, quads);
            for tile in tiles.clone() {
                let x = rows.a.cast::<u32>().add(tile * l.words());
                let t = Tile8 {
                    x: x.add(chunk * (CHUNK / 4) * l.tile),
                    runs: x.add(l.quads * l.tile + chunk * CHUNK / l.run * l.run_words()),
                    run_words: l.run_words(),
                    run_quads: l.run / 4,
                    init_at: (2 + f) * l.tile,
                    c: c.add((tile - tiles.start) * l.tile * PANEL),
                    fresh: chunk == 0,
                };
                if l.is_amx() {
                    self.meet_amx::<S, D>(w, l, &codes, &t);
                } else {
                    meet::<S, D>(l.tile, &codes, &t);
                }
            }
        }
    }

    /// A chunk of a strip as bytes and f32 factors, in the worker's scratch memory but for codes that are bytes.
    #[inline(always)]
    unsafe fn unpack<S: Simd, D: Dot8<S>>(
        &self,
        w: &Worker<'_>,
        l: &Layout,
        f: usize,
        bytes: &Bytes,
        at: usize,
        chunk: usize,
        quads: usize,
    ) -> Chunk8 {
        let strips = &*self.strips;
        let (format, byte) = (&strips.formats[f], &bytes.formats[f]);
        let (chunk_at, parts) = format.at(chunk);
        let from = self.gemm.w.add(at + chunk_at);
        let [scales, offsets] = [SCALES_AT, OFFSETS_AT].map(|at| w.scratch().wrapping_add(at).cast::<f32>());
        for run in 0..(4 * quads).div_ceil(bytes.run) {
            let into = run * STRIP;
            factors::<S>(format, byte, from, run * bytes.run, scales.add(into), offsets.add(into), chunk);
        }
        let signed = l.is_amx() && byte.zero != 0;
        let is_bytes = format.low == 8 && byte.table.is_none() && !signed;
        let own = w.scratch().add(CODES_AT);
        if !is_bytes {
            let zero = if signed { Some(byte.zero as u32) } else { None };
            unpack_codes::<S, D>(format, &byte.table, zero, [from, from.add(parts.high_at)], quads, own);
        }
        Chunk8 {
            codes: if is_bytes { from } else { own },
            scales,
            offsets: if format.offsets == Offsets::No { std::ptr::null() } else { offsets },
            quads,
            signed,
            wide: format.low == 8 || byte.table.is_some(),
            ahead: from.wrapping_add(AHEAD),
            lines: parts.bytes / 64,
        }
    }
}

/// Zeros for a strip that is not there.
unsafe fn clear(c: *mut f32, rows: usize) {
    for r in 0..rows {
        std::ptr::write_bytes(c.add(r * PANEL), 0, STRIP);
    }
}

/// Rounds `n` numbers to int8 (as i32 lanes) by one scale, which it returns. A block with a number that is not
/// finite has the scale NaN, and so have its results.
#[inline(always)]
unsafe fn round_block<S: Simd>(x: &[f32; CHUNK], n: usize, codes: &mut [u32; CHUNK]) -> f32 {
    let top = x[..n].iter().fold(0u32, |top, x| top.max(x.to_bits() & 0x7FFF_FFFF));
    let top = f32::from_bits(top);
    let by = 127.0 / top;
    if !(top.is_finite() && by.is_finite()) {
        codes[..n].fill(0);
        return if top.is_finite() { 0.0 } else { f32::NAN };
    }
    for i in (0..n).step_by(S::W) {
        S::istore(codes.as_mut_ptr().add(i), S::to_int(S::mul(S::load(x.as_ptr().add(i)), S::splat(by))));
    }
    top / 127.0
}

/// Scales and offsets of the run at step `step` of a chunk, for all lanes of a strip.
#[inline(always)]
unsafe fn factors<S: Simd>(
    f: &StripFormat,
    byte: &ByteFormat,
    chunk: *const u8,
    step: usize,
    scales: *mut f32,
    offsets: *mut f32,
    index: usize,
) {
    let parts = f.at(index).1;
    let at = step / f.group * STRIP;
    for lane in (0..STRIP).step_by(S::W) {
        let mut scale = load::<S>(f.scale, chunk.add(parts.scales_at), at + lane);
        let supers = chunk.add(parts.supers_at).cast::<f32>().add(lane);
        if f.supers {
            scale = S::mul(scale, S::load(supers));
        }
        if f.offsets != Offsets::No {
            let mut offset = load::<S>(f.scale, chunk.add(parts.offsets_at), at + lane);
            offset = match f.offsets {
                Offsets::Zero => S::sub(S::zero(), S::mul(offset, scale)),
                _ if f.supers => S::mul(offset, S::load(supers.add(STRIP))),
                _ => offset,
            };
            S::store(offsets.add(lane), offset);
        }
        S::store(scales.add(lane), S::mul(scale, S::splat(byte.factor)));
    }
}

/// A vector of scales from element `i` on.
#[inline(always)]
unsafe fn load<S: Simd>(dtype: DType, from: *const u8, i: usize) -> S::F {
    match dtype {
        DType::F16 => S::load_f16(from.cast::<u16>().add(i)),
        DType::Bf16 => S::load_bf16(from.cast::<u16>().add(i)),
        DType::I8 => S::load_i8(from.cast::<i8>().add(i)),
        DType::U8 => S::load_u8(from.add(i)),
        _ => S::load(from.cast::<f32>().add(i)),
    }
}

/// The codes of a chunk as bytes, [quad][16] of four; less `zero` where they shall be signed.
#[inline(always)]
unsafe fn unpack_codes<S: Simd, D: Dot8<S>>(
    f: &StripFormat,
    table: &Option<[u8; 16]>,
    zero: Option<u32>,
    planes: [*const u8; 2],
    quads: usize,
    into: *mut u8,
) {
    let planes =
        Planes { low: planes[0].cast(), high: planes[1].cast(), quads, table, zero, into: into.cast() };
    match (f.low, f.high) {
        (8, _) => planes.unpack::<S, D, 8, 0>(),
        (4, 0) => planes.unpack::<S, D, 4, 0>(),
        (4, 1) => planes.unpack::<S, D, 4, 1>(),
        (4, _) => planes.unpack::<S, D, 4, 2>(),
        (_, 1) => planes.unpack::<S, D, 2, 1>(),
        _ => planes.unpack::<S, D, 2, 0>(),
    }
}

/// Quads a round: as many as the fullest line holds.
const ROUND: usize = 8;

struct Planes<'a> {
    low: *const u32,
    high: *const u32,
    quads: usize,
    table: &'a Option<[u8; 16]>,
    zero: Option<u32>,
    into: *mut u32,
}

impl Planes<'_> {
    #[inline(always)]
    unsafe fn unpack<S: Simd, D: Dot8<S>, const LOW: usize, const HIGH: usize>(&self) {
        match (self.table, self.zero) {
            (None, None) => self.each::<S, LOW, HIGH>(
                #[inline(always)]
                |codes| codes,
            ),
            (Some(table), None) => self.each::<S, LOW, HIGH>(
                #[inline(always)]
                |codes| D::lookup(table, codes),
            ),
            (None, Some(zero)) => self.each::<S, LOW, HIGH>(
                #[inline(always)]
                |codes| signed::<S>(codes, zero),
            ),
            (Some(table), Some(zero)) => self.each::<S, LOW, HIGH>(
                #[inline(always)]
                |codes| signed::<S>(D::lookup(table, codes), zero),
            ),
        }
    }

    #[inline(always)]
    unsafe fn each<S: Simd, const LOW: usize, const HIGH: usize>(&self, byte: impl Fn(S::I) -> S::I) {
        for first in (0..self.quads).step_by(ROUND) {
            for q in 0..ROUND {
                for lane in (0..STRIP).step_by(S::W) {
                    let mut codes = bits::<S, LOW>(self.low.add(lane), first, q);
                    if HIGH > 0 {
                        let above = bits::<S, HIGH>(self.high.add(lane), first, q);
                        let above = if LOW == 4 { S::ishl::<4>(above) } else { S::ishl::<2>(above) };
                        codes = S::iadd(codes, above);
                    }
                    S::istore(self.into.add((first + q) * STRIP + lane), byte(codes));
                }
            }
        }
    }
}

/// Each byte less `zero`, as signed bytes; codes are below 2 · zero, or zero is 128.
#[inline(always)]
unsafe fn signed<S: Simd>(codes: S::I, zero: u32) -> S::I {
    // With 128 - zero added no byte carries into the next; 128 less is its highest bit turned.
    S::ixor(S::iadd(codes, S::isplat((128 - zero) * 0x0101_0101)), S::isplat(0x8080_8080))
}

/// Quad `first + q` of a plane of `BITS` bits; `first` is a multiple of [`ROUND`].
#[inline(always)]
unsafe fn bits<S: Simd, const BITS: usize>(plane: *const u32, first: usize, q: usize) -> S::I {
    let a_line = 8 / BITS;
    let line = S::iload(plane.add((first + q) / a_line * STRIP));
    let line = match q % a_line * BITS {
        0 => line,
        1 => S::ishr::<1>(line),
        2 => S::ishr::<2>(line),
        3 => S::ishr::<3>(line),
        4 => S::ishr::<4>(line),
        5 => S::ishr::<5>(line),
        6 => S::ishr::<6>(line),
        _ => S::ishr::<7>(line),
    };
    S::iand(line, S::isplat(((1 << BITS) - 1) * 0x0101_0101))
}

/// A chunk with a tile of `rows` rows, as [`gemm_tile::even`] says.
#[inline(always)]
unsafe fn meet<S: Simd, D: Dot8<S>>(rows: usize, w: &Chunk8, t: &Tile8) {
    match (S::W, rows) {
        (_, 1) => entry::<S, D, 1>(w, t),
        (_, 2) => entry::<S, D, 2>(w, t),
        (_, 3) => entry::<S, D, 3>(w, t),
        (_, 4) => entry::<S, D, 4>(w, t),
        (16, 6) => entry::<S, D, 6>(w, t),
        (16, 8) => entry::<S, D, 8>(w, t),
        (16, 12) => entry::<S, D, 12>(w, t),
        _ => unreachable!("no tile of {rows} rows"),
    }
}

#[inline(always)]
unsafe fn entry<S: Simd, D: Dot8<S>, const R: usize>(w: &Chunk8, t: &Tile8) {
    D::vectorize(
        #[inline(always)]
        || {
            for lane in (0..STRIP).step_by(S::W) {
                if w.wide {
                    tile::<S, D, R, true>(w, t, lane);
                } else {
                    tile::<S, D, R, false>(w, t, lane);
                }
            }
        },
    )
}

/// R rows × one vector of outputs from `lane` on.
#[inline(always)]
unsafe fn tile<S: Simd, D: Dot8<S>, const R: usize, const WIDE: bool>(w: &Chunk8, t: &Tile8, lane: usize) {
    let mut acc = [S::zero(); R];
    if !t.fresh {
        for r in 0..R {
            acc[r] = S::load(t.c.add(r * PANEL + lane));
        }
    }
    let (mut codes, mut x) = (w.codes.cast::<u32>().add(lane), t.x);
    let (mut left, mut runs, mut factor) = (w.quads, t.runs, lane);
    let (mut ahead, mut lines) = (w.ahead, if R <= 4 && lane == 0 { w.lines } else { 0 });
    while left > 0 {
        let mut sums = [S::isplat(0); R];
        for r in 0..R {
            sums[r] = S::isplat(*runs.add(t.init_at + r));
        }
        for _ in 0..left.min(t.run_quads) {
            if lines > 0 {
                S::prefetch(ahead);
                S::prefetch(ahead.wrapping_add(64));
                ahead = ahead.wrapping_add(128);
                lines = lines.saturating_sub(2);
            }
            let code = S::iload(codes);
            for r in 0..R {
                sums[r] = D::dot::<WIDE>(sums[r], code, S::isplat(*x.add(r)));
            }
            (codes, x) = (codes.add(STRIP), x.add(R));
        }
        let (scale, scaled) = (S::load(w.scales.add(factor)), runs.cast::<f32>());
        for r in 0..R {
            acc[r] = S::fma(S::to_float(sums[r]), S::mul(scale, S::splat(*scaled.add(r))), acc[r]);
        }
        if !w.offsets.is_null() {
            let offset = S::load(w.offsets.add(factor));
            for r in 0..R {
                acc[r] = S::fma(offset, S::splat(*scaled.add(R + r)), acc[r]);
            }
        }
        left -= left.min(t.run_quads);
        (runs, factor) = (runs.add(t.run_words), factor + STRIP);
    }
    for r in 0..R {
        S::store(t.c.add(r * PANEL + lane), acc[r]);
    }
}
