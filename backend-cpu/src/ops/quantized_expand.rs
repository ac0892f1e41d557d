//! From a strip of codes to f32: a few steps of K of 16 outputs as [k][32], what the register tiles read.
//!
//! The loops are over arrays of 16 lanes and become vector code of the path that enters them.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::DType;
use engine_core::quant::codes::{Offsets, Values};
use half::{bf16, f16};

use crate::simd::Simd;
use crate::strips::{CHUNK, Chunk, STRIP, StripFormat};
use crate::weights::PANEL;

/// Steps `k..k + steps` of a strip to `out` [steps][32], lanes 0 to 15 of each row. The steps lie in one chunk; `k` is
/// a multiple of 32 and `steps` of 4.
#[inline(always)]
pub(crate) unsafe fn expand<S: Simd>(
    f: &StripFormat,
    strip: *const u8,
    k: usize,
    steps: usize,
    out: *mut f32,
) {
    let (at, chunk) = f.at(k / CHUNK);
    let (bytes, first) = (strip.add(at), k % CHUNK);
    let run = Run { f, chunk, bytes, first, steps, out };
    match (f.low, f.high, f.values) {
        (8, _, Values::Integer { .. }) => run.expand::<S, 8, 0>(integer),
        (8, _, Values::Table(table)) => run.expand::<S, 8, 0>(lookup(table)),
        (4, 2, _) => run.expand::<S, 4, 2>(integer),
        (4, 1, _) => run.expand::<S, 4, 1>(integer),
        (4, _, Values::Integer { .. }) => run.expand::<S, 4, 0>(integer),
        (4, _, Values::Table(table)) => run.expand::<S, 4, 0>(lookup(table)),
        (_, 1, _) => run.expand::<S, 2, 1>(integer),
        _ => run.expand::<S, 2, 0>(integer),
    }
}

/// One number of a strip: step `k` of lane `lane`.
pub(crate) unsafe fn number(f: &StripFormat, strip: *const u8, k: usize, lane: usize) -> f32 {
    let (at, chunk) = f.at(k / CHUNK);
    let (bytes, step) = (strip.add(at), k % CHUNK);
    let plane = |plane: *const u8, bits: u32| {
        let per_line = 8 / bits as usize;
        let quad = step / 4;
        let byte = *plane.add((quad / per_line * STRIP + lane) * 4 + step % 4);
        byte >> (quad % per_line * bits as usize) & ((1u32 << bits) - 1) as u8
    };
    let mut code = plane(bytes, f.low);
    if f.high > 0 {
        code |= plane(bytes.add(chunk.high_at), f.high) << f.low;
    }
    let value = match f.values {
        Values::Integer { zero } => f32::from(code) - zero,
        Values::Table(table) => table[usize::from(code)],
    };
    let (scales, offsets) = raw_factors(f, chunk, bytes, step / f.group);
    match f.offsets {
        Offsets::Zero => scales[lane] * (value - offsets[lane]),
        _ => scales[lane] * value + offsets[lane],
    }
}

struct Run<'a> {
    f: &'a StripFormat,
    chunk: &'a Chunk,
    bytes: *const u8,
    first: usize,
    steps: usize,
    out: *mut f32,
}

#[inline(always)]
fn integer(code: u32) -> f32 {
    code as i32 as f32
}

#[inline(always)]
fn lookup(table: &'static [f32]) -> impl Fn(u32) -> f32 {
    move |code| {
        debug_assert!((code as usize) < table.len());
        // SAFETY: a code has as many bits as the table has entries (4 and 16, or 8 and 256).
        unsafe { *table.get_unchecked(code as usize) }
    }
}

impl Run<'_> {
    #[inline(always)]
    unsafe fn expand<S: Simd, const LOW: u32, const HIGH: u32>(&self, value: impl Fn(u32) -> f32) {
        let mut k = self.first;
        while k < self.first + self.steps {
            let group = k / self.f.group;
            let end = ((group + 1) * self.f.group).min(self.first + self.steps);
            let (scales, offsets) = group_factors(self.f, self.chunk, self.bytes, group);
            for quad in k / 4..end / 4 {
                let codes = self.quad::<LOW, HIGH>(quad);
                for b in 0..4 {
                    let row = self.out.add((4 * quad + b - self.first) * PANEL);
                    for lane in 0..STRIP {
                        let value = value(codes[lane] >> (8 * b) & 0xFF);
                        *row.add(lane) = scales[lane] * value + offsets[lane];
                    }
                }
            }
            k = end;
        }
    }

    /// Four steps of 16 outputs, one in each byte of a lane.
    #[inline(always)]
    unsafe fn quad<const LOW: u32, const HIGH: u32>(&self, quad: usize) -> [u32; STRIP] {
        let mut codes = line::<LOW>(self.bytes, quad);
        if HIGH > 0 {
            let high = line::<HIGH>(self.bytes.add(self.chunk.high_at), quad);
            for lane in 0..STRIP {
                codes[lane] |= high[lane] << LOW;
            }
        }
        codes
    }
}

#[inline(always)]
unsafe fn line<const BITS: u32>(plane: *const u8, quad: usize) -> [u32; STRIP] {
    let per_line = (8 / BITS) as usize;
    let words = plane.cast::<[u32; STRIP]>().add(quad / per_line).read_unaligned();
    if BITS == 8 {
        return words;
    }
    let shift = (quad % per_line) as u32 * BITS;
    let mask = ((1u32 << BITS) - 1) * 0x0101_0101;
    let mut codes = [0; STRIP];
    for lane in 0..STRIP {
        codes[lane] = words[lane] >> shift & mask;
    }
    codes
}

/// What codes of group `g` of a chunk are multiplied by, and what is added then, for each lane.
#[inline(always)]
pub(crate) unsafe fn group_factors(
    f: &StripFormat,
    chunk: &Chunk,
    bytes: *const u8,
    g: usize,
) -> ([f32; STRIP], [f32; STRIP]) {
    let (scales, mut offsets) = raw_factors(f, chunk, bytes, g);
    for lane in 0..STRIP {
        if f.offsets == Offsets::Zero {
            offsets[lane] *= -scales[lane];
        }
        if let Values::Integer { zero } = f.values {
            offsets[lane] -= zero * scales[lane];
        }
    }
    (scales, offsets)
}

/// Scales and offsets (or zero points) of group `g` as the format has them.
#[inline(always)]
unsafe fn raw_factors(
    f: &StripFormat,
    chunk: &Chunk,
    bytes: *const u8,
    g: usize,
) -> ([f32; STRIP], [f32; STRIP]) {
    let at = g * STRIP * f.scale.size_bytes();
    let mut scales = numbers(f.scale, bytes.add(chunk.scales_at + at));
    let mut offsets = [0.0; STRIP];
    if f.offsets != Offsets::No {
        offsets = numbers(f.scale, bytes.add(chunk.offsets_at + at));
    }
    if f.supers {
        let supers = bytes.add(chunk.supers_at).cast::<[f32; STRIP]>();
        multiply(&mut scales, &supers.read_unaligned());
        if f.offsets == Offsets::Add {
            multiply(&mut offsets, &supers.add(1).read_unaligned());
        }
    }
    (scales, offsets)
}

#[inline(always)]
fn multiply(a: &mut [f32; STRIP], b: &[f32; STRIP]) {
    for lane in 0..STRIP {
        a[lane] *= b[lane];
    }
}

#[inline(always)]
unsafe fn numbers(dtype: DType, p: *const u8) -> [f32; STRIP] {
    let mut out = [0.0; STRIP];
    for lane in 0..STRIP {
        out[lane] = match dtype {
            DType::F16 => f16::from_bits(p.cast::<u16>().add(lane).read_unaligned()).to_f32(),
            DType::Bf16 => bf16::from_bits(p.cast::<u16>().add(lane).read_unaligned()).to_f32(),
            DType::I8 => f32::from(*p.cast::<i8>().add(lane)),
            DType::U8 => f32::from(*p.add(lane)),
            _ => p.cast::<f32>().add(lane).read_unaligned(),
        };
    }
    out
}
