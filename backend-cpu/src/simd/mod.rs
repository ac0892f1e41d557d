//! Vector instructions behind one small trait, chosen at run time.
//!
//! A kernel is written once against [`Simd`] and monomorphized per instruction set. The trait's methods carry no
//! `#[target_feature]` themselves and are all `#[inline(always)]`; [`enter`] is the one door with the attribute,
//! and everything below it must be inlined into it (kernels and helpers are `#[inline(always)]` too, or are
//! entered through [`Simd::vectorize`]), else an intrinsic becomes a call.
//!
//! # Safety
//! Calling any method of an implementation requires that the CPU has its instructions, which [`SimdPath::available`]
//! has checked before a kernel of that path is ever bound. Pointer arguments must be valid for the lanes read or
//! written. Nothing needs alignment.
#![allow(unsafe_op_in_unsafe_fn, reason = "every function here has the one contract stated above")]
#![allow(clippy::needless_range_loop, reason = "lanes are indexed, several arrays at a time")]

#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "amx_absent.rs")]
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "stands in for what other targets have")
)]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dot8;
pub(crate) mod elem;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod tiles;
pub(crate) mod transpose;

use dot8::Dot8;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// An instruction set the kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SimdPath {
    /// Plain Rust on eight-lane arrays; products and sums round separately.
    Portable,
    /// aarch64 with fused multiply-add.
    Neon,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same, with `vdpbf16ps` for products of bfloat16 weights.
    Avx512Bf16,
    /// AVX-512, with AMX tiles for products of bfloat16 weights.
    Amx,
}

impl SimdPath {
    /// Every path, plainest first.
    pub const ALL: [SimdPath; 6] = [
        SimdPath::Portable,
        SimdPath::Neon,
        SimdPath::Avx2,
        SimdPath::Avx512,
        SimdPath::Avx512Bf16,
        SimdPath::Amx,
    ];

    /// Its name on the command line and in `DeviceInfo::arch`.
    pub const fn name(self) -> &'static str {
        match self {
            SimdPath::Portable => "portable",
            SimdPath::Neon => "neon",
            SimdPath::Avx2 => "avx2",
            SimdPath::Avx512 => "avx512",
            SimdPath::Avx512Bf16 => "avx512-bf16",
            SimdPath::Amx => "amx",
        }
    }

    /// Lanes of f32.
    pub(crate) const fn lanes(self) -> usize {
        match self {
            SimdPath::Avx512 | SimdPath::Avx512Bf16 | SimdPath::Amx => 16,
            SimdPath::Avx2 | SimdPath::Portable => 8,
            SimdPath::Neon => 4,
        }
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            SimdPath::Portable => true,
            SimdPath::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            SimdPath::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            SimdPath::Avx512 => {
                SimdPath::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            SimdPath::Avx512Bf16 => SimdPath::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            SimdPath::Amx => SimdPath::Avx512.is_available() && amx::is_permitted(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The paths this machine can run, plainest first.
    pub fn available() -> Vec<SimdPath> {
        Self::ALL.into_iter().filter(|p| p.is_available()).collect()
    }

    /// The fastest path of this machine.
    ///
    /// AMX wherever it is: measured on Granite Rapids a core does 3400 GFLOP/s with it, 226 with f32 multiply-adds.
    /// `vdpbf16ps` is not taken on Intel: measured on Granite Rapids it issues once in two cycles, so that its 64
    /// operations come to half of what two f32 multiply-adds a cycle do (110 against 226 GFLOP/s a core), and the
    /// f32 path does not round sums of pairs. AMD issues it at the rate of the f32 multiply-add or better. The
    /// choice goes by vendor, not by a measurement, so that a machine always gives the same bits.
    pub fn detect() -> SimdPath {
        let best = Self::available().into_iter().next_back().unwrap_or(SimdPath::Portable);
        if best == SimdPath::Avx512Bf16 && is_intel() { SimdPath::Avx512 } else { best }
    }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let id = core::arch::x86_64::__cpuid(0);
    (id.ebx, id.edx, id.ecx) == (0x756e_6547, 0x4965_6e69, 0x6c65_746e)
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

/// Vector operations of one instruction set. `F` holds [`Simd::W`] f32 lanes, `I` as many u32 lanes, `M` a mask.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Lanes.
    const W: usize;
    /// Whether [`Simd::dot_bf16`] exists.
    const DOT: bool = false;
    type F: Copy;
    type I: Copy;
    type M: Copy;
    /// Products of bytes by the instruction for them, and by those that every CPU of the path has.
    type Direct: Dot8<Self>;
    type Widening: Dot8<Self>;

    /// Runs `f` compiled for this instruction set, not inlined into the caller.
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// `W` bytes.
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        let mut x = [0.0f32; 16];
        for i in 0..Self::W {
            x[i] = f32::from(*p.add(i));
        }
        Self::load(x.as_ptr())
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        let mut x = [0.0f32; 16];
        for i in 0..Self::W {
            x[i] = f32::from(*p.add(i));
        }
        Self::load(x.as_ptr())
    }
    /// Rounds to nearest, ties to even; NaN stays NaN.
    unsafe fn store_bf16(p: *mut u16, v: Self::F);
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    /// `W` pairs of bfloat16: the first of each pair, the second of each pair.
    unsafe fn load_pairs(p: *const u16) -> (Self::F, Self::F);

    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c - a · b
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(v: Self::F) -> Self::F;
    /// To the nearest integer as i32 lanes.
    unsafe fn to_int(v: Self::F) -> Self::I;
    /// i32 lanes to f32.
    unsafe fn to_float(v: Self::I) -> Self::F;
    unsafe fn sum(v: Self::F) -> f32;
    unsafe fn highest(v: Self::F) -> f32;

    unsafe fn gt(a: Self::F, b: Self::F) -> Self::M;
    unsafe fn ge(a: Self::F, b: Self::F) -> Self::M;
    unsafe fn eq(a: Self::F, b: Self::F) -> Self::M;
    /// Per lane `m ? a : b`.
    unsafe fn select(m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Lane i as bit i.
    unsafe fn mask_bits(m: Self::M) -> u32;

    unsafe fn bits(v: Self::F) -> Self::I;
    unsafe fn from_bits(v: Self::I) -> Self::F;
    unsafe fn isplat(x: u32) -> Self::I;
    unsafe fn iload(p: *const u32) -> Self::I;
    unsafe fn istore(p: *mut u32, v: Self::I);
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ixor(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ishl<const N: i32>(a: Self::I) -> Self::I;
    unsafe fn ishr<const N: i32>(a: Self::I) -> Self::I;
    /// 32 × 32 bits: (high, low).
    unsafe fn mul_wide(a: Self::I, b: Self::I) -> (Self::I, Self::I);

    /// acc + the two products of each pair of bfloat16; `pair` is broadcast.
    unsafe fn dot_bf16(_acc: Self::F, _pair: Self::I, _b: Self::I) -> Self::F {
        unreachable!("this path has no bf16 dot product")
    }
    unsafe fn prefetch(p: *const u8);
    /// As [`Simd::prefetch`], for writing.
    #[inline(always)]
    unsafe fn prefetch_write(p: *const u8) {
        Self::prefetch(p)
    }

    /// Four vectors whose lanes alternate: result v lane i is plane i % 4, lane (v · W + i) / 4.
    #[inline(always)]
    unsafe fn interleave(planes: [Self::F; 4]) -> [Self::F; 4] {
        let mut from = [0.0f32; 64];
        for (p, plane) in planes.into_iter().enumerate() {
            Self::store(from.as_mut_ptr().add(p * Self::W), plane);
        }
        let mut into = [0.0f32; 64];
        for i in 0..4 * Self::W {
            into[i] = from[i % 4 * Self::W + i / 4];
        }
        std::array::from_fn(
            #[inline(always)]
            |v| Self::load(into.as_ptr().add(v * Self::W)),
        )
    }

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        Self::splat(0.0)
    }
}

/// Something to run under an instruction set: a kernel with its operands.
pub(crate) trait Vectorized {
    type Output;
    /// # Safety
    /// As of the module; implementations must be `#[inline(always)]`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs `v` on `path`.
///
/// # Safety
/// The machine must have `path`, and `v`'s own contract must hold.
#[inline]
pub(crate) unsafe fn enter<V: Vectorized>(path: SimdPath, v: V) -> V::Output {
    match path {
        #[cfg(target_arch = "x86_64")]
        SimdPath::Avx512Bf16 => Avx512Bf16::vectorize(
            #[inline(always)]
            || v.run::<Avx512Bf16>(),
        ),
        // Products that use tiles ask for the path; all else is plain AVX-512.
        #[cfg(target_arch = "x86_64")]
        SimdPath::Avx512 | SimdPath::Amx => Avx512::vectorize(
            #[inline(always)]
            || v.run::<Avx512>(),
        ),
        #[cfg(target_arch = "x86_64")]
        SimdPath::Avx2 => Avx2::vectorize(
            #[inline(always)]
            || v.run::<Avx2>(),
        ),
        #[cfg(target_arch = "aarch64")]
        SimdPath::Neon => Neon::vectorize(
            #[inline(always)]
            || v.run::<Neon>(),
        ),
        _ => Portable::vectorize(
            #[inline(always)]
            || v.run::<Portable>(),
        ),
    }
}
