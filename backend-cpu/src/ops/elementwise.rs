//! Elementwise ops, and the activations that epilogues share with them.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::{EwOp, OpKind};

use super::{
    BLOCK, Kernel, MyRows, SERIAL_ELEMENTS, load_block, map_block, spoil_last, store_block, zip_block,
};
use crate::memory::View;
use crate::simd::Simd;
use crate::simd::math;
use crate::threads::Worker;

/// out = op(a, b), row by row.
pub(crate) struct Elementwise {
    pub op: EwOp,
    pub a: View,
    pub b: Option<View>,
    pub out: View,
}

impl Kernel for Elementwise {
    const OP: OpKind = OpKind::Elementwise;
    fn serial(&self, _: u32) -> bool {
        self.out.rows() * self.out.cols() <= SERIAL_ELEMENTS
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let width = self.out.cols();
        let mut rows = MyRows::new(w, self.serial(phase), self.out.rows(), width);
        while let Some(r) = rows.next() {
            let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
            for i in (0..width).step_by(BLOCK) {
                let n = BLOCK.min(width - i);
                load_block::<S, _>(self.a.dtype, self.a.row(r), i, n, &mut x);
                if let Some(b) = &self.b {
                    load_block::<S, _>(b.dtype, b.row(r), i, n, &mut y);
                }
                apply::<S>(self.op, &mut x, &y, n);
                store_block::<S, _>(self.out.dtype, self.out.row(r), i, n, &x);
            }
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.out)
    }
}

#[inline(always)]
unsafe fn apply<S: Simd>(op: EwOp, x: &mut [f32; BLOCK], y: &[f32; BLOCK], n: usize) {
    match op {
        EwOp::Add => zip_block::<S, _>(
            x,
            y,
            n,
            #[inline(always)]
            |a, b| S::add(a, b),
        ),
        EwOp::Mul => zip_block::<S, _>(
            x,
            y,
            n,
            #[inline(always)]
            |a, b| S::mul(a, b),
        ),
        EwOp::SiluMul => zip_block::<S, _>(
            x,
            y,
            n,
            #[inline(always)]
            |a, b| S::mul(math::silu::<S>(a), b),
        ),
        EwOp::GeluTanhMul => zip_block::<S, _>(
            x,
            y,
            n,
            #[inline(always)]
            |a, b| S::mul(math::gelu_tanh::<S>(a), b),
        ),
        EwOp::Cast => {}
        EwOp::Scale(s) => map_block::<S, _>(
            x,
            n,
            #[inline(always)]
            |a| S::mul(a, S::splat(s)),
        ),
        EwOp::SoftCap(cap) => map_block::<S, _>(
            x,
            n,
            #[inline(always)]
            |a| soft_cap::<S>(a, cap),
        ),
    }
}

/// cap · tanh(x / cap)
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Simd>(x: S::F, cap: f32) -> S::F {
    S::mul(S::splat(cap), math::tanh::<S>(S::div(x, S::splat(cap))))
}
