//! Elementwise ops and the activations of epilogues.

use engine_core::backend::EwOp;

/// x · σ(x)
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// x · Φ(x), exact form.
pub fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (x * 0.5 * erfc(-x / std::f64::consts::SQRT_2)) as f32
}

/// The tanh approximation: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
pub fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// out[i] = op(a[i], b[i]). `Cast` copies: the type of the output does the rounding.
///
/// # Panics
/// If an op of two operands has no `b`.
pub fn elementwise(op: EwOp, a: &[f32], b: Option<&[f32]>) -> Vec<f32> {
    let b = |i: usize| b.unwrap_or_else(|| panic!("{op:?} needs b"))[i];
    let apply = |(i, &a): (usize, &f32)| match op {
        EwOp::Add => a + b(i),
        EwOp::Mul => a * b(i),
        EwOp::SiluMul => silu(a) * b(i),
        EwOp::GeluTanhMul => gelu_tanh(a) * b(i),
        EwOp::Cast => a,
        EwOp::Scale(s) => a * s,
        EwOp::SoftCap(cap) => cap * (a / cap).tanh(),
    };
    a.iter().enumerate().map(apply).collect()
}

/// Complementary error function 2/√π · ∫ₓ^∞ e^(-t²) dt: the Taylor series of erf for |x| ≤ 3, Laplace's continued
/// fraction beyond (Abramowitz and Stegun 7.1.5 and 7.1.14). Absolute error below 1e-13.
fn erfc(x: f64) -> f64 {
    if x < -3.0 {
        return 2.0 - erfc(-x);
    }
    if x <= 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut tail = 0.0;
    for n in (1..60).rev() {
        tail = f64::from(n) / 2.0 / (x + tail);
    }
    (-x * x).exp() / std::f64::consts::PI.sqrt() / (x + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_meets_known_values() {
        // erf(1/√2) = 0.6826894921370859, erf(√2) = 0.9544997361036416, erf(5/√2) = 0.9999994266968562.
        for (x, erf) in [
            (1.0f32, 0.682_689_492_137_085_9),
            (2.0, 0.954_499_736_103_641_6),
            (5.0, 0.999_999_426_696_856_2),
        ] {
            let want = f64::from(x) * 0.5 * (1.0 + erf);
            assert!((f64::from(gelu(x)) - want).abs() < 1e-6, "{x}");
            assert!((f64::from(gelu(-x)) + f64::from(x) * 0.5 * (1.0 - erf)).abs() < 1e-7, "{x}");
        }
    }
}
