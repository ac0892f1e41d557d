//! Norm (RMS norm) and LayerNorm, rows of H.

/// out = x / √(mean(x²) + eps) · w. x [T, H], w [H]. Hugging Face's LlamaRMSNorm.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    x.chunks_exact(w.len()).flat_map(|row| rms_norm_row(row, w, eps)).collect()
}

/// out = (x - mean) / √(variance + eps) · w + bias. x [T, H], w and bias [H].
pub fn layer_norm(x: &[f32], w: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let width = w.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let mean = mean(row.iter().map(|x| f64::from(*x)), width);
        let variance = self::mean(row.iter().map(|x| (f64::from(*x) - mean).powi(2)), width);
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for (i, x) in row.iter().enumerate() {
            let normed = ((f64::from(*x) - mean) * scale) as f32;
            out.push(normed * w[i] + bias.map_or(0.0, |b| b[i]));
        }
    }
    out
}

/// residual += x, rounded as the residual's type rounds; the norm is then of the rounded sum.
pub fn add_to_residual(residual: &mut [f32], x: &[f32], round: impl Fn(f32) -> f32) {
    for (residual, x) in residual.iter_mut().zip(x) {
        *residual = round(*residual + x);
    }
}

/// One row of [`rms_norm`].
pub fn rms_norm_row(row: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mean_square = mean(row.iter().map(|x| f64::from(*x).powi(2)), row.len());
    let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
    row.iter().zip(w).map(|(x, w)| (f64::from(*x) * scale) as f32 * w).collect()
}

fn mean(values: impl Iterator<Item = f64>, count: usize) -> f64 {
    values.sum::<f64>() / count as f64
}
