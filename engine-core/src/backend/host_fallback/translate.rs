//! An op on one backend as the same op on another: tensors in copied memory, weights loaded there.

use super::super::{
    Act, AttnArgs, Backend, Buffer, Epilogue, Kv, LogprobsOut, MemKind, NextInputs, Op, Rope, Sample, Weight,
};
use super::address;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// What an op reads and writes. Cache, plan and sampler handles are not listed: they live where the op runs.
pub(super) struct Operands<'a> {
    tensors: Vec<Tensor>,
    weights: Vec<&'a Weight>,
}

/// Tensors and weights of an op, or `None` for an op the fallback does not know.
pub(super) fn operands<'a>(op: &Op<'a>) -> Option<Operands<'a>> {
    // One place knows each op's operands: the rebuild. Run it with identity and note what passes.
    let (mut tensors, mut weights) = (Vec::new(), Vec::new());
    rebuild(
        op,
        &mut |t| {
            tensors.push(t);
            t
        },
        &mut |w| {
            weights.push(w);
            w
        },
    )?;
    Some(Operands { tensors, weights })
}

/// Where everything an op names is on the other backend.
pub(super) struct Translation {
    regions: Vec<Region>,
    weights: Vec<(usize, Weight)>,
}

/// Bytes of one memory that belong together: overlapping tensors stay overlapping.
struct Region {
    mem: u32,
    epoch: u32,
    start: u64,
    end: u64,
    copy: Option<Buffer>,
}

impl Translation {
    /// Makes room for the tensors on `reference` and finds the weights.
    pub fn new(
        operands: &Operands<'_>,
        reference: &dyn Backend,
        mut twin: impl FnMut(&Weight) -> Result<Weight>,
    ) -> Result<Self> {
        let mut regions = regions_of(&operands.tensors);
        for region in &mut regions {
            let bytes = (region.end - region.start) as u32;
            region.copy = Some(reference.buffer(&[bytes], DType::U8, MemKind::Device)?);
        }
        let weights =
            operands.weights.iter().map(|w| Ok((address(&w.shared()), twin(w)?))).collect::<Result<_>>()?;
        Ok(Translation { regions, weights })
    }

    /// Per region: its bytes on the device, its bytes on the other backend.
    pub fn regions(&self) -> impl Iterator<Item = (Tensor, Tensor)> {
        self.regions.iter().filter_map(|r| {
            let bytes = [(r.end - r.start) as u32];
            Some((Tensor::from_raw(r.mem, r.epoch, r.start, &bytes, DType::U8), r.copy.as_ref()?.tensor()))
        })
    }

    /// The op on the other backend.
    ///
    /// # Panics
    /// If it is not the op this was made for.
    pub fn translate<'a>(&'a self, op: &Op<'a>) -> Op<'a> {
        let weight = |w: &'a Weight| {
            let found = self.weights.iter().find(|(at, _)| *at == address(&w.shared()));
            found.map_or_else(|| panic!("a weight of another op"), |(_, w)| w)
        };
        let known = rebuild(op, &mut |t| self.tensor(t), &mut |w| weight(w));
        known.unwrap_or_else(|| panic!("an op without operands"))
    }

    fn tensor(&self, t: Tensor) -> Tensor {
        let holds = |r: &&Region| r.mem == t.mem() && (r.start..r.end).contains(&t.at_bytes());
        match self.regions.iter().find(holds) {
            Some(Region { copy: Some(copy), start, .. }) => {
                t.moved_to(copy.mem(), copy.epoch(), copy.at_bytes() + t.at_bytes() - start)
            }
            // An empty tensor has no bytes to find.
            _ => t,
        }
    }
}

/// The extents of the tensors, overlapping ones joined. Starts are aligned for any element type.
fn regions_of(tensors: &[Tensor]) -> Vec<Region> {
    let mut extents: Vec<&Tensor> = tensors.iter().filter(|t| !t.is_empty()).collect();
    extents.sort_by_key(|t| (t.mem(), t.at_bytes()));
    let mut regions: Vec<Region> = Vec::new();
    for t in extents {
        let (start, end) = (t.at_bytes(), t.at_bytes() + t.extent_bytes());
        match regions.last_mut() {
            Some(r) if r.mem == t.mem() && start < r.end => r.end = r.end.max(end),
            _ => regions.push(Region { mem: t.mem(), epoch: t.epoch(), start, end, copy: None }),
        }
    }
    regions
}

/// The same op with every tensor and weight replaced; `None` for an op the fallback does not know.
fn rebuild<'a>(
    op: &Op<'a>,
    t: &mut dyn FnMut(Tensor) -> Tensor,
    w: &mut dyn FnMut(&'a Weight) -> &'a Weight,
) -> Option<Op<'a>> {
    Some(match *op {
        Op::Embed { table, ids, out } => Op::Embed { table: w(table), ids: t(ids), out: t(out) },
        Op::GatherRows { x, rows, out } => Op::GatherRows { x: t(x), rows: t(rows), out: t(out) },
        Op::ScatterRows { x, rows, mode, out } => {
            Op::ScatterRows { x: t(x), rows: t(rows), mode, out: t(out) }
        }
        Op::Copy { x, out } => Op::Copy { x: t(x), out: t(out) },
        Op::CopyPages { kv, pairs } => Op::CopyPages { kv, pairs: t(pairs) },
        Op::UpdateTables { pairs, tables } => Op::UpdateTables { pairs: t(pairs), tables: t(tables) },
        Op::NextInputs(n) => Op::NextInputs(next_inputs(n, t)),
        Op::PlanOnDevice { plan, rows, kv_len, cu_q, tables } => {
            Op::PlanOnDevice { plan, rows: t(rows), kv_len: t(kv_len), cu_q: t(cu_q), tables: t(tables) }
        }
        Op::Gemm { x, w: weight, e, out } => {
            Op::Gemm { x: act(x, t), w: w(weight), e: epilogue(e, t, w), out: act(out, t) }
        }
        Op::QuantizedMatmul { x, w: weight, e, out } => {
            Op::QuantizedMatmul { x: act(x, t), w: w(weight), e: epilogue(e, t, w), out: act(out, t) }
        }
        Op::Norm { x, residual, w: weight, eps, out } => {
            Op::Norm { x: t(x), residual: residual.map(&mut *t), w: w(weight), eps, out: act(out, t) }
        }
        Op::LayerNorm { x, residual, w: weight, bias, eps, out } => {
            let (residual, bias) = (residual.map(&mut *t), bias.map(&mut *w));
            Op::LayerNorm { x: t(x), residual, w: w(weight), bias, eps, out: act(out, t) }
        }
        Op::Elementwise { op, a, b, out } => Op::Elementwise { op, a: t(a), b: b.map(&mut *t), out: t(out) },
        Op::RopeKvWrite { q, k, v, rope, slots, kv } => {
            let rope = rope.map(|r| rotation(r, t, w));
            Op::RopeKvWrite { q: t(q), k: t(k), v: t(v), rope, slots: t(slots), kv }
        }
        Op::PagedAttention { q, kv, plan, args, out } => {
            let kv = match kv {
                Kv::Paged(layer) => Kv::Paged(layer),
                Kv::Ragged { k, v } => Kv::Ragged { k: t(k), v: t(v) },
            };
            let (sinks, slopes) = (args.sinks.map(&mut *w), args.slopes.map(&mut *w));
            let args = AttnArgs { sinks, slopes, lse: args.lse.map(&mut *t), ..args };
            Op::PagedAttention { q: t(q), kv, plan, args, out: act(out, t) }
        }
        Op::MergeStates { parts, lse, out } => Op::MergeStates { parts: t(parts), lse: t(lse), out: t(out) },
        Op::TopK { x, ids, vals } => Op::TopK { x: t(x), ids: t(ids), vals: t(vals) },
        Op::UpdateSampler { sampler, records } => Op::UpdateSampler { sampler, records: t(records) },
        Op::Sample(s) => Op::Sample(sample(s, t)),
        Op::LogProbs { logits, ids, out } => {
            Op::LogProbs { logits: t(logits), ids: t(ids), out: logprobs(out, t) }
        }
        _ => return None,
    })
}

fn act(x: Act, t: &mut dyn FnMut(Tensor) -> Tensor) -> Act {
    Act { plain: x.plain.map(&mut *t), quant: x.quant.map(|(values, scales)| (t(values), t(scales))) }
}

fn epilogue<'a>(
    e: Epilogue<'a>,
    t: &mut dyn FnMut(Tensor) -> Tensor,
    w: &mut dyn FnMut(&'a Weight) -> &'a Weight,
) -> Epilogue<'a> {
    Epilogue { bias: e.bias.map(w), add: e.add.map(&mut *t), residual: e.residual.map(&mut *t), ..e }
}

fn rotation<'a>(
    r: Rope<'a>,
    t: &mut dyn FnMut(Tensor) -> Tensor,
    w: &mut dyn FnMut(&'a Weight) -> &'a Weight,
) -> Rope<'a> {
    let qk_norm = r.qk_norm.map(|(q, k, eps)| (w(q), w(k), eps));
    Rope { positions: t(r.positions), table: w(r.table), style: r.style, qk_norm }
}

fn logprobs(out: LogprobsOut, t: &mut dyn FnMut(Tensor) -> Tensor) -> LogprobsOut {
    LogprobsOut { ids: t(out.ids), values: t(out.values), ranks: t(out.ranks) }
}

fn next_inputs(n: NextInputs, t: &mut dyn FnMut(Tensor) -> Tensor) -> NextInputs {
    NextInputs {
        prev: t(n.prev),
        accepted: n.accepted.map(&mut *t),
        src: t(n.src),
        staged: t(n.staged),
        rows: t(n.rows),
        start: t(n.start),
        cu_q: t(n.cu_q),
        tables: t(n.tables),
        page_tokens: n.page_tokens,
        ids: t(n.ids),
        positions: t(n.positions),
        slots: t(n.slots),
        kv_len: t(n.kv_len),
    }
}

fn sample<'a>(s: Sample<'a>, t: &mut dyn FnMut(Tensor) -> Tensor) -> Sample<'a> {
    Sample {
        logits: t(s.logits),
        sampler: s.sampler,
        rows: t(s.rows),
        draft: s.draft.map(&mut *t),
        mask: s.mask.map(&mut *t),
        ids: t(s.ids),
        last: t(s.last),
        accepted: s.accepted.map(&mut *t),
        logprobs: s.logprobs.map(|out| logprobs(out, t)),
    }
}
