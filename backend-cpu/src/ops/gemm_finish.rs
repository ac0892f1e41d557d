//! The epilogue of [`super::gemm`]: from sums to outputs.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::Activation;

use super::gemm::Gemm;
use super::{load_block, map_block, store_block, zip_block};
use crate::memory::View;
use crate::simd::elem::{Elem, with_elem};
use crate::simd::{Simd, math};
use crate::weights::PANEL;

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
        let width = if self.act.halves() { PANEL / 2 } else { PANEL };
        let mut bias = None;
        if !self.bias.is_null() {
            self.load_bias(panel, bias.insert([0.0f32; PANEL]));
        }
        for r in 0..count {
            let c = c.add(r * PANEL);
            for i in (0..width).step_by(S::W) {
                let mut y = sum::<S>(c, &bias, i);
                y = match self.act {
                    Activation::Identity => y,
                    Activation::Silu => math::silu::<S>(y),
                    Activation::Gelu => math::gelu::<S>(y),
                    Activation::GeluTanh => math::gelu_tanh::<S>(y),
                    Activation::Relu => S::max(y, S::zero()),
                    Activation::SiluMul => S::mul(math::silu::<S>(y), sum::<S>(c, &bias, width + i)),
                    Activation::GeluTanhMul => S::mul(math::gelu_tanh::<S>(y), sum::<S>(c, &bias, width + i)),
                };
                if let Some(scale) = self.scale {
                    y = S::mul(y, S::splat(scale));
                }
                let at = panel * width + i;
                if let Some(residual) = &self.residual {
                    y = S::add(load::<S>(residual, first + r, at), y);
                }
                store::<S>(&self.out, first + r, at, y);
            }
        }
    }

    /// The epilogue of one row of one panel: 32 sums to 32 (or, halving, 16) outputs.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, c: *const f32, row: usize, panel: usize) {
        let mut x = [0.0f32; PANEL];
        let mut y = [0.0f32; PANEL];
        std::ptr::copy_nonoverlapping(c, x.as_mut_ptr(), PANEL);
        if !self.bias.is_null() {
            self.load_bias(panel, &mut y);
            zip_block::<S, _>(
                &mut x,
                &y,
                PANEL,
                #[inline(always)]
                |x, y| S::add(x, y),
            );
        }
        if let Some(add) = &self.add {
            self.load_add::<S>(add, row, panel, &mut y);
            zip_block::<S, _>(
                &mut x,
                &y,
                PANEL,
                #[inline(always)]
                |x, y| S::add(x, y),
            );
        }
        let width = if self.act.halves() { PANEL / 2 } else { PANEL };
        activate::<S>(self.act, &mut x, width);
        let at = panel * width;
        let n = width.min(self.out.cols() - at);
        if let Some(scale) = self.scale {
            map_block::<S, _>(
                &mut x,
                width,
                #[inline(always)]
                |x| S::mul(x, S::splat(scale)),
            );
        }
        if let Some(residual) = &self.residual {
            load_block::<S, _>(residual.dtype, residual.row(row), at, n, &mut y);
            zip_block::<S, _>(
                &mut x,
                &y,
                width,
                #[inline(always)]
                |x, y| S::add(y, x),
            );
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

/// A vector of row `r` from element `i` on.
#[inline(always)]
unsafe fn load<S: Simd>(v: &View, r: usize, i: usize) -> S::F {
    with_elem!(v.dtype, E, E::load::<S>(v.row::<E>(r).add(i)))
}

#[inline(always)]
unsafe fn store<S: Simd>(v: &View, r: usize, i: usize, x: S::F) {
    with_elem!(v.dtype, E, E::store::<S>(v.row::<E>(r).add(i), x))
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

/// The activation in place; halving ones leave their result in the first half.
#[inline(always)]
unsafe fn activate<S: Simd>(act: Activation, x: &mut [f32; PANEL], width: usize) {
    match act {
        Activation::Identity => {}
        Activation::Silu => map_block::<S, _>(
            x,
            width,
            #[inline(always)]
            |x| math::silu::<S>(x),
        ),
        Activation::Gelu => map_block::<S, _>(
            x,
            width,
            #[inline(always)]
            |x| math::gelu::<S>(x),
        ),
        Activation::GeluTanh => map_block::<S, _>(
            x,
            width,
            #[inline(always)]
            |x| math::gelu_tanh::<S>(x),
        ),
        Activation::Relu => map_block::<S, _>(
            x,
            width,
            #[inline(always)]
            |x| S::max(x, S::zero()),
        ),
        Activation::SiluMul | Activation::GeluTanhMul => {
            for i in (0..width).step_by(S::W) {
                let (gate, up) = (S::load(x.as_ptr().add(i)), S::load(x.as_ptr().add(width + i)));
                let gate = if act == Activation::SiluMul {
                    math::silu::<S>(gate)
                } else {
                    math::gelu_tanh::<S>(gate)
                };
                S::store(x.as_mut_ptr().add(i), S::mul(gate, up));
            }
        }
    }
}
