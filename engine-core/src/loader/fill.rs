//! Random weights by a counter-based generator: a value depends on (seed, tensor name, index) alone.
//!
//! The whole algorithm, in 64-bit arithmetic modulo 2^64 (`tests/fixtures/pallium_fill.py` is its twin in Python,
//! pinned to the same values, so that fixtures store no weights):
//! ```text
//! mix(z):  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;  z ^ (z >> 31)
//! fnv(s):  h = 0xCBF29CE484222325; for each byte b of s in UTF-8: h = (h ^ b) * 0x100000001B3
//! key      = mix(mix(seed) ^ fnv(name))
//! bits(i)  = mix(key + (i + 1) * 0x9E3779B97F4A7C15)              i: row-major index of the element
//! sum(i)   = the four 16-bit lanes of bits(i) added, - 131070     about normal: mean 0, deviation 65536 / sqrt(3)
//! value(i) = f32(sum(i)) * f32(std * sqrt(3) / 65536) + f32(mean) two roundings to f32, no fused multiply-add
//! ```
//! where `std * sqrt(3) / 65536` is computed in f64 from the f32 `std`. Narrower types are rounded from the f32 to
//! nearest, ties to even. `mix` is the finalizer of SplitMix64 (Steele, Lea, Flood 2014), `fnv` is FNV-1a; the sum
//! of four uniforms stands for the normal distribution (bounded at 3.46 deviations).

use half::{bf16, f16};

use crate::DType;

/// The values of one random tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fill {
    key: u64,
    scale: f32,
    mean: f32,
}

impl Fill {
    /// The tensor `name` under `seed`, of this mean and standard deviation.
    pub fn new(seed: u64, name: &str, mean: f32, std: f32) -> Self {
        let scale = f64::from(std) * 3f64.sqrt() / 65536.0;
        Fill { key: mix(mix(seed) ^ fnv1a(name)), scale: scale as f32, mean }
    }

    /// What the bits of every element follow from; for a device-side twin.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Factor and summand that make values of sums; for a device-side twin.
    pub fn scale_and_mean(&self) -> (f32, f32) {
        (self.scale, self.mean)
    }

    /// Element `index`.
    #[inline]
    pub fn value(&self, index: u64) -> f32 {
        let bits = mix(self.key.wrapping_add((index.wrapping_add(1)).wrapping_mul(GOLDEN)));
        // Two lanes at a time: no sum of two reaches the next.
        let pairs = (bits & 0x0000_FFFF_0000_FFFF) + (bits >> 16 & 0x0000_FFFF_0000_FFFF);
        let lanes = (pairs as u32).wrapping_add((pairs >> 32) as u32);
        (lanes as i32 - 131_070) as f32 * self.scale + self.mean
    }

    /// Fills `out` with little-endian elements of `dtype` (f32, f16 or bf16), the first being element `start`.
    ///
    /// # Panics
    /// If `dtype` is another, or `out` is no whole number of elements.
    pub fn write(&self, start: u64, dtype: DType, out: &mut [u8]) {
        assert_eq!(out.len() % dtype.size_bytes(), 0, "{} bytes are no whole number of {dtype}", out.len());
        match dtype {
            DType::F32 => self.write_as(start, out, |x| x.to_le_bytes()),
            DType::F16 => self.write_as(start, out, |x| f16::from_f32(x).to_le_bytes()),
            DType::Bf16 => self.write_as(start, out, |x| round_bf16(x).to_le_bytes()),
            _ => panic!("random weights of {dtype}"),
        }
    }

    #[inline]
    fn write_as<const N: usize>(&self, start: u64, out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
        for (i, element) in (start..).zip(out.as_chunks_mut::<N>().0) {
            *element = encode(self.value(i));
        }
    }
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// Rounds a finite f32 to bfloat16, to nearest, ties to even; free of branches, so that it vectorizes.
#[inline]
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    debug_assert_eq!(rounded as u16, bf16::from_f32(x).to_bits());
    rounded as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn values_are_those_of_the_python_twin() {
        // Printed by tests/fixtures/pallium_fill.py.
        let fill = Fill::new(7, "model.layers.0.self_attn.q_proj.weight", 0.0, 0.02);
        assert_eq!(fill.key(), PYTHON_KEY);
        let got: Vec<u32> = [0, 1, 2, 1_000_003, 1 << 40].iter().map(|i| fill.value(*i).to_bits()).collect();
        assert_eq!(got, PYTHON_BITS);
        let norm = Fill::new(7, "model.norm.weight", 1.0, 0.02);
        let mut bytes = [0; 8];
        norm.write(3, DType::Bf16, &mut bytes);
        assert_eq!(bytes, PYTHON_BF16);
        norm.write(3, DType::F16, &mut bytes);
        assert_eq!(bytes, PYTHON_F16);
    }

    const PYTHON_KEY: u64 = 0xD649_7114_69C7_896C;
    const PYTHON_BITS: [u32; 5] = [0xBB4D_513B, 0xBC05_CAD2, 0xBC35_D918, 0x3CDB_EF91, 0xBC4A_11D8];
    const PYTHON_BF16: [u8; 8] = [124, 63, 128, 63, 127, 63, 133, 63];
    const PYTHON_F16: [u8; 8] = [222, 59, 254, 59, 246, 59, 39, 60];

    #[test]
    fn the_distribution_has_its_moments() {
        let fill = Fill::new(0, "w", 1.0, 0.5);
        let n = 200_000u64;
        let values: Vec<f64> = (0..n).map(|i| f64::from(fill.value(i))).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let lag = values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.005 && (variance.sqrt() - 0.5).abs() < 0.005, "{mean} {variance}");
        assert!(lag.abs() < 0.003, "neighbours correlate: {lag}");
        let most = values.iter().map(|x| (x - 1.0).abs()).fold(0.0, f64::max);
        assert!((1.4..1.7321).contains(&most), "{most}");
    }

    #[test]
    fn starts_do_not_change_the_values() {
        let fill = Fill::new(1, "w", 0.0, 1.0);
        let mut one = vec![0; 200_006];
        fill.write(0, DType::F16, &mut one);
        let mut part = [0; 10];
        fill.write(1000, DType::F16, &mut part);
        assert_eq!(part, one[2000..2010]);
        assert_ne!(Fill::new(2, "w", 0.0, 1.0).value(0), fill.value(0));
        assert_ne!(Fill::new(1, "v", 0.0, 1.0).value(0), fill.value(0));
    }
}
