//! Embed, GatherRows, ScatterRows, CopyPages, UpdateTables.

use engine_core::backend::ScatterMode;

/// out[i] = x[rows[i]]; a row < 0 gives zeros. x [T, H], rows [L], out [L, H]. `Embed` is this with ids for rows.
pub fn gather_rows(x: &[f32], width: usize, rows: &[i32], out: &mut [f32]) {
    for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
        match usize::try_from(row) {
            Ok(row) => out.copy_from_slice(&x[row * width..][..width]),
            Err(_) => out.fill(0.0),
        }
    }
}

/// out[rows[i]] = x[i], or += ; a row < 0 is skipped. x [L, H], out [T, H].
pub fn scatter_rows(x: &[f32], width: usize, rows: &[i32], mode: ScatterMode, out: &mut [f32]) {
    for (x, &row) in x.chunks_exact(width).zip(rows) {
        let Ok(row) = usize::try_from(row) else { continue };
        for (out, x) in out[row * width..][..width].iter_mut().zip(x) {
            *out = if mode == ScatterMode::Add { *out + x } else { *x };
        }
    }
}

/// Page pairs[i].1 becomes page pairs[i].0, in order; a negative pair is skipped. pool: pages of `page` elements.
pub fn copy_pages<T: Copy>(pool: &mut [T], page: usize, pairs: &[[i32; 2]]) {
    for &[from, to] in pairs {
        if from >= 0 && to >= 0 {
            let from = from as usize * page;
            pool.copy_within(from..from + page, to as usize * page);
        }
    }
}

/// tables[pairs[i].0] = pairs[i].1 by flat index; an index < 0 is skipped.
pub fn update_tables(pairs: &[[i32; 2]], tables: &mut [i32]) {
    for &[at, page] in pairs {
        if let Ok(at) = usize::try_from(at) {
            tables[at] = page;
        }
    }
}
