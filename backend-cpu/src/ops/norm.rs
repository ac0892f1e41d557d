//! Norm (RMS) and LayerNorm: one row, one worker, one order of summing.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::OpKind;

use super::{Kernel, MyRows, SERIAL_ELEMENTS, spoil_last};
use crate::memory::View;
use crate::simd::Simd;
use crate::simd::elem::{self, with_elem};
use crate::threads::Worker;

/// Widest row.
pub(crate) const MAX_WIDTH: usize = 512 << 10;
/// Private memory a worker needs.
pub(crate) const SCRATCH_BYTES: usize = MAX_WIDTH * 4;

/// Operands of both norms.
pub(crate) struct NormArgs {
    pub x: View,
    pub residual: Option<View>,
    /// [H] f32
    pub w: *const f32,
    /// [H] f32 or null.
    pub bias: *const f32,
    pub eps: f32,
    pub out: View,
}

/// out = x / √(mean(x²) + eps) · w.
pub(crate) struct Norm(pub NormArgs);

/// out = (x - mean) / √(variance + eps) · w + bias.
pub(crate) struct LayerNorm(pub NormArgs);

impl Kernel for Norm {
    const OP: OpKind = OpKind::Norm;
    fn serial(&self, _: u32) -> bool {
        self.0.serial()
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, _: u32) {
        let a = &self.0;
        let (width, row) = a.begin::<S>(w);
        let mut rows = MyRows::new(w, a.serial(), a.x.rows(), width);
        while let Some(r) = rows.next() {
            a.read_row::<S>(r, row, width);
            let scale = 1.0 / (sum_squares::<S>(row, width) / width as f32 + a.eps).sqrt();
            scale_row::<S>(row, width, scale, a.w);
            a.write_row::<S>(r, row, width);
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.0.out)
    }
}

impl Kernel for LayerNorm {
    const OP: OpKind = OpKind::LayerNorm;
    fn serial(&self, _: u32) -> bool {
        self.0.serial()
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, _: u32) {
        let a = &self.0;
        let (width, row) = a.begin::<S>(w);
        let mut rows = MyRows::new(w, a.serial(), a.x.rows(), width);
        while let Some(r) = rows.next() {
            a.read_row::<S>(r, row, width);
            let mean = total::<S>(row, width) / width as f32;
            for i in 0..width {
                *row.add(i) -= mean;
            }
            let scale = 1.0 / (sum_squares::<S>(row, width) / width as f32 + a.eps).sqrt();
            scale_row::<S>(row, width, scale, a.w);
            if !a.bias.is_null() {
                for i in 0..width {
                    *row.add(i) += *a.bias.add(i);
                }
            }
            a.write_row::<S>(r, row, width);
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.0.out)
    }
}

impl NormArgs {
    fn serial(&self) -> bool {
        self.x.rows() * self.x.cols() <= SERIAL_ELEMENTS
    }

    /// Width of a row, and scratch for one, zero past the width up to a multiple of four vectors.
    #[inline(always)]
    unsafe fn begin<S: Simd>(&self, w: &Worker<'_>) -> (usize, *mut f32) {
        let width = self.x.cols();
        let padded = width.next_multiple_of(4 * S::W);
        assert!(padded <= MAX_WIDTH, "a norm over {width} elements");
        let row = w.scratch().cast::<f32>();
        std::ptr::write_bytes(row.add(width), 0, padded - width);
        (width, row)
    }

    /// The row as f32, the residual added, rounded and stored first.
    #[inline(always)]
    unsafe fn read_row<S: Simd>(&self, r: usize, row: *mut f32, width: usize) {
        with_elem!(self.x.dtype, E, elem::to_f32::<S, E>(self.x.row(r), row, width));
        let Some(residual) = &self.residual else { return };
        with_elem!(residual.dtype, E, {
            let at = residual.row::<E>(r);
            let mut i = 0;
            while i + S::W <= width {
                let p = row.add(i);
                let sum = S::add(<E as elem::Elem>::load::<S>(at.add(i)), S::load(p));
                <E as elem::Elem>::store::<S>(at.add(i), sum);
                S::store(p, <E as elem::Elem>::load::<S>(at.add(i)));
                i += S::W;
            }
            while i < width {
                let sum = elem::Elem::to_f32(*at.add(i)) + *row.add(i);
                *at.add(i) = <E as elem::Elem>::from_f32(sum);
                *row.add(i) = elem::Elem::to_f32(*at.add(i));
                i += 1;
            }
        })
    }

    #[inline(always)]
    unsafe fn write_row<S: Simd>(&self, r: usize, row: *mut f32, width: usize) {
        with_elem!(self.out.dtype, E, elem::from_f32::<S, E>(row, self.out.row::<E>(r), width));
    }
}

/// Σ x² over a row padded with zeros to four vectors.
#[inline(always)]
pub(crate) unsafe fn sum_squares<S: Simd>(row: *const f32, width: usize) -> f32 {
    let mut acc = [S::zero(); 4];
    let mut i = 0;
    while i < width {
        for (j, acc) in acc.iter_mut().enumerate() {
            let x = S::load(row.add(i + j * S::W));
            *acc = S::fma(x, x, *acc);
        }
        i += 4 * S::W;
    }
    S::sum(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])))
}

#[inline(always)]
unsafe fn total<S: Simd>(row: *const f32, width: usize) -> f32 {
    let mut acc = [S::zero(); 4];
    let mut i = 0;
    while i < width {
        for (j, acc) in acc.iter_mut().enumerate() {
            *acc = S::add(S::load(row.add(i + j * S::W)), *acc);
        }
        i += 4 * S::W;
    }
    S::sum(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])))
}

/// row = row · scale · w
#[inline(always)]
pub(crate) unsafe fn scale_row<S: Simd>(row: *mut f32, width: usize, scale: f32, w: *const f32) {
    let s = S::splat(scale);
    let mut i = 0;
    while i + S::W <= width {
        let p = row.add(i);
        S::store(p, S::mul(S::mul(S::load(p), s), S::load(w.add(i))));
        i += S::W;
    }
    while i < width {
        *row.add(i) = *row.add(i) * scale * *w.add(i);
        i += 1;
    }
}
