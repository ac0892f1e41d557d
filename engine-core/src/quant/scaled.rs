//! Eight-bit numbers as they are, times a scale: FP8 checkpoints (one scale a tensor, an output, or a block of 128 ×
//! 128), int8 of compressed-tensors (one an output, or a group of K) and of bitsandbytes (one an output).
//!
//! `weight` [N, K]; scales [⌈N / rows⌉, ⌈K / cols⌉], each for `rows` × `cols` numbers.

use super::Coded;
use super::codes::{Offsets, RowCodes, Scheme, Values};
use super::parts::{Companion, Packed};
use crate::backend::{AuxKind, HostPart};
use crate::error::Result;
use crate::loader::HostBytes;
use crate::tensor::DType;

/// What a scale is for: so many outputs and so many columns; 0 is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScaleBlock {
    pub rows: u32,
    pub cols: u32,
}

/// The 256 numbers of e4m3 (no infinities; 0x7F and 0xFF are NaN).
pub(crate) static E4M3_VALUES: [f32; 256] = e4m3_values();

const fn e4m3_values() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        let (exponent, mantissa) = ((i >> 3 & 15) as u32, (i & 7) as u32);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, m) => m as f32 / 512.0,
            (e, m) => f32::from_bits((e + 120) << 23 | m << 20),
        };
        table[i] = if i < 128 { magnitude } else { -magnitude };
        i += 1;
    }
    table
}

/// A number of e5m2: the upper byte of an f16.
pub(crate) fn e5m2(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

struct Scaled {
    bytes: HostBytes,
    scales: Companion,
    element: DType,
    n: usize,
    k: usize,
    rows: usize,
    cols: usize,
}

impl Scaled {
    fn new(part: &HostPart, element: DType, block: ScaleBlock) -> Result<Self> {
        let p = Packed::new(part, |n, k| n * k)?;
        let (n, k) = (p.n, p.k);
        let rows = if block.rows == 0 { n.max(1) } else { block.rows as usize };
        let cols = if block.cols == 0 { k.max(1) } else { block.cols as usize };
        let scales = p.companion(AuxKind::Scales, [n.div_ceil(rows), k.div_ceil(cols)])?;
        Ok(Scaled { bytes: p.bytes, scales, element, n, k, rows, cols })
    }

    fn scale(&self, n: usize, group: usize) -> f32 {
        self.scales.float(n / self.rows * self.scales.cols + group)
    }
}

/// Every number of the part.
pub(super) fn dequantize(part: &HostPart, element: DType, block: ScaleBlock) -> Result<Vec<f32>> {
    let s = Scaled::new(part, element, block)?;
    let mut out = Vec::with_capacity(s.n * s.k);
    for n in 0..s.n {
        for k in 0..s.k {
            out.push(s.scale(n, k / s.cols) * super::parts::float_at(&s.bytes, s.element, n * s.k + k));
        }
    }
    Ok(out)
}

/// The part as codes; none for e5m2, whose numbers no weight has been seen in.
pub(super) fn coded(part: &HostPart, element: DType, block: ScaleBlock) -> Result<Option<Coded>> {
    let s = Scaled::new(part, element, block)?;
    let (values, flip) = match element {
        DType::I8 => (Values::Integer { zero: 128.0 }, 0x80),
        DType::F8E4m3 => (Values::Table(&E4M3_VALUES), 0),
        _ => return Ok(None),
    };
    let scheme = Scheme {
        bits: 8,
        values,
        group: s.cols,
        scale_dtype: s.scales.dtype,
        offsets: Offsets::No,
        supers: false,
    };
    let rows = move |n: usize, row: &mut RowCodes| {
        row.codes.extend(s.bytes[n * s.k..(n + 1) * s.k].iter().map(|b| b ^ flip));
        row.scales.extend((0..s.k.div_ceil(s.cols)).map(|g| s.scale(n, g)));
    };
    Ok(Some(Coded { scheme, order: None, rows: Box::new(rows) }))
}
