//! Gumbel noise from Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011): the noise of a token id depends on (seed, position, id) alone.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use crate::simd::{Simd, math};

/// Noise of the `4 · W` ids from `4 · counter` on, in order of ids. -ln(-ln u), u = (word / 256 + ½) / 2^24 of word
/// id % 4 under counter (position, id / 4, 0, 0) and the seed as key.
#[inline(always)]
pub(crate) unsafe fn gumbel<S: Simd>(seed: u64, position: u32, counter: u32) -> [S::F; 4] {
    let lanes: [u32; 16] = std::array::from_fn(|i| counter.wrapping_add(i as u32));
    let words = philox::<S>(seed, position, S::iload(lanes.as_ptr()));
    S::interleave([
        to_gumbel::<S>(words[0]),
        to_gumbel::<S>(words[1]),
        to_gumbel::<S>(words[2]),
        to_gumbel::<S>(words[3]),
    ])
}

#[inline(always)]
unsafe fn philox<S: Simd>(seed: u64, position: u32, counter: S::I) -> [S::I; 4] {
    let (mut low, mut high) = (seed as u32, (seed >> 32) as u32);
    let mut c = [S::isplat(position), counter, S::isplat(0), S::isplat(0)];
    for _ in 0..10 {
        let (first_high, first_low) = S::mul_wide(c[0], S::isplat(0xD251_1F53));
        let (second_high, second_low) = S::mul_wide(c[2], S::isplat(0xCD9E_8D57));
        c = [
            S::ixor(S::ixor(second_high, c[1]), S::isplat(low)),
            second_low,
            S::ixor(S::ixor(first_high, c[3]), S::isplat(high)),
            first_low,
        ];
        low = low.wrapping_add(0x9E37_79B9);
        high = high.wrapping_add(0xBB67_AE85);
    }
    c
}

/// u has 25 bits, one more than f32: above ½ the distance to 1 is used, which is exact again.
#[inline(always)]
unsafe fn to_gumbel<S: Simd>(word: S::I) -> S::F {
    let k = S::to_float(S::ishr::<8>(word));
    let scale = S::splat(1.0 / 16_777_216.0);
    let one = S::splat(1.0);
    let high = S::ge(k, S::splat(8_388_608.0));
    let u = S::mul(S::add(k, S::splat(0.5)), scale);
    let v = S::mul(S::add(S::sub(S::splat(16_777_215.0), k), S::splat(0.5)), scale);
    let rounded = S::sub(one, v);
    let lost = S::sub(S::sub(one, rounded), v);
    let ln = math::ln::<S>(S::select(high, rounded, u));
    let ln = S::add(ln, S::select(high, lost, S::zero()));
    S::sub(S::zero(), math::ln::<S>(S::sub(S::zero(), ln)))
}
