//! The epilogue of [`super::gemm`]: from sums to outputs.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::Activation;

use super::gemm::Gemm;
use super::{load_block, store_block, zip_block};
use crate::memory::View;
use crate::simd::elem::{Elem, with_elem};
use crate::simd::{Simd, math};
use crate::weights::PANEL;

/// Rows of outputs asked for before they are written.
const ROWS_AHEAD: usize = 16;

impl Gemm {
    /// Sums [rows][32] of `count` rows from `first` on of one panel to outputs.
    #[inline(always)]
    pub(super) unsafe fn finish_rows<S: Simd>(
        &self,
        c: *const f32,
        first: usize,
        count: usize,
        panel: usize,
    ) {
        let width = if self.act.halves() { PANEL / 2 } else { PANEL };
        let whole = (panel + 1) * width <= self.out.cols();
        if self.add.is_some() || !whole {
            return S::vectorize(
                #[inline(always)]
                || {
                    for r in 0..count {
                        self.finish::<S>(c.add(r * PANEL), first + r, panel);
                    }
                },
            );
        }
        // One copy of this code for all who come here.
        S::vectorize(
            #[inline(always)]
            || self.finish_whole::<S>(c, first, count, panel),
        )
    }

    /// As [`Gemm::finish_rows`] for a panel whose outputs are all there, a vector at a time.
    #[inline(always)]
    unsafe fn finish_whole<S: Simd>(&self, c: *const f32, first: usize, count: usize, panel: usize) {
        with_elem!(self.out.dtype, O, {
            match &self.residual {
                None => self.finish_as::<S, O, O>(c, first, count, panel, None),
                Some(r) => with_elem!(r.dtype, R, self.finish_as::<S, O, R>(c, first, count, panel, Some(r))),
            }
        })
    }

    #[inline(always)]
    unsafe fn finish_as<S: Simd, O: Elem, R: Elem>(
        &self,
        c: *const f32,
        first: usize,
        count: usize,
        panel: usize,
        residual: Option<&View>,
    ) {
        let width = if self.act.halves() { PANEL / 2 } else { PANEL };
        let at = panel * width;
        let mut bias = None;
        if !self.bias.is_null() {
            self.load_bias(panel, bias.insert([0.0f32; PANEL]));
        }
        for r in 0..count {
            self.fetch_row::<S>(first + (r + ROWS_AHEAD).min(count - 1), at);
            let c = c.add(r * PANEL);
            let out = self.out.row::<O>(first + r).add(at);
            for i in (0..width).step_by(S::W) {
                let mut y = self.activated::<S>(c, &bias, width, i);
                if let Some(residual) = residual {
                    y = S::add(R::load::<S>(residual.row::<R>(first + r).add(at + i)), y);
                }
                O::store::<S>(out.add(i), y);
            }
        }
    }

    /// Asks for what a row of the epilogue reads and writes: a line or two of each row, far from those of the last.
    #[inline(always)]
    unsafe fn fetch_row<S: Simd>(&self, row: usize, at: usize) {
        S::prefetch_write(self.out.row::<u8>(row).wrapping_add(at * self.out.dtype.size_bytes()));
        if let Some(residual) = &self.residual {
            S::prefetch(residual.row::<u8>(row).wrapping_add(at * residual.dtype.size_bytes()));
        }
    }

    /// scale · act of a vector of sums with their bias, from `i` on; of gate and up, where the activation halves.
    #[inline(always)]
    unsafe fn activated<S: Simd>(
        &self,
        c: *const f32,
        bias: &Option<[f32; PANEL]>,
        width: usize,
        i: usize,
    ) -> S::F {
        let y = sum::<S>(c, bias, i);
        let y = match self.act {
            Activation::Identity => y,
            Activation::Silu => math::silu::<S>(y),
            Activation::Gelu => math::gelu::<S>(y),
            Activation::GeluTanh => math::gelu_tanh::<S>(y),
            Activation::Relu => S::max(y, S::zero()),
            Activation::SiluMul => S::mul(math::silu::<S>(y), sum::<S>(c, bias, width + i)),
            Activation::GeluTanhMul => S::mul(math::gelu_tanh::<S>(y), sum::<S>(c, bias, width + i)),
        };
        self.scale.map_or(
            y,
            #[inline(always)]
            |scale| S::mul(y, S::splat(scale)),
        )
    }

    /// The epilogue of one row of one panel: 32 sums to 32 (or, halving, 16) outputs.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, c: *const f32, row: usize, panel: usize) {
        let mut x = [0.0f32; PANEL];
        let mut y = [0.0f32; PANEL];
        std::ptr::copy_nonoverlapping(c, x.as_mut_ptr(), PANEL);
        if !self.bias.is_null() {
            self.load_bias(panel, &mut y);
            add_block::<S>(&mut x, &y, PANEL);
        }
        if let Some(add) = &self.add {
            self.load_add::<S>(add, row, panel, &mut y);
            add_block::<S>(&mut x, &y, PANEL);
        }
        let width = if self.act.halves() { PANEL / 2 } else { PANEL };
        for i in (0..width).step_by(S::W) {
            let after = self.activated::<S>(x.as_ptr(), &None, width, i);
            S::store(x.as_mut_ptr().add(i), after);
        }
        let at = panel * width;
        let n = width.min(self.out.cols() - at);
        if let Some(residual) = &self.residual {
            load_block::<S, _>(residual.dtype, residual.row(row), at, n, &mut y);
            add_block::<S>(&mut x, &y, width);
        }
        store_block::<S, _>(self.out.dtype, self.out.row(row), at, n, &x);
    }

    /// The panel's part of the bias, in packed order.
    #[inline(always)]
    unsafe fn load_bias(&self, panel: usize, y: &mut [f32; PANEL]) {
        if !self.gate_up {
            std::ptr::copy_nonoverlapping(self.bias.add(panel * PANEL), y.as_mut_ptr(), PANEL);
            return;
        }
        let (half, at) = (PANEL / 2, panel * (PANEL / 2));
        std::ptr::copy_nonoverlapping(self.bias.add(at), y.as_mut_ptr(), half);
        std::ptr::copy_nonoverlapping(self.bias.add(self.n / 2 + at), y.as_mut_ptr().add(half), half);
    }

    /// The panel's columns of `add` [T, N], in packed order.
    #[inline(always)]
    unsafe fn load_add<S: Simd>(&self, add: &View, row: usize, panel: usize, y: &mut [f32; PANEL]) {
        if !self.gate_up {
            let at = panel * PANEL;
            return load_block::<S, _>(add.dtype, add.row(row), at, PANEL.min(add.cols() - at), y);
        }
        let half = add.cols() / 2;
        let at = panel * (PANEL / 2);
        let n = (PANEL / 2).min(half - at);
        with_elem!(add.dtype, E, {
            for i in 0..n {
                let row = add.row::<E>(row);
                y[i] = Elem::to_f32(*row.add(at + i));
                y[PANEL / 2 + i] = Elem::to_f32(*row.add(half + at + i));
            }
        })
    }
}

/// Sums from `i` on, with their bias.
#[inline(always)]
unsafe fn sum<S: Simd>(c: *const f32, bias: &Option<[f32; PANEL]>, i: usize) -> S::F {
    let x = S::load(c.add(i));
    match bias {
        Some(bias) => S::add(x, S::load(bias.as_ptr().add(i))),
        None => x,
    }
}

/// x + y in place.
#[inline(always)]
unsafe fn add_block<S: Simd>(x: &mut [f32; PANEL], y: &[f32; PANEL], n: usize) {
    zip_block::<S, _>(
        x,
        y,
        n,
        #[inline(always)]
        |x, y| S::add(x, y),
    )
}
