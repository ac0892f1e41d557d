//! Ops to kernels, one file per family.

mod attention;
mod dense;
mod inputs;
mod movement;
mod sample;

use engine_core::backend::Op;
use engine_core::{DType, Result, Tensor};
use kernels::params::dtype;

use super::stream::CudaStream;

impl CudaStream {
    /// Enqueues an op; `None` when it has no kernel here.
    pub(crate) fn enqueue(&mut self, op: &Op<'_>) -> Option<Result<()>> {
        Some(match *op {
            Op::Embed { table, ids, out } => self.embed(table, ids, out),
            Op::GatherRows { x, rows, out } => self.gather_rows(x, rows, out),
            Op::ScatterRows { x, rows, mode, out } => self.scatter_rows(x, rows, mode, out),
            Op::Copy { x, out } => self.copy(x, out),
            Op::CopyPages { kv, pairs } => self.copy_pages(kv, pairs),
            Op::UpdateTables { pairs, tables } => self.update_tables(pairs, tables),
            Op::NextInputs(n) => self.next_inputs(&n),
            Op::PlanOnDevice { plan, rows, kv_len, cu_q, tables } => {
                self.plan_on_device(plan, [rows, kv_len, cu_q], tables)
            }
            Op::Gemm { x, w, e, out } => self.gemm(x.plain?, w, &e, out.plain?),
            Op::Norm { x, residual, w, eps, out } => self.rms_norm(x, residual, w, eps, out.plain?),
            Op::LayerNorm { x, residual, w, bias, eps, out } => {
                self.layer_norm(x, residual, w, bias, eps, out.plain?)
            }
            Op::Elementwise { op, a, b, out } => self.elementwise(op, a, b, out),
            Op::RopeKvWrite { q, k, v, rope, slots, kv } => {
                self.rope_kv_write([q, k, v], rope.as_ref(), slots, kv)
            }
            Op::PagedAttention { q, kv, plan, args, out } => self.attention(q, kv, plan, &args, out.plain?),
            Op::AttendNew { q, k, v, rope: Some(rope), slots, kv, plan, args, out } => {
                return self.attend_new([q, k, v], &rope, slots, kv, plan, &args, out.plain?);
            }
            Op::MergeStates { parts, lse, out } => self.merge_states(parts, lse, out),
            Op::TopK { x, ids, vals } => self.top_k(x, ids, vals),
            Op::UpdateSampler { sampler, records } => self.update_sampler(sampler, records),
            Op::Sample(s) => self.sample(&s),
            Op::LogProbs { logits, ids, out } => self.log_probs(logits, ids, &out),
            _ => return None,
        })
    }
}

/// The kernels' code of an element type.
///
/// # Panics
/// For a type no kernel reads: `supports` has refused it at load.
pub fn code(t: DType) -> i32 {
    match t {
        DType::F32 => dtype::F32,
        DType::F16 => dtype::F16,
        DType::Bf16 => dtype::BF16,
        DType::I32 => dtype::I32,
        DType::U32 => dtype::U32,
        DType::I8 | DType::U8 | DType::F8E4m3 | DType::F8E5m2 => dtype::BYTE,
    }
}

/// A tensor as rows: count, width, and elements from one row to the next.
///
/// # Panics
/// If its leading dimensions do not lie at one distance: no op makes such operands.
fn rows(t: Tensor) -> (u32, u32, u64) {
    let ([d0, d1, d2, cols], [s0, s1, s2]) = (t.shape(), t.strides());
    let stride = match (d0, d1, d2) {
        (1, 1, _) => s2,
        (1, _, 1) => s1,
        (_, 1, 1) => s0,
        _ if t.is_contiguous() => cols,
        _ => panic!("no kernel for rows at uneven distances: {:?} {:?}", t.shape(), t.strides()),
    };
    (t.rows() as u32, cols, u64::from(stride))
}
