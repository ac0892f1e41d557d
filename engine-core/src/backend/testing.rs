//! A device for the wrappers' own tests: does nothing, and answers `supports` as told.
#![allow(clippy::unwrap_used)]

use super::null::NullBackend;
use super::*;
use crate::loader::HostBytes;
use crate::quant::WeightFormat;

/// Composes some ops, refuses others, claims the rest as native.
pub struct Picky {
    null: NullBackend,
    composed: &'static [OpKind],
    refused: &'static [OpKind],
}

impl Picky {
    /// Private workspace it claims for every native op.
    pub const WORKSPACE_BYTES: u64 = 4096;

    pub fn new(composed: &'static [OpKind], refused: &'static [OpKind]) -> Self {
        Picky { null: NullBackend::default(), composed, refused }
    }
}

impl Backend for Picky {
    fn supports(&self, op: &OpSpec) -> Support {
        if self.refused.contains(&op.kind) {
            return Support::No(format!("this device refuses {}", op.kind.name()));
        }
        match self.composed.contains(&op.kind) {
            true => Support::Composed,
            false => Support::Native { workspace_bytes: Self::WORKSPACE_BYTES, capture: CaptureLevel::Any },
        }
    }
    fn info(&self) -> &DeviceInfo {
        self.null.info()
    }
    fn memory(&self) -> Result<MemInfo> {
        self.null.memory()
    }
    fn overhead_bytes(&self, caps: &StepCaps) -> u64 {
        self.null.overhead_bytes(caps)
    }
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer> {
        self.null.buffer(shape, dtype, kind)
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        self.null.host_slot(bytes)
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        self.null.load_weight(w)
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        self.null.kv_pool(groups, pages)
    }
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        self.null.attn_plan(spec, caps)
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        self.null.sampler(caps)
    }
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        self.null.stream(kind, caps, comms)
    }
}

pub fn caps() -> StepCaps {
    StepCaps {
        rows: 4,
        tokens: 16,
        logit_rows: 4,
        pages_per_row: 4,
        groups: 1,
        vocab: 100,
        logprobs: 2,
        drafts: 0,
        arena_bytes: 1 << 20,
        invariance: Invariance::Batch,
    }
}

/// A dense f32 weight [n, k] of zeros.
pub fn weight(backend: &dyn Backend, n: u64, k: u64) -> Weight {
    let part = HostPart {
        name: "w".into(),
        data: PartData::Mapped(HostBytes::from(vec![0; (n * k * 4) as usize])),
        format: WeightFormat::Dense(DType::F32),
        shape: [n, k],
        aux: Vec::new(),
    };
    let (fuse, uses, shard) = (Fuse::One, Uses::Linear, Shard::Whole);
    backend
        .load_weight(HostWeight {
            name: "w".into(),
            parts: vec![part],
            fuse,
            uses,
            shard,
            act_dtype: DType::F32,
        })
        .unwrap()
}
