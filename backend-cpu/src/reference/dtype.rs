//! What rounding to a narrower type means: to nearest, ties to even, once, on writing.

use engine_core::DType;
use half::{bf16, f16};

/// `x` as `dtype` would keep it.
///
/// # Panics
/// For a type that is not f32, f16 or bf16.
pub fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        _ => panic!("the reference computes on f32, f16 and bf16, not {dtype}"),
    }
}

/// The values of packed elements.
///
/// # Panics
/// As [`round`].
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(two(b)).to_f32()).collect(),
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_bits(two(b)).to_f32()).collect(),
        _ => panic!("the reference computes on f32, f16 and bf16, not {dtype}"),
    }
}

/// Values as packed elements, rounded.
///
/// # Panics
/// As [`round`].
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => panic!("the reference computes on f32, f16 and bf16, not {dtype}"),
    }
}
