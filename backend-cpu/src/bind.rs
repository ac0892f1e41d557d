//! From an op to a bound kernel: tensors become addresses, shapes are checked as far as memory safety needs, and
//! whatever a capture must keep alive is noted.

use engine_core::backend::{Act, Kv, LogprobsOut, NextInputs, Op, OpKind, Rope, Sample, SampleRow, Weight};
use engine_core::{DType, Tensor};

use crate::bound::Bound;
use crate::kv::{LayerView, Pool};
use crate::memory::View;
use crate::ops::{
    attention, collective, elementwise, gemm, inputs, logprobs, movement, norm, quantized, rope, sample,
    sampler,
};
use crate::plan::Plan;
use crate::stream::CpuStream;
use crate::weights::{CpuWeight, Layout};

/// The kernel for `op`; none when the op is to be lowered or is unknown here.
pub(crate) fn bind(s: &mut CpuStream, op: &Op<'_>) -> Option<Bound> {
    Some(match *op {
        Op::Embed { table, ids, out } => embed(s, table, ids, out),
        Op::NextInputs(n) => next_inputs(s, n),
        Op::PlanOnDevice { plan, rows, kv_len, cu_q, tables } => {
            plan_on_device(s, plan, [rows, kv_len, cu_q], tables)
        }
        Op::Gemm { x, w, e, out } => {
            let kernel = gemm(s, x, w, e, out);
            assert!(w.inner::<CpuWeight>().layout == Layout::Panels, "Gemm of {}", w.meta().name);
            kernel.into()
        }
        Op::QuantizedMatmul { x, w, e, out } => {
            let gemm = gemm(s, x, w, e, out);
            let Some(strips) = &w.inner::<CpuWeight>().strips else {
                panic!("QuantizedMatmul of {}, which is dense", w.meta().name);
            };
            let dot = quantized::QuantizedMatmul::bytes_of(strips, gemm.x.dtype, gemm.path);
            quantized::QuantizedMatmul { gemm, strips, dot }.into()
        }
        Op::Norm { x, residual, w, eps, out } => {
            norm::Norm(norm_args(s, x, residual, w, None, eps, out)).into()
        }
        Op::LayerNorm { x, residual, w, bias, eps, out } => {
            norm::LayerNorm(norm_args(s, x, residual, w, bias, eps, out)).into()
        }
        Op::Elementwise { op, a, b, out } => {
            let (a, b, out) = (s.view(a), b.map(|b| s.view(b)), s.view(out));
            same_shape(&a, &out);
            b.iter().for_each(|b| same_shape(b, &out));
            elementwise::Elementwise { op, a, b, out }.into()
        }
        Op::RopeKvWrite { q, k, v, rope, slots, kv } => {
            s.keep(kv.shared());
            let rope = rope.map(|r| rotation(s, r, q));
            let (q, k, v) = (s.view(q), s.view(k), s.view(v));
            let slots = integers(s.view(slots), q.shape[1] as usize);
            let kv = LayerView::new(kv);
            let tokens = q.shape[1];
            assert_eq!(k.shape, [1, tokens, kv.heads as u32, kv.k_dim as u32], "keys [T, Hkv, D]");
            assert_eq!(v.shape, [1, tokens, kv.heads as u32, kv.v_dim as u32], "values [T, Hkv, Dv]");
            assert!(kv.k_dim.max(kv.v_dim).max(q.cols()) <= rope::MAX_HEAD, "a head over {}", rope::MAX_HEAD);
            rope::RopeKvWrite { q, k, v, rope, slots, kv }.into()
        }
        Op::PagedAttention { q, kv, plan, args, out } => attention(s, q, kv, plan, args, out),
        Op::UpdateSampler { sampler, records } => {
            s.keep(sampler.shared());
            assert!(records.is_contiguous(), "UpdateSampler of strided records");
            let sampler: *const sampler::SamplerState = sampler.inner();
            sampler::UpdateSampler { sampler, records: words(s.view(records)) }.into()
        }
        Op::Sample(x) => sample_op(s, x),
        Op::LogProbs { logits, ids, out } => {
            let (logits, out) = (s.view(logits), logprobs_out(s, out, logits.rows()));
            assert_eq!(logits.dtype, DType::F32, "LogProbs of float32 logits");
            let ids = integers(s.view(ids), logits.rows());
            logprobs::LogProbs { logits, ids, out }.into()
        }
        Op::AllReduce { x, .. } => collective::AllReduce { x: s.view(x) }.into(),
        Op::AllGather { x, out, .. } => copy(s, x, out, OpKind::AllGather),
        Op::ReduceScatter { x, out, .. } => copy(s, x, out, OpKind::ReduceScatter),
        _ => return movement(s, op),
    })
}

/// Ops that only move data.
fn movement(s: &mut CpuStream, op: &Op<'_>) -> Option<Bound> {
    Some(match *op {
        Op::GatherRows { x, rows, out } => {
            let (x, rows, out) = (s.view(x), integers(s.view(rows), out.rows()), s.view(out));
            assert_eq!((x.cols(), x.dtype), (out.cols(), out.dtype), "GatherRows of rows of another kind");
            movement::GatherRows { x, rows, out }.into()
        }
        Op::ScatterRows { x, rows, mode, out } => {
            let (x, rows, out) = (s.view(x), integers(s.view(rows), x.rows()), s.view(out));
            assert_eq!(x.cols(), out.cols(), "ScatterRows of rows of another width");
            movement::ScatterRows { x, rows, mode, out }.into()
        }
        Op::Copy { x, out } => copy(s, x, out, OpKind::Copy),
        Op::CopyPages { kv, pairs } => {
            let layer = kv.first()?;
            s.keep(layer.shared());
            let pool: &Pool = layer.inner();
            let (pool, page_bytes, pages) = (pool.region.base(), pool.page_bytes, pool.pages);
            let pairs = pairs_of(s.view(pairs));
            movement::CopyPages { pool, page_bytes, pages, pairs }.into()
        }
        Op::UpdateTables { pairs, tables } => {
            assert!(tables.is_contiguous(), "UpdateTables of strided tables");
            let (pairs, tables) = (pairs_of(s.view(pairs)), words(s.view(tables)));
            movement::UpdateTables { pairs, tables }.into()
        }
        _ => return None,
    })
}

fn embed(s: &mut CpuStream, table: &Weight, ids: Tensor, out: Tensor) -> Bound {
    s.keep(table.shared());
    let w: &CpuWeight = table.inner();
    assert_eq!(out.cols(), w.k, "Embed of rows of {}", w.k);
    let kernel = movement::Embed {
        table: w.region.base(),
        layout: w.layout,
        dtype: w.dtype,
        vocab: w.n,
        panel_bytes: w.panel_bytes(),
        ids: integers(s.view(ids), out.rows()),
        out: s.view(out),
        strips: w.strips.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
    };
    kernel.into()
}

fn copy(s: &mut CpuStream, x: Tensor, out: Tensor, op: OpKind) -> Bound {
    let (x, out) = (s.view(x), s.view(out));
    same_shape(&x, &out);
    assert!(
        x.dtype == out.dtype || (x.dtype.is_float() && out.dtype.is_float()),
        "Copy of integers to another type"
    );
    movement::Copy { x, out, op }.into()
}

fn next_inputs(s: &mut CpuStream, n: NextInputs) -> Bound {
    let (tokens, sequences) = (n.ids.len(), n.rows.len());
    let slots = words(s.view(n.slots));
    assert_eq!((slots.rows(), slots.cols()), (n.tables.shape()[1] as usize, tokens), "slots [G, T]");
    let kernel = inputs::NextInputs {
        prev: words(s.view(n.prev)),
        accepted: n.accepted.map(|a| integers(s.view(a), n.tables.shape()[2] as usize)),
        src: integers(s.view(n.src), tokens),
        staged: integers(s.view(n.staged), tokens),
        rows: integers(s.view(n.rows), sequences),
        start: integers(s.view(n.start), sequences),
        cu_q: integers(s.view(n.cu_q), sequences + 1),
        tables: words(s.view(n.tables)),
        page_tokens: n.page_tokens as usize,
        ids: integers(s.view(n.ids), tokens),
        positions: integers(s.view(n.positions), tokens),
        slots,
        kv_len: integers(s.view(n.kv_len), sequences),
    };
    assert!(kernel.page_tokens > 0, "NextInputs with pages of no tokens");
    kernel.into()
}

fn plan_on_device(
    s: &mut CpuStream,
    plan: &engine_core::backend::AttnPlan,
    [rows, kv_len, cu_q]: [Tensor; 3],
    tables: Tensor,
) -> Bound {
    s.keep(plan.shared());
    let inner: &Plan = plan.inner();
    if let Some(owner) = s.owner(tables) {
        inner.hold(owner);
    }
    let n = rows.cols();
    let group = plan.spec().group as usize;
    assert!(group < tables.shape()[1] as usize, "KV group {group} of {:?}", tables.shape());
    let kernel = inputs::PlanOnDevice {
        plan: &inner.state,
        rows: integers(s.view(rows), n),
        kv_len: integers(s.view(kv_len), n),
        cu_q: integers(s.view(cu_q), n + 1),
        tables: words(s.view(tables)),
        group,
    };
    kernel.into()
}

fn gemm(
    s: &mut CpuStream,
    x: Act,
    weight: &Weight,
    e: engine_core::backend::Epilogue<'_>,
    out: Act,
) -> gemm::Gemm {
    s.keep(weight.shared());
    let w: &CpuWeight = weight.inner();
    assert!(w.layout != Layout::Rows, "{} was not loaded for products", weight.meta().name);
    let (x, out) = (s.view(x.plain()), s.view(out.plain()));
    let width = if e.act.halves() { w.n / 2 } else { w.n };
    assert_eq!(x.cols(), w.k, "Gemm of {}: columns of x", weight.meta().name);
    assert_eq!((out.rows(), out.cols()), (x.rows(), width), "Gemm of {}: shape of out", weight.meta().name);
    assert_eq!(
        w.gate_up,
        e.act.halves(),
        "Gemm of {}: gate and up need a halving epilogue",
        weight.meta().name
    );
    assert!(w.k <= gemm::MAX_K, "Gemm over K = {}", w.k);
    let bias = e.bias.map_or(std::ptr::null(), |b| vector(s, b, w.n));
    let add = e.add.map(|t| s.view(t));
    add.iter().for_each(|a| assert_eq!((a.rows(), a.cols()), (x.rows(), w.n), "Gemm: shape of add"));
    let residual = e.residual.map(|t| s.view(t));
    residual.iter().for_each(|r| same_shape(r, &out));
    gemm::Gemm {
        x,
        w: w.region.base(),
        dtype: w.dtype,
        n: w.n,
        k: w.k,
        panels: w.panels(),
        panel_bytes: w.panel_bytes(),
        gate_up: w.gate_up,
        bias,
        add,
        act: e.act,
        scale: e.scale,
        residual,
        out,
        work: s.work(),
        path: s.path(),
    }
}

fn norm_args(
    s: &mut CpuStream,
    x: Tensor,
    residual: Option<Tensor>,
    w: &Weight,
    bias: Option<&Weight>,
    eps: f32,
    out: Act,
) -> norm::NormArgs {
    let (x, out) = (s.view(x), s.view(out.plain()));
    let residual = residual.map(|r| s.view(r));
    same_shape(&x, &out);
    residual.iter().for_each(|r| same_shape(r, &x));
    let w = vector(s, w, x.cols());
    let bias = bias.map_or(std::ptr::null(), |b| vector(s, b, x.cols()));
    norm::NormArgs { x, residual, w, bias, eps, out }
}

fn rotation(s: &mut CpuStream, r: Rope<'_>, q: Tensor) -> rope::Rotation {
    let table: &CpuWeight = r.table.inner();
    let (table_rows, rot) = (table.n, table.k);
    assert!(rot <= q.cols() && rot % 2 == 0, "rotation of {rot} of {} dimensions", q.cols());
    rope::Rotation {
        positions: integers(s.view(r.positions), q.shape()[1] as usize),
        table: vector(s, r.table, table_rows * rot),
        table_rows,
        rot,
        style: r.style,
        norm: r
            .qk_norm
            .map(|(q_norm, k_norm, eps)| (vector(s, q_norm, q.cols()), vector(s, k_norm, q.cols()), eps)),
    }
}

fn attention(
    s: &mut CpuStream,
    q: Tensor,
    kv: Kv<'_>,
    plan: &engine_core::backend::AttnPlan,
    args: engine_core::backend::AttnArgs<'_>,
    out: Act,
) -> Bound {
    s.keep(plan.shared());
    let spec = *plan.spec();
    let [q_heads, kv_heads, k_dim, v_dim] =
        [spec.q_heads, spec.kv_heads, spec.k_dim, spec.v_dim].map(|x| x as usize);
    let tokens = q.shape()[1] as usize;
    assert_eq!(q.shape(), [1, tokens as u32, spec.q_heads, spec.k_dim], "queries [T, Hq, D]");
    let source = match kv {
        Kv::Paged(layer) => {
            s.keep(layer.shared());
            let view = LayerView::new(layer);
            assert_eq!((view.heads, view.k_dim, view.v_dim), (kv_heads, k_dim, v_dim), "heads of the cache");
            attention::Source::Paged(view)
        }
        Kv::Ragged { k, v } => {
            let (k, v) = (s.view(k), s.view(v));
            assert_eq!(k.shape, [1, tokens as u32, spec.kv_heads, spec.k_dim], "keys [T, Hkv, D]");
            assert_eq!(v.shape, [1, tokens as u32, spec.kv_heads, spec.v_dim], "values [T, Hkv, Dv]");
            attention::Source::Ragged { k, v }
        }
    };
    let out = s.view(out.plain());
    assert_eq!((out.rows(), out.cols()), (tokens, q_heads * v_dim), "attention output [T, Hq · Dv]");
    let lse = args.lse.map(|l| s.view(l));
    lse.iter().for_each(|l| {
        assert_eq!((l.rows(), l.cols(), l.dtype), (tokens, q_heads, DType::F32), "lse [T, Hq]")
    });
    assert!(k_dim.max(v_dim) <= attention::MAX_DIM, "attention over heads of {}", k_dim.max(v_dim));
    let inner: &Plan = plan.inner();
    let kernel = attention::Attention {
        q: s.view(q),
        source,
        plan: &inner.state,
        mask: spec.mask,
        q_heads,
        kv_heads,
        k_dim,
        v_dim,
        scale: args.scale,
        soft_cap: args.soft_cap,
        sinks: args.sinks.map_or(std::ptr::null(), |w| vector(s, w, q_heads)),
        slopes: args.slopes.map_or(std::ptr::null(), |w| vector(s, w, q_heads)),
        lse,
        out,
    };
    kernel.into()
}

fn sample_op(s: &mut CpuStream, x: Sample<'_>) -> Bound {
    s.keep(x.sampler.shared());
    let sampler: &sampler::SamplerState = x.sampler.inner();
    let (logits, rows) = (s.view(x.logits), s.view(x.rows));
    let count = logits.rows();
    assert_eq!((logits.cols(), logits.dtype), (sampler.vocab, DType::F32), "logits [L, V] float32");
    assert!(rows.rows() >= count && rows.cols() == SampleRow::WORDS, "sample rows [L, 16]");
    let mask = x.mask.map(|m| s.view(m));
    let mask_words = logits.cols().div_ceil(32);
    mask.iter().for_each(|m| assert!(m.rows() >= count && m.cols() >= mask_words, "mask [L, V / 32]"));
    let last = words(s.view(x.last));
    let kernel = sample::Sample {
        logits,
        sampler,
        rows,
        draft: x.draft.map(|d| integers(s.view(d), count)),
        mask,
        ids: integers(s.view(x.ids), count),
        accepted: x.accepted.map(|a| integers(s.view(a), last.cols())),
        last,
        logprobs: x.logprobs.map(|out| logprobs_out(s, out, count)),
    };
    kernel.into()
}

fn logprobs_out(s: &mut CpuStream, out: LogprobsOut, rows: usize) -> logprobs::Out {
    let (ids, values) = (words(s.view(out.ids)), s.view(out.values));
    assert!(ids.rows() >= rows && ids.cols() >= 1, "log-prob ids [L, 1 + top]");
    assert_eq!((ids.rows(), ids.cols()), (values.rows(), values.cols()), "log-prob values like ids");
    assert!(ids.cols() - 1 <= logprobs::MOST_BEST, "at most {} best log-probs", logprobs::MOST_BEST);
    assert_eq!(values.dtype, DType::F32, "log-prob values are float32");
    logprobs::Out { ids, values, ranks: integers(s.view(out.ranks), rows) }
}

/// The f32 numbers of a vector weight.
fn vector(s: &mut CpuStream, w: &Weight, len: usize) -> *const f32 {
    s.keep(w.shared());
    let inner: &CpuWeight = w.inner();
    assert!(inner.layout == Layout::Rows && inner.dtype == DType::F32, "{} is no vector", w.meta().name);
    assert_eq!(inner.n * inner.k, len, "length of {}", w.meta().name);
    inner.region.base().cast()
}

fn same_shape(a: &View, b: &View) {
    assert_eq!(a.shape, b.shape, "operands of different shapes");
}

/// A view of 32-bit integers.
fn words(v: View) -> View {
    assert!(matches!(v.dtype, DType::I32 | DType::U32), "integers wanted, got {}", v.dtype);
    v
}

/// At least `len` integers in one row.
fn integers(v: View, len: usize) -> View {
    let contiguous = v.rows() == 1 || v.rows() * v.cols() == 0 || v.cols() == v.stride[2] as usize;
    assert!(contiguous && v.rows() * v.cols() >= len, "{len} integers wanted, got {:?}", v.shape);
    words(v)
}

fn pairs_of(v: View) -> View {
    assert!(v.cols() == 2 || v.rows() * v.cols() == 0, "pairs [n, 2], got {:?}", v.shape);
    words(v)
}
