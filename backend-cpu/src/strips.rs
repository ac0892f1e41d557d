//! Quantized weights: rows of codes repacked at load into *strips* of 16 outputs.
//!
//! Two strips make the panel of 32 that the dense kernels compute with; the strips of one weight may differ in
//! format (a fused qkv of a GGUF file does). Within a strip K runs slowest, in chunks of 256 steps; a chunk holds
//!
//! ```text
//! low plane    [lines][16 lanes] u32   codes, or their low 4 or 2 bits
//! high plane   [lines][16 lanes] u32   the bits above, if any
//! supers       [16] f32, twice with offsets
//! scales       [groups][16] of the format's own scale type
//! offsets      [groups][16] of the same type
//! ```
//!
//! In a plane of w bits a lane's u32 holds 8 / w *quads*: step 4q + b of the chunk is in line q / (8 / w), byte b, at
//! bit w · (q % (8 / w)). So four steps of K lie side by side in each lane, as `vpdpbusd` and its like want them,
//! and one shift and one mask give a quad of all 16 outputs. The last chunk is as short as K needs, in steps of 32.

use std::sync::Arc;

use engine_core::backend::{ActFormat, Fuse, HostPart, HostWeight, Shard, Uses, WeightMeta};
use engine_core::quant::codes::{Offsets, SUPER, Values};
use engine_core::quant::{self, Coded, RowCodes, Scheme};
use engine_core::{DType, Result};
use half::{bf16, f16};

use crate::memory::Memory;
use crate::weights::{CpuWeight, Layout, PANEL};

/// Outputs of a strip.
pub(crate) const STRIP: usize = 16;
/// Steps of K in a chunk.
pub(crate) const CHUNK: usize = SUPER;
/// Most steps of K that share a scale where rows are rounded to bytes: a longer block would be as coarse as its largest
/// number for more of them.
const LARGEST_RUN: usize = 64;
/// K of a strip is a multiple of this.
const STEP: usize = 32;

/// The strips of a weight, two a panel.
pub(crate) struct Strips {
    pub formats: Vec<StripFormat>,
    pub strips: Vec<Strip>,
    /// Column of x that meets each step of K, where the format sorts columns.
    pub order: Option<Vec<u32>>,
    /// How codes are met as bytes; none where those of some part cannot be.
    pub bytes: Option<Bytes>,
}

/// Codes as unsigned bytes, for products with int8 activations.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bytes {
    /// Of each of [`Strips::formats`].
    pub formats: Vec<ByteFormat>,
    /// Steps of K with one scale in every format.
    pub run: usize,
}

/// What the bytes of a format stand for: factor · (byte - zero), before scales and offsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ByteFormat {
    pub zero: i32,
    pub factor: f32,
    /// The byte of each code, where codes are not their own bytes.
    pub table: Option<[u8; 16]>,
}

impl Bytes {
    fn new(formats: &[StripFormat]) -> Option<Bytes> {
        let run = formats.iter().map(|f| f.group).min()?.min(LARGEST_RUN);
        let formats = formats.iter().map(|f| ByteFormat::new(&f.values)).collect::<Option<_>>()?;
        Some(Bytes { formats, run })
    }
}

impl ByteFormat {
    fn new(values: &Values) -> Option<ByteFormat> {
        match values {
            Values::Integer { zero } => Some(ByteFormat { zero: *zero as i32, factor: 1.0, table: None })
                .filter(|_| zero.fract() == 0.0),
            Values::Table(table) => [1.0, 0.5].into_iter().find_map(|factor| Self::of_table(table, factor)),
        }
    }

    /// None when an entry is no small multiple of `factor`.
    fn of_table(entries: &[f32], factor: f32) -> Option<ByteFormat> {
        let mut table = [0u8; 16];
        if entries.len() != table.len() {
            return None;
        }
        for (byte, entry) in table.iter_mut().zip(entries) {
            let value = entry / factor;
            if value.fract() != 0.0 || !(-128.0..128.0).contains(&value) {
                return None;
            }
            *byte = (value + 128.0) as u8;
        }
        Some(ByteFormat { zero: 128, factor, table: Some(table) })
    }
}

/// One strip; without a format it is zeros (the second half of a last panel).
#[derive(Clone, Copy)]
pub(crate) struct Strip {
    /// Bytes from the start of the weight's memory.
    pub at: usize,
    /// Index into [`Strips::formats`].
    pub format: Option<usize>,
}

/// How the strips of one part are laid out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StripFormat {
    /// Bits of the low plane: 8, 4 or 2.
    pub low: u32,
    /// Bits of the high plane: 2, 1 or none.
    pub high: u32,
    pub values: Values,
    /// Steps that share a scale: 16, 32, 64, 128 or 256.
    pub group: usize,
    pub scale: DType,
    pub offsets: Offsets,
    pub supers: bool,
    /// A chunk of [`CHUNK`] steps, and the last one.
    pub full: Chunk,
    pub tail: Chunk,
    /// Chunks of a strip.
    pub chunks: usize,
}

/// Where the parts of a chunk are, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub high_at: usize,
    pub supers_at: usize,
    pub scales_at: usize,
    pub offsets_at: usize,
    pub bytes: usize,
}

impl StripFormat {
    /// None when codes of this scheme have no strips (a scale for fewer than 16 numbers).
    fn new(scheme: &Scheme, k: usize) -> Option<Self> {
        let (low, high) = match scheme.bits {
            8 => (8, 0),
            6 => (4, 2),
            5 => (4, 1),
            4 => (4, 0),
            3 => (2, 1),
            2 => (2, 0),
            _ => return None,
        };
        let group = if scheme.group >= k { CHUNK } else { power_of_two_in(scheme.group).min(CHUNK) };
        if group < STRIP {
            return None;
        }
        let steps = k.next_multiple_of(STEP);
        let chunks = steps.div_ceil(CHUNK).max(1);
        let mut format = StripFormat {
            low,
            high,
            values: scheme.values,
            group,
            scale: scheme.scale_dtype,
            offsets: scheme.offsets,
            supers: scheme.supers,
            full: Chunk { high_at: 0, supers_at: 0, scales_at: 0, offsets_at: 0, bytes: 0 },
            tail: Chunk { high_at: 0, supers_at: 0, scales_at: 0, offsets_at: 0, bytes: 0 },
            chunks,
        };
        format.full = format.chunk(CHUNK);
        format.tail = format.chunk(steps - (chunks - 1) * CHUNK);
        Some(format)
    }

    fn chunk(&self, steps: usize) -> Chunk {
        let plane = |bits: u32| steps * STRIP * bits as usize / 8;
        let twice = if self.offsets == Offsets::No { 1 } else { 2 };
        let scales = steps.div_ceil(self.group) * STRIP * self.scale.size_bytes();
        let high_at = plane(self.low);
        let supers_at = high_at + plane(self.high);
        let scales_at = supers_at + if self.supers { twice * STRIP * 4 } else { 0 };
        let offsets_at = scales_at + scales;
        let bytes = (scales_at + twice * scales).next_multiple_of(64);
        Chunk { high_at, supers_at, scales_at, offsets_at, bytes }
    }

    /// Where chunk `c` starts in a strip, and its parts.
    #[inline(always)]
    pub fn at(&self, c: usize) -> (usize, &Chunk) {
        (c * self.full.bytes, if c + 1 == self.chunks { &self.tail } else { &self.full })
    }

    fn strip_bytes(&self) -> usize {
        (self.chunks - 1) * self.full.bytes + self.tail.bytes
    }
}

/// The largest power of two that divides `n`.
fn power_of_two_in(n: usize) -> usize {
    n & n.wrapping_neg()
}

/// Loads a weight with quantized parts as strips. None when its parts have no such form together (a dense part
/// among them, parts that do not end on a strip, a shard): it is to be loaded dequantized then.
///
/// # Errors
/// `Checkpoint` for parts that do not fit together; `OutOfMemory`.
pub(crate) fn load(memory: &Arc<Memory>, w: &HostWeight) -> Result<Option<(WeightMeta, CpuWeight)>> {
    let Some(plan) = Plan::new(w)? else { return Ok(None) };
    let hint = "choose a smaller model or a machine with more memory";
    let region = memory.allocate(plan.bytes, &format!("weight {}", w.name), hint)?;
    for (i, strip) in plan.strips.strips.iter().enumerate() {
        let (Some(format), Some((part, first))) = (strip.format, plan.source(i)) else { continue };
        let format = &plan.strips.formats[format];
        // SAFETY: the region has all strips, and nobody else has it yet.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(region.base().add(strip.at), format.strip_bytes()) };
        pack(&plan.parts[part], plan.rows[part], first, format, bytes);
    }
    let meta = WeightMeta { bytes: plan.bytes as u64, act: ActFormat::Plain, ..w.meta() };
    let loaded = CpuWeight {
        region,
        layout: Layout::Strips,
        dtype: DType::F32,
        n: plan.n,
        k: plan.k,
        gate_up: plan.gate_up,
        strips: Some(plan.strips),
    };
    Ok(Some((meta, loaded)))
}

/// What goes where, before anything is packed.
struct Plan {
    parts: Vec<Coded>,
    /// Rows of each part.
    rows: Vec<usize>,
    strips: Strips,
    n: usize,
    k: usize,
    gate_up: bool,
    bytes: usize,
}

impl Plan {
    fn new(w: &HostWeight) -> Result<Option<Plan>> {
        if w.shard != Shard::Whole || w.uses == Uses::Vector || matches!(w.fuse, Fuse::Heads { .. }) {
            return Ok(None);
        }
        let gate_up = w.fuse == Fuse::GateUp;
        let (mut parts, mut formats, rows) = (Vec::new(), Vec::new(), rows(&w.parts));
        let k = w.parts[0].shape[1] as usize;
        for part in &w.parts {
            let Some(coded) = quant::coded(part)? else { return Ok(None) };
            let Some(format) = StripFormat::new(&coded.scheme, k) else { return Ok(None) };
            formats.push(format);
            parts.push(coded);
        }
        let aligned = rows.iter().rev().skip(1).all(|n| n.is_multiple_of(STRIP));
        let same_k = w.parts.iter().all(|p| p.shape[1] as usize == k);
        let same_order = parts.iter().all(|p| p.order == parts[0].order);
        let halves = !gate_up || (rows.len() == 2 && rows[0] == rows[1]);
        if !(same_k && same_order && halves && (gate_up || aligned)) {
            return Ok(None);
        }
        // A row that is read by itself would have to be put back in order.
        if parts[0].order.is_some() && w.uses != Uses::Linear {
            return Ok(None);
        }
        let order = parts[0].order.take();
        let n = rows.iter().sum();
        let bytes = Bytes::new(&formats);
        let strips = Strips { formats, strips: Vec::new(), order, bytes };
        let mut plan = Plan { parts, rows, strips, n, k, gate_up, bytes: 0 };
        plan.place();
        Ok(Some(plan))
    }

    fn place(&mut self) {
        let panels = crate::weights::panels(self.n, self.gate_up);
        for i in 0..panels * PANEL / STRIP {
            let format = self.source(i).map(|(part, _)| part);
            self.strips.strips.push(Strip { at: self.bytes, format });
            self.bytes += format.map_or(0, |f| self.strips.formats[f].strip_bytes());
        }
    }

    /// Part and first row within it of strip `i`.
    fn source(&self, i: usize) -> Option<(usize, usize)> {
        if self.gate_up {
            let first = i / 2 * STRIP;
            return (first < self.rows[i % 2]).then_some((i % 2, first));
        }
        let mut first = i * STRIP;
        for (part, rows) in self.rows.iter().enumerate() {
            if first < *rows {
                return Some((part, first));
            }
            first -= rows;
        }
        None
    }
}

fn rows(parts: &[HostPart]) -> Vec<usize> {
    parts.iter().map(|p| p.shape[0] as usize).collect()
}

/// Rows `first..first + 16` of a part into one strip; rows past the last are zeros.
fn pack(part: &Coded, rows: usize, first: usize, format: &StripFormat, into: &mut [u8]) {
    let mut row = RowCodes::default();
    into.fill(0);
    for lane in 0..STRIP.min(rows - first) {
        part.row(first + lane, &mut row);
        for c in 0..format.chunks {
            let (at, chunk) = format.at(c);
            let bytes = &mut into[at..][..chunk.bytes];
            pack_codes(&row, lane, c, format, chunk, bytes);
            pack_scales(&row, lane, c, part.scheme.group, format, chunk, bytes);
        }
    }
}

fn pack_codes(row: &RowCodes, lane: usize, c: usize, f: &StripFormat, chunk: &Chunk, into: &mut [u8]) {
    let codes = &row.codes[(c * CHUNK).min(row.codes.len())..((c + 1) * CHUNK).min(row.codes.len())];
    let (low, high) = into.split_at_mut(chunk.high_at);
    let low_mask = (1u32 << f.low) as u8;
    put_plane(low, f.low, lane, codes, |code| code & low_mask.wrapping_sub(1));
    if f.high > 0 {
        put_plane(high, f.high, lane, codes, |code| code >> f.low);
    }
}

fn put_plane(plane: &mut [u8], bits: u32, lane: usize, codes: &[u8], part: impl Fn(u8) -> u8) {
    let per_line = 8 / bits as usize;
    for (quad, codes) in codes.chunks(4).enumerate() {
        let at = (quad / per_line * STRIP + lane) * 4;
        let shift = quad % per_line * bits as usize;
        for (byte, code) in plane[at..at + 4].iter_mut().zip(codes) {
            *byte |= part(*code) << shift;
        }
    }
}

fn pack_scales(
    row: &RowCodes,
    lane: usize,
    c: usize,
    group: usize,
    f: &StripFormat,
    chunk: &Chunk,
    into: &mut [u8],
) {
    let size = f.scale.size_bytes();
    let k = row.codes.len();
    if f.supers {
        put(&mut into[chunk.supers_at..], DType::F32, lane, row.super_scales[c]);
        if f.offsets == Offsets::Add {
            put(&mut into[chunk.supers_at + STRIP * 4..], DType::F32, lane, row.super_offsets[c]);
        }
    }
    for g in 0..CHUNK / f.group {
        let first = c * CHUNK + g * f.group;
        if first >= k {
            break;
        }
        let at = g * STRIP * size;
        put(&mut into[chunk.scales_at + at..], f.scale, lane, row.scales[first / group]);
        if f.offsets != Offsets::No {
            put(&mut into[chunk.offsets_at + at..], f.scale, lane, row.offsets[first / group]);
        }
    }
}

fn put(into: &mut [u8], dtype: DType, lane: usize, x: f32) {
    let at = lane * dtype.size_bytes();
    match dtype {
        DType::F16 => into[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes()),
        DType::Bf16 => into[at..at + 2].copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
        DType::I8 => into[at] = (x as i8) as u8,
        DType::U8 => into[at] = x as u8,
        _ => into[at..at + 4].copy_from_slice(&x.to_le_bytes()),
    }
}
