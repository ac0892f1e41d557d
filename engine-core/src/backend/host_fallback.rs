//! [`HostFallback`]: runs the ops a device answers `No` to on a reference backend, with copies each way.
//!
//! For bringing up a backend one op at a time: everything works from the first day, slowly. It counts and logs what
//! it had to run elsewhere. Weights are loaded on the reference too, the first time an op there needs them. What lives
//! in a layout private to one backend stays on one side as a whole: the cache and its attention are the reference's
//! when the device refuses any op of them, and so is the sampler. Nothing is captured: a graph cannot hold a detour
//! over the host.

mod translate;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    AttnPlan, AttnSpec, Backend, BatchMeta, CaptureLevel, CommConfig, DeviceInfo, Graph, HostSlot,
    HostWeight, KvGroupSpec, KvLayer, KvPool, Op, OpKind, OpSpec, Pending, QueueKind, Sampler, StepCaps,
    Stream, Support, Weight, compose,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::{forward_backend, forward_stream};
use translate::{Translation, operands};

/// A device whose missing ops run on another.
pub struct HostFallback {
    device: Arc<dyn Backend>,
    reference: Arc<dyn Backend>,
    shared: Arc<Shared>,
    info: DeviceInfo,
}

/// Ops that read or write the cache, in a layout private to its backend.
const CACHE_OPS: [OpKind; 5] =
    [OpKind::PlanOnDevice, OpKind::RopeKvWrite, OpKind::PagedAttention, OpKind::AttendNew, OpKind::CopyPages];
/// Ops of the sampler's state.
const SAMPLER_OPS: [OpKind; 2] = [OpKind::UpdateSampler, OpKind::Sample];

impl HostFallback {
    /// `device`, completed by `reference`.
    pub fn new(device: Arc<dyn Backend>, reference: Arc<dyn Backend>) -> Self {
        let refuses = |kinds: &[OpKind]| {
            kinds.iter().any(|kind| matches!(device.supports(&OpSpec::of(*kind)), Support::No(_)))
        };
        let shared = Shared {
            cache_on_host: refuses(&CACHE_OPS),
            sampler_on_host: refuses(&SAMPLER_OPS),
            weights: Mutex::default(),
            counts: Mutex::default(),
        };
        let info = DeviceInfo { capture: CaptureLevel::Never, ..device.info().clone() };
        HostFallback { device, reference, shared: Arc::new(shared), info }
    }

    /// How often each op ran on the reference so far.
    pub fn counts(&self) -> BTreeMap<OpKind, u64> {
        lock(&self.shared.counts).clone()
    }

    fn cache_side(&self) -> &Arc<dyn Backend> {
        if self.shared.cache_on_host { &self.reference } else { &self.device }
    }
}

struct Shared {
    cache_on_host: bool,
    sampler_on_host: bool,
    /// By the address of the device's representation: what to load on the reference, and that once loaded.
    weights: Mutex<BTreeMap<usize, Twin>>,
    counts: Mutex<BTreeMap<OpKind, u64>>,
}

struct Twin {
    /// Keeps the address taken.
    _device: Arc<dyn Any + Send + Sync>,
    host: HostWeight,
    loaded: Option<Weight>,
}

impl Shared {
    /// Whether the state an op works on lives on the reference.
    fn on_host(&self, kind: OpKind) -> bool {
        (self.cache_on_host && CACHE_OPS.contains(&kind))
            || (self.sampler_on_host && SAMPLER_OPS.contains(&kind))
    }

    fn twin(&self, w: &Weight, reference: &dyn Backend) -> Result<Weight> {
        let mut weights = lock(&self.weights);
        let Some(twin) = weights.get_mut(&address(&w.shared())) else {
            return Err(Error::Unsupported(format!(
                "weight {} was not loaded through this backend",
                w.meta().name
            )));
        };
        if twin.loaded.is_none() {
            twin.loaded = Some(reference.load_weight(twin.host.clone())?);
        }
        twin.loaded.clone().ok_or_else(|| Error::Unsupported("a weight that was just loaded is gone".into()))
    }

    fn count(&self, kind: OpKind, why: &str) {
        let mut counts = lock(&self.counts);
        let count = counts.entry(kind).or_default();
        *count += 1;
        if *count == 1 {
            tracing::warn!(op = kind.name(), why, "runs on the host reference, with copies each way");
        }
    }
}

impl Backend for HostFallback {
    forward_backend!(device: memory overhead_bytes buffer host_slot);
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn supports(&self, op: &OpSpec) -> Support {
        let on_host = Support::Native { workspace_bytes: 0, capture: CaptureLevel::Never };
        if self.shared.on_host(op.kind) {
            return match self.reference.supports(op) {
                Support::Native { .. } => on_host,
                other => other,
            };
        }
        match self.device.supports(op) {
            Support::No(why) => match self.reference.supports(op) {
                Support::Native { .. } => on_host,
                Support::Composed => Support::Composed,
                Support::No(_) => Support::No(why),
            },
            own => own,
        }
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        let weight = self.device.load_weight(w.clone())?;
        let device = weight.shared();
        let twin = Twin { _device: device.clone(), host: w, loaded: None };
        lock(&self.shared.weights).insert(address(&device), twin);
        Ok(weight)
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        self.cache_side().kv_pool(groups, pages)
    }
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        self.cache_side().attn_plan(spec, caps)
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        if self.shared.sampler_on_host { self.reference.sampler(caps) } else { self.device.sampler(caps) }
    }
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        Ok(Box::new(FallbackStream {
            device: self.device.stream(kind, caps, comms)?,
            host: self.reference.stream(QueueKind::Compute, caps, &[])?,
            device_backend: self.device.clone(),
            reference: self.reference.clone(),
            shared: self.shared.clone(),
        }))
    }
}

struct FallbackStream {
    device: Box<dyn Stream>,
    host: Box<dyn Stream>,
    device_backend: Arc<dyn Backend>,
    reference: Arc<dyn Backend>,
    shared: Arc<Shared>,
}

impl FallbackStream {
    /// Copies the op's tensors to the reference, runs it there, copies them back.
    fn on_host(&mut self, op: &Op<'_>, why: &str) -> Result<()> {
        let kind = op.kind();
        let Some(operands) = operands(op) else {
            return Err(Error::Unsupported(format!(
                "op {}: {why}; the host fallback does not know it",
                kind.name()
            )));
        };
        self.shared.count(kind, why);
        let translation =
            Translation::new(&operands, &*self.reference, |w| self.shared.twin(w, &*self.reference))?;
        for (on_device, on_host) in translation.regions() {
            self.copy_to_host(on_device, on_host)?;
        }
        // The reference may refuse it in turn (a type it does not know); its reason is then the answer.
        self.host.op(&translation.translate(op))?;
        for (on_device, on_host) in translation.regions() {
            self.copy_to_device(on_host, on_device)?;
        }
        Ok(())
    }

    fn copy_to_host(&mut self, from: Tensor, to: Tensor) -> Result<()> {
        let slot = self.device_backend.host_slot(from.extent_bytes() as usize)?;
        let pending = self.device.download(from, slot)?;
        let slot = self.device.wait(pending)?;
        self.host.upload(&slot.bytes()[..from.extent_bytes() as usize], to)
    }

    fn copy_to_device(&mut self, from: Tensor, to: Tensor) -> Result<()> {
        let slot = self.reference.host_slot(from.extent_bytes() as usize)?;
        let pending = self.host.download(from, slot)?;
        let slot = self.host.wait(pending)?;
        self.device.upload(&slot.bytes()[..from.extent_bytes() as usize], to)
    }

    /// The stream that a cache lives on.
    fn cache_stream(&mut self) -> &mut dyn Stream {
        if self.shared.cache_on_host { &mut *self.host } else { &mut *self.device }
    }
}

impl Stream for FallbackStream {
    forward_stream!(device: scratch mark release upload download wait record after control write_weight);
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        let spec = OpSpec::from(op);
        let answer = match self.shared.on_host(spec.kind) {
            true => match self.reference.supports(&spec) {
                Support::Composed => Support::Composed,
                _ => Support::No("its state lives with the reference".into()),
            },
            false => self.device_backend.supports(&spec),
        };
        match answer {
            Support::Native { .. } => self.device.op(op),
            // Lowered here, so that each part can go its own way.
            Support::Composed => compose::lower(self, op),
            Support::No(why) => match self.reference.supports(&spec) {
                Support::Composed => compose::lower(self, op),
                _ => self.on_host(op, &why),
            },
        }
    }
    fn plan(&mut self, p: &AttnPlan, b: &BatchMeta<'_>, into: &mut [u8]) -> Result<()> {
        self.cache_stream().plan(p, b, into)
    }
    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending> {
        self.refuse_page_copies()?;
        self.device.pages_out(kv, pages, into)
    }
    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending> {
        self.refuse_page_copies()?;
        self.device.pages_in(kv, pages, from)
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        Ok(CaptureLevel::Never)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        panic!("capture_end: capture_begin of a stream with host fallback says Never")
    }
    fn capture_abort(&mut self) {}
    fn replay(&mut self, _: &Graph) -> Result<()> {
        panic!("replay: a stream with host fallback makes no graphs")
    }
}

impl FallbackStream {
    /// Slots and pendings are the device's; a cache on the host cannot fill them.
    fn refuse_page_copies(&self) -> Result<()> {
        match self.shared.cache_on_host {
            false => Ok(()),
            true => Err(Error::Unsupported("page copies while the cache lives on the host fallback".into())),
        }
    }
}

/// Identity of a handle's representation.
fn address(inner: &Arc<dyn Any + Send + Sync>) -> usize {
    Arc::as_ptr(inner).cast::<()>() as usize
}

/// Maps and counts stay usable after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
