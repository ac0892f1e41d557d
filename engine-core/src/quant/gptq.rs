//! GPTQ: codes of 2, 3, 4 or 8 bits packed along K into 32-bit words, one scale and zero point for each group of K
//! and output.
//!
//! `qweight` [K · bits / 32, N] holds column n's codes as one stream of bits, lowest first; `qzeros`
//! [groups, N · bits / 32] the zero points along N, in the first version of the format less one; `scales` [groups, N];
//! `g_idx` [K] says the group of each column (absent: k / group). w[n][k] = scale · (code - zero).

use super::Coded;
use super::codes::{Offsets, RowCodes, Scheme, Values};
use super::parts::{Companion, Packed, bits_at, word_at};
use crate::backend::{AuxKind, HostPart};
use crate::error::{Error, Result};
use crate::loader::HostBytes;

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GptqZeros {
    /// Less one (`checkpoint_format` gptq).
    LessOne,
    /// As they are (gptq_v2).
    Plain,
}

struct Gptq {
    bytes: HostBytes,
    n: usize,
    bits: usize,
    scales: Companion,
    zeros: Companion,
    add: f32,
    /// Group of each column.
    groups: Vec<u32>,
}

impl Gptq {
    fn new(part: &HostPart, bits: u8, group: u32, zeros: GptqZeros) -> Result<Self> {
        let bits = usize::from(bits);
        let p = Packed::new(part, |n, k| (k * bits).div_ceil(32) * n * 4)?;
        let (n, k) = (p.n, p.k);
        let group = if group == 0 { k.max(1) } else { group as usize };
        let count = k.div_ceil(group);
        let stored = p.optional(AuxKind::GroupIndex)?;
        let groups: Vec<u32> = match &stored {
            Some(index) if index.rows * index.cols == k => (0..k).map(|i| index.word(i)).collect(),
            Some(index) => {
                let found = index.rows * index.cols;
                return Err(Error::Checkpoint(format!("{}: g_idx of {found} for K = {k}", part.name)));
            }
            None => (0..k).map(|i| (i / group) as u32).collect(),
        };
        if let Some(wrong) = groups.iter().find(|g| **g as usize >= count) {
            return Err(Error::Checkpoint(format!("{}: g_idx names group {wrong} of {count}", part.name)));
        }
        Ok(Gptq {
            scales: p.companion(AuxKind::Scales, [count, n])?,
            zeros: p.companion(AuxKind::Zeros, [count, (n * bits).div_ceil(32)])?,
            add: if zeros == GptqZeros::LessOne { 1.0 } else { 0.0 },
            bytes: p.bytes,
            n,
            bits,
            groups,
        })
    }

    fn code(&self, n: usize, k: usize) -> u8 {
        bits_at(self.bits, k, |w| word_at(&self.bytes, w * self.n + n))
    }

    fn scale(&self, n: usize, group: usize) -> f32 {
        self.scales.float(group * self.n + n)
    }

    fn zero(&self, n: usize, group: usize) -> f32 {
        let row = group * self.zeros.cols;
        f32::from(bits_at(self.bits, n, |w| self.zeros.word(row + w))) + self.add
    }
}

/// Every number of the part.
pub(super) fn dequantize(part: &HostPart, bits: u8, group: u32, zeros: GptqZeros) -> Result<Vec<f32>> {
    let g = Gptq::new(part, bits, group, zeros)?;
    let number = |n: usize, k: usize| {
        let group = g.groups[k] as usize;
        g.scale(n, group) * (f32::from(g.code(n, k)) - g.zero(n, group))
    };
    Ok((0..g.n).flat_map(|n| (0..g.groups.len()).map(move |k| (n, k))).map(|(n, k)| number(n, k)).collect())
}

/// The part as codes, its columns sorted by group. None when groups are not of one size.
pub(super) fn coded(part: &HostPart, bits: u8, group: u32, zeros: GptqZeros) -> Result<Option<Coded>> {
    let g = Gptq::new(part, bits, group, zeros)?;
    let k = g.groups.len();
    let group = if group == 0 { k.max(1) } else { group as usize };
    let mut order: Vec<u32> = (0..k as u32).collect();
    order.sort_by_key(|i| g.groups[*i as usize]);
    if order.iter().enumerate().any(|(place, i)| g.groups[*i as usize] as usize != place / group) {
        return Ok(None);
    }
    let sorted = order.iter().enumerate().all(|(place, i)| place == *i as usize);
    let scheme = Scheme {
        bits,
        values: Values::Integer { zero: 0.0 },
        group,
        scale_dtype: g.scales.dtype,
        offsets: Offsets::Zero,
        supers: false,
    };
    let columns = order.clone();
    let rows = move |n: usize, row: &mut RowCodes| {
        row.codes.extend(columns.iter().map(|k| g.code(n, *k as usize)));
        let count = k.div_ceil(group);
        row.scales.extend((0..count).map(|i| g.scale(n, i)));
        row.offsets.extend((0..count).map(|i| g.zero(n, i)));
    };
    Ok(Some(Coded { scheme, order: (!sorted).then_some(order), rows: Box::new(rows) }))
}
