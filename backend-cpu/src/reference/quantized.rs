//! QuantizedMatmul: the product of `gemm` with the numbers that a format's specification says its weight holds.

use engine_core::Result;
use engine_core::backend::HostPart;

/// The numbers of a quantized part, [N, K].
///
/// # Errors
/// Those of `engine_core::quant::dequantize`.
pub fn values(part: &HostPart) -> Result<Vec<f32>> {
    engine_core::quant::dequantize(part)
}
