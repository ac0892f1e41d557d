//! What a device is and can do, asked at load and never per step.

use super::args::{AttnSpec, Fuse};
use super::op::{Op, OpKind};
use crate::quant::WeightFormat;
use crate::tensor::{DType, Tensor};

/// A device as its backend found it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`, ...
    pub id: String,
    /// What the vendor calls it.
    pub name: String,
    /// Instruction set or architecture the kernels use (`avx512-bf16`, `sm_90a`, `gfx942`).
    pub arch: String,
    /// Activation types, best first.
    pub dtypes: Vec<DType>,
    /// KV cache types.
    pub kv_dtypes: Vec<DType>,
    /// Page sizes in tokens, preferred first.
    pub page_tokens: Vec<u32>,
    /// Whether graphs are worth capturing.
    pub capture: CaptureLevel,
    /// Row counts to capture decode graphs for are multiples of this (1: every count).
    pub graph_row_step: u32,
    /// Token budget of a step when the operator gives none.
    pub default_batched_tokens: u32,
    /// Rows when the operator gives none.
    pub default_num_seqs: u32,
    /// Threads or multiprocessors.
    pub units: u32,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInfo {
    pub total_bytes: u64,
    /// Free now, other processes counted.
    pub free_bytes: u64,
}

/// The largest step a stream must serve: every buffer, workspace and graph is sized from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepCaps {
    /// Row slots (R): `--max-num-seqs`.
    pub rows: u32,
    /// Tokens of a step (T): `--max-num-batched-tokens`.
    pub tokens: u32,
    /// Logits rows the head makes at once (L).
    pub logit_rows: u32,
    /// Pages of the longest row.
    pub pages_per_row: u32,
    /// KV groups (G).
    pub groups: u32,
    /// Vocabulary (V).
    pub vocab: u32,
    /// Most best ids returned per position.
    pub logprobs: u32,
    /// Most draft tokens a generated row verifies in one step.
    pub drafts: u32,
    /// Bytes of the bump arena that `Stream::scratch` draws from.
    pub arena_bytes: u64,
    pub invariance: Invariance,
}

/// Whether a row's bits may depend on its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariance {
    /// Never: the same bits alone and among others.
    Batch,
    /// They may, where it is faster.
    None,
}

/// How far steps can be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaptureLevel {
    /// Run eagerly.
    Never,
    /// Steps in which every row has the same number of query tokens.
    Uniform,
    /// Any step of a fixed number of rows and tokens.
    Any,
}

/// Answer to `Backend::supports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// One kernel of its own.
    Native { workspace_bytes: u64, capture: CaptureLevel },
    /// Split into required ops by `compose::lower`.
    Composed,
    /// Not here; the text says why and what would work.
    No(String),
}

impl Support {
    /// Native, without private workspace, at any capture level.
    pub const NATIVE: Support = Support::Native { workspace_bytes: 0, capture: CaptureLevel::Any };
}

/// An op without its operands: what `supports` is asked about.
#[derive(Clone, Debug, PartialEq)]
pub struct OpSpec {
    pub kind: OpKind,
    /// Types of the main input, second input and output, as far as there are such.
    pub x: Option<DType>,
    pub y: Option<DType>,
    pub out: Option<DType>,
    /// Rows of the main input (T, S or L).
    pub rows: u32,
    /// Weight it reads: format and [N, K].
    pub weight: Option<(WeightFormat, [u32; 2], Fuse)>,
    pub attention: Option<AttnSpec>,
}

impl OpSpec {
    /// A spec with only a kind; the rest is filled in by `From<&Op>`.
    pub fn of(kind: OpKind) -> Self {
        OpSpec { kind, x: None, y: None, out: None, rows: 0, weight: None, attention: None }
    }
}

impl From<&Op<'_>> for OpSpec {
    fn from(op: &Op<'_>) -> Self {
        let mut spec = OpSpec::of(op.kind());
        let (x, y, out) = op.main_tensors();
        spec.x = x.map(|t| t.dtype());
        spec.y = y.map(|t| t.dtype());
        spec.out = out.map(|t| t.dtype());
        spec.rows = x.map_or(0, |t: Tensor| t.rows() as u32);
        spec.weight = op.weight().map(|w| (w.meta().format, [w.meta().n, w.meta().k], w.meta().fuse));
        spec.attention = op.plan().map(|p| *p.spec());
        spec
    }
}
