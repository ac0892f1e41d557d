//! AVX-512: sixteen lanes, with and without `vdpbf16ps`.

use core::arch::x86_64::*;

use super::{Simd, dot8};

/// AVX-512 F, BW, DQ, VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// With BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16;

macro_rules! avx512 {
    ($name:ident, $features:literal, $dot:literal $(, $more:item)?) => {
        impl Simd for $name {
            const W: usize = 16;
            const DOT: bool = $dot;
            type F = __m512;
            type I = __m512i;
            type M = __mmask16;
            type Direct = dot8::Direct512;
            type Widening = dot8::Widening512;

            #[inline(always)]
            unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
                #[inline(never)]
                #[target_feature(enable = $features)]
                unsafe fn inner<R>(f: impl FnOnce() -> R) -> R {
                    f()
                }
                inner(f)
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> __m512 {
                _mm512_set1_ps(x)
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> __m512 {
                _mm512_loadu_ps(p)
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: __m512) {
                _mm512_storeu_ps(p, v)
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const u16) -> __m512 {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> __m512 {
                _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
            }
            #[inline(always)]
            unsafe fn load_u8(p: *const u8) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
            }
            #[inline(always)]
            unsafe fn load_i8(p: *const i8) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
            }
            #[inline(always)]
            unsafe fn store_bf16(p: *mut u16, v: __m512) {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
                let kept = _mm512_mask_blend_epi32(nan, rounded, quiet);
                let half = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept));
                _mm256_storeu_si256(p.cast(), half)
            }
            #[inline(always)]
            unsafe fn store_f16(p: *mut u16, v: __m512) {
                _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
            }
            #[inline(always)]
            unsafe fn load_pairs(p: *const u16) -> (__m512, __m512) {
                let both = _mm512_loadu_si512(p.cast());
                let first = _mm512_slli_epi32::<16>(both);
                let second = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                (_mm512_castsi512_ps(first), _mm512_castsi512_ps(second))
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                _mm512_add_ps(a, b)
            }
            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                _mm512_sub_ps(a, b)
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                _mm512_mul_ps(a, b)
            }
            #[inline(always)]
            unsafe fn div(a: __m512, b: __m512) -> __m512 {
                _mm512_div_ps(a, b)
            }
            #[inline(always)]
            unsafe fn max(a: __m512, b: __m512) -> __m512 {
                _mm512_max_ps(a, b)
            }
            #[inline(always)]
            unsafe fn min(a: __m512, b: __m512) -> __m512 {
                _mm512_min_ps(a, b)
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fmadd_ps(a, b, c)
            }
            #[inline(always)]
            unsafe fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fnmadd_ps(a, b, c)
            }
            #[inline(always)]
            unsafe fn round(v: __m512) -> __m512 {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
            }
            #[inline(always)]
            unsafe fn to_int(v: __m512) -> __m512i {
                _mm512_cvtps_epi32(v)
            }
            #[inline(always)]
            unsafe fn to_float(v: __m512i) -> __m512 {
                _mm512_cvtepi32_ps(v)
            }
            #[inline(always)]
            unsafe fn sum(v: __m512) -> f32 {
                _mm512_reduce_add_ps(v)
            }
            #[inline(always)]
            unsafe fn highest(v: __m512) -> f32 {
                _mm512_reduce_max_ps(v)
            }
            #[inline(always)]
            unsafe fn gt(a: __m512, b: __m512) -> __mmask16 {
                _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b)
            }
            #[inline(always)]
            unsafe fn ge(a: __m512, b: __m512) -> __mmask16 {
                _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b)
            }
            #[inline(always)]
            unsafe fn eq(a: __m512, b: __m512) -> __mmask16 {
                _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b)
            }
            #[inline(always)]
            unsafe fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 {
                _mm512_mask_blend_ps(m, b, a)
            }
            #[inline(always)]
            unsafe fn mask_bits(m: __mmask16) -> u32 {
                u32::from(m)
            }
            #[inline(always)]
            unsafe fn bits(v: __m512) -> __m512i {
                _mm512_castps_si512(v)
            }
            #[inline(always)]
            unsafe fn from_bits(v: __m512i) -> __m512 {
                _mm512_castsi512_ps(v)
            }
            #[inline(always)]
            unsafe fn isplat(x: u32) -> __m512i {
                _mm512_set1_epi32(x as i32)
            }
            #[inline(always)]
            unsafe fn iload(p: *const u32) -> __m512i {
                _mm512_loadu_si512(p.cast())
            }
            #[inline(always)]
            unsafe fn istore(p: *mut u32, v: __m512i) {
                _mm512_storeu_si512(p.cast(), v)
            }
            #[inline(always)]
            unsafe fn iadd(a: __m512i, b: __m512i) -> __m512i {
                _mm512_add_epi32(a, b)
            }
            #[inline(always)]
            unsafe fn isub(a: __m512i, b: __m512i) -> __m512i {
                _mm512_sub_epi32(a, b)
            }
            #[inline(always)]
            unsafe fn iand(a: __m512i, b: __m512i) -> __m512i {
                _mm512_and_si512(a, b)
            }
            #[inline(always)]
            unsafe fn ixor(a: __m512i, b: __m512i) -> __m512i {
                _mm512_xor_si512(a, b)
            }
            #[inline(always)]
            unsafe fn ishl<const N: i32>(a: __m512i) -> __m512i {
                _mm512_sll_epi32(a, _mm_cvtsi32_si128(N))
            }
            #[inline(always)]
            unsafe fn ishr<const N: i32>(a: __m512i) -> __m512i {
                _mm512_srl_epi32(a, _mm_cvtsi32_si128(N))
            }
            #[inline(always)]
            unsafe fn mul_wide(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
                let even = _mm512_mul_epu32(a, b);
                let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
                let high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64::<32>(even), odd);
                let low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64::<32>(odd));
                (high, low)
            }
            #[inline(always)]
            unsafe fn interleave(p: [__m512; 4]) -> [__m512; 4] {
                // Lane i of result v: lane 4v + i/4 of plane i%4; 16 is added to reach the second of two planes.
                let lane = _mm512_setr_epi32(0, 16, 0, 16, 1, 17, 1, 17, 2, 18, 2, 18, 3, 19, 3, 19);
                let mut out = p;
                for (v, out) in out.iter_mut().enumerate() {
                    let index = _mm512_add_epi32(lane, _mm512_set1_epi32(4 * v as i32));
                    let first = _mm512_permutex2var_ps(p[0], index, p[1]);
                    let second = _mm512_permutex2var_ps(p[2], index, p[3]);
                    *out = _mm512_mask_blend_ps(0b1100_1100_1100_1100, first, second);
                }
                out
            }
            $(#[inline(always)] $more)?
            #[inline(always)]
            unsafe fn prefetch_write(p: *const u8) {
                core::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, readonly, preserves_flags))
            }
            #[inline(always)]
            unsafe fn prefetch(p: *const u8) {
                _mm_prefetch::<_MM_HINT_T0>(p.cast())
            }
        }
    };
}

avx512!(Avx512, "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", false);
avx512!(
    Avx512Bf16,
    "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    true,
    unsafe fn dot_bf16(acc: __m512, pair: __m512i, b: __m512i) -> __m512 {
        // SAFETY: both types are 64 bytes of any bits.
        let pair = core::mem::transmute::<__m512i, __m512bh>(pair);
        let b = core::mem::transmute::<__m512i, __m512bh>(b);
        _mm512_dpbf16_ps(acc, pair, b)
    }
);
