//! Products of bytes: unsigned codes times signed activations, four products added to each 32-bit lane.
//!
//! Sums are integers and exact, so that every way of making them gives the same bits and a machine may take the best
//! it has.

use super::{Simd, SimdPath};

/// Which products of bytes a machine has under a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteDot {
    /// `vpdpbusd` (AVX-512 VNNI, AVX-VNNI).
    Direct,
    /// Pairs to 16 bits and pairs of those to 32 (`vpmaddubsw`, `vpmaddwd`).
    Widening,
}

impl ByteDot {
    /// None where the path multiplies no bytes.
    #[cfg(target_arch = "x86_64")]
    pub fn of(path: SimdPath) -> Option<ByteDot> {
        let direct = match path {
            SimdPath::Avx2 => is_x86_feature_detected!("avxvnni"),
            SimdPath::Avx512 | SimdPath::Avx512Bf16 | SimdPath::Amx => is_x86_feature_detected!("avx512vnni"),
            SimdPath::Portable | SimdPath::Neon => return None,
        };
        Some(if direct { ByteDot::Direct } else { ByteDot::Widening })
    }

    /// None where the path multiplies no bytes.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn of(_: SimdPath) -> Option<ByteDot> {
        None
    }
}

/// Products of bytes with the vectors of `S`. The contract is that of [`super`].
pub(crate) trait Dot8<S: Simd>: Copy {
    /// Runs `f` compiled for these instructions, not inlined into the caller.
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R;
    /// acc + the four products of each lane: `codes` of 0 to 255, `x` of -127 to 127. Without `WIDE` codes are at most
    /// 127.
    unsafe fn dot<const WIDE: bool>(acc: S::I, codes: S::I, x: S::I) -> S::I;
    /// The entry of a table of 16 bytes for each byte of `codes`, all below 16.
    unsafe fn lookup(table: &[u8; 16], codes: S::I) -> S::I;
}

/// For paths without products of bytes.
#[derive(Clone, Copy)]
pub(crate) struct NoBytes;

impl<S: Simd> Dot8<S> for NoBytes {
    unsafe fn vectorize<R>(_: impl FnOnce() -> R) -> R {
        unreachable!("this path multiplies no bytes")
    }
    unsafe fn dot<const WIDE: bool>(_: S::I, _: S::I, _: S::I) -> S::I {
        unreachable!("this path multiplies no bytes")
    }
    unsafe fn lookup(_: &[u8; 16], _: S::I) -> S::I {
        unreachable!("this path multiplies no bytes")
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Direct256, Direct512, Widening256, Widening512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::super::{Avx2, Simd};
    use super::Dot8;

    macro_rules! vectorize {
        ($features:literal) => {
            #[inline(always)]
            unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
                #[inline(never)]
                #[target_feature(enable = $features)]
                unsafe fn inner<R>(f: impl FnOnce() -> R) -> R {
                    f()
                }
                inner(f)
            }
        };
    }

    /// AVX-512 VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct Direct512;
    /// AVX-512 BW.
    #[derive(Clone, Copy)]
    pub(crate) struct Widening512;
    /// AVX-VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct Direct256;
    /// AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Widening256;

    #[inline(always)]
    unsafe fn lookup_512(table: &[u8; 16], codes: __m512i) -> __m512i {
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), codes)
    }

    #[inline(always)]
    unsafe fn lookup_256(table: &[u8; 16], codes: __m256i) -> __m256i {
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), codes)
    }

    impl<S: Simd<I = __m512i>> Dot8<S> for Direct512 {
        vectorize!("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(acc, codes, x)
        }
        #[inline(always)]
        unsafe fn lookup(table: &[u8; 16], codes: __m512i) -> __m512i {
            lookup_512(table, codes)
        }
    }

    impl<S: Simd<I = __m512i>> Dot8<S> for Widening512 {
        vectorize!("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
            // A pair of products of 7 bits fits 16; the eighth bit is a product of its own.
            let low = if WIDE { _mm512_and_si512(codes, _mm512_set1_epi8(127)) } else { codes };
            let pairs = _mm512_maddubs_epi16(low, x);
            let sum = _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
            if !WIDE {
                return sum;
            }
            let high = _mm512_and_si512(_mm512_srli_epi16::<7>(codes), _mm512_set1_epi8(1));
            let pairs = _mm512_maddubs_epi16(high, x);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(128)))
        }
        #[inline(always)]
        unsafe fn lookup(table: &[u8; 16], codes: __m512i) -> __m512i {
            lookup_512(table, codes)
        }
    }

    impl Dot8<Avx2> for Direct256 {
        vectorize!("avx,avx2,fma,f16c,avxvnni");
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
            _mm256_dpbusd_avx_epi32(acc, codes, x)
        }
        #[inline(always)]
        unsafe fn lookup(table: &[u8; 16], codes: __m256i) -> __m256i {
            lookup_256(table, codes)
        }
    }

    impl Dot8<Avx2> for Widening256 {
        vectorize!("avx,avx2,fma,f16c");
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
            let low = if WIDE { _mm256_and_si256(codes, _mm256_set1_epi8(127)) } else { codes };
            let pairs = _mm256_maddubs_epi16(low, x);
            let sum = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            if !WIDE {
                return sum;
            }
            let high = _mm256_and_si256(_mm256_srli_epi16::<7>(codes), _mm256_set1_epi8(1));
            let pairs = _mm256_maddubs_epi16(high, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(128)))
        }
        #[inline(always)]
        unsafe fn lookup(table: &[u8; 16], codes: __m256i) -> __m256i {
            lookup_256(table, codes)
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::{Avx2, Avx512};
    use super::*;

    /// One lane of four products each, at the ends of both ranges.
    fn check<S: Simd, D: Dot8<S>>(name: &str) {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for round in 0..64u32 {
            let codes: Vec<u8> = (0..64).map(|_| if round < 2 { 255 } else { next() as u8 }).collect();
            let limit = |x: u32| (x % 255) as i32 - 127;
            let x: Vec<i8> = (0..64)
                .map(|_| if round < 2 { 127 - 254 * round as i32 } else { limit(next()) } as i8)
                .collect();
            let mut got = [0i32; 16];
            // SAFETY: called where the machine has the instructions.
            unsafe {
                D::vectorize(
                    #[inline(always)]
                    || {
                        let sum = D::dot::<true>(
                            S::isplat(5),
                            S::iload(codes.as_ptr().cast()),
                            S::iload(x.as_ptr().cast()),
                        );
                        S::istore(got.as_mut_ptr().cast(), sum);
                    },
                );
            }
            for lane in 0..S::W {
                let products = (0..4).map(|i| i32::from(codes[4 * lane + i]) * i32::from(x[4 * lane + i]));
                assert_eq!(got[lane], 5 + products.sum::<i32>(), "{name}, round {round}, lane {lane}");
            }
        }
    }

    #[test]
    fn every_way_gives_the_exact_sum() {
        if SimdPath::Avx2.is_available() {
            check::<Avx2, Widening256>("widening, 256 bits");
            if ByteDot::of(SimdPath::Avx2) == Some(ByteDot::Direct) {
                check::<Avx2, Direct256>("direct, 256 bits");
            }
        }
        if SimdPath::Avx512.is_available() {
            check::<Avx512, Widening512>("widening, 512 bits");
            if ByteDot::of(SimdPath::Avx512) == Some(ByteDot::Direct) {
                check::<Avx512, Direct512>("direct, 512 bits");
            }
        }
    }
}
