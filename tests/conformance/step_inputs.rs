//! UpdateTables and NextInputs.

use engine_core::DType;
use engine_core::backend::{NextInputs, Op, OpKind};

use super::Case;
use super::data::{below, permutation};
use super::rig::Access::{Read, Write};
use super::rig::{PAGES_PER_ROW, ROWS};

/// Deltas in order (the last of two to one place wins), with padding.
pub fn update_tables() -> Vec<Case> {
    [1u32, 5, 40]
        .into_iter()
        .map(|count| {
            Case::new(OpKind::UpdateTables, format!("{count} pairs"), DType::I32, move |rig| {
                let size = 2 * ROWS * PAGES_PER_ROW;
                let mut pairs: Vec<i32> = permutation("places", size as usize)[..count as usize]
                    .iter()
                    .zip(below("pages", count as usize, 5000))
                    .flat_map(|(at, page)| [*at, page])
                    .collect();
                if count > 2 {
                    (pairs[2], pairs[3]) = (-1, 77);
                    let first = pairs[0];
                    let last = pairs.len() - 2;
                    (pairs[last], pairs[last + 1]) = (first, 4999);
                }
                let pairs = rig.ints("pairs", &[count, 2], &pairs, Read)?;
                let tables = below("tables", size as usize, 1000);
                let tables = rig.ints("tables", &[2, ROWS, PAGES_PER_ROW], &tables, Write)?;
                rig.step(|s| s.op(&Op::UpdateTables { pairs, tables }))?;
                rig.output("tables", tables)
            })
        })
        .collect()
}

/// A decode row fed from the device, a long prefill, a cached prefill that crosses a page border, an empty row, a
/// padded row, and a tail of padding tokens.
pub fn next_inputs() -> Vec<Case> {
    let mut cases = Vec::new();
    for groups in [1u32, 2] {
        for page_tokens in [1u32, 16] {
            for drafts in [false, true] {
                let what = format!("{groups} groups, pages of {page_tokens}, taken-back drafts {drafts}");
                cases.push(Case::new(OpKind::NextInputs, what, DType::I32, move |rig| {
                    let mut i32s = |name, shape: &[u32], values: &[i32]| rig.ints(name, shape, values, Read);
                    // Sequences: 1 token of slot 3, none of slot 6, 9 of slot 0, 3 of slot 5, padding.
                    let rows = i32s("rows", &[5], &[3, 6, 0, 5, -1])?;
                    let start = i32s("start", &[5], &[13, 2, 0, 6, 0])?;
                    let cu_q = i32s("cu_q", &[6], &[0, 1, 1, 10, 13, 13])?;
                    let mut src = [-1; 16];
                    (src[0], src[12]) = (3, 5);
                    let src = i32s("src", &[16], &src)?;
                    let staged = i32s("staged", &[16], &below("staged", 16, 900))?;
                    let prev = i32s("prev", &[ROWS], &below("prev", ROWS as usize, 900))?;
                    let size = (groups * ROWS * PAGES_PER_ROW) as usize;
                    let tables = i32s("tables", &[groups, ROWS, PAGES_PER_ROW], &permutation("table", size))?;
                    let accepted = match drafts {
                        true => Some(i32s("accepted", &[ROWS], &[0, 0, 0, -2, 0, -1, 0, 0])?),
                        false => None,
                    };
                    let ids = rig.blank("ids", &[16], DType::I32)?;
                    let positions = rig.blank("positions", &[16], DType::I32)?;
                    let slots = rig.blank("slots", &[groups, 16], DType::I32)?;
                    let kv_len = rig.blank("kv_len", &[5], DType::I32)?;
                    let next = NextInputs {
                        prev,
                        accepted,
                        src,
                        staged,
                        rows,
                        start,
                        cu_q,
                        tables,
                        page_tokens,
                        ids,
                        positions,
                        slots,
                        kv_len,
                    };
                    rig.step(|s| s.op(&Op::NextInputs(next)))?;
                    rig.output("ids", ids)?;
                    rig.output("positions", positions)?;
                    rig.output("slots", slots)?;
                    rig.output("kv_len", kv_len)
                }));
            }
        }
    }
    cases
}
