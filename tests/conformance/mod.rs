//! Conformance: every op of every compiled-in device against the scalar reference.
//!
//! A [`Case`] is one use of one op: it makes inputs (seeded by its own name), runs the op through a [`Rig`] and
//! declares outputs. The same case runs on the reference and on a device; the outputs must agree within
//! [`tolerance`]. Around every tensor lie guard rows, inputs are checked to be unchanged, and the captured op
//! replayed twice must give the eager run's bits. Cases that compare a device with itself (a row alone and among
//! others, paged and contiguous) stand in [`invariance`].

pub mod attention;
pub mod check;
pub mod collective;
pub mod data;
pub mod dense;
pub mod devices;
pub mod fallback;
pub mod invariance;
pub mod layers;
pub mod movement;
pub mod quantized;
pub mod queues;
pub mod rig;
pub mod sampling;
pub mod spy;
pub mod step_inputs;
pub mod support;
pub mod tolerance;

use engine_core::DType;
use engine_core::Result;
use engine_core::backend::OpKind;

pub use check::{Report, Verdict, check, run_all};
pub use devices::{Device, devices};
pub use rig::{Access, Rig};

/// Makes inputs, runs the op, declares outputs.
pub type Run = Box<dyn Fn(&mut Rig) -> Result<()> + Send + Sync>;

/// One use of one op.
pub struct Case {
    pub op: OpKind,
    /// Unique; seeds the case's data.
    pub name: String,
    /// Type of the activations: the column of the support matrix.
    pub dtype: DType,
    pub run: Run,
}

impl Case {
    /// A case whose name is built of the op, what it varies, and the type.
    pub fn new(
        op: OpKind,
        what: impl std::fmt::Display,
        dtype: DType,
        run: impl Fn(&mut Rig) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Case { op, name: format!("{} {what} {dtype}", op.name()), dtype, run: Box::new(run) }
    }
}

/// Activation types every op is tried with.
pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// The cases of one op; empty for an op that no device has yet.
pub fn cases(op: OpKind) -> Vec<Case> {
    match op {
        OpKind::Embed => movement::embed(),
        OpKind::GatherRows => movement::gather_rows(),
        OpKind::ScatterRows => movement::scatter_rows(),
        OpKind::Copy => movement::copy(),
        OpKind::CopyPages => attention::copy_pages(),
        OpKind::UpdateTables => step_inputs::update_tables(),
        OpKind::NextInputs => step_inputs::next_inputs(),
        OpKind::PlanOnDevice => attention::plan_on_device(),
        OpKind::Gemm => dense::gemm(),
        OpKind::QuantizedMatmul => quantized::quantized_matmul(),
        OpKind::Norm => dense::norm(),
        OpKind::LayerNorm => dense::layer_norm(),
        OpKind::Elementwise => dense::elementwise(),
        OpKind::NormLinear => dense::norm_linear(),
        OpKind::RopeKvWrite => attention::rope_kv_write(),
        OpKind::PagedAttention => attention::paged_attention(),
        OpKind::MergeStates => attention::merge_states(),
        OpKind::AttendNew => attention::attend_new(),
        OpKind::TopK => dense::top_k(),
        OpKind::UpdateSampler => sampling::update_sampler(),
        OpKind::Sample => sampling::sample(),
        OpKind::LogProbs => sampling::log_probs(),
        OpKind::AllReduce => collective::all_reduce(),
        OpKind::AllGather => collective::all_gather(),
        OpKind::ReduceScatter => collective::reduce_scatter(),
        OpKind::AllReduceNorm => collective::all_reduce_norm(),
        _ => Vec::new(),
    }
}
