//! What all quantized formats have in common: codes of few bits, what a code stands for, scales by groups of K. A
//! backend repacks its tiles from this form, so that a kernel knows code widths and not checkpoint formats.
//!
//! Number k of a row is `scale · value + offset`, with
//! `scale = scales[k / group] · super_scales[k / SUPER]`, `offset = offsets[k / group] · super_offsets[k / SUPER]`;
//! without supers those factors are 1, without offsets the offset is 0. Where offsets are zero points, the number is
//! `scale · (value - offsets[k / group])`.

use super::ggml::{self, GgmlType};
use crate::tensor::DType;

/// Numbers of K that share a super scale.
pub const SUPER: usize = 256;

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// value = code - zero
    Integer { zero: f32 },
    /// value = table[code]; 16 or 256 entries.
    Table(&'static [f32]),
}

/// What is added to scaled values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offsets {
    No,
    /// A number of each group.
    Add,
    /// A zero point of each group, subtracted before the scale is applied.
    Zero,
}

/// How the rows of a weight are coded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheme {
    /// Width of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    pub values: Values,
    /// Numbers of K that share a scale.
    pub group: usize,
    /// A type that holds every scale and offset exactly: f32, f16, bf16, i8 or u8.
    pub scale_dtype: DType,
    pub offsets: Offsets,
    /// Whether scales (and offsets) are multiplied by one of each [`SUPER`] numbers.
    pub supers: bool,
}

/// One row of codes.
#[derive(Clone, Debug, Default)]
pub struct RowCodes {
    /// [K]
    pub codes: Vec<u8>,
    /// [K / group]
    pub scales: Vec<f32>,
    pub offsets: Vec<f32>,
    /// [K / SUPER]
    pub super_scales: Vec<f32>,
    pub super_offsets: Vec<f32>,
}

impl RowCodes {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.offsets.clear();
        self.super_scales.clear();
        self.super_offsets.clear();
    }

    /// The numbers that the codes stand for.
    pub fn values(&self, scheme: &Scheme) -> Vec<f32> {
        let value = |(k, code): (usize, &u8)| {
            let (group, block) = (k / scheme.group, k / SUPER);
            let value = match scheme.values {
                Values::Integer { zero } => f32::from(*code) - zero,
                Values::Table(table) => table[usize::from(*code)],
            };
            let mut scale = self.scales[group];
            let mut offset = match scheme.offsets {
                Offsets::No => 0.0,
                Offsets::Add => self.offsets[group],
                Offsets::Zero => return scale * (value - self.offsets[group]),
            };
            if scheme.supers {
                scale *= self.super_scales[block];
                offset *= self.super_offsets.get(block).copied().unwrap_or(1.0);
            }
            scale * value + offset
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// How a GGUF format is coded.
pub fn ggml_scheme(t: GgmlType) -> Scheme {
    let small = |bits, zero| Scheme {
        bits,
        values: Values::Integer { zero },
        group: 32,
        scale_dtype: DType::F16,
        offsets: Offsets::No,
        supers: false,
    };
    let wide =
        |bits, zero, group, scale_dtype| Scheme { group, scale_dtype, supers: true, ..small(bits, zero) };
    let table = |values: &'static [f32], s: Scheme| Scheme { values: Values::Table(values), ..s };
    let with_offsets = |s: Scheme| Scheme { offsets: Offsets::Add, ..s };
    match t {
        GgmlType::Q4_0 => small(4, 8.0),
        GgmlType::Q4_1 => with_offsets(small(4, 0.0)),
        GgmlType::Q5_0 => small(5, 16.0),
        GgmlType::Q5_1 => with_offsets(small(5, 0.0)),
        GgmlType::Q8_0 => small(8, 128.0),
        GgmlType::Q2K => with_offsets(wide(2, 0.0, 16, DType::U8)),
        GgmlType::Q3K => wide(3, 4.0, 16, DType::I8),
        GgmlType::Q4K => with_offsets(wide(4, 0.0, 32, DType::U8)),
        GgmlType::Q5K => with_offsets(wide(5, 0.0, 32, DType::U8)),
        GgmlType::Q6K => wide(6, 32.0, 16, DType::I8),
        GgmlType::Iq4Nl => table(&ggml::IQ4_VALUES, small(4, 0.0)),
        GgmlType::Iq4Xs => table(&ggml::IQ4_VALUES, wide(4, 0.0, 32, DType::I8)),
        GgmlType::Mxfp4 => table(&ggml::E2M1_VALUES, Scheme { scale_dtype: DType::F32, ..small(4, 0.0) }),
    }
}

/// One row of blocks as codes, appended to `row`.
pub fn ggml_row(t: GgmlType, bytes: &[u8], row: &mut RowCodes) {
    for b in bytes.chunks_exact(t.block_bytes()) {
        match t {
            GgmlType::Q4_0 | GgmlType::Iq4Nl => small_block(&b[2..], None, ggml::half_at(b, 0), row),
            GgmlType::Mxfp4 => small_block(&b[1..], None, ggml::e8m0(b[0]), row),
            GgmlType::Q4_1 => {
                row.offsets.push(ggml::half_at(b, 2));
                small_block(&b[4..], None, ggml::half_at(b, 0), row);
            }
            GgmlType::Q5_0 => small_block(&b[6..], Some(&b[2..6]), ggml::half_at(b, 0), row),
            GgmlType::Q5_1 => {
                row.offsets.push(ggml::half_at(b, 2));
                small_block(&b[8..], Some(&b[4..8]), ggml::half_at(b, 0), row);
            }
            GgmlType::Q8_0 => {
                row.scales.push(ggml::half_at(b, 0));
                row.codes.extend(b[2..].iter().map(|c| c ^ 0x80));
            }
            GgmlType::Q2K => q2_k(b, row),
            GgmlType::Q3K => q3_k(b, row),
            GgmlType::Q4K | GgmlType::Q5K => q4_k_or_q5_k(b, row),
            GgmlType::Q6K => q6_k(b, row),
            GgmlType::Iq4Xs => iq4_xs(b, row),
        }
    }
}

fn small_block(nibbles: &[u8], fifth: Option<&[u8]>, scale: f32, row: &mut RowCodes) {
    row.scales.push(scale);
    let at = row.codes.len();
    row.codes.extend(nibbles.iter().map(|b| b & 15));
    row.codes.extend(nibbles.iter().map(|b| b >> 4));
    if let Some(fifth) = fifth {
        for (i, code) in row.codes[at..].iter_mut().enumerate() {
            *code |= (fifth[i / 8] >> (i % 8) & 1) << 4;
        }
    }
}

/// Four planes of two bits in each of two runs of 32 bytes.
fn two_bits(bytes: &[u8], row: &mut RowCodes) {
    for run in bytes.chunks_exact(32) {
        for shift in [0, 2, 4, 6] {
            row.codes.extend(run.iter().map(|b| b >> shift & 3));
        }
    }
}

fn q2_k(b: &[u8], row: &mut RowCodes) {
    row.super_scales.push(ggml::half_at(b, 80));
    row.super_offsets.push(-ggml::half_at(b, 82));
    row.scales.extend(b[..16].iter().map(|s| f32::from(s & 15)));
    row.offsets.extend(b[..16].iter().map(|s| f32::from(s >> 4)));
    two_bits(&b[16..80], row);
}

fn q3_k(b: &[u8], row: &mut RowCodes) {
    row.super_scales.push(ggml::half_at(b, 108));
    row.scales.extend((0..16).map(|i| f32::from(ggml::scale_q3(&b[96..108], i) as i8 - 32)));
    let at = row.codes.len();
    two_bits(&b[32..96], row);
    for (i, code) in row.codes[at..].iter_mut().enumerate() {
        *code |= (b[i % 32] >> (i / 32) & 1) << 2;
    }
}

fn q4_k_or_q5_k(b: &[u8], row: &mut RowCodes) {
    row.super_scales.push(ggml::half_at(b, 0));
    row.super_offsets.push(-ggml::half_at(b, 2));
    for j in 0..8 {
        let (scale, min) = ggml::scale_min(&b[4..16], j);
        row.scales.push(f32::from(scale));
        row.offsets.push(f32::from(min));
    }
    let at = row.codes.len();
    let fifth = (b.len() == 176).then_some(&b[16..48]);
    for run in b[b.len() - 128..].chunks_exact(32) {
        row.codes.extend(run.iter().map(|b| b & 15));
        row.codes.extend(run.iter().map(|b| b >> 4));
    }
    if let Some(fifth) = fifth {
        for (i, code) in row.codes[at..].iter_mut().enumerate() {
            *code |= (fifth[i % 32] >> (i / 32) & 1) << 4;
        }
    }
}

fn q6_k(b: &[u8], row: &mut RowCodes) {
    row.super_scales.push(ggml::half_at(b, 208));
    row.scales.extend(b[192..208].iter().map(|s| f32::from(*s as i8)));
    for half in 0..2 {
        let (low, high) = (&b[half * 64..][..64], &b[128 + half * 32..][..32]);
        row.codes.extend(low.iter().zip(high.iter().cycle()).enumerate().map(|(i, (l, h))| {
            let shift = if i < 32 { 0 } else { 2 };
            (l & 15) | (h >> shift & 3) << 4
        }));
        row.codes.extend(low.iter().zip(high.iter().cycle()).enumerate().map(|(i, (l, h))| {
            let shift = if i < 32 { 4 } else { 6 };
            (l >> 4) | (h >> shift & 3) << 4
        }));
    }
}

fn iq4_xs(b: &[u8], row: &mut RowCodes) {
    row.super_scales.push(ggml::half_at(b, 0));
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (i, codes) in b[8..].chunks_exact(16).enumerate() {
        let low = b[4 + i / 2] >> (4 * (i % 2)) & 15;
        let scale = i32::from(low) + i32::from(high >> (2 * i) & 3) * 16 - 32;
        small_block(codes, None, scale as f32, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes and scales say the same numbers as the specification, bit for bit.
    #[test]
    fn codes_mean_what_the_specification_says() {
        for t in GgmlType::ALL {
            // Any bytes are a block; only an f16 of infinity or NaN would not compare.
            let mut state = 1u64;
            let bytes: Vec<u8> = (0..64 * t.block_bytes())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) as u8 & 0xBF
                })
                .collect();
            let mut row = RowCodes::default();
            ggml_row(t, &bytes, &mut row);
            let got = row.values(&ggml_scheme(t));
            let want = t.dequantize(&bytes).unwrap_or_default();
            assert_eq!(want.len(), 64 * t.block(), "{t}");
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(got == want, "{t}: number {i} is {got}, wanted {want}");
            }
        }
    }
}
