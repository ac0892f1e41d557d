//! Weight formats. One file per quantized format turns checkpoint tensors into host parts and says, in a slow
//! `dequantize`, what they mean. No kernels here.

use crate::tensor::DType;

/// How the numbers of a weight are stored in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// Plain floating point.
    Dense(DType),
}

impl WeightFormat {
    /// Whether matrix products with it are `Op::Gemm` (else `Op::QuantizedMatmul`).
    pub fn is_dense(self) -> bool {
        matches!(self, WeightFormat::Dense(_))
    }

    /// The element type of a dense format.
    pub fn dense(self) -> Option<DType> {
        match self {
            WeightFormat::Dense(d) => Some(d),
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WeightFormat::Dense(d) => d.fmt(f),
        }
    }
}
