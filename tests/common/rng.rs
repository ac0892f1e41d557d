//! A small seeded generator (SplitMix64, Steele, Lea and Flood 2014): the same numbers everywhere, for ever.

/// Mixes all bits of `x`.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A stream of numbers.
pub struct Rng(u64);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(mix(seed.wrapping_add(0x1234_5678)))
    }
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
    /// A number in `least ..= most`.
    pub fn between(&mut self, least: u32, most: u32) -> u32 {
        least + (self.number() % u64::from(most - least + 1)) as u32
    }
    /// True `percent` times in a hundred.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.between(0, 99) < percent
    }
    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.number() as usize % choices.len()]
    }
}
