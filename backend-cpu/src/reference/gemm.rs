//! Gemm: x·Wᵀ with its epilogue.

use engine_core::backend::Activation;

use super::elementwise::{gelu, gelu_tanh, silu};

/// What follows the product; see `engine_core::backend::Epilogue`. N rows of W, N' = N or N / 2 columns of out.
#[derive(Clone, Copy, Default)]
pub struct After<'a> {
    /// [N]
    pub bias: Option<&'a [f32]>,
    /// [T, N]
    pub add: Option<&'a [f32]>,
    pub act: Activation,
    pub scale: Option<f32>,
    /// [T, N']
    pub residual: Option<&'a [f32]>,
}

/// out = residual + scale · act(x·Wᵀ + bias + add). x [T, K], w [N, K], result [T, N'].
///
/// For an activation that halves, the rows of W are gate [N/2, K] then up [N/2, K], and column i of the result is
/// act(gate i) · up i. Sums run in f64: the reference is what an exact product would give.
pub fn gemm(x: &[f32], w: &[f32], k: usize, after: &After<'_>) -> Vec<f32> {
    let (rows, n) = (x.len() / k, w.len() / k);
    let width = if after.act.halves() { n / 2 } else { n };
    let mut out = vec![0.0; rows * width];
    for t in 0..rows {
        let x = &x[t * k..][..k];
        let product = |column: usize| {
            let w = &w[column * k..][..k];
            let dot: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let bias = after.bias.map_or(0.0, |b| b[column]);
            let add = after.add.map_or(0.0, |a| a[t * n + column]);
            dot as f32 + bias + add
        };
        for i in 0..width {
            let y = match after.act {
                Activation::Identity => product(i),
                Activation::Silu => silu(product(i)),
                Activation::Gelu => gelu(product(i)),
                Activation::GeluTanh => gelu_tanh(product(i)),
                Activation::Relu => product(i).max(0.0),
                Activation::SiluMul => silu(product(i)) * product(width + i),
                Activation::GeluTanhMul => gelu_tanh(product(i)) * product(width + i),
            };
            let residual = after.residual.map_or(0.0, |r| r[t * width + i]);
            out[t * width + i] = residual + after.scale.unwrap_or(1.0) * y;
        }
    }
    out
}
