//! From an [`Op`] to a task: tensors resolved, handles held. Running the task calls the op's function.

use std::sync::Mutex;

use engine_core::backend::{
    AttnArgs, AttnPlan, AttnSpec, Epilogue, Kv, KvGroupSpec, KvLayer, LogprobsOut, NextInputs, Op, Rope,
    Sample, Sampler, Weight,
};
use engine_core::{DType, Tensor};

use super::attention::{Attention, attend, gather, merge_states};
use super::collective;
use super::dtype::{decode, encode, round};
use super::elementwise::elementwise;
use super::gemm::{After, gemm};
use super::inputs::{Inputs, next_inputs};
use super::memory::{Registry, View, lock};
use super::movement;
use super::norm::{add_to_residual, layer_norm, rms_norm};
use super::rope::{HeadNorm, Rotation, rope};
use super::sample::{Logprobs, SlotState, logprobs};
use super::sampler::{Batch, sample_batch, update};
use super::topk::top_k;
use super::weights::values;

/// A bound op; may run any number of times.
pub type Task = Box<dyn Fn() + Send + Sync>;

/// The sampler's slots.
pub type Slots = Mutex<Vec<SlotState>>;

/// The KV pool: pages of all groups' layers; within a page, per layer its keys [page_tokens, Hkv, D] and then its
/// values [page_tokens, Hkv, Dv].
pub struct Pool {
    pub bytes: Mutex<Vec<u8>>,
    pub page_bytes: usize,
    pub specs: Vec<KvGroupSpec>,
}

/// What `PlanOnDevice` bound last.
#[derive(Default)]
pub struct Bound {
    rows: Vec<i32>,
    kv_len: Vec<i32>,
    cu_q: Vec<i32>,
    /// [R, pages] of the plan's group.
    tables: Vec<i32>,
    pages: usize,
}

/// The task of an op, or `None` where the reference has no function for it.
pub fn bind(memory: &Registry, op: &Op<'_>) -> Option<Task> {
    let view = |t: Tensor| memory.view(t);
    Some(match *op {
        Op::Embed { table, ids, out } => embed(table.clone(), view(ids), view(out)),
        Op::GatherRows { x, rows, out } => gather_rows(view(x), view(rows), view(out)),
        Op::ScatterRows { x, rows, mode, out } => {
            let (x, rows, out) = (view(x), view(rows), view(out));
            Box::new(move || {
                let mut values = out.floats();
                movement::scatter_rows(&x.floats(), out.tensor().cols(), &rows.ints(), mode, &mut values);
                out.set_floats(&values);
            })
        }
        Op::Copy { x, out } => copy(view(x), view(out)),
        Op::CopyPages { kv, pairs } => copy_pages(kv, view(pairs)),
        Op::UpdateTables { pairs, tables } => {
            let (pairs, tables) = (view(pairs), view(tables));
            Box::new(move || {
                let mut values = tables.ints();
                movement::update_tables(&pairs.pairs(), &mut values);
                tables.set_ints(&values);
            })
        }
        Op::NextInputs(n) => bind_next_inputs(memory, n),
        Op::PlanOnDevice { plan, rows, kv_len, cu_q, tables } => {
            plan_on_device(plan.clone(), [rows, kv_len, cu_q].map(view), view(tables))
        }
        Op::Gemm { x, w, e, out } | Op::QuantizedMatmul { x, w, e, out } => {
            bind_gemm(memory, view(x.plain?), w.clone(), e, view(out.plain?))
        }
        Op::Norm { x, residual, w, eps, out } => {
            let w = w.clone();
            norm(view(x), residual.map(view), view(out.plain?), move |x| rms_norm(x, values(&w), eps))
        }
        Op::LayerNorm { x, residual, w, bias, eps, out } => {
            let (w, bias) = (w.clone(), bias.cloned());
            let f = move |x: &[f32]| layer_norm(x, values(&w), bias.as_ref().map(values), eps);
            norm(view(x), residual.map(view), view(out.plain?), f)
        }
        Op::Elementwise { op, a, b, out } => {
            let (a, b, out) = (view(a), b.map(view), view(out));
            Box::new(move || {
                let b = b.as_ref().map(View::floats);
                out.set_floats(&elementwise(op, &a.floats(), b.as_deref()));
            })
        }
        Op::RopeKvWrite { q, k, v, rope, slots, kv } => {
            rope_kv_write(memory, [q, k, v].map(view), rope, view(slots), kv.clone())
        }
        Op::PagedAttention { q, kv, plan, args, out } => {
            paged_attention(memory, view(q), kv, plan.clone(), args, view(out.plain?))
        }
        Op::MergeStates { parts, lse, out } => {
            let (parts, lse, out) = (view(parts), view(lse), view(out));
            Box::new(move || {
                let [n, _, _, v_dim] = parts.tensor().shape().map(|d| d as usize);
                out.set_floats(&merge_states(&parts.floats(), &lse.floats(), n, v_dim));
            })
        }
        Op::TopK { x, ids, vals } => {
            let (x, ids, vals) = (view(x), view(ids), view(vals));
            Box::new(move || {
                let (best, best_vals) = top_k(&x.floats(), x.tensor().cols(), ids.tensor().cols());
                ids.set_ints(&best);
                vals.set_floats(&best_vals);
            })
        }
        Op::UpdateSampler { sampler, records } => {
            let (sampler, records) = (sampler.clone(), view(records));
            Box::new(move || update(&mut lock(sampler.inner::<Slots>()), &records.words()))
        }
        Op::Sample(s) => bind_sample(memory, &s),
        Op::LogProbs { logits, ids, out } => log_probs(view(logits), view(ids), Columns::of(memory, out)),
        Op::AllReduce { x, .. } => {
            let x = view(x);
            Box::new(move || x.set_floats(&collective::all_reduce(&[&x.floats()])))
        }
        Op::AllGather { x, out, .. } => {
            let (x, out) = (view(x), view(out));
            Box::new(move || out.set_floats(&collective::all_gather(&[&x.floats()], x.tensor().cols())))
        }
        Op::ReduceScatter { x, out, .. } => {
            let (x, out) = (view(x), view(out));
            let part = move || collective::reduce_scatter(&[&x.floats()], x.tensor().cols(), 0);
            Box::new(move || out.set_floats(&part()))
        }
        _ => return None,
    })
}

fn embed(table: Weight, ids: View, out: View) -> Task {
    Box::new(move || {
        let mut rows = vec![0.0; out.tensor().len()];
        movement::gather_rows(values(&table), table.meta().k as usize, &ids.ints(), &mut rows);
        out.set_floats(&rows);
    })
}

fn gather_rows(x: View, rows: View, out: View) -> Task {
    Box::new(move || {
        let mut picked = vec![0.0; out.tensor().len()];
        movement::gather_rows(&x.floats(), x.tensor().cols(), &rows.ints(), &mut picked);
        out.set_floats(&picked);
    })
}

fn copy(x: View, out: View) -> Task {
    Box::new(move || match x.tensor().dtype() == out.tensor().dtype() {
        true => out.write(&x.read()),
        false => out.set_floats(&x.floats()),
    })
}

fn copy_pages(kv: &[KvLayer], pairs: View) -> Task {
    let layer = kv.first().cloned();
    Box::new(move || {
        if let Some(layer) = &layer {
            let pool = layer.inner::<Pool>();
            movement::copy_pages(&mut lock(&pool.bytes), pool.page_bytes, &pairs.pairs());
        }
    })
}

fn bind_next_inputs(memory: &Registry, n: NextInputs) -> Task {
    let view = |t: Tensor| memory.view(t);
    let (prev, accepted) = (view(n.prev), n.accepted.map(view));
    let [src, staged, rows, start, cu_q, tables] =
        [n.src, n.staged, n.rows, n.start, n.cu_q, n.tables].map(view);
    let [ids, positions, slots, kv_len] = [n.ids, n.positions, n.slots, n.kv_len].map(view);
    Box::new(move || {
        let shape = tables.tensor().shape();
        let next = next_inputs(&Inputs {
            prev: &prev.ints(),
            accepted: accepted.as_ref().map(View::ints).as_deref(),
            src: &src.ints(),
            staged: &staged.ints(),
            rows: &rows.ints(),
            start: &start.ints(),
            cu_q: &cu_q.ints(),
            tables: &tables.ints(),
            groups: shape[1] as usize,
            pages: shape[3] as usize,
            page_tokens: n.page_tokens as i32,
        });
        ids.set_ints(&next.ids);
        positions.set_ints(&next.positions);
        slots.set_ints(&next.slots);
        kv_len.set_ints(&next.kv_len);
    })
}

fn plan_on_device(plan: AttnPlan, [rows, kv_len, cu_q]: [View; 3], tables: View) -> Task {
    Box::new(move || {
        let [_, _, slots, pages] = tables.tensor().shape().map(|d| d as usize);
        let group = plan.spec().group as usize * slots * pages;
        *lock(plan.inner::<Mutex<Bound>>()) = Bound {
            rows: rows.ints(),
            kv_len: kv_len.ints(),
            cu_q: cu_q.ints(),
            tables: tables.ints()[group..][..slots * pages].to_vec(),
            pages,
        };
    })
}

fn bind_gemm(memory: &Registry, x: View, w: Weight, e: Epilogue<'_>, out: View) -> Task {
    let (bias, act, scale) = (e.bias.cloned(), e.act, e.scale);
    let [add, residual] = [e.add, e.residual].map(|t| t.map(|t| memory.view(t)));
    Box::new(move || {
        let [add, residual] = [&add, &residual].map(|v| v.as_ref().map(View::floats));
        let after = After {
            bias: bias.as_ref().map(values),
            add: add.as_deref(),
            act,
            scale,
            residual: residual.as_deref(),
        };
        out.set_floats(&gemm(&x.floats(), values(&w), w.meta().k as usize, &after));
    })
}

fn norm(
    x: View,
    residual: Option<View>,
    out: View,
    f: impl Fn(&[f32]) -> Vec<f32> + Send + Sync + 'static,
) -> Task {
    Box::new(move || {
        let mut input = x.floats();
        if let Some(residual) = &residual {
            let mut sum = residual.floats();
            add_to_residual(&mut sum, &input, |v| round(residual.tensor().dtype(), v));
            residual.set_floats(&sum);
            input = sum;
        }
        out.set_floats(&f(&input));
    })
}

/// The parts of `Rope` a task holds.
struct BoundRope {
    positions: View,
    table: Weight,
    style: engine_core::backend::RopeStyle,
    qk_norm: Option<(Weight, Weight, f32)>,
}

impl BoundRope {
    fn apply(&self, x: &mut [f32], [heads, d]: [usize; 2], norm: Option<(&Weight, f32)>) {
        let rot = self.table.meta().k as usize;
        let positions = self.positions.ints();
        let rotation = Rotation { positions: &positions, table: values(&self.table), rot, style: self.style };
        let norm = norm.map(|(w, eps)| HeadNorm { w: values(w), eps });
        rope(x, heads, d, &rotation, norm.as_ref());
    }
}

fn rope_kv_write(
    memory: &Registry,
    [q, k, v]: [View; 3],
    rope: Option<Rope<'_>>,
    slots: View,
    kv: KvLayer,
) -> Task {
    let rope = rope.map(|r| BoundRope {
        positions: memory.view(r.positions),
        table: r.table.clone(),
        style: r.style,
        qk_norm: r.qk_norm.map(|(q, k, eps)| (q.clone(), k.clone(), eps)),
    });
    Box::new(move || {
        let size = |v: &View| [v.tensor().shape()[2] as usize, v.tensor().cols()];
        let (mut queries, mut keys) = (q.floats(), k.floats());
        if let Some(rope) = &rope {
            let norms = rope.qk_norm.as_ref();
            rope.apply(&mut queries, size(&q), norms.map(|(q, _, eps)| (q, *eps)));
            rope.apply(&mut keys, size(&k), norms.map(|(_, k, eps)| (k, *eps)));
            q.set_floats(&queries);
        }
        write_cache(&kv, &slots.ints(), &keys, &v.floats());
    })
}

/// Where a layer's keys and values of a page start and how many bytes they take a token.
fn cache_place(kv: &KvLayer) -> (usize, [usize; 2], DType, usize) {
    let spec = kv.inner::<Pool>().specs[kv.group() as usize];
    let element = spec.dtype.size_bytes() * spec.kv_heads as usize;
    let [k, v] = [spec.k_dim as usize * element, spec.v_dim as usize * element];
    let page = spec.page_tokens as usize;
    (kv.layer() as usize * page * (k + v), [k, v], spec.dtype, page)
}

fn write_cache(kv: &KvLayer, slots: &[i32], keys: &[f32], vals: &[f32]) {
    let (start, [k_bytes, v_bytes], dtype, page_tokens) = cache_place(kv);
    let pool = kv.inner::<Pool>();
    let (keys, vals) = (encode(dtype, keys), encode(dtype, vals));
    let mut bytes = lock(&pool.bytes);
    for (t, slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(*slot) else { continue };
        let (page, offset) = (slot / page_tokens * pool.page_bytes + start, slot % page_tokens);
        let (k_at, v_at) = (page + offset * k_bytes, page + page_tokens * k_bytes + offset * v_bytes);
        bytes[k_at..k_at + k_bytes].copy_from_slice(&keys[t * k_bytes..][..k_bytes]);
        bytes[v_at..v_at + v_bytes].copy_from_slice(&vals[t * v_bytes..][..v_bytes]);
    }
}

/// All of a layer's keys and values: [P, page_tokens, width] each.
fn read_cache(kv: &KvLayer) -> (Vec<f32>, Vec<f32>) {
    let (start, [k_bytes, v_bytes], dtype, page_tokens) = cache_place(kv);
    let pool = kv.inner::<Pool>();
    let bytes = lock(&pool.bytes);
    let (mut keys, mut vals) = (Vec::new(), Vec::new());
    for page in bytes.chunks_exact(pool.page_bytes) {
        let (k, v) = page[start..].split_at(page_tokens * k_bytes);
        keys.extend(decode(dtype, k));
        vals.extend(decode(dtype, &v[..page_tokens * v_bytes]));
    }
    (keys, vals)
}

/// Keys and values a bound attention reads.
enum Source {
    Paged(KvLayer),
    Ragged(View, View),
}

/// The parts of `AttnArgs` a task holds.
struct BoundArgs {
    scale: f32,
    soft_cap: Option<f32>,
    sinks: Option<Weight>,
    slopes: Option<Weight>,
}

impl BoundArgs {
    fn attention(&self, spec: &AttnSpec) -> Attention<'_> {
        Attention {
            q_heads: spec.q_heads as usize,
            kv_heads: spec.kv_heads as usize,
            k_dim: spec.k_dim as usize,
            v_dim: spec.v_dim as usize,
            mask: spec.mask,
            scale: self.scale,
            soft_cap: self.soft_cap,
            sinks: self.sinks.as_ref().map(values),
            slopes: self.slopes.as_ref().map(values),
        }
    }
}

fn paged_attention(
    memory: &Registry,
    q: View,
    kv: Kv<'_>,
    plan: AttnPlan,
    args: AttnArgs<'_>,
    out: View,
) -> Task {
    let source = match kv {
        Kv::Paged(layer) => Source::Paged(layer.clone()),
        Kv::Ragged { k, v } => Source::Ragged(memory.view(k), memory.view(v)),
    };
    let lse = args.lse.map(|t| memory.view(t));
    let (scale, soft_cap) = (args.scale, args.soft_cap);
    let args = BoundArgs { scale, soft_cap, sinks: args.sinks.cloned(), slopes: args.slopes.cloned() };
    Box::new(move || {
        let a = args.attention(plan.spec());
        let bound = lock(plan.inner::<Mutex<Bound>>());
        let mut results = (out.floats(), lse.as_ref().map_or(Vec::new(), View::floats));
        let (queries, page_tokens) = (q.floats(), plan.spec().page_tokens as usize);
        let (keys, vals) = match &source {
            Source::Paged(layer) => read_cache(layer),
            Source::Ragged(k, v) => (k.floats(), v.floats()),
        };
        let [k_width, v_width] = [a.kv_heads * a.k_dim, a.kv_heads * a.v_dim];
        for s in 0..bound.rows.len() {
            let tokens = bound.cu_q[s] as usize..bound.cu_q[s + 1] as usize;
            let rows = |x: &[f32], width: usize| x[tokens.start * width..tokens.end * width].to_vec();
            let (keys, vals) = match (&source, usize::try_from(bound.rows[s])) {
                (_, Err(_)) => (Vec::new(), Vec::new()),
                (Source::Ragged(..), _) => (rows(&keys, k_width), rows(&vals, v_width)),
                (Source::Paged(_), Ok(slot)) => {
                    let table = &bound.tables[slot * bound.pages..][..bound.pages];
                    let cached = |x, width| gather(x, width, page_tokens, table, bound.kv_len[s] as usize);
                    (cached(&keys, k_width), cached(&vals, v_width))
                }
            };
            attend_row(&a, &rows(&queries, a.q_heads * a.k_dim), &keys, &vals, tokens.start, &mut results);
        }
        out.set_floats(&results.0);
        if let Some(lse) = &lse {
            lse.set_floats(&results.1);
        }
    })
}

/// Attention of one sequence into its rows of the results, from token `first` on.
fn attend_row(
    a: &Attention<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    first: usize,
    (out, lse): &mut (Vec<f32>, Vec<f32>),
) {
    let tokens = q.len() / (a.q_heads * a.k_dim);
    let (row, row_lse) = match k.is_empty() {
        true => (vec![0.0; tokens * a.q_heads * a.v_dim], vec![f32::NEG_INFINITY; tokens * a.q_heads]),
        false => attend(a, q, k, v),
    };
    out[first * a.q_heads * a.v_dim..][..row.len()].copy_from_slice(&row);
    if !lse.is_empty() {
        lse[first * a.q_heads..][..row_lse.len()].copy_from_slice(&row_lse);
    }
}

/// `LogprobsOut` resolved.
struct Columns {
    ids: View,
    values: View,
    ranks: View,
}

impl Columns {
    fn of(memory: &Registry, out: LogprobsOut) -> Self {
        Columns { ids: memory.view(out.ids), values: memory.view(out.values), ranks: memory.view(out.ranks) }
    }

    fn top(&self) -> usize {
        self.ids.tensor().cols() - 1
    }

    fn set(&self, rows: &[(usize, Logprobs)]) {
        let (mut ids, mut vals, mut ranks) = (self.ids.ints(), self.values.floats(), self.ranks.ints());
        let width = self.top() + 1;
        for (row, l) in rows {
            ids[row * width..][..width].copy_from_slice(&l.ids);
            vals[row * width..][..width].copy_from_slice(&l.values);
            ranks[*row] = l.rank;
        }
        self.ids.set_ints(&ids);
        self.values.set_floats(&vals);
        self.ranks.set_ints(&ranks);
    }
}

fn bind_sample(memory: &Registry, s: &Sample<'_>) -> Task {
    let view = |t: Tensor| memory.view(t);
    let (sampler, logits, rows): (Sampler, _, _) = (s.sampler.clone(), view(s.logits), view(s.rows));
    let (draft, mask) = (s.draft.map(view), s.mask.map(view));
    let (ids, last, accepted) = (view(s.ids), view(s.last), s.accepted.map(view));
    let columns = s.logprobs.map(|out| Columns::of(memory, out));
    Box::new(move || {
        let batch = Batch {
            logits: logits.floats(),
            vocab: logits.tensor().cols(),
            rows: rows.words(),
            draft: draft.as_ref().map(View::ints),
            mask: mask.as_ref().map(View::words),
            top: columns.as_ref().map(Columns::top),
        };
        let done = sample_batch(&mut lock(sampler.inner::<Slots>()), &batch);
        ids.set_ints(&done.ids);
        set_slots(&last, &done.last);
        if let Some(accepted) = &accepted {
            set_slots(accepted, &done.accepted);
        }
        if let Some(columns) = &columns {
            columns.set(&done.logprobs);
        }
    })
}

fn set_slots(view: &View, changes: &[(usize, i32)]) {
    let mut all = view.ints();
    changes.iter().for_each(|(slot, value)| all[*slot] = *value);
    view.set_ints(&all);
}

/// A row whose id is < 0 is left alone.
fn log_probs(logits: View, ids: View, out: Columns) -> Task {
    Box::new(move || {
        let (rows, vocab) = (logits.floats(), logits.tensor().cols());
        let row = |(i, id): (usize, i32)| {
            let id = u32::try_from(id).ok()?;
            Some((i, logprobs(&rows[i * vocab..][..vocab], id, out.top())))
        };
        out.set(&ids.ints().into_iter().enumerate().filter_map(row).collect::<Vec<_>>());
    })
}
