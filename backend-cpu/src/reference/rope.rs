//! RopeKvWrite: the optional norm of each head, the rotation of q and k, and where k and v go in the cache.

use engine_core::backend::RopeStyle;

use super::norm::rms_norm_row;

/// How heads are rotated; see `engine_core::backend::Rope`.
pub struct Rotation<'a> {
    /// [T]
    pub positions: &'a [i32],
    /// [positions, rot]: cos of the rot/2 frequencies, then sin.
    pub table: &'a [f32],
    /// Dimensions rotated: the first `rot` of each head.
    pub rot: usize,
    pub style: RopeStyle,
}

/// The RMS norm of each head before the rotation (Qwen3).
pub struct HeadNorm<'a> {
    /// [D]
    pub w: &'a [f32],
    pub eps: f32,
}

/// Norms and rotates every head of x [T, heads, D] in place.
pub fn rope(x: &mut [f32], heads: usize, d: usize, rotation: &Rotation<'_>, norm: Option<&HeadNorm<'_>>) {
    for (t, token) in x.chunks_exact_mut(heads * d).enumerate() {
        let row = &rotation.table[rotation.positions[t] as usize * rotation.rot..][..rotation.rot];
        for head in token.chunks_exact_mut(d) {
            if let Some(norm) = norm {
                head.copy_from_slice(&rms_norm_row(head, norm.w, norm.eps));
            }
            rotate(&mut head[..rotation.rot], row, rotation.style);
        }
    }
}

/// Rotates each pair (a, b) by its angle: (a cos - b sin, b cos + a sin).
fn rotate(head: &mut [f32], row: &[f32], style: RopeStyle) {
    let half = head.len() / 2;
    for i in 0..half {
        let (cos, sin) = (row[i], row[half + i]);
        let (first, second) = match style {
            RopeStyle::Half => (i, half + i),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (head[first], head[second]);
        head[first] = a * cos - b * sin;
        head[second] = b * cos + a * sin;
    }
}
