//! RopeKvWrite: per-head norm, rotation, and the write of keys and values into the cache.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::{OpKind, RopeStyle};

use super::movement::spoil_bytes;
use super::{Kernel, MyRows, SERIAL_ELEMENTS};
use crate::kv::LayerView;
use crate::memory::View;
use crate::simd::Simd;
use crate::simd::elem::{self, Elem, with_elem};
use crate::threads::Worker;

/// Largest head.
pub(crate) const MAX_HEAD: usize = 1024;

/// Rotation of heads; see `engine_core::backend::Rope`.
pub(crate) struct Rotation {
    pub positions: View,
    /// [positions, rot] f32
    pub table: *const f32,
    pub table_rows: usize,
    pub rot: usize,
    pub style: RopeStyle,
    /// Weights [D] of q and of k, and epsilon.
    pub norm: Option<(*const f32, *const f32, f32)>,
}

/// q, k [T, heads, D], v [T, heads, Dv].
pub(crate) struct RopeKvWrite {
    pub q: View,
    pub k: View,
    pub v: View,
    pub rope: Option<Rotation>,
    pub slots: View,
    pub kv: LayerView,
}

impl Kernel for RopeKvWrite {
    const OP: OpKind = OpKind::RopeKvWrite;
    fn serial(&self, _: u32) -> bool {
        self.q.rows() * self.q.cols() <= SERIAL_ELEMENTS
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let [_, tokens, q_heads, d] = self.q.shape.map(|s| s as usize);
        let mut rows = MyRows::new(w, self.serial(phase), tokens, q_heads * d);
        while let Some(t) = rows.next() {
            let mut head = Head([0.0; MAX_HEAD]);
            if self.rope.is_some() {
                for h in 0..q_heads {
                    with_elem!(self.q.dtype, E, self.rotate_q::<S, E>(t, self.q.at(t, h), &mut head, d));
                }
            }
            let slot = *self.slots.ptr::<i32>().add(t);
            if slot >= 0 {
                self.write_token::<S>(t, slot as usize, &mut head);
            }
        }
    }
    unsafe fn spoil(&self) {
        let tokens = self.q.shape[1] as usize;
        for t in 0..tokens {
            let slot = *self.slots.ptr::<i32>().add(t);
            if slot >= 0 {
                let (page, _) = (slot as usize / self.kv.page_tokens, 0);
                let bytes = self.kv.k_dim * self.kv.page_tokens * self.kv.dtype.size_bytes();
                spoil_bytes(self.kv.key_block(page, 0), bytes);
            }
        }
    }
}

#[repr(align(64))]
struct Head([f32; MAX_HEAD]);

impl RopeKvWrite {
    #[inline(always)]
    unsafe fn rotate_q<S: Simd, E: Elem>(&self, t: usize, at: *mut E, head: &mut Head, d: usize) {
        self.read_head::<S, E>(t, at, head, d, Side::Query);
        elem::from_f32::<S, E>(head.0.as_ptr(), at, d);
    }

    /// A head as f32, normed and rotated, rounded as the tensor's type rounds.
    #[inline(always)]
    unsafe fn read_head<S: Simd, E: Elem>(
        &self,
        t: usize,
        at: *const E,
        head: &mut Head,
        d: usize,
        side: Side,
    ) {
        let x = head.0.as_mut_ptr();
        elem::to_f32::<S, E>(at, x, d);
        let Some(rope) = &self.rope else { return };
        if let Some((q, k, eps)) = rope.norm {
            let w = if side == Side::Query { q } else { k };
            norm_head(&mut head.0[..d], w, eps);
        }
        let position = *rope.positions.ptr::<i32>().add(t);
        assert!(
            position >= 0 && (position as usize) < rope.table_rows,
            "position {position} in a rope table of {}",
            rope.table_rows
        );
        let row = rope.table.add(position as usize * rope.rot);
        rotate::<S>(x, row, rope.rot, rope.style);
    }

    #[inline(always)]
    unsafe fn write_token<S: Simd>(&self, t: usize, slot: usize, head: &mut Head) {
        let kv = &self.kv;
        let (page, offset) = (slot / kv.page_tokens, slot % kv.page_tokens);
        assert!(page < kv.pages, "page {page} of {}", kv.pages);
        for h in 0..kv.heads {
            let key = kv.key_block(page, h);
            with_elem!(self.k.dtype, E, {
                self.read_head::<S, E>(t, self.k.at(t, h), head, kv.k_dim, Side::Key);
            });
            with_elem!(kv.dtype, C, {
                for (i, x) in head.0.iter().enumerate().take(kv.k_dim) {
                    *key.cast::<C>().add(i * kv.page_tokens + offset) = C::from_f32(*x);
                }
            });
            let value = kv.value_block(page, h);
            with_elem!(self.v.dtype, E, elem::to_f32::<S, E>(self.v.at(t, h), head.0.as_mut_ptr(), kv.v_dim));
            with_elem!(kv.dtype, C, {
                let row = value.cast::<C>().add(offset * kv.v_dim);
                elem::from_f32::<S, C>(head.0.as_ptr(), row, kv.v_dim);
            });
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Query,
    Key,
}

/// RMS norm of a head. Sums and scale are f64: a head is short, and q and k are rounded to the tensor's type next, so
/// that the rounding here should not be seen.
#[inline(always)]
unsafe fn norm_head(x: &mut [f32], w: *const f32, eps: f32) {
    let mut sums = [0.0f64; 8];
    for part in x.chunks(8) {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    let mean = sums.iter().sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    for (i, x) in x.iter_mut().enumerate() {
        *x = (f64::from(*x) * scale) as f32 * *w.add(i);
    }
}

/// (a cos - b sin, b cos + a sin) for each pair, every product rounded: the result is rounded to a narrow type next,
/// and a fused product would now and then land on the other side of a tie.
#[inline(always)]
unsafe fn rotate<S: Simd>(x: *mut f32, row: *const f32, rot: usize, style: RopeStyle) {
    let half = rot / 2;
    let (mut i, step) = (0, if style == RopeStyle::Half { S::W } else { usize::MAX });
    while step != usize::MAX && i + S::W <= half {
        let (cos, sin) = (S::load(row.add(i)), S::load(row.add(half + i)));
        let (a, b) = (S::load(x.add(i)), S::load(x.add(half + i)));
        S::store(x.add(i), S::sub(S::mul(a, cos), S::mul(b, sin)));
        S::store(x.add(half + i), S::add(S::mul(b, cos), S::mul(a, sin)));
        i += step;
    }
    while i < half {
        let (cos, sin) = (*row.add(i), *row.add(half + i));
        let (first, second) = match style {
            RopeStyle::Half => (i, half + i),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (*x.add(first), *x.add(second));
        *x.add(first) = a * cos - b * sin;
        *x.add(second) = b * cos + a * sin;
        i += 1;
    }
}
