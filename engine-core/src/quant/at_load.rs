//! Quantizing plain weights while they are loaded (`--quantization` over a checkpoint without quantization).

use half::f16;

use super::bitsandbytes::Bnb4;
use super::parts::float_at;
use super::scaled::ScaleBlock;
use super::{GgmlType, WeightFormat, host_bytes};
use crate::backend::{AuxKind, HostAux, HostPart, PartData};
use crate::error::Result;
use crate::loader::source::WeightSource;
use crate::tensor::DType;

/// What matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadQuantization {
    /// e4m3, one scale an output.
    Fp8,
    /// int8, one scale an output.
    Int8,
    /// NF4 in blocks of 64.
    BitsAndBytes,
    /// A block format of 32: Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0.
    Ggml(GgmlType),
}

impl LoadQuantization {
    /// All, by the name `--quantization` gives them.
    pub const ALL: [(&'static str, LoadQuantization); 8] = [
        ("fp8", LoadQuantization::Fp8),
        ("int8", LoadQuantization::Int8),
        ("bitsandbytes", LoadQuantization::BitsAndBytes),
        ("q4_0", LoadQuantization::Ggml(GgmlType::Q4_0)),
        ("q4_1", LoadQuantization::Ggml(GgmlType::Q4_1)),
        ("q5_0", LoadQuantization::Ggml(GgmlType::Q5_0)),
        ("q5_1", LoadQuantization::Ggml(GgmlType::Q5_1)),
        ("q8_0", LoadQuantization::Ggml(GgmlType::Q8_0)),
    ];

    /// The one of this name, or of vLLM's longer one for the same.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = match name {
            "fp8_per_channel" => "fp8",
            "int8_per_channel_weight_only" => "int8",
            name => name,
        };
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, q)| *q)
    }

    /// Whether a matrix is quantized: those of the layers; the block formats take embeddings and head too.
    fn takes(self, name: &str, [n, k]: [u64; 2]) -> bool {
        let outer = name.contains("embed_tokens") || name.starts_with("lm_head");
        match self {
            _ if n == 1 || name.contains("norm") => false,
            LoadQuantization::Ggml(t) => k.is_multiple_of(t.block() as u64),
            LoadQuantization::BitsAndBytes => !outer && k.is_multiple_of(BNB_BLOCK as u64),
            _ => !outer,
        }
    }
}

const BNB_BLOCK: u32 = 64;

/// A source whose matrices are quantized when they are asked for.
pub struct QuantizingSource {
    inner: Box<dyn WeightSource>,
    to: LoadQuantization,
}

impl QuantizingSource {
    /// Over plain weights.
    pub fn new(inner: Box<dyn WeightSource>, to: LoadQuantization) -> Self {
        QuantizingSource { inner, to }
    }
}

impl WeightSource for QuantizingSource {
    fn total_bytes(&self) -> u64 {
        self.inner.total_bytes()
    }

    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart> {
        let part = self.inner.part(name, shape)?;
        match part.format.is_dense() && self.to.takes(name, shape) {
            true => quantize(part, self.to),
            false => Ok(part),
        }
    }
}

/// A dense part in another format.
///
/// # Errors
/// `Io` when its file cannot be read.
pub fn quantize(part: HostPart, to: LoadQuantization) -> Result<HostPart> {
    let Some(dtype) = part.format.dense() else { return Ok(part) };
    let [n, k] = part.shape.map(|s| s as usize);
    let mut row = vec![0f32; k];
    let mut bytes = Vec::new();
    let mut scales = Vec::new();
    let stored = match &part.data {
        PartData::Fill(_) => None,
        data => Some(host_bytes(&part.name, data)?),
    };
    for r in 0..n {
        match (&stored, &part.data) {
            (Some(stored), _) => {
                for (i, x) in row.iter_mut().enumerate() {
                    *x = float_at(stored, dtype, r * k + i);
                }
            }
            (None, PartData::Fill(fill)) => {
                for (i, x) in (r as u64 * k as u64..).zip(&mut row) {
                    *x = fill.value(i);
                }
            }
            _ => {}
        }
        match to {
            LoadQuantization::Fp8 => by_row(&row, 448.0, &mut scales, &mut bytes, e4m3),
            LoadQuantization::Int8 => {
                by_row(&row, 127.0, &mut scales, &mut bytes, |x| x.round_ties_even() as i8 as u8);
            }
            LoadQuantization::BitsAndBytes => nf4(&row, &mut scales, &mut bytes),
            LoadQuantization::Ggml(t) => {
                row.as_chunks::<32>().0.iter().for_each(|block| ggml_block(t, block, &mut bytes));
            }
        }
    }
    let format = match to {
        LoadQuantization::Fp8 => scaled(DType::F8E4m3),
        LoadQuantization::Int8 => scaled(DType::I8),
        LoadQuantization::BitsAndBytes => WeightFormat::Bnb4 { kind: Bnb4::Nf4, block: BNB_BLOCK },
        LoadQuantization::Ggml(t) => WeightFormat::Ggml(t),
    };
    let shape = match to {
        LoadQuantization::BitsAndBytes => [1, scales.len() as u64],
        _ => [scales.len() as u64, 1],
    };
    let scale_bytes: Vec<u8> = scales.iter().flat_map(|s: &f32| s.to_le_bytes()).collect();
    let data = PartData::Mapped(scale_bytes.into());
    let aux = match scales.is_empty() {
        true => Vec::new(),
        false => vec![HostAux { kind: AuxKind::Scales, data, dtype: DType::F32, shape }],
    };
    Ok(HostPart { data: PartData::Mapped(bytes.into()), format, aux, ..part })
}

fn scaled(element: DType) -> WeightFormat {
    WeightFormat::Scaled { element, block: ScaleBlock { rows: 1, cols: 0 } }
}

fn by_row(row: &[f32], most: f32, scales: &mut Vec<f32>, bytes: &mut Vec<u8>, code: impl Fn(f32) -> u8) {
    let scale = highest(row) / most;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    scales.push(scale);
    bytes.extend(row.iter().map(|x| code((x * inverse).clamp(-most, most))));
}

fn highest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, x| x.abs().max(most))
}

/// The nearest e4m3 of a number within ±448, ties to even.
fn e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs();
    if magnitude < 1.0 / 64.0 {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_FFFF + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)).min(0x7E) as u8
}

fn nf4(row: &[f32], scales: &mut Vec<f32>, bytes: &mut Vec<u8>) {
    let table = Bnb4::Nf4.values();
    for block in row.chunks(BNB_BLOCK as usize) {
        let most = highest(block);
        let inverse = if most > 0.0 { 1.0 / most } else { 0.0 };
        // The table is sorted: the code is the number of midpoints below.
        let code = |x: f32| table.windows(2).filter(|w| x * inverse > (w[0] + w[1]) / 2.0).count() as u8;
        scales.push(most);
        bytes.extend(block.chunks(2).map(|pair| code(pair[0]) << 4 | code(pair[1])));
    }
}

/// 32 numbers as one block, as llama.cpp's reference quantizers make it.
fn ggml_block(t: GgmlType, x: &[f32; 32], bytes: &mut Vec<u8>) {
    let signed_most = x.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let (low, high) = x.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
    let put = |bytes: &mut Vec<u8>, v: f32| bytes.extend(f16::from_f32(v).to_le_bytes());
    let mut codes = [0u8; 32];
    match t {
        GgmlType::Q8_0 => {
            let d = signed_most.abs() / 127.0;
            put(bytes, d);
            bytes.extend(x.iter().map(|v| (v * inverse(d)).round() as i8 as u8));
            return;
        }
        GgmlType::Q4_0 | GgmlType::Q5_0 => {
            let half = if t == GgmlType::Q4_0 { 8.0 } else { 16.0 };
            let d = signed_most / -half;
            put(bytes, d);
            for (code, v) in codes.iter_mut().zip(x) {
                *code = (v * inverse(d) + half + 0.5).clamp(0.0, 2.0 * half - 1.0) as u8;
            }
        }
        _ => {
            let most = if t == GgmlType::Q4_1 { 15.0 } else { 31.0 };
            let d = (high - low) / most;
            put(bytes, d);
            put(bytes, low);
            for (code, v) in codes.iter_mut().zip(x) {
                *code = ((v - low) * inverse(d) + 0.5).clamp(0.0, most) as u8;
            }
        }
    }
    if matches!(t, GgmlType::Q5_0 | GgmlType::Q5_1) {
        let fifth = codes.iter().enumerate().fold(0u32, |bits, (i, c)| bits | u32::from(c >> 4 & 1) << i);
        bytes.extend(fifth.to_le_bytes());
    }
    bytes.extend((0..16).map(|i| codes[i] & 15 | (codes[i + 16] & 15) << 4));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::loader::fill::Fill;
    use crate::quant::dequantize;

    #[test]
    fn every_method_is_near_the_plain_weight() {
        let fill = Fill::new(3, "w", 0.0, 0.5);
        let (n, k) = (7usize, 192usize);
        let part = || HostPart {
            name: "w".into(),
            data: PartData::Fill(fill),
            format: WeightFormat::Dense(DType::F32),
            shape: [n as u64, k as u64],
            aux: Vec::new(),
        };
        for (name, to) in LoadQuantization::ALL {
            let got = dequantize(&quantize(part(), to).unwrap()).unwrap();
            assert_eq!(got.len(), n * k);
            let wanted = (0..(n * k) as u64).map(|i| fill.value(i));
            let (mut error, mut power) = (0.0f64, 0.0f64);
            for (a, b) in got.iter().zip(wanted) {
                error += f64::from(a - b).powi(2);
                power += f64::from(b).powi(2);
            }
            let relative = (error / power).sqrt();
            let most = match name {
                "int8" | "q8_0" => 0.01,
                "fp8" => 0.04,
                "q5_0" | "q5_1" => 0.06,
                _ => 0.12,
            };
            assert!(relative < most && relative > 1e-4, "{name}: {relative}");
        }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest() {
        let table = &crate::quant::scaled::E4M3_VALUES;
        for i in 0..=255u8 {
            let value = table[usize::from(i)];
            if !value.is_nan() {
                assert_eq!(e4m3(value), i, "{value}");
            }
        }
        let nearest = |x: f32| {
            (0..127u8).min_by(|a, b| {
                let distance = |c: &u8| (table[usize::from(*c)] - x).abs();
                distance(a).total_cmp(&distance(b))
            })
        };
        for i in 0..4000 {
            let x = i as f32 * 0.003;
            let (got, want) = (table[usize::from(e4m3(x))], table[usize::from(nearest(x).unwrap())]);
            assert_eq!((got - x).abs(), (want - x).abs(), "{x}");
        }
    }
}
