//! Rotary embedding tables. Formulas of Hugging Face's `modeling_rope_utils`, computed in f64, rounded once.

use std::f64::consts::PI;

use crate::config::rope::{LongRope, RopeConfig, RopeScaling, Yarn};

/// The table `Op::RopeKvWrite` reads: [positions, rot] f32, per position cos of the rot/2 frequencies, then sin,
/// the attention factor multiplied in.
///
/// `dynamic` and `longrope` depend on the length that is served: one choice is made for the whole table, by
/// `positions`, because keys once cached cannot be rotated again. Up to the original length it is Hugging Face's.
pub fn rope_table(rope: &RopeConfig, positions: u32) -> Vec<f32> {
    let (frequencies, factor) = frequencies(rope, positions);
    let half = frequencies.len();
    let mut table = vec![0.0f32; positions as usize * half * 2];
    for (p, row) in table.chunks_exact_mut(half * 2).enumerate() {
        let (cos, sin) = row.split_at_mut(half);
        for (i, f) in frequencies.iter().enumerate() {
            // Hugging Face multiplies position and frequency in f32; keeping its rounding keeps its logits.
            let angle = f64::from(p as f32 * *f as f32);
            cos[i] = (angle.cos() * factor) as f32;
            sin[i] = (angle.sin() * factor) as f32;
        }
    }
    table
}

/// rot/2 frequencies and the factor on cos and sin.
fn frequencies(rope: &RopeConfig, positions: u32) -> (Vec<f64>, f64) {
    let dim = f64::from(rope.rotary_dim);
    let plain = |base: f64| -> Vec<f64> {
        (0..rope.rotary_dim / 2).map(|i| base.powf(-2.0 * f64::from(i) / dim)).collect()
    };
    match &rope.scaling {
        RopeScaling::None => (plain(rope.theta), 1.0),
        RopeScaling::Linear { factor } => (plain(rope.theta).iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Dynamic { factor, original_max_position } => {
            let original = f64::from(*original_max_position);
            let length = f64::from(positions).max(original);
            let stretch = factor * length / original - (factor - 1.0);
            (plain(rope.theta * stretch.powf(dim / (dim - 2.0))), 1.0)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            let original = f64::from(*original_max_position);
            let scaled = plain(rope.theta)
                .into_iter()
                .map(|f| llama3(f, original, *factor, *low_freq_factor, *high_freq_factor))
                .collect();
            (scaled, 1.0)
        }
        RopeScaling::Yarn(y) => (yarn(rope, y, &plain(rope.theta)), yarn_factor(y)),
        RopeScaling::LongRope(l) => (longrope(l, positions, &plain(rope.theta)), longrope_factor(l)),
    }
}

fn llama3(f: f64, original: f64, factor: f64, low: f64, high: f64) -> f64 {
    let wavelength = 2.0 * PI / f;
    if wavelength < original / high {
        f
    } else if wavelength > original / low {
        f / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

fn yarn(rope: &RopeConfig, y: &Yarn, plain: &[f64]) -> Vec<f64> {
    let dim = f64::from(rope.rotary_dim);
    // The dimension whose wavelength turns `rotations` times within the original context.
    let dimension = |rotations: f64| {
        dim * (f64::from(y.original_max_position) / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
    };
    let (mut low, mut high) = (dimension(y.beta_fast), dimension(y.beta_slow));
    if y.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(i, f): (usize, &f64)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f / y.factor * ramp + f * (1.0 - ramp)
    };
    plain.iter().enumerate().map(blend).collect()
}

fn yarn_factor(y: &Yarn) -> f64 {
    let mscale = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    match (y.attention_factor, y.mscale, y.mscale_all_dim) {
        (Some(factor), _, _) => factor,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(y.factor, m) / mscale(y.factor, all),
        _ => mscale(y.factor, 1.0),
    }
}

fn longrope(l: &LongRope, positions: u32, plain: &[f64]) -> Vec<f64> {
    let divisors = if positions > l.original_max_position { &l.long_factor } else { &l.short_factor };
    plain.iter().zip(divisors).map(|(f, d)| f / d).collect()
}

fn longrope_factor(l: &LongRope) -> f64 {
    match l.attention_factor {
        Some(factor) => factor,
        None if l.factor <= 1.0 => 1.0,
        None => (1.0 + l.factor.ln() / f64::from(l.original_max_position).ln()).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_table_is_cos_then_sin() {
        let rope = RopeConfig { theta: 10_000.0, rotary_dim: 4, scaling: RopeScaling::None };
        let t = rope_table(&rope, 3);
        let want = [2.0f64.cos(), 0.02f64.cos(), 2.0f64.sin(), 0.02f64.sin()];
        for (got, want) in t[8..].iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
        }
    }
}
