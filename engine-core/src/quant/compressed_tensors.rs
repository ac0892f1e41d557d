//! compressed-tensors' `pack-quantized`: signed integers of 4 or 8 bits (2 and 3 are read too), offset to be positive
//! and packed along K into 32-bit words, row by row.
//!
//! `weight_packed` [N, ⌈K / (32 / bits)⌉], no number crossing words; `weight_scale` [N, groups]; `weight_zero_point`
//! [⌈N / (32 / bits)⌉, groups], packed along N, where the scheme is asymmetric; `weight_g_idx` [K] where columns are
//! sorted. w[n][k] = scale · (q - zero), both offset by 2^(bits - 1).

use super::Coded;
use super::codes::{Offsets, RowCodes, Scheme, Values};
use super::parts::{Companion, Packed, word_at};
use crate::backend::{AuxKind, HostPart};
use crate::error::{Error, Result};
use crate::loader::HostBytes;

struct Words {
    bytes: HostBytes,
    scales: Companion,
    zeros: Option<Companion>,
    bits: usize,
    n: usize,
    groups: Vec<u32>,
    row_words: usize,
}

impl Words {
    fn new(part: &HostPart, bits: u8, group: u32) -> Result<Self> {
        let bits = usize::from(bits);
        let per_word = 32 / bits;
        let p = Packed::new(part, |n, k| n * k.div_ceil(per_word) * 4)?;
        let (n, k) = (p.n, p.k);
        let group = if group == 0 { k.max(1) } else { group as usize };
        let count = k.div_ceil(group);
        let zeros = match p.optional(AuxKind::Zeros)? {
            Some(_) => Some(p.companion(AuxKind::Zeros, [n.div_ceil(per_word), count])?),
            None => None,
        };
        let groups: Vec<u32> = match p.optional(AuxKind::GroupIndex)? {
            Some(index) if index.rows * index.cols == k => (0..k).map(|i| index.word(i)).collect(),
            Some(_) => return Err(Error::Checkpoint(format!("{}: g_idx is not [{k}]", part.name))),
            None => (0..k).map(|i| (i / group) as u32).collect(),
        };
        if let Some(wrong) = groups.iter().find(|g| **g as usize >= count) {
            return Err(Error::Checkpoint(format!("{}: g_idx names group {wrong} of {count}", part.name)));
        }
        let scales = p.companion(AuxKind::Scales, [n, count])?;
        Ok(Words { bytes: p.bytes, scales, zeros, bits, n, groups, row_words: k.div_ceil(per_word) })
    }

    fn code(&self, n: usize, k: usize) -> u8 {
        let per_word = 32 / self.bits;
        let word = word_at(&self.bytes, n * self.row_words + k / per_word);
        (word >> (k % per_word * self.bits) & ((1 << self.bits) - 1)) as u8
    }

    fn scale(&self, n: usize, g: usize) -> f32 {
        self.scales.float(n * self.scales.cols + g)
    }

    fn zero(&self, n: usize, g: usize) -> f32 {
        let Some(zeros) = &self.zeros else { return (1u32 << (self.bits - 1)) as f32 };
        let per_word = 32 / self.bits;
        let word = zeros.word(n / per_word * zeros.cols + g);
        (word >> (n % per_word * self.bits) & ((1 << self.bits) - 1)) as f32
    }
}

/// Every number of the part.
pub(super) fn dequantize(part: &HostPart, bits: u8, group: u32) -> Result<Vec<f32>> {
    let w = Words::new(part, bits, group)?;
    let mut out = Vec::with_capacity(w.n * w.groups.len());
    for n in 0..w.n {
        for (k, g) in w.groups.iter().enumerate() {
            let g = *g as usize;
            out.push(w.scale(n, g) * (f32::from(w.code(n, k)) - w.zero(n, g)));
        }
    }
    Ok(out)
}

/// The part as codes; none when its columns are sorted by groups of different sizes.
pub(super) fn coded(part: &HostPart, bits: u8, group: u32) -> Result<Option<Coded>> {
    let w = Words::new(part, bits, group)?;
    let k = w.groups.len();
    let group = if group == 0 { k.max(1) } else { group as usize };
    let mut order: Vec<u32> = (0..k as u32).collect();
    order.sort_by_key(|i| w.groups[*i as usize]);
    if order.iter().enumerate().any(|(place, i)| w.groups[*i as usize] as usize != place / group) {
        return Ok(None);
    }
    let sorted = order.iter().enumerate().all(|(place, i)| place == *i as usize);
    let zeros = w.zeros.is_some();
    let scheme = Scheme {
        bits,
        values: Values::Integer { zero: if zeros { 0.0 } else { (1u32 << (bits - 1)) as f32 } },
        group,
        scale_dtype: w.scales.dtype,
        offsets: if zeros { Offsets::Zero } else { Offsets::No },
        supers: false,
    };
    let columns = order.clone();
    let rows = move |n: usize, row: &mut RowCodes| {
        let groups = k.div_ceil(group);
        row.codes.extend(columns.iter().map(|k| w.code(n, *k as usize)));
        row.scales.extend((0..groups).map(|g| w.scale(n, g)));
        if zeros {
            row.offsets.extend((0..groups).map(|g| w.zero(n, g)));
        }
    };
    Ok(Some(Coded { scheme, order: (!sorted).then_some(order), rows: Box::new(rows) }))
}
