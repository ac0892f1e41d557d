//! [`Op`]: compute as data. One variant per op, named fields, operands by value or by reference.

use super::args::{
    Act, AttnArgs, Epilogue, EwOp, Group, Kv, LogprobsOut, Mask, Rope, RoutingArgs, ScatterMode,
};
use super::{AttnPlan, KvLayer, Sampler, Weight};
use crate::tensor::Tensor;

/// One piece of device work. Letters as in the module text; all tensors are device tensors; shapes are
/// right-aligned. Outputs alias inputs only where it is said.
#[derive(Clone, Copy)]
pub enum Op<'a> {
    // --- movement
    /// Rows of an embedding table [V, H] by ids [T] i32; an id < 0 gives a row of zeros. out [T, H].
    Embed {
        table: &'a Weight,
        ids: Tensor,
        out: Tensor,
    },
    /// out[i] = x[rows[i]]; rows [L] i32, < 0 gives zeros. x [T, H], out [L, H].
    GatherRows {
        x: Tensor,
        rows: Tensor,
        out: Tensor,
    },
    /// out[rows[i]] = or += x[i]; rows < 0 are skipped.
    ScatterRows {
        x: Tensor,
        rows: Tensor,
        mode: ScatterMode,
        out: Tensor,
    },
    /// Element copy between equal shapes; types may differ by a float conversion.
    Copy {
        x: Tensor,
        out: Tensor,
    },
    /// Whole pages inside the pool: pairs [n, 2] i32 of (from, to), in order; negative pairs are skipped.
    CopyPages {
        kv: &'a [KvLayer],
        pairs: Tensor,
    },
    /// Keys and values of cached positions laid out contiguously, `chunk` tokens at a time (MLA prefill).
    KvGather {
        kv: &'a KvLayer,
        plan: &'a AttnPlan,
        chunk: u32,
        out: Tensor,
    },
    /// tables[pairs[i].0] = pairs[i].1 with a flat index into [G, R, pages]; pairs [n, 2] i32, index < 0 skipped.
    UpdateTables {
        pairs: Tensor,
        tables: Tensor,
    },

    // --- step inputs
    /// Makes this step's inputs from the last step's samples and the upload; see [`NextInputs`].
    NextInputs(NextInputs),
    /// Binds a plan to this step's exact lengths. rows [S] i32 (slot, -1 padding), kv_len [S] i32,
    /// cu_q [S + 1] i32, tables [G, R, pages] i32.
    PlanOnDevice {
        plan: &'a AttnPlan,
        rows: Tensor,
        kv_len: Tensor,
        cu_q: Tensor,
        tables: Tensor,
    },

    // --- dense
    /// [T, K] · [N, K] -> [T, N'], N' = N / 2 when the activation halves; a dense weight.
    Gemm {
        x: Act,
        w: &'a Weight,
        e: Epilogue<'a>,
        out: Act,
    },
    /// The same for every other weight format.
    QuantizedMatmul {
        x: Act,
        w: &'a Weight,
        e: Epilogue<'a>,
        out: Act,
    },
    /// Per head: [T, G, K] · [G, N, K] -> [T, G, N].
    HeadLinear {
        x: Tensor,
        w: &'a Weight,
        out: Tensor,
    },
    /// Experts: rows [M] i32 index x, offs [E + 1] i32 bound each expert's rows; out [M, N'].
    GroupedLinear {
        x: Act,
        rows: Tensor,
        offs: Tensor,
        w: &'a Weight,
        e: Epilogue<'a>,
        row_scale: Option<Tensor>,
        out: Act,
    },
    /// A plain activation into the quantized form of `out`.
    Quantize {
        x: Tensor,
        out: Act,
    },
    /// RMS norm over the last dimension. With `residual`: residual += x first (in place), then the norm of the
    /// sum. x may be the same tensor as out.plain. [T, H].
    Norm {
        x: Tensor,
        residual: Option<Tensor>,
        w: &'a Weight,
        eps: f32,
        out: Act,
    },
    /// Layer norm with mean, likewise.
    LayerNorm {
        x: Tensor,
        residual: Option<Tensor>,
        w: &'a Weight,
        bias: Option<&'a Weight>,
        eps: f32,
        out: Act,
    },
    /// out may alias a or b.
    Elementwise {
        op: EwOp,
        a: Tensor,
        b: Option<Tensor>,
        out: Tensor,
    },

    // --- attention
    /// q [T, Hq, D], k and v [T, Hkv, D]: optional per-head norm, rotation of q (in place) and k, and the write
    /// of k and v into the cache at slots [T] i32 (page · page_tokens + offset; -1 writes nothing).
    RopeKvWrite {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rope: Option<Rope<'a>>,
        slots: Tensor,
        kv: &'a KvLayer,
    },
    /// q [T, Hq, D] -> out [T, Hq · Dv]. A row of no keys gives zeros.
    PagedAttention {
        q: Tensor,
        kv: Kv<'a>,
        plan: &'a AttnPlan,
        args: AttnArgs<'a>,
        out: Act,
    },
    /// Joins attention over parts of the keys by their log-sum-exp.
    MergeStates {
        parts: Tensor,
        lse: Tensor,
        out: Tensor,
    },

    // --- routing
    /// The k best of [T, E]: ids and vals [T, k], ties to the smaller id.
    TopK {
        x: Tensor,
        ids: Tensor,
        vals: Tensor,
    },
    /// ids [T, k] -> rows [T · k] grouped by expert, offs [E + 1]; rows of tokens ≥ live_rows[0] are left out.
    SortByExpert {
        ids: Tensor,
        live_rows: Tensor,
        rows: Tensor,
        offs: Tensor,
    },
    /// out[t] = residual[t] + Σ x[rows of t].
    CombineRows {
        x: Tensor,
        rows: Tensor,
        residual: Option<Tensor>,
        out: Tensor,
    },

    // --- recurrent
    /// Short causal convolution over a State group.
    Conv1d {
        x: Tensor,
        w: &'a Weight,
        bias: Option<&'a Weight>,
        state: &'a KvLayer,
        plan: &'a AttnPlan,
        out: Tensor,
    },
    /// Gated delta rule over a State group.
    GatedDelta {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        beta: Tensor,
        state: &'a KvLayer,
        plan: &'a AttnPlan,
        out: Tensor,
    },
    /// Selective state-space scan over a State group.
    SsdScan {
        x: Tensor,
        dt: Tensor,
        a: &'a Weight,
        b: Tensor,
        c: Tensor,
        state: &'a KvLayer,
        plan: &'a AttnPlan,
        out: Tensor,
    },

    // --- sampling
    /// Records of `sample_row::SlotRecord` into the sampler's slots; records [n] u32.
    UpdateSampler {
        sampler: &'a Sampler,
        records: Tensor,
    },
    /// One token per logits row; see [`Sample`].
    Sample(Sample<'a>),
    /// Log-probabilities of given ids [L] i32 and of the best ones; logits [L, V] f32.
    LogProbs {
        logits: Tensor,
        ids: Tensor,
        out: LogprobsOut,
    },

    // --- collectives: the same bits on every rank
    /// The sum over ranks, in place.
    AllReduce {
        group: Group,
        x: Tensor,
    },
    /// Concatenates the last dimension over ranks.
    AllGather {
        group: Group,
        x: Tensor,
        out: Tensor,
    },
    /// The sum over ranks, of which each keeps its part of the last dimension: the mirror of `AllGather`.
    ReduceScatter {
        group: Group,
        x: Tensor,
        out: Tensor,
    },
    /// Padded to `cap` rows a peer.
    AllToAll {
        group: Group,
        x: Tensor,
        counts: Tensor,
        cap: u32,
        out: Tensor,
    },
    Send {
        group: Group,
        to: u32,
        x: Tensor,
    },
    Recv {
        group: Group,
        from: u32,
        out: Tensor,
    },

    // --- fused, each with a lowering in compose.rs
    /// `Norm` then a linear.
    NormLinear {
        x: Tensor,
        residual: Option<Tensor>,
        norm: &'a Weight,
        eps: f32,
        w: &'a Weight,
        e: Epilogue<'a>,
        out: Act,
    },
    /// `RopeKvWrite` then `PagedAttention` over the same layer's pages.
    AttendNew {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rope: Option<Rope<'a>>,
        slots: Tensor,
        kv: &'a KvLayer,
        plan: &'a AttnPlan,
        args: AttnArgs<'a>,
        out: Act,
    },
    /// Router, experts, combine.
    Moe {
        x: Act,
        router: Tensor,
        route: RoutingArgs<'a>,
        live_rows: Tensor,
        gate_up: &'a Weight,
        down: &'a Weight,
        e: Epilogue<'a>,
        out: Tensor,
    },
    /// out = scale · (x·Aᵀ)·Bᵀ with the adapter of each row; slot [T] i32, -1 is none.
    Lora {
        x: Tensor,
        a: &'a Weight,
        b: &'a Weight,
        slot: Tensor,
        out: Tensor,
    },
    /// All-reduce of x, then `Norm` with the residual.
    AllReduceNorm {
        group: Group,
        x: Tensor,
        residual: Tensor,
        w: &'a Weight,
        eps: f32,
        out: Act,
    },
}

/// Operands of `Op::NextInputs`. All i32. S sequences, T tokens, R slots, G groups.
///
/// For token t of sequence s (cu_q[s] ≤ t < cu_q[s+1]) of slot r = rows[s]:
/// ids[t] = src[t] < 0 ? staged[t] : prev[src[t]];
/// positions[t] = start[s] + (t - cu_q[s]) + (accepted ? accepted[r] : 0);
/// slots[g, t] = tables[g, r, position / page_tokens] · page_tokens + position % page_tokens;
/// kv_len[s] = position of its last token + 1.
/// Padding (r < 0, or t ≥ cu_q[S]): ids -1, positions 0, slots -1, kv_len 0.
#[derive(Clone, Copy, Debug)]
pub struct NextInputs {
    /// [R]: last sampled id of each slot.
    pub prev: Tensor,
    /// [R], ≤ 0: drafts the last step took back, by slot.
    pub accepted: Option<Tensor>,
    /// [T]: slot whose last sample is the id, or -1.
    pub src: Tensor,
    /// [T]: uploaded ids.
    pub staged: Tensor,
    /// [S]
    pub rows: Tensor,
    /// [S]: first position of the sequence's tokens in this step, if all drafts were accepted.
    pub start: Tensor,
    /// [S + 1]
    pub cu_q: Tensor,
    /// [G, R, pages]
    pub tables: Tensor,
    pub page_tokens: u32,
    /// Out: [T]
    pub ids: Tensor,
    /// Out: [T]
    pub positions: Tensor,
    /// Out: [G, T]
    pub slots: Tensor,
    /// Out: [S]
    pub kv_len: Tensor,
}

/// Operands of `Op::Sample`. One row of `logits` per sampled row; order of work as DESIGN section 7: raw
/// log-probs, allowed ids, bad words, min tokens, bias, mask, penalties, temperature, min-p, top-k and top-p,
/// draw. The draw is Gumbel-max with Philox4x32-10 noise keyed by (seed, position, id): `reference/sample.rs` of
/// backend-cpu is the specification.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// [L, V] f32; may be overwritten.
    pub logits: Tensor,
    pub sampler: &'a Sampler,
    /// [L, 16] u32 of `sample_row::SampleRow`.
    pub rows: Tensor,
    /// [L] i32 draft ids to verify, -1 is none.
    pub draft: Option<Tensor>,
    /// [L, ceil(V / 32)] u32: bit set = allowed, for rows with `SampleRow::MASKED`.
    pub mask: Option<Tensor>,
    /// Out [L] i32: the sampled ids; -1 for padding.
    pub ids: Tensor,
    /// Out [R] i32: the sampled id also lands at its slot, for `NextInputs::prev`.
    pub last: Tensor,
    /// Out [R] i32: minus the number of drafts not accepted, by slot.
    pub accepted: Option<Tensor>,
    pub logprobs: Option<LogprobsOut>,
}

macro_rules! kinds {
    ($($name:ident $(($tuple:ident))?),* $(,)?) => {
        /// Name of an op, without operands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpKind { $($name),* }

        impl OpKind {
            /// Every kind, in declaration order.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$name),*];

            /// Its name as written in the code.
            pub const fn name(self) -> &'static str {
                match self { $(OpKind::$name => stringify!($name)),* }
            }
        }

        impl Op<'_> {
            /// Which op this is.
            pub fn kind(&self) -> OpKind {
                match self { $(Op::$name { .. } => OpKind::$name),* }
            }
        }
    };
}

kinds!(
    Embed,
    GatherRows,
    ScatterRows,
    Copy,
    CopyPages,
    KvGather,
    UpdateTables,
    NextInputs,
    PlanOnDevice,
    Gemm,
    QuantizedMatmul,
    HeadLinear,
    GroupedLinear,
    Quantize,
    Norm,
    LayerNorm,
    Elementwise,
    RopeKvWrite,
    PagedAttention,
    MergeStates,
    TopK,
    SortByExpert,
    CombineRows,
    Conv1d,
    GatedDelta,
    SsdScan,
    UpdateSampler,
    Sample,
    LogProbs,
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
    Send,
    Recv,
    NormLinear,
    AttendNew,
    Moe,
    Lora,
    AllReduceNorm,
);

impl Op<'_> {
    /// Main input, second input and main output, as far as the op has them.
    pub fn main_tensors(&self) -> (Option<Tensor>, Option<Tensor>, Option<Tensor>) {
        let plain = |a: &Act| a.plain.or(a.quant.map(|q| q.0));
        match self {
            Op::Embed { ids, out, .. } => (Some(*ids), None, Some(*out)),
            Op::GatherRows { x, rows, out } | Op::ScatterRows { x, rows, out, .. } => {
                (Some(*x), Some(*rows), Some(*out))
            }
            Op::Copy { x, out } => (Some(*x), None, Some(*out)),
            Op::CopyPages { pairs, .. } => (Some(*pairs), None, None),
            Op::KvGather { out, .. } => (None, None, Some(*out)),
            Op::UpdateTables { pairs, tables } => (Some(*pairs), None, Some(*tables)),
            Op::NextInputs(n) => (Some(n.staged), Some(n.prev), Some(n.ids)),
            Op::PlanOnDevice { rows, kv_len, .. } => (Some(*rows), Some(*kv_len), None),
            Op::Gemm { x, out, .. } | Op::QuantizedMatmul { x, out, .. } => (plain(x), None, plain(out)),
            Op::HeadLinear { x, out, .. } => (Some(*x), None, Some(*out)),
            Op::GroupedLinear { x, rows, out, .. } => (plain(x), Some(*rows), plain(out)),
            Op::Quantize { x, out } => (Some(*x), None, plain(out)),
            Op::Norm { x, residual, out, .. } | Op::LayerNorm { x, residual, out, .. } => {
                (Some(*x), *residual, plain(out))
            }
            Op::Elementwise { a, b, out, .. } => (Some(*a), *b, Some(*out)),
            Op::RopeKvWrite { q, k, .. } => (Some(*q), Some(*k), Some(*q)),
            Op::PagedAttention { q, out, .. } => (Some(*q), None, plain(out)),
            Op::MergeStates { parts, lse, out } => (Some(*parts), Some(*lse), Some(*out)),
            Op::TopK { x, vals, .. } => (Some(*x), None, Some(*vals)),
            Op::SortByExpert { ids, rows, .. } => (Some(*ids), None, Some(*rows)),
            Op::CombineRows { x, rows, out, .. } => (Some(*x), Some(*rows), Some(*out)),
            Op::Conv1d { x, out, .. } => (Some(*x), None, Some(*out)),
            Op::GatedDelta { q, k, out, .. } => (Some(*q), Some(*k), Some(*out)),
            Op::SsdScan { x, dt, out, .. } => (Some(*x), Some(*dt), Some(*out)),
            Op::UpdateSampler { records, .. } => (Some(*records), None, None),
            Op::Sample(s) => (Some(s.logits), s.mask, Some(s.ids)),
            Op::LogProbs { logits, ids, out } => (Some(*logits), Some(*ids), Some(out.values)),
            Op::AllReduce { x, .. } => (Some(*x), None, Some(*x)),
            Op::AllGather { x, out, .. } | Op::ReduceScatter { x, out, .. } | Op::AllToAll { x, out, .. } => {
                (Some(*x), None, Some(*out))
            }
            Op::Send { x, .. } => (Some(*x), None, None),
            Op::Recv { out, .. } => (None, None, Some(*out)),
            Op::NormLinear { x, residual, out, .. } => (Some(*x), *residual, plain(out)),
            Op::AttendNew { q, k, out, .. } => (Some(*q), Some(*k), plain(out)),
            Op::Moe { x, router, out, .. } => (plain(x), Some(*router), Some(*out)),
            Op::Lora { x, out, .. } => (Some(*x), None, Some(*out)),
            Op::AllReduceNorm { x, residual, out, .. } => (Some(*x), Some(*residual), plain(out)),
        }
    }

    /// The main weight it reads, if any.
    pub fn weight(&self) -> Option<&Weight> {
        match self {
            Op::Embed { table: w, .. }
            | Op::Gemm { w, .. }
            | Op::QuantizedMatmul { w, .. }
            | Op::HeadLinear { w, .. }
            | Op::GroupedLinear { w, .. }
            | Op::Norm { w, .. }
            | Op::LayerNorm { w, .. }
            | Op::Conv1d { w, .. }
            | Op::NormLinear { w, .. }
            | Op::Moe { gate_up: w, .. }
            | Op::Lora { a: w, .. }
            | Op::AllReduceNorm { w, .. } => Some(w),
            _ => None,
        }
    }

    /// The attention plan it runs under, if any.
    pub fn plan(&self) -> Option<&AttnPlan> {
        match self {
            Op::KvGather { plan, .. }
            | Op::PlanOnDevice { plan, .. }
            | Op::PagedAttention { plan, .. }
            | Op::Conv1d { plan, .. }
            | Op::GatedDelta { plan, .. }
            | Op::SsdScan { plan, .. }
            | Op::AttendNew { plan, .. } => Some(plan),
            _ => None,
        }
    }
}

/// Whether a mask lets query position `q` see key position `k`.
pub fn sees(mask: Mask, q: u32, k: u32) -> bool {
    match mask {
        Mask::Causal => k <= q,
        Mask::Window { tokens } => k <= q && q - k < tokens,
        Mask::Full => true,
    }
}
