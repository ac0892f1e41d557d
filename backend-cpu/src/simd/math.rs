//! exp, ln and what is built from them, on lanes of f32.
//!
//! exp and ln follow the range reductions and minimax polynomials of the Cephes library (Moshier), evaluated with
//! the path's multiply-add: at most 2 units in the last place over the whole range, checked by a test.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of the parent module")]
#![allow(clippy::excessive_precision, reason = "the constants as published")]

use super::Simd;

/// e^x. 0 below -86.9 (close to where the result would be subnormal) and at -∞; +∞ above 88.7.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    let low = S::splat(-86.9);
    let high = S::splat(88.722_83);
    let inside = S::min(S::max(x, low), high);
    let n = S::round(S::mul(inside, S::splat(std::f32::consts::LOG2_E)));
    let r = S::fnma(n, S::splat(0.693_359_375), inside);
    let r = S::fnma(n, S::splat(-2.121_944_4e-4), r);
    let mut p = S::splat(1.987_569_15e-4);
    for c in [1.398_199_95e-3, 8.333_451_9e-3, 4.166_579_6e-2, 1.666_666_55e-1, 5.000_000_1e-1] {
        p = S::fma(p, r, S::splat(c));
    }
    let y = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
    // 2^n in two steps: n = 128 has no f32 of its own.
    let n = S::to_int(n);
    let scale = S::from_bits(S::ishl::<23>(S::iadd(n, S::isplat(126))));
    let y = S::mul(S::mul(y, scale), S::splat(2.0));
    let y = S::select(S::gt(low, x), S::zero(), y);
    S::select(S::gt(x, high), S::splat(f32::INFINITY), y)
}

/// ln x for normal positive x.
#[inline(always)]
pub(crate) unsafe fn ln<S: Simd>(x: S::F) -> S::F {
    // x = m · 2^e with m in [√½, √2).
    let bits = S::isub(S::bits(x), S::isplat(0x3f35_04f3));
    let e = S::to_float(S::isub(S::ishr::<23>(S::iadd(bits, S::isplat(127 << 23))), S::isplat(127)));
    let m = S::iadd(S::iand(bits, S::isplat(0x007f_ffff)), S::isplat(0x3f35_04f3));
    let f = S::sub(S::from_bits(m), S::splat(1.0));
    let z = S::mul(f, f);
    let mut p = S::splat(7.037_683_629_2e-2);
    for c in [
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ] {
        p = S::fma(p, f, S::splat(c));
    }
    let y = S::mul(S::mul(p, f), z);
    let y = S::fma(e, S::splat(-2.121_944_4e-4), y);
    let y = S::fnma(S::splat(0.5), z, y);
    S::fma(e, S::splat(0.693_359_375), S::add(f, y))
}

/// tanh x = 1 - 2 / (e^2x + 1); x itself near zero.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    let one = S::splat(1.0);
    let e = exp::<S>(S::mul(x, S::splat(2.0)));
    let far = S::sub(one, S::div(S::splat(2.0), S::add(e, one)));
    // |x| < 1/4: x - x³/3 + 2x⁵/15 - 17x⁷/315 + 62x⁹/2835.
    let z = S::mul(x, x);
    let mut p = S::splat(62.0 / 2835.0);
    for c in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        p = S::fma(p, z, S::splat(c));
    }
    let near = S::fma(S::mul(x, z), p, x);
    S::select(S::gt(S::splat(0.0625), z), near, far)
}

/// x · σ(x)
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    let e = exp::<S>(S::sub(S::zero(), x));
    S::div(x, S::add(S::splat(1.0), e))
}

/// Gaussian error linear unit, tanh approximation.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    let cube = S::mul(S::mul(x, x), x);
    let inner = S::mul(S::splat(0.797_884_560_8), S::fma(S::splat(0.044_715), cube, x));
    let half = S::mul(S::splat(0.5), x);
    S::fma(half, tanh::<S>(inner), half)
}

/// Gaussian error linear unit with the error function (Abramowitz and Stegun 7.1.26, |error| ≤ 1.5e-7).
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    let z = S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2));
    let a = S::max(z, S::sub(S::zero(), z));
    let t = S::div(S::splat(1.0), S::fma(S::splat(0.327_591_1), a, S::splat(1.0)));
    let mut p = S::splat(1.061_405_429);
    for c in [-1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592] {
        p = S::fma(p, t, S::splat(c));
    }
    let tail = S::mul(S::mul(p, t), exp::<S>(S::sub(S::zero(), S::mul(a, a))));
    let erf = S::sub(S::splat(1.0), tail);
    let erf = S::select(S::gt(S::zero(), z), S::sub(S::zero(), erf), erf);
    let half = S::mul(S::splat(0.5), x);
    S::fma(half, erf, half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{SimdPath, Vectorized, enter};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Ln,
        Tanh,
        Silu,
        Gelu,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl Vectorized for Map<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for x in self.1.chunks_exact_mut(16) {
                for i in (0..16).step_by(S::W) {
                    let p = x.as_mut_ptr().add(i);
                    let x = S::load(p);
                    let y = match self.0 {
                        Function::Exp => exp::<S>(x),
                        Function::Ln => ln::<S>(x),
                        Function::Tanh => tanh::<S>(x),
                        Function::Silu => silu::<S>(x),
                        Function::Gelu => gelu::<S>(x),
                    };
                    S::store(p, y);
                }
            }
        }
    }

    fn on_every_path(f: Function, inputs: &[f32], check: impl Fn(f32, f32, &str)) {
        for path in SimdPath::available() {
            let mut values = inputs.to_vec();
            // SAFETY: the path is available.
            unsafe { enter(path, Map(f, &mut values)) };
            inputs.iter().zip(values).for_each(|(x, y)| check(*x, y, path.name()));
        }
    }

    /// Distance in units of the last place of the wanted value.
    fn ulps(got: f32, want: f64) -> f64 {
        let w = want as f32;
        let unit = f64::from(f32::from_bits(w.abs().to_bits() + 1) - w.abs());
        (f64::from(got) - want).abs() / unit
    }

    fn spread(low: f32, high: f32) -> Vec<f32> {
        (0..1 << 16).map(|i| low + (high - low) * i as f32 / 65_536.0).collect()
    }

    #[test]
    fn exp_is_within_two_ulps() {
        on_every_path(Function::Exp, &spread(-86.8, 88.7), |x, y, path| {
            let error = ulps(y, f64::from(x).exp());
            assert!(error <= 2.0, "{path}: exp({x}) = {y}, {error} ulps");
        });
        let ends = [f32::NEG_INFINITY, -88.0, -1000.0, 0.0, 89.0, f32::INFINITY].repeat(8);
        on_every_path(Function::Exp, &ends, |x, y, path| {
            let want = if x < 0.0 { 0.0 } else { x.exp() };
            assert!(y == want, "{path}: exp({x}) = {y}");
        });
    }

    #[test]
    fn ln_is_within_two_ulps() {
        let wide: Vec<f32> = spread(-86.0, 88.0).iter().map(|x| x.exp()).collect();
        for inputs in [wide, spread(0.5, 2.0)] {
            on_every_path(Function::Ln, &inputs, |x, y, path| {
                let want = f64::from(x).ln();
                let error = if want == 0.0 { f64::from(y.abs()) * 1e30 } else { ulps(y, want) };
                assert!(error <= 2.0, "{path}: ln({x}) = {y}, {error} ulps");
            });
        }
    }

    #[test]
    fn activations_are_close() {
        let near = |f: Function, want: fn(f64) -> f64, tolerance: f64| {
            on_every_path(f, &spread(-20.0, 20.0), |x, y, path| {
                let want = want(f64::from(x));
                assert!(
                    (f64::from(y) - want).abs() <= tolerance * want.abs().max(1.0),
                    "{path}: f({x}) = {y}"
                );
            });
        };
        near(Function::Tanh, f64::tanh, 3e-7);
        near(Function::Silu, |x| x / (1.0 + (-x).exp()), 3e-7);
        // erf by its series, which converges everywhere.
        let gelu = |x: f64| {
            let z = x.abs() / std::f64::consts::SQRT_2;
            let (mut term, mut sum) = (z, z);
            for n in 1..400 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let erf = if z > 4.0 { 1.0 } else { sum * 2.0 / std::f64::consts::PI.sqrt() };
            0.5 * x * (1.0 + erf * x.signum())
        };
        near(Function::Gelu, gelu, 1e-6);
    }
}
