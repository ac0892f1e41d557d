//! Shapes, types and aliasing of every op, as the comments on [`Op`] state them.

use super::super::{
    Act, AttnArgs, AttnPlan, Epilogue, Kv, KvGroupSpec, KvLayer, LogprobsOut, NextInputs, Op, Rope, Sample,
    SampleRow, StepCaps, Weight,
};
use super::tensors::{Args, F32, FLOATS, I32, U32};
use crate::tensor::{DType, Tensor};

/// What ops are checked against besides their own operands.
pub(super) struct Context<'a> {
    pub caps: &'a StepCaps,
    pub spec_of: &'a dyn Fn(&KvLayer) -> Option<KvGroupSpec>,
}

/// Panics if an operand is not what the op says.
pub(super) fn check(op: &Op<'_>, c: &Context<'_>, live: &dyn Fn(&str, &str, Tensor)) {
    let a = Args { op: op.kind().name(), live };
    match *op {
        Op::Embed { table, ids, out } => {
            a.ints("ids", ids, ids.len());
            a.rows("out", out, ids.len(), k(table), FLOATS);
        }
        Op::GatherRows { x, rows, out } => {
            a.ints("rows", rows, rows.len());
            a.rows("x", x, x.rows(), x.cols(), FLOATS);
            a.rows("out", out, rows.len(), x.cols(), &[x.dtype()]);
            a.apart(("out", out), ("x", x));
        }
        Op::ScatterRows { x, rows, out, .. } => {
            a.ints("rows", rows, rows.len());
            a.rows("x", x, rows.len(), out.cols(), FLOATS);
            a.rows("out", out, out.rows(), out.cols(), &[x.dtype()]);
            a.apart(("out", out), ("x", x));
        }
        Op::Copy { x, out } => {
            a.tensor("out", out, &x.shape().map(|d| d as usize), &[out.dtype()]);
            a.rows("x", x, x.rows(), x.cols(), &[x.dtype()]);
            let convertible = x.dtype() == out.dtype() || (x.dtype().is_float() && out.dtype().is_float());
            assert!(convertible, "Copy: out should be {}, got {}", x.dtype(), out.dtype());
            a.apart(("out", out), ("x", x));
        }
        Op::CopyPages { kv, pairs } => {
            assert!(!kv.is_empty(), "CopyPages: kv should name at least one layer");
            a.tensor("pairs", pairs, &[pairs.rows(), 2], I32);
        }
        Op::KvGather { out, .. } => a.dtype("out", out, FLOATS),
        Op::UpdateTables { pairs, tables } => {
            a.tensor("pairs", pairs, &[pairs.rows(), 2], I32);
            check_tables(&a, c, tables);
            a.apart(("tables", tables), ("pairs", pairs));
        }
        Op::NextInputs(n) => next_inputs(&a, c, &n),
        Op::PlanOnDevice { plan, rows, kv_len, cu_q, tables } => {
            plan_on_device(&a, c, plan, [rows, kv_len, cu_q], tables);
        }
        Op::Gemm { x, w, e, out } => {
            assert!(
                w.meta().format.is_dense(),
                "Gemm: w should be dense, {} is {}",
                w.meta().name,
                w.meta().format
            );
            linear(&a, &x, w, &e, &out);
        }
        Op::QuantizedMatmul { x, w, e, out } => {
            assert!(
                !w.meta().format.is_dense(),
                "QuantizedMatmul: w should not be dense, {} is",
                w.meta().name
            );
            linear(&a, &x, w, &e, &out);
        }
        Op::HeadLinear { x, w, out } => {
            let [_, t, groups, width] = x.shape().map(|d| d as usize);
            a.equal("K of w", k(w), width);
            a.tensor("out", out, &[t, groups, n(w) / groups.max(1)], FLOATS);
        }
        Op::GroupedLinear { x, rows, offs, w, e, row_scale, out } => {
            a.ints("rows", rows, rows.len());
            a.dtype("offs", offs, I32);
            row_scale.iter().for_each(|t| a.rows("row_scale", *t, 1, rows.len(), F32));
            let width = if e.act.halves() { n(w) / 2 } else { n(w) };
            act(&a, "x", &x, x.rows(), k(w));
            act(&a, "out", &out, rows.len(), width);
        }
        Op::Quantize { x, out } => act(&a, "out", &out, x.rows(), x.cols()),
        Op::Norm { x, residual, w, out, .. } => norm(&a, x, residual, w, &out),
        Op::LayerNorm { x, residual, w, bias, out, .. } => {
            norm(&a, x, residual, w, &out);
            bias.iter().for_each(|b| a.equal("length of bias", n(b) * k(b), x.cols()));
        }
        Op::Elementwise { op, a: x, b, out } => elementwise(&a, op, x, b, out),
        Op::RopeKvWrite { q, k, v, rope, slots, kv } => rope_kv_write(&a, c, [q, k, v], rope, slots, kv),
        Op::PagedAttention { q, kv, plan, args, out } => attention(&a, c, q, &kv, plan, &args, &out),
        Op::MergeStates { parts, lse, out } => {
            let [count, t, heads, dim] = parts.shape().map(|d| d as usize);
            a.dtype("parts", parts, FLOATS);
            a.tensor("lse", lse, &[count, t, heads], F32);
            a.rows("out", out, t, heads * dim, FLOATS);
            a.apart(("out", out), ("parts", parts));
        }
        Op::TopK { x, ids, vals } => {
            a.dtype("x", x, FLOATS);
            a.rows("ids", ids, x.rows(), ids.cols(), I32);
            a.rows("vals", vals, x.rows(), ids.cols(), FLOATS);
            assert!(
                ids.cols() <= x.cols(),
                "TopK: at most {} of {} ids, got {}",
                x.cols(),
                x.cols(),
                ids.cols()
            );
        }
        Op::SortByExpert { ids, live_rows, rows, offs } => {
            a.dtype("ids", ids, I32);
            a.ints("live_rows", live_rows, 1);
            a.ints("rows", rows, ids.len());
            a.dtype("offs", offs, I32);
        }
        Op::CombineRows { x, rows, residual, out } => {
            a.dtype("rows", rows, I32);
            a.equal("columns of out", out.cols(), x.cols());
            residual.iter().for_each(|r| a.rows("residual", *r, out.rows(), out.cols(), FLOATS));
        }
        Op::Conv1d { x, out, .. } => a.rows("out", out, x.rows(), x.cols(), FLOATS),
        Op::GatedDelta { q, k, v, out, .. } => {
            a.equal("rows of k", k.shape()[1] as usize, q.shape()[1] as usize);
            a.equal("rows of v", v.shape()[1] as usize, q.shape()[1] as usize);
            a.dtype("out", out, FLOATS);
        }
        Op::SsdScan { x, out, .. } => a.equal("elements of out", out.len(), x.len()),
        Op::UpdateSampler { records, .. } => a.tensor("records", records, &[records.len()], U32),
        Op::Sample(s) => sample(&a, c, &s),
        Op::LogProbs { logits, ids, out } => {
            a.rows("logits", logits, ids.len(), logits.cols(), F32);
            a.ints("ids", ids, ids.len());
            logprobs(&a, ids.len(), &out);
        }
        Op::AllReduce { x, .. } | Op::Send { x, .. } => a.rows("x", x, x.rows(), x.cols(), FLOATS),
        Op::AllGather { x, out, .. } => a.equal("rows of out", out.rows(), x.rows()),
        Op::ReduceScatter { x, out, .. } | Op::AllToAll { x, out, .. } => a.dtype("out", out, &[x.dtype()]),
        Op::Recv { out, .. } => a.rows("out", out, out.rows(), out.cols(), FLOATS),
        Op::NormLinear { x, residual, norm: w_norm, w, e, out, .. } => {
            a.equal("length of the norm", n(w_norm) * k(w_norm), x.cols());
            residual.iter().for_each(|r| a.rows("residual", *r, x.rows(), x.cols(), FLOATS));
            linear(&a, &x.into(), w, &e, &out);
        }
        Op::AttendNew { q, k, v, rope, slots, kv, plan, args, out } => {
            rope_kv_write(&a, c, [q, k, v], rope, slots, kv);
            attention(&a, c, q, &Kv::Paged(kv), plan, &args, &out);
        }
        Op::Moe { x, router, live_rows, out, .. } => {
            a.equal("rows of router", router.rows(), x.rows());
            a.ints("live_rows", live_rows, 1);
            a.equal("rows of out", out.rows(), x.rows());
        }
        Op::Lora { x, slot, out, .. } => {
            a.ints("slot", slot, x.rows());
            a.equal("rows of out", out.rows(), x.rows());
        }
        Op::AllReduceNorm { x, residual, w, out, .. } => norm(&a, x, Some(residual), w, &out),
    }
}

fn n(w: &Weight) -> usize {
    w.meta().n as usize
}

fn k(w: &Weight) -> usize {
    w.meta().k as usize
}

/// An activation has a form, and each form it has is [rows, cols].
fn act(a: &Args<'_>, arg: &str, x: &Act, rows: usize, cols: usize) {
    assert!(x.plain.is_some() || x.quant.is_some(), "{}: {arg} is empty", a.op);
    x.plain.iter().for_each(|t| a.rows(arg, *t, rows, cols, FLOATS));
    if let Some((values, scales)) = x.quant {
        a.equal(&format!("rows of {arg}"), values.rows(), rows);
        a.equal(&format!("columns of {arg}"), values.cols(), cols);
        a.rows(&format!("scales of {arg}"), scales, rows, scales.cols(), F32);
    }
}

/// out = residual + scale · act(x·Wᵀ + bias + add)
fn linear(a: &Args<'_>, x: &Act, w: &Weight, e: &Epilogue<'_>, out: &Act) {
    let rows = x.rows();
    let width = if e.act.halves() { n(w) / 2 } else { n(w) };
    act(a, "x", x, rows, k(w));
    act(a, "out", out, rows, width);
    if e.act.halves() {
        let fuse = w.meta().fuse;
        assert!(
            fuse == crate::backend::Fuse::GateUp,
            "{}: {:?} needs a GateUp weight, {} is {fuse:?}",
            a.op,
            e.act,
            w.meta().name
        );
    }
    e.bias.iter().for_each(|b| a.equal("length of bias", n(b) * k(b), n(w)));
    e.add.iter().for_each(|t| a.rows("add", *t, rows, n(w), FLOATS));
    e.residual.iter().for_each(|t| a.rows("residual", *t, rows, width, FLOATS));
    if let Some(out) = out.plain {
        x.plain.iter().for_each(|x| a.apart(("out", out), ("x", *x)));
        e.add.iter().for_each(|t| a.apart(("out", out), ("add", *t)));
        e.residual.iter().for_each(|t| a.same_or_apart(("out", out), ("residual", *t)));
    }
}

fn norm(a: &Args<'_>, x: Tensor, residual: Option<Tensor>, w: &Weight, out: &Act) {
    let (rows, cols) = (x.rows(), x.cols());
    a.rows("x", x, rows, cols, FLOATS);
    a.equal("length of w", n(w) * k(w), cols);
    act(a, "out", out, rows, cols);
    out.plain.iter().for_each(|out| a.same_or_apart(("out", *out), ("x", x)));
    if let Some(r) = residual {
        a.rows("residual", r, rows, cols, FLOATS);
        a.apart(("residual", r), ("x", x));
        out.plain.iter().for_each(|out| a.apart(("out", *out), ("residual", r)));
    }
}

fn elementwise(a: &Args<'_>, op: super::super::EwOp, x: Tensor, b: Option<Tensor>, out: Tensor) {
    use super::super::EwOp;
    let shape = x.shape().map(|d| d as usize);
    a.dtype("a", x, FLOATS);
    a.tensor("out", out, &shape, FLOATS);
    a.same_or_apart(("out", out), ("a", x));
    let one = matches!(op, EwOp::Cast | EwOp::Scale(_) | EwOp::SoftCap(_));
    assert!(one == b.is_none(), "Elementwise: {op:?} takes {} b", if one { "no" } else { "a" });
    if let Some(b) = b {
        a.tensor("b", b, &shape, FLOATS);
        a.same_or_apart(("out", out), ("b", b));
    }
}

/// [G, R, pages] i32
fn check_tables(a: &Args<'_>, c: &Context<'_>, t: Tensor) {
    let groups = t.shape()[1] as usize;
    a.tensor("tables", t, &[groups, c.caps.rows as usize, c.caps.pages_per_row as usize], I32);
    assert!(t.is_contiguous(), "{}: tables should be contiguous", a.op);
}

fn next_inputs(a: &Args<'_>, c: &Context<'_>, x: &NextInputs) {
    let (tokens, seqs, slots) = (x.staged.len(), x.rows.len(), c.caps.rows as usize);
    check_tables(a, c, x.tables);
    a.ints("prev", x.prev, slots);
    x.accepted.iter().for_each(|t| a.ints("accepted", *t, slots));
    a.ints("src", x.src, tokens);
    a.ints("staged", x.staged, tokens);
    a.ints("rows", x.rows, seqs);
    a.ints("start", x.start, seqs);
    a.ints("cu_q", x.cu_q, seqs + 1);
    a.ints("ids", x.ids, tokens);
    a.ints("positions", x.positions, tokens);
    a.tensor("slots", x.slots, &[x.tables.shape()[1] as usize, tokens], I32);
    a.ints("kv_len", x.kv_len, seqs);
    assert!(x.page_tokens > 0, "NextInputs: page_tokens should be at least 1, got 0");
    let inputs = [("prev", x.prev), ("src", x.src), ("staged", x.staged), ("rows", x.rows), ("cu_q", x.cu_q)];
    for out in [("ids", x.ids), ("positions", x.positions), ("slots", x.slots), ("kv_len", x.kv_len)] {
        inputs.iter().for_each(|input| a.apart(out, *input));
    }
}

fn plan_on_device(
    a: &Args<'_>,
    c: &Context<'_>,
    plan: &AttnPlan,
    [rows, kv_len, cu_q]: [Tensor; 3],
    tables: Tensor,
) {
    let seqs = rows.len();
    assert!(seqs <= c.caps.rows as usize, "PlanOnDevice: at most {} rows, got {seqs}", c.caps.rows);
    a.ints("rows", rows, seqs);
    a.ints("kv_len", kv_len, seqs);
    a.ints("cu_q", cu_q, seqs + 1);
    check_tables(a, c, tables);
    let (group, groups) = (plan.spec().group, tables.shape()[1]);
    assert!(group < groups, "PlanOnDevice: the plan reads group {group}, tables has {groups}");
}

fn rope_kv_write(
    a: &Args<'_>,
    c: &Context<'_>,
    [q, k_new, v]: [Tensor; 3],
    rope: Option<Rope<'_>>,
    slots: Tensor,
    kv: &KvLayer,
) {
    let [_, tokens, _, dim] = q.shape().map(|d| d as usize);
    let [_, _, kv_heads, v_dim] = v.shape().map(|d| d as usize);
    a.dtype("q", q, FLOATS);
    a.tensor("k", k_new, &[tokens, kv_heads, dim], &[q.dtype()]);
    a.tensor("v", v, &[tokens, kv_heads, v_dim], &[q.dtype()]);
    a.ints("slots", slots, tokens);
    if let Some(spec) = (c.spec_of)(kv) {
        a.equal("KV heads", kv_heads, spec.kv_heads as usize);
        a.equal("head size of k", dim, spec.k_dim as usize);
        a.equal("head size of v", v_dim, spec.v_dim as usize);
    }
    a.apart(("q", q), ("k", k_new));
    a.apart(("k", k_new), ("v", v));
    a.apart(("q", q), ("v", v));
    let Some(rope) = rope else { return };
    a.ints("positions", rope.positions, tokens);
    let rot = k(rope.table);
    assert!(rot.is_multiple_of(2) && rot <= dim, "{}: the table rotates {rot} of {dim} dimensions", a.op);
    if let Some((q_norm, k_norm, _)) = rope.qk_norm {
        a.equal("length of the q norm", n(q_norm) * k(q_norm), dim);
        a.equal("length of the k norm", n(k_norm) * k(k_norm), dim);
    }
}

fn attention(
    a: &Args<'_>,
    c: &Context<'_>,
    q: Tensor,
    kv: &Kv<'_>,
    plan: &AttnPlan,
    args: &AttnArgs<'_>,
    out: &Act,
) {
    let spec = plan.spec();
    let (tokens, heads) = (q.shape()[1] as usize, spec.q_heads as usize);
    let [k_dim, v_dim] = [spec.k_dim as usize, spec.v_dim as usize];
    a.tensor("q", q, &[tokens, heads, k_dim], &[spec.q_dtype]);
    act(a, "out", out, tokens, heads * v_dim);
    out.plain.iter().for_each(|out| a.apart(("out", *out), ("q", q)));
    match *kv {
        Kv::Paged(layer) => {
            a.equal("group of kv", layer.group() as usize, spec.group as usize);
            if let Some(group) = (c.spec_of)(layer) {
                let same = (group.kv_heads, group.k_dim, group.v_dim, group.dtype, group.page_tokens)
                    == (spec.kv_heads, spec.k_dim, spec.v_dim, spec.kv_dtype, spec.page_tokens);
                assert!(same, "{}: the plan {spec:?} does not fit the cache {group:?}", a.op);
            }
        }
        Kv::Ragged { k, v } => {
            a.tensor("k", k, &[tokens, spec.kv_heads as usize, k_dim], FLOATS);
            a.tensor("v", v, &[tokens, spec.kv_heads as usize, v_dim], FLOATS);
        }
    }
    for (what, w) in [("sinks", args.sinks), ("slopes", args.slopes)] {
        w.iter().for_each(|w| a.equal(&format!("length of {what}"), n(w) * k(w), heads));
    }
    if let Some(lse) = args.lse {
        a.tensor("lse", lse, &[tokens, heads], F32);
        out.plain.iter().for_each(|out| a.apart(("lse", lse), ("out", *out)));
    }
}

fn sample(a: &Args<'_>, c: &Context<'_>, s: &Sample<'_>) {
    let (rows, vocab) = (s.logits.rows(), s.logits.cols());
    a.equal("vocabulary", vocab, c.caps.vocab as usize);
    a.rows("logits", s.logits, rows, vocab, F32);
    a.tensor("rows", s.rows, &[rows, SampleRow::WORDS], U32);
    s.draft.iter().for_each(|t| a.ints("draft", *t, rows));
    s.mask.iter().for_each(|t| a.tensor("mask", *t, &[rows, vocab.div_ceil(32)], U32));
    a.ints("ids", s.ids, rows);
    a.ints("last", s.last, c.caps.rows as usize);
    s.accepted.iter().for_each(|t| a.ints("accepted", *t, c.caps.rows as usize));
    a.apart(("ids", s.ids), ("last", s.last));
    a.apart(("ids", s.ids), ("logits", s.logits));
    s.logprobs.iter().for_each(|out| logprobs(a, rows, out));
}

fn logprobs(a: &Args<'_>, rows: usize, out: &LogprobsOut) {
    let columns = out.ids.cols();
    a.rows("ids of logprobs", out.ids, rows, columns, &[DType::I32]);
    a.rows("values of logprobs", out.values, rows, columns, F32);
    a.ints("ranks of logprobs", out.ranks, rows);
}
