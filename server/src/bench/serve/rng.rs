//! A small seeded generator and the distributions that arrivals and lengths are drawn from.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same draws.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number from `low` to `high`, both included.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high.max(low)) - u64::from(low) + 1;
        low + ((u128::from(self.next()) * u128::from(span)) >> 64) as u32
    }

    /// In `(0, 1]`.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let (u, v) = (self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Gamma of this shape and mean 1 (Marsaglia and Tsang 2000).
    pub fn gamma_of_mean_one(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.unit().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost / shape;
        }
        self.gamma(shape) / shape
    }

    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_mean_one_and_variance_one_over_shape() {
        for shape in [0.3, 1.0, 4.0] {
            let mut rng = Rng::new(7);
            let draws: Vec<f64> = (0..200_000).map(|_| rng.gamma_of_mean_one(shape)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            assert!((mean - 1.0).abs() < 0.02, "{shape}: mean {mean}");
            assert!((variance * shape - 1.0).abs() < 0.05, "{shape}: variance {variance}");
        }
    }

    #[test]
    fn bounds_are_included() {
        let mut rng = Rng::new(1);
        let draws: Vec<u32> = (0..1000).map(|_| rng.between(3, 5)).collect();
        assert!(draws.contains(&3) && draws.contains(&5) && draws.iter().all(|d| (3..=5).contains(d)));
        assert_eq!(rng.between(9, 9), 9);
    }
}
