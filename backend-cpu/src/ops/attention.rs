//! PagedAttention: flash-style attention that walks the page table.
//!
//! A work item is some query tokens of a sequence times one KV head with all the query heads that share it: its
//! rows. Keys come in tiles of 64 positions, the first starting at position 0. A tile's keys [D][64] and values
//! [64][Dv] are brought to f32 in the worker's scratch memory once, and every row of the item meets them: scores
//! with keys in the lanes, then the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022),
//! then p·v with value elements in the lanes. A row's arithmetic is the same whether it comes alone (decode) or
//! among others (prefill), so its bits are too: sums over D and over the keys of a tile run in order, one
//! accumulator per output.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::{Mask, OpKind};

use super::elementwise::soft_cap;
use super::{Kernel, spoil_last};
use crate::kv::LayerView;
use crate::memory::View;
use crate::plan::{Item, PlanState, Sequence};
use crate::simd::elem::{self, Elem, with_elem};
use crate::simd::{Simd, math};
use crate::threads::Worker;

/// Keys of a tile.
const TILE: usize = 64;
/// Largest head of keys or values.
pub(crate) const MAX_DIM: usize = 512;
/// Most rows of an item: see `plan::ITEM_ROWS`, or the heads of a group if they are more.
pub(crate) const MAX_ROWS: usize = 256;

const KEYS_AT: usize = 0;
const VALUES_AT: usize = KEYS_AT + TILE * MAX_DIM * 4;
const SCORES_AT: usize = VALUES_AT + TILE * MAX_DIM * 4;
const STATE_AT: usize = SCORES_AT + MAX_ROWS * TILE * 4;
const QUERIES_AT: usize = STATE_AT + MAX_ROWS * 2 * 4;
const SUMS_AT: usize = QUERIES_AT + MAX_ROWS * MAX_DIM * 4;
/// Private memory a worker needs.
pub(crate) const SCRATCH_BYTES: usize = SUMS_AT + MAX_ROWS * MAX_DIM * 4;

/// Where keys and values are.
pub(crate) enum Source {
    Paged(LayerView),
    /// [T, Hkv, D] each.
    Ragged {
        k: View,
        v: View,
    },
}

/// q [T, Hq, D] -> out [T, Hq · Dv].
pub(crate) struct Attention {
    pub q: View,
    pub source: Source,
    pub plan: *const PlanState,
    pub mask: Mask,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// [Hq] f32 or null.
    pub sinks: *const f32,
    /// [Hq] f32 or null.
    pub slopes: *const f32,
    /// [T, Hq] f32
    pub lse: Option<View>,
    pub out: View,
}

impl Kernel for Attention {
    const OP: OpKind = OpKind::PagedAttention;
    fn serial(&self, _: u32) -> bool {
        false
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, _: u32) {
        let plan = (*self.plan).data();
        if w.id == 0 {
            self.pad(plan.covered);
        }
        let scratch = Scratch::of(w);
        while let Some(i) = w.claim(plan.items.len() * self.kv_heads) {
            let item = plan.items[i / self.kv_heads];
            let sequence = plan.sequences[item.sequence as usize];
            let table = Table { at: plan.table, stride: plan.table_stride, pages: plan.table_pages };
            let job = Job::new(self, item, sequence, i % self.kv_heads, table);
            S::vectorize(
                #[inline(always)]
                || job.run::<S>(&scratch),
            );
        }
    }
    unsafe fn spoil(&self) {
        let plan = (*self.plan).data();
        if plan.covered > 0 {
            let mut covered = self.out;
            covered.shape = [1, 1, plan.covered as u32, self.out.shape[3]];
            covered.stride[2] = self.out.stride[2];
            spoil_last(&covered);
        }
    }
}

impl Attention {
    /// Zeros for tokens of no sequence.
    unsafe fn pad(&self, covered: usize) {
        let tokens = self.q.shape[1] as usize;
        assert!(covered <= tokens, "cu_q ends at {covered} of {tokens} tokens");
        for t in covered..tokens {
            for h in 0..self.q_heads {
                self.zero(t, h);
            }
        }
    }

    unsafe fn zero(&self, t: usize, h: usize) {
        let size = self.out.dtype.size_bytes();
        std::ptr::write_bytes(self.out.row::<u8>(t).add(h * self.v_dim * size), 0, self.v_dim * size);
        if let Some(lse) = &self.lse {
            *lse.row::<f32>(t).add(h) = f32::NEG_INFINITY;
        }
    }
}

#[derive(Clone, Copy)]
struct Table {
    at: *const i32,
    stride: usize,
    pages: usize,
}

struct Scratch {
    /// [D][64]
    keys: *mut f32,
    /// [64][Dv]
    values: *mut f32,
    /// [rows][64]
    scores: *mut f32,
    /// [rows] highest score so far, then [rows] sum of exponentials.
    state: *mut f32,
    /// [rows][D]
    queries: *mut f32,
    /// [rows][Dv]
    sums: *mut f32,
}

impl Scratch {
    unsafe fn of(w: &Worker<'_>) -> Self {
        assert!(w.scratch_bytes() >= SCRATCH_BYTES);
        let at = |offset: usize| w.scratch().add(offset).cast::<f32>();
        Scratch {
            keys: at(KEYS_AT),
            values: at(VALUES_AT),
            scores: at(SCORES_AT),
            state: at(STATE_AT),
            queries: at(QUERIES_AT),
            sums: at(SUMS_AT),
        }
    }
}

/// One item on one KV head.
struct Job<'a> {
    a: &'a Attention,
    sequence: Sequence,
    head: usize,
    /// Query heads of the KV head.
    group: usize,
    /// First token of the item, within the batch.
    token: usize,
    tokens: usize,
    /// Position of that token in its sequence.
    position: usize,
    table: Table,
    /// Value elements padded to whole vectors of every path.
    width: usize,
}

impl<'a> Job<'a> {
    fn new(a: &'a Attention, item: Item, sequence: Sequence, head: usize, table: Table) -> Self {
        let (first, tokens) = (item.first as usize, item.tokens as usize);
        let group = a.q_heads / a.kv_heads;
        let token = sequence.first + first;
        assert!(token + tokens <= a.q.shape[1] as usize, "tokens {token}+{tokens} of {}", a.q.shape[1]);
        assert!(tokens * group <= MAX_ROWS, "{tokens} tokens of {group} heads in one item");
        let ragged = matches!(a.source, Source::Ragged { .. });
        let kv_len = if ragged { sequence.q_len } else { sequence.kv_len };
        let sequence = Sequence { kv_len, ..sequence };
        let position = (kv_len + first).saturating_sub(sequence.q_len);
        let width = a.v_dim.next_multiple_of(16);
        Job { a, sequence, head, group, token, tokens, position, table, width }
    }

    /// Keys `low..high` that the token at `position` sees.
    #[inline(always)]
    fn sees(&self, position: usize) -> (usize, usize) {
        let kv_len = self.sequence.kv_len;
        match self.a.mask {
            Mask::Full => (0, kv_len),
            Mask::Causal => (0, kv_len.min(position + 1)),
            Mask::Window { tokens } => {
                ((position + 1).saturating_sub(tokens as usize), kv_len.min(position + 1))
            }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: &Scratch) {
        if self.sequence.row < 0 || self.sequence.kv_len < self.sequence.q_len {
            return self.nothing();
        }
        let rows = self.tokens * self.group;
        self.load_queries::<S>(s);
        std::ptr::write_bytes(s.sums, 0, rows * self.width);
        for r in 0..rows {
            *s.state.add(r) = f32::NEG_INFINITY;
            *s.state.add(MAX_ROWS + r) = 0.0;
        }
        let low = self.sees(self.position).0;
        let high = self.sees(self.position + self.tokens - 1).1;
        let mut key = low / TILE * TILE;
        while key < high {
            let n = TILE.min(self.sequence.kv_len - key);
            self.load_tile::<S>(s, key, n);
            self.scores::<S>(s, rows);
            self.softmax::<S>(s, key, rows);
            self.mix::<S>(s, key, rows);
            key += TILE;
        }
        for r in 0..rows {
            self.finish::<S>(s, r);
        }
    }

    unsafe fn nothing(&self) {
        for t in 0..self.tokens {
            for g in 0..self.group {
                self.a.zero(self.token + t, self.head * self.group + g);
            }
        }
    }

    /// Queries of all rows as f32, multiplied by the scale.
    #[inline(always)]
    unsafe fn load_queries<S: Simd>(&self, s: &Scratch) {
        let d = self.a.k_dim;
        for t in 0..self.tokens {
            for g in 0..self.group {
                let into = s.queries.add((t * self.group + g) * d);
                let h = self.head * self.group + g;
                with_elem!(self.a.q.dtype, E, elem::to_f32::<S, E>(self.a.q.at(self.token + t, h), into, d));
                for i in 0..d {
                    *into.add(i) *= self.a.scale;
                }
            }
        }
    }

    /// Keys and values of positions `key..key + n` into the scratch tile.
    #[inline(always)]
    unsafe fn load_tile<S: Simd>(&self, s: &Scratch, key: usize, n: usize) {
        match &self.a.source {
            Source::Paged(kv) => with_elem!(kv.dtype, C, self.load_pages::<S, C>(kv, s, key, n)),
            Source::Ragged { k, v } => {
                for j in 0..n {
                    let token = self.sequence.first + key + j;
                    with_elem!(k.dtype, C, {
                        let row = k.at::<C>(token, self.head);
                        for i in 0..self.a.k_dim {
                            *s.keys.add(i * TILE + j) = (*row.add(i)).to_f32();
                        }
                    });
                    let into = s.values.add(j * self.width);
                    with_elem!(v.dtype, C, elem::to_f32::<S, C>(v.at(token, self.head), into, self.a.v_dim));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load_pages<S: Simd, C: Elem>(&self, kv: &LayerView, s: &Scratch, key: usize, n: usize) {
        let table = self.table.at.add(self.sequence.row as usize * self.table.stride);
        let mut j = 0;
        while j < n {
            let (index, offset) = ((key + j) / kv.page_tokens, (key + j) % kv.page_tokens);
            assert!(
                index < self.table.pages,
                "key {} is past a page table of {} pages",
                key + j,
                self.table.pages
            );
            let page = *table.add(index);
            assert!(page >= 0 && (page as usize) < kv.pages, "page {page} of {}", kv.pages);
            let page = page as usize;
            let count = (kv.page_tokens - offset).min(n - j);
            let keys = kv.key_block(page, self.head).cast::<C>().add(offset);
            if count.is_multiple_of(S::W) {
                for i in 0..kv.k_dim {
                    for v in (0..count).step_by(S::W) {
                        let lanes = C::load::<S>(keys.add(i * kv.page_tokens + v));
                        S::store(s.keys.add(i * TILE + j + v), lanes);
                    }
                }
            } else {
                for i in 0..kv.k_dim {
                    elem::to_f32::<S, C>(keys.add(i * kv.page_tokens), s.keys.add(i * TILE + j), count);
                }
            }
            let values = kv.value_block(page, self.head).cast::<C>().add(offset * kv.v_dim);
            if kv.v_dim == self.width {
                elem::to_f32::<S, C>(values, s.values.add(j * self.width), count * kv.v_dim);
                j += count;
                continue;
            }
            for t in 0..count {
                elem::to_f32::<S, C>(values.add(t * kv.v_dim), s.values.add((j + t) * self.width), kv.v_dim);
            }
            j += count;
        }
    }

    /// q · k of every row with all 64 keys of the tile.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: &Scratch, rows: usize) {
        let mut r = 0;
        while r + 4 <= rows {
            self.score_rows::<S, 4>(s, r);
            r += 4;
        }
        while r < rows {
            self.score_rows::<S, 1>(s, r);
            r += 1;
        }
    }

    #[inline(always)]
    unsafe fn score_rows<S: Simd, const R: usize>(&self, s: &Scratch, first: usize) {
        if S::W == 16 {
            self.score_columns::<S, R, 4>(s, first)
        } else {
            self.score_columns::<S, R, 2>(s, first)
        }
    }

    #[inline(always)]
    unsafe fn score_columns<S: Simd, const R: usize, const NV: usize>(&self, s: &Scratch, first: usize) {
        let d = self.a.k_dim;
        let mut column = 0;
        while column < TILE {
            let mut acc = [[S::zero(); NV]; R];
            for i in 0..d {
                let keys = s.keys.add(i * TILE + column);
                for r in 0..R {
                    let q = S::splat(*s.queries.add((first + r) * d + i));
                    for v in 0..NV {
                        acc[r][v] = S::fma(q, S::load(keys.add(v * S::W)), acc[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..NV {
                    S::store(s.scores.add((first + r) * TILE + column + v * S::W), acc[r][v]);
                }
            }
            column += NV * S::W;
        }
    }

    /// Scores to weights, the running maximum and sum, and the correction of the sums so far.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&self, s: &Scratch, key: usize, rows: usize) {
        for r in 0..rows {
            let (low, high) = self.range(r, key);
            let scores = s.scores.add(r * TILE);
            if low >= high {
                continue;
            }
            if let Some(cap) = self.a.soft_cap {
                for i in (0..TILE).step_by(S::W) {
                    S::store(scores.add(i), soft_cap::<S>(S::load(scores.add(i)), cap));
                }
            }
            if !self.a.slopes.is_null() {
                let slope = *self.a.slopes.add(self.head * self.group + r % self.group);
                let position = (self.position + r / self.group) as f32;
                for j in low..high {
                    *scores.add(j) += slope * ((key + j) as f32 - position);
                }
            }
            for j in (0..low).chain(high..TILE) {
                *scores.add(j) = f32::NEG_INFINITY;
            }
            let mut top = S::load(scores);
            for i in (S::W..TILE).step_by(S::W) {
                top = S::max(top, S::load(scores.add(i)));
            }
            let (before, sum) = (s.state.add(r), s.state.add(MAX_ROWS + r));
            let highest = (*before).max(S::highest(top));
            let m = S::splat(highest);
            let mut total = S::zero();
            for i in (0..TILE).step_by(S::W) {
                let p = math::exp::<S>(S::sub(S::load(scores.add(i)), m));
                S::store(scores.add(i), p);
                total = S::add(total, p);
            }
            let mut lanes = [0.0f32; 16];
            S::store(lanes.as_mut_ptr(), math::exp::<S>(S::splat(*before - highest)));
            let correction = lanes[0];
            *sum = *sum * correction + S::sum(total);
            *before = highest;
            if correction != 1.0 {
                let c = S::splat(correction);
                for i in (0..self.width).step_by(S::W) {
                    let at = s.sums.add(r * self.width + i);
                    S::store(at, S::mul(S::load(at), c));
                }
            }
        }
    }

    /// Keys of the tile that row `r` sees, from the tile's first.
    #[inline(always)]
    fn range(&self, r: usize, key: usize) -> (usize, usize) {
        let (low, high) = self.sees(self.position + r / self.group);
        (low.saturating_sub(key).min(TILE), high.saturating_sub(key).min(TILE))
    }

    /// sums += p · v
    #[inline(always)]
    unsafe fn mix<S: Simd>(&self, s: &Scratch, key: usize, rows: usize) {
        let mut r = 0;
        while r < rows {
            let range = self.range(r, key);
            let same = r + 4 <= rows && (1..4).all(|i| self.range(r + i, key) == range);
            if same {
                self.mix_rows::<S, 4>(s, r, range);
                r += 4;
            } else {
                self.mix_rows::<S, 1>(s, r, range);
                r += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn mix_rows<S: Simd, const R: usize>(&self, s: &Scratch, first: usize, range: (usize, usize)) {
        let mut column = 0;
        let wide = if S::W == 16 { 4 } else { 2 };
        while column + wide * S::W <= self.width {
            if S::W == 16 {
                self.mix_columns::<S, R, 4>(s, first, range, column);
            } else {
                self.mix_columns::<S, R, 2>(s, first, range, column);
            }
            column += wide * S::W;
        }
        while column < self.width {
            self.mix_columns::<S, R, 1>(s, first, range, column);
            column += S::W;
        }
    }

    #[inline(always)]
    unsafe fn mix_columns<S: Simd, const R: usize, const NV: usize>(
        &self,
        s: &Scratch,
        first: usize,
        (low, high): (usize, usize),
        column: usize,
    ) {
        let mut acc = [[S::zero(); NV]; R];
        for r in 0..R {
            for v in 0..NV {
                acc[r][v] = S::load(s.sums.add((first + r) * self.width + column + v * S::W));
            }
        }
        for j in low..high {
            let values = s.values.add(j * self.width + column);
            for r in 0..R {
                let p = S::splat(*s.scores.add((first + r) * TILE + j));
                for v in 0..NV {
                    acc[r][v] = S::fma(p, S::load(values.add(v * S::W)), acc[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..NV {
                S::store(s.sums.add((first + r) * self.width + column + v * S::W), acc[r][v]);
            }
        }
    }

    /// Divides by the softmax's denominator and stores.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: &Scratch, r: usize) {
        let (t, h) = (self.token + r / self.group, self.head * self.group + r % self.group);
        let (mut highest, mut total) = (*s.state.add(r), *s.state.add(MAX_ROWS + r));
        let sums = s.sums.add(r * self.width);
        if highest == f32::NEG_INFINITY {
            return self.a.zero(t, h);
        }
        let mut scale = 1.0;
        if !self.a.sinks.is_null() {
            let sink = *self.a.sinks.add(h);
            let top = highest.max(sink);
            scale = (highest - top).exp();
            total = total * scale + (sink - top).exp();
            highest = top;
        }
        let by = S::splat(scale / total);
        for i in (0..self.width).step_by(S::W) {
            S::store(sums.add(i), S::mul(S::load(sums.add(i)), by));
        }
        with_elem!(self.a.out.dtype, E, {
            let into = self.a.out.row::<E>(t).add(h * self.a.v_dim);
            elem::from_f32::<S, E>(sums, into, self.a.v_dim);
        });
        if let Some(lse) = &self.a.lse {
            *lse.row::<f32>(t).add(h) = highest + total.ln();
        }
    }
}
