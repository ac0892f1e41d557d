//! What runs here, and why the rest does not.

use engine_core::DType;
use engine_core::backend::{AttnSpec, OpKind, OpSpec, Support};

use crate::ops::attention::{MAX_DIM, MAX_ROWS};
use crate::ops::gemm::MAX_K;

/// The answer to `Backend::supports`.
pub(crate) fn supports(op: &OpSpec) -> Support {
    use OpKind::*;
    match op.kind {
        Embed | Gemm => dense(op),
        QuantizedMatmul => quantized(op),
        PagedAttention => match op.attention.as_ref().map_or(Ok(()), attention) {
            Ok(()) => floats(op),
            Err(reason) => Support::No(reason),
        },
        Norm | LayerNorm | Elementwise | RopeKvWrite => floats(op),
        GatherRows | ScatterRows | Copy | CopyPages | UpdateTables | NextInputs | PlanOnDevice
        | UpdateSampler | Sample | LogProbs | AllReduce | AllGather | ReduceScatter => Support::NATIVE,
        NormLinear | AttendNew | AllReduceNorm => Support::Composed,
        Quantize => no(op, "weights read plain activations here"),
        GroupedLinear | TopK | SortByExpert | CombineRows | Moe => {
            no(op, "mixture-of-experts models have no CPU kernels yet; use a dense model")
        }
        HeadLinear | KvGather | MergeStates => no(op, "latent attention has no CPU kernels yet"),
        Conv1d | GatedDelta | SsdScan => no(op, "recurrent layers have no CPU kernels yet"),
        Lora => no(op, "LoRA has no CPU kernel yet; merge the adapter into the weights"),
        AllToAll | Send | Recv => no(op, "the CPU backend runs one rank"),
    }
}

/// Whether attention of this kind runs; the reason when not.
pub(crate) fn attention(spec: &AttnSpec) -> Result<(), String> {
    let (q, kv) = (spec.q_heads as usize, spec.kv_heads as usize);
    if kv == 0 || q % kv != 0 {
        return Err(format!("attention of {q} query heads over {kv} key heads: not a whole number each"));
    }
    if q / kv > MAX_ROWS {
        return Err(format!("attention of {} query heads a key head: at most {MAX_ROWS}", q / kv));
    }
    let size = spec.k_dim.max(spec.v_dim) as usize;
    if size > MAX_DIM {
        return Err(format!("attention over heads of {size}: at most {MAX_DIM}"));
    }
    for dtype in [spec.q_dtype, spec.kv_dtype] {
        if !is_float(dtype) {
            return Err(format!("attention in {dtype}: the CPU has float32, float16 and bfloat16"));
        }
    }
    Ok(())
}

fn dense(op: &OpSpec) -> Support {
    let Some((format, [_, k], _)) = op.weight else { return floats(op) };
    match format.dense() {
        Some(dtype) if is_float(dtype) && k as usize <= MAX_K => floats(op),
        Some(dtype) if is_float(dtype) => no(op, &format!("K = {k} is over {MAX_K}")),
        None if op.kind == OpKind::Embed => floats(op),
        _ => no(op, &format!("weights in {format}: the CPU has float32, float16 and bfloat16")),
    }
}

fn quantized(op: &OpSpec) -> Support {
    match op.weight {
        Some((_, [_, k], _)) if k as usize > MAX_K => no(op, &format!("K = {k} is over {MAX_K}")),
        _ => floats(op),
    }
}

fn floats(op: &OpSpec) -> Support {
    let bad = [op.x, op.out].into_iter().flatten().find(|d| !is_float(*d) && !is_integer(*d));
    match bad {
        Some(dtype) => no(op, &format!("{dtype} activations: the CPU has float32, float16 and bfloat16")),
        None => Support::NATIVE,
    }
}

fn no(op: &OpSpec, reason: &str) -> Support {
    Support::No(format!("{} on the CPU: {reason}", op.kind.name()))
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::Bf16)
}

fn is_integer(dtype: DType) -> bool {
    matches!(dtype, DType::I32 | DType::U32)
}
