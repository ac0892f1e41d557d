//! Plain Rust on eight-lane arrays, which the compiler turns into whatever every CPU of the target has. Products
//! and sums round separately: a fused multiply-add without the instruction is a library call.

use half::{bf16, f16};

use super::{Simd, dot8};

/// No instruction set in particular.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct F8([f32; 8]);

#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct I8([u32; 8]);

#[inline(always)]
fn zip(a: F8, b: F8, f: impl Fn(f32, f32) -> f32) -> F8 {
    F8(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

#[inline(always)]
fn izip(a: I8, b: I8, f: impl Fn(u32, u32) -> u32) -> I8 {
    I8(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

#[inline(always)]
fn compare(a: F8, b: F8, f: impl Fn(f32, f32) -> bool) -> I8 {
    I8(std::array::from_fn(|i| if f(a.0[i], b.0[i]) { u32::MAX } else { 0 }))
}

impl Simd for Portable {
    const W: usize = 8;
    type F = F8;
    type I = I8;
    type M = I8;
    type Direct = dot8::NoBytes;
    type Widening = dot8::NoBytes;

    #[inline(always)]
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        #[inline(never)]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        inner(f)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> F8 {
        F8([x; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F8 {
        F8(p.cast::<[f32; 8]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: F8) {
        p.cast::<[f32; 8]>().write_unaligned(v.0)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F8 {
        let halves = p.cast::<[u16; 8]>().read_unaligned();
        F8(halves.map(|h| f32::from_bits(u32::from(h) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F8 {
        let halves = p.cast::<[u16; 8]>().read_unaligned();
        F8(halves.map(|h| f16::from_bits(h).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: F8) {
        p.cast::<[u16; 8]>().write_unaligned(v.0.map(|x| bf16::from_f32(x).to_bits()))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: F8) {
        p.cast::<[u16; 8]>().write_unaligned(v.0.map(|x| f16::from_f32(x).to_bits()))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u16) -> (F8, F8) {
        let both = p.cast::<[[u16; 2]; 8]>().read_unaligned();
        let wide = |i: usize| both.map(|pair| f32::from_bits(u32::from(pair[i]) << 16));
        (F8(wide(0)), F8(wide(1)))
    }
    #[inline(always)]
    unsafe fn add(a: F8, b: F8) -> F8 {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: F8, b: F8) -> F8 {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: F8, b: F8) -> F8 {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: F8, b: F8) -> F8 {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn max(a: F8, b: F8) -> F8 {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(a: F8, b: F8) -> F8 {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn fma(a: F8, b: F8, c: F8) -> F8 {
        F8(std::array::from_fn(|i| a.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn fnma(a: F8, b: F8, c: F8) -> F8 {
        F8(std::array::from_fn(|i| c.0[i] - a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn round(v: F8) -> F8 {
        F8(v.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn to_int(v: F8) -> I8 {
        I8(v.0.map(|x| x.round_ties_even() as i32 as u32))
    }
    #[inline(always)]
    unsafe fn to_float(v: I8) -> F8 {
        F8(v.0.map(|x| x as i32 as f32))
    }
    #[inline(always)]
    unsafe fn sum(v: F8) -> f32 {
        let v = v.0;
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn highest(v: F8) -> f32 {
        v.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn gt(a: F8, b: F8) -> I8 {
        compare(a, b, |x, y| x > y)
    }
    #[inline(always)]
    unsafe fn ge(a: F8, b: F8) -> I8 {
        compare(a, b, |x, y| x >= y)
    }
    #[inline(always)]
    unsafe fn eq(a: F8, b: F8) -> I8 {
        compare(a, b, |x, y| x == y)
    }
    #[inline(always)]
    unsafe fn select(m: I8, a: F8, b: F8) -> F8 {
        F8(std::array::from_fn(|i| if m.0[i] != 0 { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    unsafe fn mask_bits(m: I8) -> u32 {
        m.0.iter().enumerate().fold(0, |all, (i, m)| all | (m & 1) << i)
    }
    #[inline(always)]
    unsafe fn bits(v: F8) -> I8 {
        I8(v.0.map(f32::to_bits))
    }
    #[inline(always)]
    unsafe fn from_bits(v: I8) -> F8 {
        F8(v.0.map(f32::from_bits))
    }
    #[inline(always)]
    unsafe fn isplat(x: u32) -> I8 {
        I8([x; 8])
    }
    #[inline(always)]
    unsafe fn iload(p: *const u32) -> I8 {
        I8(p.cast::<[u32; 8]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn istore(p: *mut u32, v: I8) {
        p.cast::<[u32; 8]>().write_unaligned(v.0)
    }
    #[inline(always)]
    unsafe fn iadd(a: I8, b: I8) -> I8 {
        izip(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn isub(a: I8, b: I8) -> I8 {
        izip(a, b, u32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn iand(a: I8, b: I8) -> I8 {
        izip(a, b, |x, y| x & y)
    }
    #[inline(always)]
    unsafe fn ixor(a: I8, b: I8) -> I8 {
        izip(a, b, |x, y| x ^ y)
    }
    #[inline(always)]
    unsafe fn ishl<const N: i32>(a: I8) -> I8 {
        I8(a.0.map(|x| x << N))
    }
    #[inline(always)]
    unsafe fn ishr<const N: i32>(a: I8) -> I8 {
        I8(a.0.map(|x| x >> N))
    }
    #[inline(always)]
    unsafe fn mul_wide(a: I8, b: I8) -> (I8, I8) {
        let wide: [u64; 8] = std::array::from_fn(|i| u64::from(a.0[i]) * u64::from(b.0[i]));
        (I8(wide.map(|x| (x >> 32) as u32)), I8(wide.map(|x| x as u32)))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
