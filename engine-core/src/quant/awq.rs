//! AWQ: 4-bit codes with a scale and a zero point for each group of K and output. w[n][k] = scale · (code - zero).
//!
//! The GEMM packing has `qweight` [K, N / 8] with eight outputs a word in the order 0 2 4 6 1 3 5 7, `qzeros`
//! [groups, N / 8] likewise, `scales` [groups, N]. The GEMV packing has `qweight` [N, K / 8] with eight columns a
//! word in their own order, `qzeros` [N, words], `scales` [N, 8 · words], rows padded to whole words.

use super::Coded;
use super::codes::{Offsets, RowCodes, Scheme, Values};
use super::parts::{Companion, Packed, bits_at, word_at};
use crate::backend::{AuxKind, HostPart};
use crate::error::{Error, Result};
use crate::loader::HostBytes;

/// The two layouts of AWQ checkpoints (`version` in their configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AwqPacking {
    Gemm,
    Gemv,
}

/// Where in a word of the GEMM packing each of eight outputs stands.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

struct Awq {
    packing: AwqPacking,
    bytes: HostBytes,
    scales: Companion,
    zeros: Companion,
    n: usize,
    k: usize,
    group: usize,
}

impl Awq {
    fn new(part: &HostPart, packing: AwqPacking, group: u32) -> Result<Self> {
        let p = Packed::new(part, |n, k| n * k / 2)?;
        let (n, k) = (p.n, p.k);
        let group = if group == 0 { k.max(1) } else { group as usize };
        let count = k.div_ceil(group);
        let (packed, what) = match packing {
            AwqPacking::Gemm => (n, "N"),
            AwqPacking::Gemv => (k, "K"),
        };
        if packed % 8 != 0 {
            return Err(Error::Checkpoint(format!("{}: {what} = {packed} is no multiple of 8", part.name)));
        }
        let (scales, zeros) = match packing {
            AwqPacking::Gemm => {
                (p.companion(AuxKind::Scales, [count, n])?, p.companion(AuxKind::Zeros, [count, n / 8])?)
            }
            AwqPacking::Gemv => {
                let words = p.optional(AuxKind::Zeros)?.map_or(0, |z| z.cols).max(count.div_ceil(8));
                (p.companion(AuxKind::Scales, [n, 8 * words])?, p.companion(AuxKind::Zeros, [n, words])?)
            }
        };
        Ok(Awq { packing, bytes: p.bytes, scales, zeros, n, k, group })
    }

    fn code(&self, n: usize, k: usize) -> u8 {
        match self.packing {
            AwqPacking::Gemm => nibble(word_at(&self.bytes, k * (self.n / 8) + n / 8), PLACE[n % 8]),
            AwqPacking::Gemv => nibble(word_at(&self.bytes, n * (self.k / 8) + k / 8), k % 8),
        }
    }

    fn zero(&self, n: usize, g: usize) -> f32 {
        f32::from(match self.packing {
            AwqPacking::Gemm => nibble(self.zeros.word(g * (self.n / 8) + n / 8), PLACE[n % 8]),
            AwqPacking::Gemv => bits_at(4, g, |w| self.zeros.word(n * self.zeros.cols + w)),
        })
    }

    fn scale(&self, n: usize, g: usize) -> f32 {
        match self.packing {
            AwqPacking::Gemm => self.scales.float(g * self.n + n),
            AwqPacking::Gemv => self.scales.float(n * self.scales.cols + g),
        }
    }
}

fn nibble(word: u32, place: usize) -> u8 {
    (word >> (4 * place) & 15) as u8
}

/// Every number of the part.
pub(super) fn dequantize(part: &HostPart, packing: AwqPacking, group: u32) -> Result<Vec<f32>> {
    let a = Awq::new(part, packing, group)?;
    let mut out = Vec::with_capacity(a.n * a.k);
    for n in 0..a.n {
        for k in 0..a.k {
            let g = k / a.group;
            out.push(a.scale(n, g) * (f32::from(a.code(n, k)) - a.zero(n, g)));
        }
    }
    Ok(out)
}

/// The part as codes.
pub(super) fn coded(part: &HostPart, packing: AwqPacking, group: u32) -> Result<Option<Coded>> {
    let a = Awq::new(part, packing, group)?;
    let scheme = Scheme {
        bits: 4,
        values: Values::Integer { zero: 0.0 },
        group: a.group,
        scale_dtype: a.scales.dtype,
        offsets: Offsets::Zero,
        supers: false,
    };
    let rows = move |n: usize, row: &mut RowCodes| {
        let groups = a.k.div_ceil(a.group);
        row.codes.extend((0..a.k).map(|k| a.code(n, k)));
        row.scales.extend((0..groups).map(|g| a.scale(n, g)));
        row.offsets.extend((0..groups).map(|g| a.zero(n, g)));
    };
    Ok(Some(Coded { scheme, order: None, rows: Box::new(rows) }))
}
