//! TopK, and the order that every "best" in the engine means.

use std::cmp::Ordering;

/// Larger value first; among equals the smaller id.
pub fn best_first(values: &[f32], a: usize, b: usize) -> Ordering {
    values[b].total_cmp(&values[a]).then(a.cmp(&b))
}

/// Ids and values of the k best of each row. x [T, E], results [T, k].
pub fn top_k(x: &[f32], width: usize, k: usize) -> (Vec<i32>, Vec<f32>) {
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(width) {
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| best_first(row, *a, *b));
        ids.extend(order[..k].iter().map(|id| *id as i32));
        values.extend(order[..k].iter().map(|id| row[*id]));
    }
    (ids, values)
}
