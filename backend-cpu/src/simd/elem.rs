//! Floating-point element types of tensors, and loads and stores of them as f32 lanes.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of the parent module")]

use half::{bf16, f16};

use super::Simd;

/// An element that kernels read and write as f32.
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F);
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
}

impl Elem for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        S::load(p)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::F) {
        S::store(p, v)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Elem for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16) -> S::F {
        S::load_bf16(p.cast())
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut bf16, v: S::F) {
        S::store_bf16(p.cast(), v)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

impl Elem for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::F {
        S::load_f16(p.cast())
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f16, v: S::F) {
        S::store_f16(p.cast(), v)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

/// Runs `$body` with `$e` standing for the element type of `$dtype`.
macro_rules! with_elem {
    ($dtype:expr, $e:ident, $body:expr) => {
        match $dtype {
            engine_core::DType::F32 => {
                type $e = f32;
                $body
            }
            engine_core::DType::Bf16 => {
                type $e = half::bf16;
                $body
            }
            engine_core::DType::F16 => {
                type $e = half::f16;
                $body
            }
            other => panic!("{other} is not an activation type of the CPU"),
        }
    };
}
pub(crate) use with_elem;

/// `n` elements to f32.
#[inline(always)]
pub(crate) unsafe fn to_f32<S: Simd, E: Elem>(from: *const E, into: *mut f32, n: usize) {
    let whole = n - n % S::W;
    let mut i = 0;
    while i < whole {
        S::store(into.add(i), E::load::<S>(from.add(i)));
        i += S::W;
    }
    while i < n {
        *into.add(i) = from.add(i).read_unaligned().to_f32();
        i += 1;
    }
}

/// `n` f32 to elements.
#[inline(always)]
pub(crate) unsafe fn from_f32<S: Simd, E: Elem>(from: *const f32, into: *mut E, n: usize) {
    let whole = n - n % S::W;
    let mut i = 0;
    while i < whole {
        E::store::<S>(into.add(i), S::load(from.add(i)));
        i += S::W;
    }
    while i < n {
        into.add(i).write_unaligned(E::from_f32(*from.add(i)));
        i += 1;
    }
}
