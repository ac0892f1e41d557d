//! AllReduce, AllGather, ReduceScatter, AllReduceNorm over a group of one rank, which is what one device runs: a
//! reduction leaves its operand alone, and the others copy. Every rig's stream joins each group as its only rank.

use engine_core::DType;
use engine_core::backend::{CommConfig, Group, Op, OpKind};

use super::data::normal;
use super::rig::Access::{Read, Write};
use super::{Case, FLOATS};

const GROUPS: [Group; 3] = [Group::Tp, Group::Ep, Group::Pp];
/// One element, odd, whole vectors, and more than one worker does alone.
const SIZES: [[u32; 2]; 4] = [[1, 1], [3, 7], [5, 64], [19, 1031]];

/// Each group with this stream as its only rank.
pub fn alone() -> [CommConfig; 3] {
    GROUPS.map(|group| CommConfig { group, rank: 0, world: 1, rendezvous: Vec::new() })
}

/// A type, a size [rows, columns], a group.
type Varied = (DType, [u32; 2], Group);

/// Every size and group in every type.
fn varied() -> impl Iterator<Item = Varied> {
    let sized = SIZES.into_iter().flat_map(|size| GROUPS.map(|group| (size, group)));
    FLOATS.into_iter().flat_map(move |dtype| sized.clone().map(move |(size, group)| (dtype, size, group)))
}

/// In place, in columns of a wider tensor: what lies beside them is left alone too.
pub fn all_reduce() -> Vec<Case> {
    let case = |(dtype, [rows, cols], group): Varied| {
        Case::new(OpKind::AllReduce, format!("{rows}x{cols} {group:?}"), dtype, move |rig| {
            let values = normal("reduced", (rows * (cols + 3)) as usize, 3.0);
            let whole = rig.floats("x", &[rows, cols + 3], dtype, &values, Write)?;
            let x = whole.cols_at(1, cols);
            rig.step(|s| s.op(&Op::AllReduce { group, x }))?;
            rig.output("x", whole)
        })
    };
    varied().map(case).collect()
}

/// The only rank's columns are all columns.
pub fn all_gather() -> Vec<Case> {
    copies(OpKind::AllGather)
}

/// The only rank keeps the whole sum.
pub fn reduce_scatter() -> Vec<Case> {
    copies(OpKind::ReduceScatter)
}

fn copies(op: OpKind) -> Vec<Case> {
    let case = |(dtype, [rows, cols], group): Varied| {
        Case::new(op, format!("{rows}x{cols} {group:?}"), dtype, move |rig| {
            let values = normal("gathered", (rows * (cols + 3)) as usize, 3.0);
            let x = rig.floats("x", &[rows, cols + 3], dtype, &values, Read)?.cols_at(1, cols);
            let out = rig.blank("out", &[rows, cols], dtype)?;
            rig.step(|s| match op {
                OpKind::AllGather => s.op(&Op::AllGather { group, x, out }),
                _ => s.op(&Op::ReduceScatter { group, x, out }),
            })?;
            rig.output("out", out)
        })
    };
    varied().map(case).collect()
}

/// Into a tensor of its own, and in place.
pub fn all_reduce_norm() -> Vec<Case> {
    let both = varied().flat_map(|varied| [false, true].map(|in_place| (varied, in_place)));
    let case = |((dtype, [rows, cols], group), in_place): (Varied, bool)| {
        let what = format!("{rows}x{cols} {group:?} in place {in_place}");
        Case::new(OpKind::AllReduceNorm, what, dtype, move |rig| {
            let shape = [rows, cols];
            let count = (rows * cols) as usize;
            // The reduction is in place: x is never only read.
            let x = rig.floats("x", &shape, dtype, &normal("summed x", count, 2.0), Write)?;
            let residual = rig.floats("residual", &shape, dtype, &normal("summed r", count, 1.0), Write)?;
            let w = rig.vector("w", dtype, &normal("summed w", cols as usize, 1.0))?;
            let out = if in_place { x } else { rig.blank("out", &shape, dtype)? };
            let eps = 0.01;
            rig.step(|s| s.op(&Op::AllReduceNorm { group, x, residual, w: &w, eps, out: out.into() }))?;
            rig.output("out", out)?;
            rig.output("residual", residual)
        })
    };
    both.map(case).collect()
}
