//! PagedAttention and MergeStates.
//!
//! Paging is a matter of where keys are found, not of arithmetic: [`gather`] lays the cached keys (or values) of a
//! sequence out contiguously by its page table, [`attend`] is attention over contiguous keys.

use engine_core::backend::{Mask, op::sees};

/// Sizes and rules of one call; see `engine_core::backend::{AttnSpec, AttnArgs}`.
pub struct Attention<'a> {
    pub q_heads: usize,
    pub kv_heads: usize,
    /// Head size of q and k.
    pub k_dim: usize,
    /// Head size of v and of the output.
    pub v_dim: usize,
    pub mask: Mask,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// [Hq]
    pub sinks: Option<&'a [f32]>,
    /// [Hq]
    pub slopes: Option<&'a [f32]>,
}

/// The first `kv_len` positions of a sequence, [kv_len, width], from a cache [P, page_tokens, width] by a row of its
/// page table.
pub fn gather(cache: &[f32], width: usize, page_tokens: usize, table: &[i32], kv_len: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(kv_len * width);
    for position in 0..kv_len {
        let slot = table[position / page_tokens] as usize * page_tokens + position % page_tokens;
        out.extend_from_slice(&cache[slot * width..][..width]);
    }
    out
}

/// Attention of one sequence. q [q_len, Hq, D] are its last positions, k [kv_len, Hkv, D], v [kv_len, Hkv, Dv].
/// Returns out [q_len, Hq, Dv] and the log-sum-exp of the scores [q_len, Hq] (the sink counted in).
///
/// score = q·k · scale, soft-capped, plus slope · (key position - query position), where the mask lets it be seen;
/// out = Σ softmax(score) · v, the softmax's denominator having the sink's exp as one more term. A query that sees
/// no key gives zeros and -∞.
pub fn attend(a: &Attention<'_>, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (q_len, kv_len) = (q.len() / (a.q_heads * a.k_dim), k.len() / (a.kv_heads * a.k_dim));
    let mut out = vec![0.0; q_len * a.q_heads * a.v_dim];
    let mut lse = vec![f32::NEG_INFINITY; q_len * a.q_heads];
    for j in 0..q_len {
        let position = kv_len - q_len + j;
        for h in 0..a.q_heads {
            let at = j * a.q_heads + h;
            let q = &q[at * a.k_dim..][..a.k_dim];
            let scores = scores(a, h, position, q, k);
            if !scores.is_empty() {
                lse[at] = mix(a, h, &scores, v, &mut out[at * a.v_dim..][..a.v_dim]);
            }
        }
    }
    (out, lse)
}

/// Joins attention over parts of the keys by their log-sum-exp. parts [n, M, Dv], lse [n, M] for M = T · Hq;
/// result [M, Dv]. Where no part has a key the result is zeros.
pub fn merge_states(parts: &[f32], lse: &[f32], n: usize, v_dim: usize) -> Vec<f32> {
    let m = lse.len() / n;
    let mut out = vec![0.0; m * v_dim];
    for (i, out) in out.chunks_exact_mut(v_dim).enumerate() {
        let highest = (0..n).map(|p| lse[p * m + i]).fold(f32::NEG_INFINITY, f32::max);
        if highest == f32::NEG_INFINITY {
            continue;
        }
        let weight = |p: usize| f64::from(lse[p * m + i] - highest).exp();
        let total: f64 = (0..n).map(weight).sum();
        for (d, out) in out.iter_mut().enumerate() {
            let sum: f64 = (0..n).map(|p| weight(p) * f64::from(parts[(p * m + i) * v_dim + d])).sum();
            *out = (sum / total) as f32;
        }
    }
    out
}

/// (key position, score) of every key that head `h` of the query at `position` sees.
fn scores(a: &Attention<'_>, h: usize, position: usize, q: &[f32], k: &[f32]) -> Vec<(usize, f64)> {
    let kv_head = h / (a.q_heads / a.kv_heads);
    let kv_len = k.len() / (a.kv_heads * a.k_dim);
    let seen = (0..kv_len).filter(|key| sees(a.mask, position as u32, *key as u32));
    let score = |key: usize| {
        let k = &k[(key * a.kv_heads + kv_head) * a.k_dim..][..a.k_dim];
        let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let mut score = dot * f64::from(a.scale);
        if let Some(cap) = a.soft_cap {
            score = f64::from(cap) * (score / f64::from(cap)).tanh();
        }
        if let Some(slopes) = a.slopes {
            score += f64::from(slopes[h]) * (key as f64 - position as f64);
        }
        (key, score)
    };
    seen.map(score).collect()
}

/// out [Dv] = Σ softmax(scores) · v of one head; returns the log-sum-exp.
fn mix(a: &Attention<'_>, h: usize, scores: &[(usize, f64)], v: &[f32], out: &mut [f32]) -> f32 {
    let kv_head = h / (a.q_heads / a.kv_heads);
    let sink = a.sinks.map(|s| f64::from(s[h]));
    let highest = scores.iter().map(|s| s.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| s.1).chain(sink).map(|s| (s - highest).exp()).sum();
    for (d, out) in out.iter_mut().enumerate() {
        let value = |key: usize| f64::from(v[(key * a.kv_heads + kv_head) * a.v_dim + d]);
        *out = scores.iter().map(|(key, s)| (s - highest).exp() / total * value(*key)).sum::<f64>() as f32;
    }
    (highest + total.ln()) as f32
}
