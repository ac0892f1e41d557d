//! Kernels: one file per family of ops.
//!
//! A kernel is its operands (addresses and sizes, bound once) and a body written against [`Simd`]. It has one or
//! more phases; see [`crate::threads`]. A row of the result never depends on how many rows there are, on who
//! computes it or on chunking: each row's sums run in one fixed order per path.
#![allow(unsafe_op_in_unsafe_fn, reason = "kernels run under the one contract stated at `Kernel::run`")]
#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by row and vector, several at a time"
)]

pub(crate) mod attention;
pub(crate) mod collective;
pub(crate) mod elementwise;
pub(crate) mod gemm;
mod gemm_amx;
mod gemm_finish;
mod gemm_tile;
pub(crate) mod inputs;
pub(crate) mod logprobs;
pub(crate) mod movement;
mod noise;
pub(crate) mod norm;
pub(crate) mod quantized;
mod quantized_amx;
mod quantized_bytes;
pub(crate) mod quantized_expand;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod sampler;
mod select;

use engine_core::DType;
use engine_core::backend::OpKind;

use crate::memory::View;
use crate::simd::elem::{self, Elem, with_elem};
use crate::simd::{Simd, Vectorized};
use crate::threads::Worker;

/// A bound kernel.
pub(crate) trait Kernel {
    const OP: OpKind;
    /// The op it runs as, where one kernel serves several.
    fn stands_for(&self) -> OpKind {
        Self::OP
    }
    /// Which of [`crate::faults::ways`] this run goes.
    fn way(&self) -> usize {
        0
    }
    /// Phases, each behind a barrier.
    fn phases(&self) -> u32 {
        1
    }
    /// Whether worker 0 runs the phase alone. Depends on shapes only.
    fn serial(&self, phase: u32) -> bool;
    /// Runs one worker's part of a phase.
    ///
    /// # Safety
    /// The machine has the instructions of `S`; the operands are live, and no command that overlaps them in memory
    /// runs at the same time. Bounds were checked when the kernel was bound.
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32);
    /// Makes the result wrong, for planted faults.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn spoil(&self);
}

/// A kernel's phase as something to enter an instruction set with.
pub(crate) struct RunPhase<'a, K>(pub &'a K, pub &'a Worker<'a>, pub u32);

impl<K: Kernel> Vectorized for RunPhase<'_, K> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.0.run::<S>(self.1, self.2)
    }
}

/// Elements below which a kernel is not worth two threads.
pub(crate) const SERIAL_ELEMENTS: usize = 16 << 10;

/// The rows one worker is to do, claimed in chunks of about `1 << 12` elements. A loop over it, not a closure given to
/// it: a closure would not be compiled for the kernel's instruction set.
pub(crate) struct MyRows<'a> {
    worker: &'a Worker<'a>,
    chunks: usize,
    chunk: usize,
    rows: usize,
    next: usize,
    end: usize,
}

impl<'a> MyRows<'a> {
    /// All rows when `serial`, else what this worker claims of them.
    #[inline(always)]
    pub fn new(worker: &'a Worker<'a>, serial: bool, rows: usize, row_elements: usize) -> Self {
        let chunk = (4096 / row_elements.max(1)).max(1);
        let (chunks, end) = if serial { (0, rows) } else { (rows.div_ceil(chunk), 0) };
        MyRows { worker, chunks, chunk, rows, next: 0, end }
    }

    /// The next row.
    #[inline(always)]
    pub fn next(&mut self) -> Option<usize> {
        if self.next == self.end {
            if self.chunks == 0 {
                return None;
            }
            let c = self.worker.claim(self.chunks)?;
            self.next = c * self.chunk;
            self.end = self.rows.min(self.next + self.chunk);
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

/// Rows `first..first + count` of x, packed as a product wants them.
pub(crate) struct Packed {
    pub a: *const u8,
    pub first: usize,
    pub count: usize,
}

/// Elements handled between two looks at a type.
pub(crate) const BLOCK: usize = 256;

/// `n` ≤ `N` elements from `i` on, as f32. `N` is a multiple of every path's lanes.
#[inline(always)]
pub(crate) unsafe fn load_block<S: Simd, const N: usize>(
    dtype: DType,
    row: *const u8,
    i: usize,
    n: usize,
    into: &mut [f32; N],
) {
    debug_assert!(n <= N);
    with_elem!(dtype, E, elem::to_f32::<S, E>(row.cast::<E>().add(i), into.as_mut_ptr(), n))
}

/// `n` ≤ `N` f32 as elements from `i` on.
#[inline(always)]
pub(crate) unsafe fn store_block<S: Simd, const N: usize>(
    dtype: DType,
    row: *mut u8,
    i: usize,
    n: usize,
    from: &[f32; N],
) {
    debug_assert!(n <= N);
    with_elem!(dtype, E, elem::from_f32::<S, E>(from.as_ptr(), row.cast::<E>().add(i), n))
}

/// Runs `f` on each vector of `n` ≤ `N` values in place; lanes past `n` compute on whatever is there.
#[inline(always)]
pub(crate) unsafe fn map_block<S: Simd, const N: usize>(
    x: &mut [f32; N],
    n: usize,
    f: impl Fn(S::F) -> S::F,
) {
    let mut i = 0;
    while i < n {
        let p = x.as_mut_ptr().add(i);
        S::store(p, f(S::load(p)));
        i += S::W;
    }
}

/// As [`map_block`] with a second operand.
#[inline(always)]
pub(crate) unsafe fn zip_block<S: Simd, const N: usize>(
    x: &mut [f32; N],
    y: &[f32; N],
    n: usize,
    f: impl Fn(S::F, S::F) -> S::F,
) {
    let mut i = 0;
    while i < n {
        let p = x.as_mut_ptr().add(i);
        S::store(p, f(S::load(p), S::load(y.as_ptr().add(i))));
        i += S::W;
    }
}

/// Adds one to the last element of a view (to its bits, for integers).
pub(crate) unsafe fn spoil_last(v: &View) {
    if v.rows() == 0 || v.cols() == 0 {
        return;
    }
    let row = v.row::<u8>(v.rows() - 1);
    let last = v.cols() - 1;
    match v.dtype {
        DType::F32 | DType::F16 | DType::Bf16 => with_elem!(v.dtype, E, {
            let p = row.cast::<E>().add(last);
            p.write_unaligned(E::from_f32(p.read_unaligned().to_f32() * 1.5 + 1.0));
        }),
        _ => *row.add(last * v.dtype.size_bytes()) ^= 1,
    }
}
