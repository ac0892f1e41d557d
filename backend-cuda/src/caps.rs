//! What the backend can do, asked at load.

use engine_core::DType;
use engine_core::backend::{CaptureLevel, OpKind, OpSpec, Support};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Answer for one op.
pub fn supports(op: &OpSpec) -> Support {
    if matches!(op.kind, OpKind::NormLinear | OpKind::AttendNew) {
        return Support::Composed;
    }
    let floats = [op.x, op.out].into_iter().flatten().all(|d| FLOATS.contains(&d) || !d.is_float());
    if !floats {
        return Support::No("activations are float32, float16 or bfloat16 so far".into());
    }
    match op.kind {
        OpKind::Embed
        | OpKind::GatherRows
        | OpKind::ScatterRows
        | OpKind::Copy
        | OpKind::CopyPages
        | OpKind::UpdateTables
        | OpKind::NextInputs
        | OpKind::PlanOnDevice
        | OpKind::Gemm
        | OpKind::Norm
        | OpKind::LayerNorm
        | OpKind::Elementwise
        | OpKind::RopeKvWrite
        | OpKind::MergeStates
        | OpKind::TopK
        | OpKind::UpdateSampler
        | OpKind::Sample
        | OpKind::LogProbs => Support::Native { workspace_bytes: 0, capture: CaptureLevel::Any },
        OpKind::PagedAttention => attention(op),
        other => Support::No(format!("{} has no CUDA kernel yet", other.name())),
    }
}

fn attention(op: &OpSpec) -> Support {
    let Some(spec) = op.attention else { return Support::NATIVE };
    if spec.k_dim > 512 || spec.v_dim > 512 {
        return Support::No(format!("heads of {} have no kernel; up to 512 do", spec.k_dim.max(spec.v_dim)));
    }
    if !FLOATS.contains(&spec.kv_dtype) {
        return Support::No(format!(
            "a KV cache of {} has no kernel yet; float16 and bfloat16 have",
            spec.kv_dtype
        ));
    }
    Support::NATIVE
}
