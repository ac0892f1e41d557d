//! The register tile of matrix products: R rows times one panel of 32 outputs.
//!
//! Every output is one accumulator that takes k = 0, 1, 2, .. in turn (a pair at a time under `vdpbf16ps`), so its
//! bits depend neither on R nor on how K is cut into blocks (accumulators are stored and loaded as f32 in between).
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use half::f16;

use super::gemm_amx;
use crate::simd::elem::Elem;
use crate::simd::{Simd, amx};
use crate::weights::PANEL;

/// How a tile reads weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// f32 weights [k][32], activations [k][R] f32.
    F32,
    /// f16 weights [k][32], activations [k][R] f32.
    F16,
    /// bfloat16 pairs [k/2][32][2], activations [k][R] f32.
    Pairs,
    /// The same weights, activations [k/2][R] pairs of bfloat16; `vdpbf16ps`.
    Dot,
    /// The same weights, activations in tiles of 16 × 32 bfloat16; see [`super::gemm_amx`].
    Tiles,
}

impl Kind {
    /// Bytes of one panel for `k` steps of K (even for pairs).
    pub fn panel_bytes(self, k: usize) -> usize {
        match self {
            Kind::F32 => k * PANEL * 4,
            _ => k * PANEL * 2,
        }
    }
    /// Bytes of `rows` activations for `k` steps.
    pub fn act_bytes(self, k: usize, rows: usize) -> usize {
        match self {
            Kind::Dot => k * rows * 2,
            Kind::Tiles => gemm_amx::act_bytes(k, rows.div_ceil(amx::ROWS)),
            _ => k * rows * 4,
        }
    }
}

/// Operands of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Activations, interleaved by R.
    pub a: *const u8,
    /// One panel, or the first of two.
    pub b: *const u8,
    /// From one panel to the next, for the kernels that take two.
    pub b_next: usize,
    /// Steps of K; even for pairs.
    pub k: usize,
    /// [panel][R][32] f32.
    pub c: *mut f32,
    /// Elements from one panel's results to the next's.
    pub c_next: usize,
    /// Whether C starts at zero.
    pub fresh: bool,
    /// Weights to bring nearer meanwhile, if any.
    pub ahead: *const u8,
    /// How many bytes of them a step of K.
    pub ahead_step: usize,
}

/// Rows a tile can have.
const ROWS: [usize; 7] = [1, 2, 3, 4, 6, 8, 12];

/// Rows of the tiles that `rows` are cut into evenly, at most `most`.
pub(super) fn even(rows: usize, most: usize) -> usize {
    let rows = rows.max(1);
    let even = rows.div_ceil(rows.div_ceil(most));
    ROWS.into_iter().find(|r| *r >= even).unwrap_or(most).min(most)
}

/// Runs one tile of `rows` (one of [`ROWS`]); with `two`, over two panels at once (only up to three rows).
#[inline(always)]
pub(crate) unsafe fn run<S: Simd>(kind: Kind, rows: usize, two: bool, t: &Tile) {
    match kind {
        Kind::F32 => by_rows::<S, WideF32>(rows, two, t),
        Kind::F16 => by_rows::<S, WideF16>(rows, two, t),
        Kind::Pairs => by_rows::<S, WidePairs>(rows, two, t),
        Kind::Dot if S::DOT => by_rows::<S, DotPairs>(rows, two, t),
        Kind::Dot | Kind::Tiles => unreachable!("this path has no such product"),
    }
}

#[inline(always)]
unsafe fn by_rows<S: Simd, B: Steps>(rows: usize, two: bool, t: &Tile) {
    // Column vectors of a tile by registers: AVX-512 takes a whole panel (two vectors), or two panels for few rows.
    match (S::W, rows, two) {
        (16, 1, true) => entry::<S, B, 1, 2, 2>(t),
        (16, 2, true) => entry::<S, B, 2, 2, 2>(t),
        (16, 3, true) => entry::<S, B, 3, 2, 2>(t),
        (16, 1, _) => entry::<S, B, 1, 2, 1>(t),
        (16, 2, _) => entry::<S, B, 2, 2, 1>(t),
        (16, 3, _) => entry::<S, B, 3, 2, 1>(t),
        (16, 4, _) => entry::<S, B, 4, 2, 1>(t),
        (16, 6, _) => entry::<S, B, 6, 2, 1>(t),
        (16, 8, _) => entry::<S, B, 8, 2, 1>(t),
        (16, 12, _) => entry::<S, B, 12, 2, 1>(t),
        (_, 1, _) => entry::<S, B, 1, 4, 1>(t),
        (_, 2, _) => entry::<S, B, 2, 4, 1>(t),
        (_, 3, _) => entry::<S, B, 3, 2, 1>(t),
        (_, 4, _) => entry::<S, B, 4, 2, 1>(t),
        (_, 6, _) => entry::<S, B, 6, 2, 1>(t),
        _ => unreachable!("no tile of {rows} rows"),
    }
}

#[inline(always)]
unsafe fn entry<S: Simd, B: Steps, const R: usize, const NV: usize, const P: usize>(t: &Tile) {
    let t = *t;
    S::vectorize(
        #[inline(always)]
        move || {
            let mut column = 0;
            while column < PANEL {
                tile::<S, B, R, NV, P>(&t, column);
                column += NV * S::W;
            }
        },
    )
}

/// R rows × NV vectors of columns × P panels, from `column` on.
#[inline(always)]
unsafe fn tile<S: Simd, B: Steps, const R: usize, const NV: usize, const P: usize>(t: &Tile, column: usize) {
    let mut acc = [[[S::zero(); NV]; P]; R];
    if !t.fresh {
        for r in 0..R {
            for p in 0..P {
                for v in 0..NV {
                    acc[r][p][v] = S::load(t.c.add(p * t.c_next + r * PANEL + column + v * S::W));
                }
            }
        }
    }
    let (mut a, mut b) = (t.a, t.b.add(column * B::COLUMN_BYTES));
    let steps = t.k / B::STEP;
    if t.ahead.is_null() || column > 0 {
        for _ in 0..steps {
            B::step::<S, R, NV, P>(a, b, t.b_next, &mut acc);
            a = a.add(R * B::ACT_BYTES);
            b = b.add(PANEL * B::COLUMN_BYTES);
        }
    } else {
        let mut ahead = t.ahead;
        let ahead_step = t.ahead_step * B::STEP;
        for _ in 0..steps {
            for p in 0..P {
                S::prefetch(ahead.wrapping_add(p * t.b_next));
                if ahead_step > 64 {
                    S::prefetch(ahead.wrapping_add(p * t.b_next + 64));
                }
            }
            ahead = ahead.wrapping_add(ahead_step);
            B::step::<S, R, NV, P>(a, b, t.b_next, &mut acc);
            a = a.add(R * B::ACT_BYTES);
            b = b.add(PANEL * B::COLUMN_BYTES);
        }
    }
    for r in 0..R {
        for p in 0..P {
            for v in 0..NV {
                S::store(t.c.add(p * t.c_next + r * PANEL + column + v * S::W), acc[r][p][v]);
            }
        }
    }
}

/// One step of K (or a pair of steps) for a format of weights.
trait Steps {
    /// K per step.
    const STEP: usize;
    /// Weight bytes per column and step.
    const COLUMN_BYTES: usize;
    /// Activation bytes per row and step.
    const ACT_BYTES: usize;
    unsafe fn step<S: Simd, const R: usize, const NV: usize, const P: usize>(
        a: *const u8,
        b: *const u8,
        b_next: usize,
        acc: &mut [[[S::F; NV]; P]; R],
    );
}

struct WideF32;
struct WideF16;
struct WidePairs;
struct DotPairs;

#[inline(always)]
unsafe fn wide_step<S: Simd, E: Elem, const R: usize, const NV: usize, const P: usize>(
    a: *const u8,
    b: *const u8,
    b_next: usize,
    acc: &mut [[[S::F; NV]; P]; R],
) {
    let mut w = [[S::zero(); NV]; P];
    for p in 0..P {
        for v in 0..NV {
            w[p][v] = E::load::<S>(b.add(p * b_next).cast::<E>().add(v * S::W));
        }
    }
    for r in 0..R {
        let x = S::splat(*a.cast::<f32>().add(r));
        for p in 0..P {
            for v in 0..NV {
                acc[r][p][v] = S::fma(x, w[p][v], acc[r][p][v]);
            }
        }
    }
}

impl Steps for WideF32 {
    const STEP: usize = 1;
    const COLUMN_BYTES: usize = 4;
    const ACT_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const NV: usize, const P: usize>(
        a: *const u8,
        b: *const u8,
        b_next: usize,
        acc: &mut [[[S::F; NV]; P]; R],
    ) {
        wide_step::<S, f32, R, NV, P>(a, b, b_next, acc)
    }
}

impl Steps for WideF16 {
    const STEP: usize = 1;
    const COLUMN_BYTES: usize = 2;
    const ACT_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const NV: usize, const P: usize>(
        a: *const u8,
        b: *const u8,
        b_next: usize,
        acc: &mut [[[S::F; NV]; P]; R],
    ) {
        wide_step::<S, f16, R, NV, P>(a, b, b_next, acc)
    }
}

impl Steps for WidePairs {
    const STEP: usize = 2;
    const COLUMN_BYTES: usize = 4;
    const ACT_BYTES: usize = 8;
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const NV: usize, const P: usize>(
        a: *const u8,
        b: *const u8,
        b_next: usize,
        acc: &mut [[[S::F; NV]; P]; R],
    ) {
        let mut even = [[S::zero(); NV]; P];
        let mut odd = [[S::zero(); NV]; P];
        for p in 0..P {
            for v in 0..NV {
                (even[p][v], odd[p][v]) = S::load_pairs(b.add(p * b_next).cast::<u16>().add(v * S::W * 2));
            }
        }
        for r in 0..R {
            let x = S::splat(*a.cast::<f32>().add(r));
            for p in 0..P {
                for v in 0..NV {
                    acc[r][p][v] = S::fma(x, even[p][v], acc[r][p][v]);
                }
            }
        }
        for r in 0..R {
            let x = S::splat(*a.cast::<f32>().add(R + r));
            for p in 0..P {
                for v in 0..NV {
                    acc[r][p][v] = S::fma(x, odd[p][v], acc[r][p][v]);
                }
            }
        }
    }
}

impl Steps for DotPairs {
    const STEP: usize = 2;
    const COLUMN_BYTES: usize = 4;
    const ACT_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const NV: usize, const P: usize>(
        a: *const u8,
        b: *const u8,
        b_next: usize,
        acc: &mut [[[S::F; NV]; P]; R],
    ) {
        let mut w = [[S::isplat(0); NV]; P];
        for p in 0..P {
            for v in 0..NV {
                w[p][v] = S::iload(b.add(p * b_next).cast::<u32>().add(v * S::W));
            }
        }
        for r in 0..R {
            let x = S::isplat(*a.cast::<u32>().add(r));
            for p in 0..P {
                for v in 0..NV {
                    acc[r][p][v] = S::dot_bf16(acc[r][p][v], x, w[p][v]);
                }
            }
        }
    }
}

/// A block of a panel as f32 [k][32], for tiles that meet it many times.
#[inline(always)]
pub(crate) unsafe fn expand<S: Simd>(kind: Kind, b: *const u8, k: usize, into: *mut f32) {
    match kind {
        Kind::F16 => {
            for i in (0..k * PANEL).step_by(S::W) {
                S::store(into.add(i), S::load_f16(b.cast::<u16>().add(i)));
            }
        }
        Kind::Pairs => {
            for pair in 0..k / 2 {
                for v in (0..PANEL).step_by(S::W) {
                    let (even, odd) = S::load_pairs(b.cast::<u16>().add((pair * PANEL + v) * 2));
                    S::store(into.add(2 * pair * PANEL + v), even);
                    S::store(into.add((2 * pair + 1) * PANEL + v), odd);
                }
            }
        }
        Kind::F32 | Kind::Dot | Kind::Tiles => unreachable!("{kind:?} is read as it is"),
    }
}
