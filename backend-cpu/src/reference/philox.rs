//! Philox4x32-10, the counter-based generator of every draw (Salmon, Moraes, Dror, Shaw: "Parallel random numbers:
//! as easy as 1, 2, 3", SC 2011), and the Gumbel noise made of it.

/// Ten rounds of Philox over a 128-bit counter with a 64-bit key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Gumbel noise of a token id at a position under a seed: -ln(-ln u) with u = (word / 256 + 0.5) / 2^24 of word
/// id % 4 of the counter (position, id / 4, 0, 0). In f64: the largest u is 1 - 2^-25, which f32 would round to 1
/// and so make an infinite noise once in 2^24 draws. An f32 kernel takes -ln u as -ln_1p(-(1 - u)) there.
pub fn gumbel(seed: u64, position: u32, id: u32) -> f64 {
    let words = philox([position, id / 4, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let u = (f64::from(words[(id % 4) as usize] >> 8) + 0.5) / f64::from(1 << 24);
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]
        );
        let pi = [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344];
        assert_eq!(
            philox(pi, [0xA409_3822, 0x299F_31D0]),
            [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]
        );
    }

    #[test]
    fn noise_is_finite_at_both_ends_and_about_gumbel() {
        let draws: Vec<f64> = (0..200_000).map(|id| gumbel(3, 1, id)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!(draws.iter().all(|g| g.is_finite()));
        // Mean of the distribution: Euler's constant; deviation π/√6, so ±0.01 is more than 3 standard errors.
        assert!((mean - 0.577_215_664_9).abs() < 0.01, "{mean}");
    }
}
