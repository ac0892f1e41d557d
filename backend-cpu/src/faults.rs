//! Planted faults: with the cargo feature `faults` a test can make one kernel of one SIMD path wrong and see that
//! the conformance run notices. Without the feature everything here is a constant that the compiler removes.
//!
//! An op whose kernel goes more than one way (few rows and many, f32 and bytes) has a fault for each: only a run that
//! goes the way of the planted fault is spoiled.

use engine_core::backend::OpKind;

use crate::simd::SimdPath;
use crate::simd::dot8::ByteDot;

/// The ways an op's kernel can go on a path; a fault's `way` is an index.
pub fn ways(op: OpKind, path: SimdPath) -> &'static [&'static str] {
    match op {
        OpKind::Gemm if matches!(path, SimdPath::Avx512Bf16 | SimdPath::Amx) => &[
            "multiply-adds, few rows",
            "multiply-adds, many rows",
            "pairs of bfloat16, few rows",
            "pairs of bfloat16, many rows",
        ],
        OpKind::Gemm => &["few rows", "many rows"],
        OpKind::QuantizedMatmul if ByteDot::of(path).is_some() => {
            &["f32, few rows", "f32, many rows", "bytes, few rows", "bytes, many rows"]
        }
        OpKind::QuantizedMatmul => &["f32, few rows", "f32, many rows"],
        _ => &["the only way"],
    }
}

/// Whether `op` on `path` must spoil the result of a run that went `way`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn planted(_op: OpKind, _path: SimdPath, _way: usize) -> bool {
    false
}

#[cfg(feature = "faults")]
pub use on::{plant, planted};

#[cfg(feature = "faults")]
mod on {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{OpKind, SimdPath};

    static PLANTED: AtomicU64 = AtomicU64::new(0);

    fn code(op: OpKind, path: SimdPath, way: usize) -> u64 {
        1 + ((op as u64) * 16 + path as u64) * 16 + way as u64
    }

    /// Plants one fault in this process, or none.
    pub fn plant(fault: Option<(OpKind, SimdPath, usize)>) {
        PLANTED.store(fault.map_or(0, |(op, path, way)| code(op, path, way)), Ordering::SeqCst);
    }

    /// Whether `op` on `path` must spoil the result of a run that went `way`.
    pub fn planted(op: OpKind, path: SimdPath, way: usize) -> bool {
        PLANTED.load(Ordering::SeqCst) == code(op, path, way)
    }
}
