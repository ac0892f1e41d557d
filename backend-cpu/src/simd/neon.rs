//! NEON (aarch64): four lanes.

use core::arch::aarch64::*;

use half::f16;

use super::{Simd, dot8};

/// Advanced SIMD with fused multiply-add, which every aarch64 has.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

impl Simd for Neon {
    const W: usize = 4;
    type F = float32x4_t;
    type I = uint32x4_t;
    type M = uint32x4_t;
    type Direct = dot8::NoBytes;
    type Widening = dot8::NoBytes;

    #[inline(always)]
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        unsafe fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        inner(f)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        vdupq_n_f32(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        vst1q_f32(p, v)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> float32x4_t {
        let halves = p.cast::<[u16; 4]>().read_unaligned();
        let wide = halves.map(|h| f16::from_bits(h).to_f32());
        vld1q_f32(wide.as_ptr())
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: float32x4_t) {
        let bits = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
        let kept = vbslq_u32(vceqq_f32(v, v), rounded, quiet);
        vst1_u16(p, vshrn_n_u32::<16>(kept))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: float32x4_t) {
        let mut lanes = [0.0f32; 4];
        vst1q_f32(lanes.as_mut_ptr(), v);
        p.cast::<[u16; 4]>().write_unaligned(lanes.map(|x| f16::from_f32(x).to_bits()))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u16) -> (float32x4_t, float32x4_t) {
        let both = vreinterpretq_u32_u16(vld1q_u16(p));
        let first = vshlq_n_u32::<16>(both);
        let second = vandq_u32(both, vdupq_n_u32(0xffff_0000));
        (vreinterpretq_f32_u32(first), vreinterpretq_f32_u32(second))
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmaxq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vminq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn fnma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmsq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn round(v: float32x4_t) -> float32x4_t {
        vrndnq_f32(v)
    }
    #[inline(always)]
    unsafe fn to_int(v: float32x4_t) -> uint32x4_t {
        vreinterpretq_u32_s32(vcvtnq_s32_f32(v))
    }
    #[inline(always)]
    unsafe fn to_float(v: uint32x4_t) -> float32x4_t {
        vcvtq_f32_s32(vreinterpretq_s32_u32(v))
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        vaddvq_f32(v)
    }
    #[inline(always)]
    unsafe fn highest(v: float32x4_t) -> f32 {
        vmaxvq_f32(v)
    }
    #[inline(always)]
    unsafe fn gt(a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        vcgtq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn ge(a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        vcgeq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn eq(a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        vceqq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn select(m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vbslq_f32(m, a, b)
    }
    #[inline(always)]
    unsafe fn mask_bits(m: uint32x4_t) -> u32 {
        let weights = [1u32, 2, 4, 8];
        vaddvq_u32(vandq_u32(m, vld1q_u32(weights.as_ptr())))
    }
    #[inline(always)]
    unsafe fn bits(v: float32x4_t) -> uint32x4_t {
        vreinterpretq_u32_f32(v)
    }
    #[inline(always)]
    unsafe fn from_bits(v: uint32x4_t) -> float32x4_t {
        vreinterpretq_f32_u32(v)
    }
    #[inline(always)]
    unsafe fn isplat(x: u32) -> uint32x4_t {
        vdupq_n_u32(x)
    }
    #[inline(always)]
    unsafe fn iload(p: *const u32) -> uint32x4_t {
        vld1q_u32(p)
    }
    #[inline(always)]
    unsafe fn istore(p: *mut u32, v: uint32x4_t) {
        vst1q_u32(p, v)
    }
    #[inline(always)]
    unsafe fn iadd(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        vaddq_u32(a, b)
    }
    #[inline(always)]
    unsafe fn isub(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        vsubq_u32(a, b)
    }
    #[inline(always)]
    unsafe fn iand(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        vandq_u32(a, b)
    }
    #[inline(always)]
    unsafe fn ixor(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        veorq_u32(a, b)
    }
    #[inline(always)]
    unsafe fn ishl<const N: i32>(a: uint32x4_t) -> uint32x4_t {
        vshlq_u32(a, vdupq_n_s32(N))
    }
    #[inline(always)]
    unsafe fn ishr<const N: i32>(a: uint32x4_t) -> uint32x4_t {
        vshlq_u32(a, vdupq_n_s32(-N))
    }
    #[inline(always)]
    unsafe fn mul_wide(a: uint32x4_t, b: uint32x4_t) -> (uint32x4_t, uint32x4_t) {
        let low = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(b)));
        let high = vreinterpretq_u32_u64(vmull_high_u32(a, b));
        (vuzp2q_u32(low, high), vuzp1q_u32(low, high))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
