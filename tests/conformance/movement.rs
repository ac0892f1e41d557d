//! Embed, GatherRows, ScatterRows, Copy.

use engine_core::DType;
use engine_core::backend::{Fuse, Op, OpKind, ScatterMode, Uses};

use super::data::{below, normal};
use super::rig::Access::{Read, Write};
use super::{Case, FLOATS};

/// Widths with and without whole vectors.
const WIDTHS: [usize; 4] = [1, 7, 64, 130];

/// Ids with repeats and padding; the table is read by rows alone and also multiplied (tied).
pub fn embed() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for width in WIDTHS {
            for uses in [Uses::Embed, Uses::Both] {
                let name = format!("embed{width}{uses:?}");
                cases.push(Case::new(OpKind::Embed, format!("width {width}, {uses:?}"), dtype, move |rig| {
                    let table = normal(&name, 37 * width, 1.0);
                    let table = rig.weight("table", [37, width], dtype, &table, uses, dtype)?;
                    let mut ids = below(&name, 19, 37);
                    (ids[0], ids[1], ids[7], ids[18]) = (0, 36, -1, -1);
                    let ids = rig.ints("ids", &[19], &ids, Read)?;
                    let out = rig.blank("out", &[19, width as u32], dtype)?;
                    rig.step(|s| s.op(&Op::Embed { table: &table, ids, out }))?;
                    rig.output("out", out)
                }));
            }
        }
        for (format, uses) in
            super::quantized::formats().into_iter().flat_map(|f| [(f, Uses::Embed), (f, Uses::Both)])
        {
            cases.push(Case::new(OpKind::Embed, format!("{format}, {uses:?}"), dtype, move |rig| {
                let table = super::quantized::random_part("table", format, 40, 512);
                let table = rig.fused(vec![table], Fuse::One, uses, dtype)?;
                let ids = rig.ints("ids", &[5], &[39, 0, -1, 17, 16], Read)?;
                let out = rig.blank("out", &[5, 512], dtype)?;
                rig.step(|s| s.op(&Op::Embed { table: &table, ids, out }))?;
                rig.output("out", out)
            }));
        }
    }
    cases
}

/// Rows with repeats and padding, also from columns of a wider tensor.
pub fn gather_rows() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for width in WIDTHS {
            let name = format!("gather{width}");
            cases.push(Case::new(OpKind::GatherRows, format!("width {width}"), dtype, move |rig| {
                let x = normal(&name, 23 * (width + 5), 1.0);
                let x = rig.floats("x", &[23, width as u32 + 5], dtype, &x, Read)?.cols_at(3, width as u32);
                let mut rows = below(&name, 11, 23);
                (rows[0], rows[4], rows[10]) = (22, -1, 0);
                let rows = rig.ints("rows", &[11], &rows, Read)?;
                let out = rig.blank("out", &[11, width as u32], dtype)?;
                rig.step(|s| s.op(&Op::GatherRows { x, rows, out }))?;
                rig.output("out", out)
            }));
        }
    }
    cases
}

/// Distinct rows and padding; rows not named keep what they held.
pub fn scatter_rows() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for width in WIDTHS {
            for mode in [ScatterMode::Set, ScatterMode::Add] {
                let name = format!("scatter{width}");
                cases.push(Case::new(
                    OpKind::ScatterRows,
                    format!("width {width}, {mode:?}"),
                    dtype,
                    move |rig| {
                        let x =
                            rig.floats("x", &[5, width as u32], dtype, &normal(&name, 5 * width, 1.0), Read)?;
                        let out = normal("scatter out", 9 * width, 1.0);
                        let out = rig.floats("out", &[9, width as u32], dtype, &out, Write)?;
                        let rows = rig.ints("rows", &[5], &[8, -1, 0, 3, 5], Read)?;
                        rig.step(|s| s.op(&Op::ScatterRows { x, rows, mode, out }))?;
                        rig.output("out", out)
                    },
                ));
            }
        }
    }
    cases
}

/// Equal types, every conversion, and a strided source.
pub fn copy() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for to in FLOATS {
            for (rows, width) in [(1, 1), (3, 7), (5, 64), (2, 129)] {
                let what = format!("{rows}x{width} to {to}");
                cases.push(Case::new(OpKind::Copy, what, dtype, move |rig| {
                    let x = normal("copy", (rows * (width + 3)) as usize, 3.0);
                    let x = rig.floats("x", &[rows, width + 3], dtype, &x, Read)?.cols_at(1, width);
                    let out = rig.blank("out", &[rows, width], to)?;
                    rig.step(|s| s.op(&Op::Copy { x, out }))?;
                    rig.output("out", out)
                }));
            }
        }
    }
    cases.push(Case::new(OpKind::Copy, "of ids", DType::I32, |rig| {
        let x = rig.ints("x", &[33], &below("copy ids", 33, 1 << 20), Read)?;
        let out = rig.blank("out", &[33], DType::I32)?;
        rig.step(|s| s.op(&Op::Copy { x, out }))?;
        rig.output("out", out)
    }));
    cases
}
