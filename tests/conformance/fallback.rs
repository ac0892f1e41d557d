//! `HostFallback` over a device that refuses one op at a time: all cases of the op still hold.

use std::sync::Arc;

use backend_cpu::reference::ReferenceBackend;
use engine_core::DType;
use engine_core::Result;
use engine_core::backend::host_fallback::HostFallback;
use engine_core::backend::{
    AttnPlan, AttnSpec, Backend, Buffer, CommConfig, DeviceInfo, HostSlot, HostWeight, KvGroupSpec, KvPool,
    MemInfo, MemKind, OpKind, OpSpec, QueueKind, Sampler, StepCaps, Stream, Support, Weight,
};

use super::check::{Verdict, check};
use super::{Device, cases};

/// Runs the cases of `op` on the CPU with `op` taken away.
///
/// # Panics
/// If one is wrong, or the op did not run on the reference.
pub fn without(cpu: Arc<dyn Backend>, op: OpKind) {
    let device: Arc<dyn Backend> = Arc::new(Refusing { inner: cpu, op });
    let fallback = Arc::new(HostFallback::new(device, Arc::new(ReferenceBackend::new())));
    let device = Device::new(format!("cpu without {}", op.name()), "cpu", fallback.clone());
    for (name, verdict) in check(&device, &cases(op)).verdicts {
        assert!(
            !matches!(verdict, Verdict::Wrong(_) | Verdict::No(_)),
            "{}: {name}: {verdict:?}",
            device.name
        );
    }
    assert!(fallback.counts().get(&op).is_some_and(|count| *count > 0), "{}: never fell back", device.name);
}

/// A device that lost one op.
struct Refusing {
    inner: Arc<dyn Backend>,
    op: OpKind,
}

impl Backend for Refusing {
    fn supports(&self, op: &OpSpec) -> Support {
        match op.kind == self.op {
            true => Support::No(format!("{} was taken away", op.kind.name())),
            false => self.inner.supports(op),
        }
    }
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn memory(&self) -> Result<MemInfo> {
        self.inner.memory()
    }
    fn overhead_bytes(&self, caps: &StepCaps) -> u64 {
        self.inner.overhead_bytes(caps)
    }
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer> {
        self.inner.buffer(shape, dtype, kind)
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        self.inner.host_slot(bytes)
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        self.inner.load_weight(w)
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        self.inner.kv_pool(groups, pages)
    }
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        self.inner.attn_plan(spec, caps)
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        self.inner.sampler(caps)
    }
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        self.inner.stream(kind, caps, comms)
    }
}
