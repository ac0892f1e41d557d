//! What ops and load-time calls take: activations, epilogues, weights in host form, KV and attention
//! descriptions, packed sampling rows. Plain data; letters as in the module above.

use std::sync::Arc;

use super::Weight;
use crate::loader::HostBytes;
use crate::loader::fill::Fill;
use crate::quant::WeightFormat;
use crate::tensor::{DType, Tensor};

/// An activation in the form(s) its readers want: plain, quantized (values and scales), or both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Act {
    /// [T, K] in a floating-point type.
    pub plain: Option<Tensor>,
    /// [T, K] quantized values and their scales, as [`ActFormat`] of the weight that reads it says.
    pub quant: Option<(Tensor, Tensor)>,
}

impl From<Tensor> for Act {
    fn from(t: Tensor) -> Self {
        Act { plain: Some(t), quant: None }
    }
}

impl Act {
    /// Rows of the activation (T).
    ///
    /// # Panics
    /// If it has neither form: no producer makes such a value.
    pub fn rows(&self) -> usize {
        self.plain.or(self.quant.map(|q| q.0)).map(|t| t.rows()).unwrap_or_else(|| panic!("empty Act"))
    }

    /// The plain form.
    ///
    /// # Panics
    /// If there is none: the reader asked `act_for` for the wrong form.
    pub fn plain(&self) -> Tensor {
        self.plain.unwrap_or_else(|| panic!("this reader needs a plain activation"))
    }
}

/// The form of activation a weight's kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ActFormat {
    /// The model's own floating-point type.
    #[default]
    Plain,
    /// `dtype` values with one f32 scale per token (`group: 0`) or per `group` values of K.
    Quantized { dtype: DType, group: u32 },
}

/// Non-linearity of an epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// x · σ(x)
    Silu,
    /// Gaussian error linear unit, exact (erf) form.
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// silu(gate) · up of a weight loaded with [`Fuse::GateUp`]: [T, 2I] becomes [T, I].
    SiluMul,
    /// gelu_tanh(gate) · up, likewise.
    GeluTanhMul,
}

impl Activation {
    /// Whether two weight rows make one output column.
    pub fn halves(self) -> bool {
        matches!(self, Activation::SiluMul | Activation::GeluTanhMul)
    }
}

/// What follows a matrix product: `out = residual + scale · act(x·Wᵀ + bias + add)`, in f32, rounded once.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// [N]
    pub bias: Option<&'a Weight>,
    /// [T, N]: a LoRA delta, before the activation.
    pub add: Option<Tensor>,
    pub act: Activation,
    pub scale: Option<f32>,
    /// [T, N']: may be the same tensor as `out`. Only where no all-reduce follows.
    pub residual: Option<Tensor>,
}

/// Elementwise ops; all compute in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EwOp {
    /// a + b
    Add,
    /// a · b
    Mul,
    /// silu(a) · b
    SiluMul,
    /// gelu_tanh(a) · b
    GeluTanhMul,
    /// a converted to out's type; b is absent
    Cast,
    /// a · s; b is absent
    Scale(f32),
    /// cap · tanh(a / cap); b is absent
    SoftCap(f32),
}

/// How `ScatterRows` combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScatterMode {
    Set,
    Add,
}

/// Which halves of a head rotary embedding pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Dimension i with i + rot/2 (Hugging Face Llama layout).
    Half,
    /// Dimension 2i with 2i + 1 (GPT-J layout).
    Interleaved,
}

/// Rotary embedding of q and k, with the optional per-head norm that some families put before it.
#[derive(Clone, Copy)]
pub struct Rope<'a> {
    /// [T] i32
    pub positions: Tensor,
    /// [positions, rot] f32: per position cos of the rot/2 frequencies, then sin; any attention factor is
    /// already multiplied in. rot ≤ D; dimensions past rot are left alone.
    pub table: &'a Weight,
    pub style: RopeStyle,
    /// RMS norm over each head of q and of k before the rotation (Qwen3): weights [D] and epsilon.
    pub qk_norm: Option<(&'a Weight, &'a Weight, f32)>,
}

/// Where attention reads keys and values.
#[derive(Clone, Copy)]
pub enum Kv<'a> {
    /// The paged cache, through the plan's tables.
    Paged(&'a super::KvLayer),
    /// Fresh k and v [T, Hkv, D] of the same ragged batch (encoders, vision).
    Ragged { k: Tensor, v: Tensor },
}

/// Per-call arguments of attention; what is fixed per kind of layer stands in [`AttnSpec`].
#[derive(Clone, Copy, Default)]
pub struct AttnArgs<'a> {
    /// Multiplies q·k, usually 1/√D.
    pub scale: f32,
    /// cap · tanh(score / cap), before the mask.
    pub soft_cap: Option<f32>,
    /// [Hq] f32: one extra logit per head in the softmax's denominator.
    pub sinks: Option<&'a Weight>,
    /// [Hq] f32 ALiBi slopes.
    pub slopes: Option<&'a Weight>,
    /// [T, Hq] f32: receives log-sum-exp, for `MergeStates`.
    pub lse: Option<Tensor>,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// Keys at positions ≤ its own.
    Causal,
    /// Causal, and only the last `tokens` (its own included).
    Window { tokens: u32 },
    /// All keys of its sequence.
    Full,
}

/// What is fixed about attention of one kind of layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttnSpec {
    /// KV group whose tables it reads.
    pub group: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    /// Head size of q and k.
    pub k_dim: u32,
    /// Head size of v and of the output.
    pub v_dim: u32,
    pub mask: Mask,
    pub q_dtype: DType,
    pub kv_dtype: DType,
    /// Tokens a page.
    pub page_tokens: u32,
}

/// Whether a row computes prompt or generated positions. Kernels are chosen by this, never by `q_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Prompt,
    Generated,
}

/// Upper bounds of one row of a step, known to the host before the device has sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMeta {
    pub q_len: u32,
    /// Keys the row's last query will see, at most.
    pub kv_len_max: u32,
    pub phase: Phase,
}

/// The rows of a step, generated first, prompt after.
#[derive(Clone, Copy, Debug)]
pub struct BatchMeta<'a> {
    pub rows: &'a [RowMeta],
    /// How many of them are `Phase::Generated`.
    pub generated: usize,
}

/// Kind of a KV group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvKind {
    /// Keys and values of every position.
    Full,
    /// Of the last `tokens` positions only; earlier pages are given back.
    Window { tokens: u32 },
    /// One latent vector a position (MLA).
    Latent,
    /// A recurrent state of `bytes` a row, in pages that are zeroed when fresh.
    State { bytes: u64 },
    /// Keys and values of an encoder's output.
    Cross,
}

/// One KV group: layers that share a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroupSpec {
    pub kind: KvKind,
    pub layers: u32,
    pub kv_heads: u32,
    pub k_dim: u32,
    pub v_dim: u32,
    pub dtype: DType,
    pub page_tokens: u32,
}

impl KvGroupSpec {
    /// Bytes one page holds: all layers of the group, keys and values.
    pub fn page_bytes(&self) -> u64 {
        match self.kind {
            KvKind::State { bytes } => bytes * u64::from(self.layers),
            _ => {
                u64::from(self.layers)
                    * u64::from(self.page_tokens)
                    * u64::from(self.kv_heads)
                    * u64::from(self.k_dim + self.v_dim)
                    * self.dtype.size_bytes() as u64
            }
        }
    }
}

/// Where a weight's bytes are.
#[derive(Clone)]
pub enum PartData {
    /// A range of a mapped file or of host memory.
    Mapped(HostBytes),
    /// A range of an open file, to be read straight into pinned memory.
    File { file: Arc<std::fs::File>, at: u64, len: u64 },
    /// Random values, made on the spot.
    Fill(Fill),
}

/// One tensor of a checkpoint that goes into a weight.
#[derive(Clone)]
pub struct HostPart {
    /// Checkpoint name, for messages.
    pub name: String,
    pub data: PartData,
    pub format: WeightFormat,
    /// [N, K]; vectors are [1, K].
    pub shape: [u64; 2],
    /// Scales, zero points, permutations of quantized formats.
    pub aux: Vec<HostAux>,
}

/// A companion tensor of a quantized part.
#[derive(Clone)]
pub struct HostAux {
    pub kind: AuxKind,
    pub data: PartData,
    pub dtype: DType,
    pub shape: [u64; 2],
}

/// What a companion tensor means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuxKind {
    Scales,
    Zeros,
    /// Group of each K index (GPTQ desc_act).
    GroupIndex,
    /// Scale of scales.
    SuperScales,
    /// Static activation scale.
    InputScale,
}

/// How parts become one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Fuse {
    /// There is one part.
    #[default]
    One,
    /// Rows of the parts one after the other (q, k, v).
    Stack,
    /// Two parts, gate and up, for a `SiluMul` epilogue; how they interleave is the backend's.
    GateUp,
    /// Per head, optionally transposed within the head (MLA's kv_b).
    Heads { heads: u32, transpose: Transpose },
}

/// Whether a per-head weight is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transpose {
    No,
    Yes,
}

/// How a weight is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Uses {
    /// By matrix products.
    #[default]
    Linear,
    /// By rows.
    Embed,
    /// Both (tied embeddings): one copy.
    Both,
    /// As a vector or small table (norms, biases, slopes, rope tables).
    Vector,
}

/// Which slice of a weight this rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shard {
    #[default]
    Whole,
    /// Rows (outputs): part `rank` of `world`.
    Rows { rank: u32, world: u32 },
    /// Columns (inputs).
    Cols { rank: u32, world: u32 },
}

/// A weight as the checkpoint has it, ready for `Backend::load_weight`.
#[derive(Clone)]
pub struct HostWeight {
    /// The model's name of the weight, for messages and `doctor`.
    pub name: String,
    pub parts: Vec<HostPart>,
    pub fuse: Fuse,
    pub uses: Uses,
    pub shard: Shard,
    /// Type of the activations that will meet it.
    pub act_dtype: DType,
}

impl HostWeight {
    /// What the weight is once loaded as it stands (no repacking to another format): shape after fusing and
    /// sharding, `bytes` of its dense size, plain activations.
    ///
    /// # Panics
    /// If there is no part: `quant/` never makes such a weight.
    pub fn meta(&self) -> WeightMeta {
        let first = self.parts.first().unwrap_or_else(|| panic!("weight {} has no parts", self.name));
        let (mut n, mut k) = (self.parts.iter().map(|p| p.shape[0]).sum::<u64>(), first.shape[1]);
        let vector = self.uses == Uses::Vector && self.parts.iter().all(|p| p.shape[0] == 1);
        if vector {
            (n, k) = (1, self.parts.iter().map(|p| p.shape[1]).sum());
        }
        match self.shard {
            Shard::Whole => {}
            Shard::Rows { world, .. } if !vector => n /= u64::from(world),
            Shard::Rows { world, .. } | Shard::Cols { world, .. } => k /= u64::from(world),
        }
        if let Fuse::Heads { heads, transpose: Transpose::Yes } = self.fuse {
            let heads = u64::from(heads);
            (n, k) = (heads * k, n / heads);
        }
        // A weight with one quantized part is a quantized weight, whatever its other parts are.
        let format = self.parts.iter().map(|p| p.format).find(|f| !f.is_dense()).unwrap_or(first.format);
        let element = first.format.dense().map_or(1, |d| d.size_bytes() as u64);
        WeightMeta {
            name: self.name.clone(),
            n: n as u32,
            k: k as u32,
            format,
            act: ActFormat::Plain,
            fuse: self.fuse,
            uses: self.uses,
            bytes: n * k * element,
        }
    }
}

/// What a loaded weight is, for those who must not know its layout.
#[derive(Clone, Debug)]
pub struct WeightMeta {
    pub name: String,
    /// [N, K] after fusing and sharding; [1, K] for vectors, the parts one after the other.
    pub n: u32,
    pub k: u32,
    pub format: WeightFormat,
    /// The activation form its kernel reads.
    pub act: ActFormat,
    pub fuse: Fuse,
    pub uses: Uses,
    /// Device memory it takes.
    pub bytes: u64,
}

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemKind {
    /// Device memory.
    Device,
    /// Host memory the device can read (uploads, offload).
    Pinned,
}

/// Which in-order queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    Compute,
    Transfer,
}

/// A group of ranks a collective runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    Tp,
    Ep,
    Pp,
}

/// How a stream joins one group of ranks.
#[derive(Clone, Debug)]
pub struct CommConfig {
    pub group: Group,
    pub rank: u32,
    pub world: u32,
    /// What the ranks agreed on beforehand (an NCCL id, or a process-local name).
    pub rendezvous: Vec<u8>,
}

/// How experts are chosen from router logits.
#[derive(Clone, Copy)]
pub struct RoutingArgs<'a> {
    pub experts_per_token: u32,
    pub scoring: Scoring,
    pub renormalize: Renormalize,
    pub scale: f32,
    /// [E] added to scores for the choice only.
    pub bias: Option<&'a Weight>,
    pub groups: ExpertGroups,
    pub local: LocalExperts,
}

/// Whether the chosen experts' weights are scaled to sum to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renormalize {
    No,
    Yes,
}

/// Experts come in `count` groups, of which the best `eligible` are looked at (1 of 1: no grouping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    pub count: u32,
    pub eligible: u32,
}

/// The experts this rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalExperts {
    pub first: u32,
    pub count: u32,
}

/// Score of an expert from its logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all, then the best k.
    Softmax,
    /// The best k, then softmax over them.
    SoftmaxTopK,
    Sigmoid,
}

/// Where log-probabilities go. All tensors have one row per logits row.
#[derive(Clone, Copy, Debug)]
pub struct LogprobsOut {
    /// [L, 1 + top] i32: the sampled (or given) id, then the best ids, best first, ties to the smaller id.
    pub ids: Tensor,
    /// [L, 1 + top] f32 log-probabilities of the raw logits, in the same order.
    pub values: Tensor,
    /// [L] i32: rank of the sampled id; 1 is the most likely.
    pub ranks: Tensor,
}
