//! bitsandbytes in 4 bits: NF4 and FP4 codes, two a byte (the first in the high bits), over the whole weight row by
//! row; each block of so many numbers has the largest magnitude in it as its scale.
//!
//! Scales that are themselves quantized ("double quantization") are undone where parts are made, in
//! [`super::checkpoint`]. 8-bit weights are [`super::scaled`] numbers with scale SCB / 127.

use super::Coded;
use super::codes::{Offsets, RowCodes, Scheme, Values};
use super::parts::{Companion, Packed};
use crate::backend::{AuxKind, HostPart};
use crate::error::Result;
use crate::loader::HostBytes;

/// What the sixteen codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bnb4 {
    Nf4,
    Fp4,
}

impl Bnb4 {
    /// The sixteen numbers.
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Bnb4::Nf4 => &NF4,
            Bnb4::Fp4 => &FP4,
        }
    }
}

/// Quantiles of the normal distribution, as QLoRA (arXiv 2305.14314) gives them.
static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// One sign, two exponent bits and one mantissa bit, divided by the largest.
static FP4: [f32; 16] = [
    0.0,
    0.005_208_333_4,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_4,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

struct Halves {
    bytes: HostBytes,
    scales: Companion,
    n: usize,
    k: usize,
}

impl Halves {
    fn new(part: &HostPart, block: u32) -> Result<Self> {
        let p = Packed::new(part, |n, k| (n * k).div_ceil(2))?;
        let scales = p.companion(AuxKind::Scales, [1, (p.n * p.k).div_ceil(block.max(1) as usize)])?;
        Ok(Halves { bytes: p.bytes, scales, n: p.n, k: p.k })
    }

    fn code(&self, i: usize) -> u8 {
        let byte = self.bytes[i / 2];
        if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
    }
}

/// Every number of the part.
pub(super) fn dequantize(part: &HostPart, kind: Bnb4, block: u32) -> Result<Vec<f32>> {
    let h = Halves::new(part, block)?;
    let number = |i: usize| h.scales.float(i / block as usize) * kind.values()[usize::from(h.code(i))];
    Ok((0..h.n * h.k).map(number).collect())
}

/// The part as codes; none when blocks reach over the ends of rows.
pub(super) fn coded(part: &HostPart, kind: Bnb4, block: u32) -> Result<Option<Coded>> {
    let h = Halves::new(part, block)?;
    let group = block as usize;
    if !h.k.is_multiple_of(group) {
        return Ok(None);
    }
    let scheme = Scheme {
        bits: 4,
        values: Values::Table(kind.values()),
        group,
        scale_dtype: h.scales.dtype,
        offsets: Offsets::No,
        supers: false,
    };
    let rows = move |n: usize, row: &mut RowCodes| {
        row.codes.extend((n * h.k..(n + 1) * h.k).map(|i| h.code(i)));
        let groups = h.k / group;
        row.scales.extend((0..groups).map(|g| h.scales.float(n * groups + g)));
    };
    Ok(Some(Coded { scheme, order: None, rows: Box::new(rows) }))
}
