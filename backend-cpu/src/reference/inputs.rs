//! NextInputs: this step's ids, positions, cache slots and lengths from the last step's samples and the upload.

/// What the op reads. All lengths as in `engine_core::backend::NextInputs`.
pub struct Inputs<'a> {
    /// [R]
    pub prev: &'a [i32],
    /// [R]
    pub accepted: Option<&'a [i32]>,
    /// [T]
    pub src: &'a [i32],
    /// [T]
    pub staged: &'a [i32],
    /// [S]
    pub rows: &'a [i32],
    /// [S]
    pub start: &'a [i32],
    /// [S + 1]
    pub cu_q: &'a [i32],
    /// [G, R, pages]
    pub tables: &'a [i32],
    pub groups: usize,
    /// Pages of one row of a table.
    pub pages: usize,
    pub page_tokens: i32,
}

/// What it writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// [T]
    pub ids: Vec<i32>,
    /// [T]
    pub positions: Vec<i32>,
    /// [G, T]
    pub slots: Vec<i32>,
    /// [S]
    pub kv_len: Vec<i32>,
}

/// For token t of sequence s, of slot r = rows[s]:
/// ids[t] = prev[src[t]], or staged[t] where src[t] < 0;
/// position = start[s] + (t - cu_q[s]) + accepted[r];
/// slot = tables[g, r, position / page_tokens] · page_tokens + position % page_tokens;
/// kv_len[s] = position of its last token + 1. A sequence of no tokens has kv_len 0.
/// Padding (r < 0, or a token of no sequence): id -1, position 0, slot -1, kv_len 0.
pub fn next_inputs(a: &Inputs<'_>) -> Next {
    let (tokens, slots_of_table) = (a.src.len(), a.tables.len() / a.groups / a.pages);
    let mut next = Next {
        ids: vec![-1; tokens],
        positions: vec![0; tokens],
        slots: vec![-1; a.groups * tokens],
        kv_len: vec![0; a.rows.len()],
    };
    for (s, &r) in a.rows.iter().enumerate() {
        if r < 0 {
            continue;
        }
        let start = a.start[s] + a.accepted.map_or(0, |accepted| accepted[r as usize]);
        for t in a.cu_q[s]..a.cu_q[s + 1] {
            let position = start + (t - a.cu_q[s]);
            let t = t as usize;
            next.ids[t] = if a.src[t] < 0 { a.staged[t] } else { a.prev[a.src[t] as usize] };
            next.positions[t] = position;
            for g in 0..a.groups {
                let row = (g * slots_of_table + r as usize) * a.pages;
                let page = a.tables[row + (position / a.page_tokens) as usize];
                next.slots[g * tokens + t] = page * a.page_tokens + position % a.page_tokens;
            }
            next.kv_len[s] = position + 1;
        }
    }
    next
}
