//! Planted faults: with the cargo feature `faults` a test can make one kernel of one SIMD path wrong and see that
//! the conformance run notices. Without the feature everything here is a constant that the compiler removes.

use engine_core::backend::OpKind;

use crate::simd::SimdPath;

/// Whether `op` on `path` must spoil its result.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn planted(_op: OpKind, _path: SimdPath) -> bool {
    false
}

#[cfg(feature = "faults")]
pub use on::{plant, planted};

#[cfg(feature = "faults")]
mod on {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{OpKind, SimdPath};

    static PLANTED: AtomicU64 = AtomicU64::new(0);

    fn code(op: OpKind, path: SimdPath) -> u64 {
        1 + (op as u64) * 16 + path as u64
    }

    /// Plants one fault in this process, or none.
    pub fn plant(fault: Option<(OpKind, SimdPath)>) {
        PLANTED.store(fault.map_or(0, |(op, path)| code(op, path)), Ordering::SeqCst);
    }

    /// Whether `op` on `path` must spoil its result.
    pub fn planted(op: OpKind, path: SimdPath) -> bool {
        PLANTED.load(Ordering::SeqCst) == code(op, path)
    }
}
