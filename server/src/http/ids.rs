//! Random names for requests and seeds for unseeded draws.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A sequence of well-mixed numbers, shared by all threads: SplitMix64 (Steele, Lea, Flood 2014). Not for keys.
#[derive(Debug)]
pub struct Numbers(AtomicU64);

impl Numbers {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Numbers {
        Numbers(AtomicU64::new(seed))
    }

    /// A sequence with a start from the operating system.
    pub fn random() -> Numbers {
        Numbers::new(RandomState::new().build_hasher().finish())
    }

    /// The next number; no two calls get the same one.
    pub fn next(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// 32 unpredictable hexadecimal digits.
pub fn random_hex() -> String {
    static NUMBERS: OnceLock<Numbers> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(Numbers::random);
    format!("{:016x}{:016x}", numbers.next(), numbers.next())
}
