//! How far a device may be from the reference, by op and output type.
//!
//! The reference sums in f64 and rounds once. A device sums in f32 in another order and rounds once too: so f32
//! results differ by a few units of 2^-24 times the square root of the number of terms, and 16-bit results by one
//! unit in the last place where the sum lies near a rounding border. Errors are measured against max(1, |expected|).

use engine_core::DType;
use engine_core::backend::OpKind;

/// Bounds of one comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest |got - want| / max(1, |want|).
    pub max_error: f64,
    /// Σ (got - want)² / Σ want².
    pub nmse: f64,
}

/// Bits for bits.
pub const EXACT: Tolerance = Tolerance { max_error: 0.0, nmse: 0.0 };

/// Products of quantized weights with 16-bit rows, which a device may round to int8 by blocks of up to 64 numbers: the
/// largest of 64 normal numbers is about 2.4 times their size, a step 2.4 / 127 of it and the error 1 / √12 of a
/// step, 0.0055 of each product in size: 3e-5 of the power of all products. An output's power is less than that of its
/// products where they cancel (weights of formats with offsets have a mean, whose error all outputs of a row share),
/// and gate times up has the error of both: up to 3.8e-4 was seen in these cases, and up to 0.05 of one output.
/// What that leaves uncertain, the next test does not: rows that int8 holds are held to the bounds of dense products
/// (`quantized::rows_that_int8_holds`), and so are float32 rows.
const INT8_ROWS: Tolerance = Tolerance { max_error: 0.0625, nmse: 5e-4 };

/// The bounds for an output of `dtype` of `op`.
pub fn tolerance(op: OpKind, dtype: DType) -> Tolerance {
    if matches!(dtype, DType::I32 | DType::U32) {
        // Ids, positions and tables: there is one right answer.
        return EXACT;
    }
    match op {
        // Movement copies or rounds one value: nothing may differ.
        OpKind::Embed
        | OpKind::GatherRows
        | OpKind::Copy
        | OpKind::UpdateTables
        | OpKind::NextInputs
        | OpKind::TopK
        | OpKind::AllReduce
        | OpKind::AllGather
        | OpKind::ReduceScatter => EXACT,
        OpKind::ScatterRows => float(dtype, 1.0),
        // A vectorized exp and tanh are good to about 2 units.
        OpKind::Elementwise => float(dtype, 2.0),
        OpKind::Norm | OpKind::LayerNorm | OpKind::AllReduceNorm => float(dtype, 2.0),
        OpKind::QuantizedMatmul if dtype != DType::F32 => INT8_ROWS,
        // Sums of up to 1024 products whose running value is up to 8 times the result's unit.
        OpKind::Gemm | OpKind::QuantizedMatmul => float(dtype, 8.0),
        // Queries round before the scores do; scores of up to 10 carry their error into exp. Copied pages are looked at
        // through attention too.
        OpKind::CopyPages
        | OpKind::RopeKvWrite
        | OpKind::PagedAttention
        | OpKind::MergeStates
        | OpKind::PlanOnDevice => float(dtype, 16.0),
        // Two roundings in a row: the norm's output is rounded, then its product.
        OpKind::NormLinear | OpKind::AttendNew => float(dtype, 24.0),
        // Logarithms of sums over the vocabulary, |value| up to 20.
        OpKind::Sample | OpKind::LogProbs | OpKind::UpdateSampler => float(DType::F32, 16.0),
        _ => float(dtype, 8.0),
    }
}

/// One unit: an f32 sum of a thousand terms (2^-21), or half a step of the 16-bit type and a little.
fn float(dtype: DType, units: f64) -> Tolerance {
    let (unit, nmse) = match dtype {
        DType::F32 => (2f64.powi(-21), 1e-11),
        DType::F16 => (2f64.powi(-10), 1e-6),
        _ => (2f64.powi(-7), 3e-5),
    };
    let units = if dtype == DType::F32 { units } else { (units / 8.0).max(1.0) };
    Tolerance { max_error: units * unit, nmse: nmse * units }
}
