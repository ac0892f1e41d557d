//! Seeded data of cases: the same name gives the same numbers on every device.

use engine_core::DType;
use engine_core::backend::{Fuse, HostPart, HostWeight, PartData, Shard, Uses};
use engine_core::loader::HostBytes;
use engine_core::loader::fill::Fill;
use engine_core::quant::WeightFormat;
use half::{bf16, f16};

/// `count` values of about normal distribution, mean 0.
pub fn normal(name: &str, count: usize, std: f32) -> Vec<f32> {
    let fill = Fill::new(1, name, 0.0, std);
    (0..count as u64).map(|i| fill.value(i)).collect()
}

/// Elements `range` of [`normal`] of this name and deviation 1.
pub fn normal_range(name: &str, range: std::ops::Range<u32>) -> Vec<f32> {
    let fill = Fill::new(1, name, 0.0, 1.0);
    range.map(|i| fill.value(u64::from(i))).collect()
}

/// `count` integers in `0..below`.
pub fn below(name: &str, count: usize, below: u32) -> Vec<i32> {
    normal(name, count, 1.0)
        .into_iter()
        .map(|x| (x.to_bits().wrapping_mul(0x9E37_79B1) >> 8) % below)
        .map(|x| x as i32)
        .collect()
}

/// 0..count in a shuffled order.
pub fn permutation(name: &str, count: usize) -> Vec<i32> {
    let keys = normal(name, count, 1.0);
    let mut order: Vec<i32> = (0..count as i32).collect();
    order.sort_by(|a, b| keys[*a as usize].total_cmp(&keys[*b as usize]));
    order
}

/// Packed little-endian elements, rounded to nearest even.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => panic!("no conformance data of {dtype}"),
    }
}

/// The numbers of packed elements, floats and integers alike.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let half_word = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_bits(word(b)).into()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(half_word(b)).to_f64()).collect(),
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_bits(half_word(b)).to_f64()).collect(),
        DType::I32 => bytes.chunks_exact(4).map(|b| f64::from(word(b) as i32)).collect(),
        DType::U32 => bytes.chunks_exact(4).map(|b| f64::from(word(b))).collect(),
        _ => panic!("no conformance data of {dtype}"),
    }
}

/// Little-endian bytes of words.
pub fn word_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// One part [n, k] of a weight.
pub fn part(name: &str, n: usize, k: usize, dtype: DType, values: &[f32]) -> HostPart {
    assert_eq!(values.len(), n * k);
    HostPart {
        name: name.to_owned(),
        data: PartData::Mapped(HostBytes::from(encode(dtype, values))),
        format: WeightFormat::Dense(dtype),
        shape: [n as u64, k as u64],
        aux: Vec::new(),
    }
}

/// A weight of parts.
pub fn host_weight(parts: Vec<HostPart>, fuse: Fuse, uses: Uses, act_dtype: DType) -> HostWeight {
    HostWeight { name: parts[0].name.clone(), parts, fuse, uses, shard: Shard::Whole, act_dtype }
}
