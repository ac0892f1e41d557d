//! [`ReferenceBackend`]: the functions of the reference behind the seam. Runs everything when it is enqueued; captures
//! a list of tasks. Slow on purpose: it is the oracle of the conformance tests and the device `HostFallback` runs
//! missing ops on.

use std::any::Any;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use engine_core::backend::{
    AttnPlan, AttnSpec, Backend, BatchMeta, Buffer, CaptureLevel, CommConfig, Control, DeviceInfo, Graph,
    HostSlot, HostWeight, KvGroupSpec, KvKind, KvLayer, KvPool, Mark, MemInfo, MemKind, Op, OpKind, OpSpec,
    Pending, QueueKind, Sampler, StepCaps, Stream, Support, Ticket, Weight, compose,
};
use engine_core::{DType, Error, Result, Tensor};

use super::bind::{Bound, Pool, Slots, Task, bind};
use super::memory::{HostVec, Region, Registry, lock};
use super::sample::SlotState;
use super::weights;

const ALIGN_BYTES: u64 = engine_core::backend::null::ALIGN_BYTES;

/// The reference as a device.
pub struct ReferenceBackend {
    info: DeviceInfo,
    memory: Arc<Registry>,
    streams: AtomicU32,
}

impl ReferenceBackend {
    /// A device of its own memory.
    pub fn new() -> Self {
        let floats = vec![DType::F32, DType::Bf16, DType::F16];
        ReferenceBackend {
            info: DeviceInfo {
                id: "reference".into(),
                name: "scalar reference".into(),
                arch: "f32".into(),
                dtypes: floats.clone(),
                kv_dtypes: floats,
                page_tokens: vec![16],
                capture: CaptureLevel::Any,
                graph_row_step: 1,
                default_batched_tokens: 512,
                default_num_seqs: 16,
                units: 1,
            },
            memory: Arc::default(),
            streams: AtomicU32::new(0),
        }
    }
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        ReferenceBackend::new()
    }
}

impl Backend for ReferenceBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> Result<MemInfo> {
        Ok(MemInfo { total_bytes: 1 << 40, free_bytes: 1 << 40 })
    }
    fn supports(&self, op: &OpSpec) -> Support {
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
            | OpKind::QuantizedMatmul
            | OpKind::Norm
            | OpKind::LayerNorm
            | OpKind::Elementwise
            | OpKind::RopeKvWrite
            | OpKind::PagedAttention
            | OpKind::MergeStates
            | OpKind::TopK
            | OpKind::UpdateSampler
            | OpKind::Sample
            | OpKind::LogProbs
            | OpKind::AllReduce
            | OpKind::AllGather
            | OpKind::ReduceScatter => Support::NATIVE,
            OpKind::NormLinear | OpKind::AttendNew | OpKind::AllReduceNorm => Support::Composed,
            other => Support::No(format!("the reference does not specify {} yet", other.name())),
        }
    }
    fn overhead_bytes(&self, _: &StepCaps) -> u64 {
        0
    }
    fn buffer(&self, shape: &[u32], dtype: DType, _: MemKind) -> Result<Buffer> {
        let bytes = Tensor::from_raw(0, 0, 0, shape, dtype).extent_bytes();
        let (mem, region) = self.memory.allocate(bytes);
        Ok(Buffer::new(Tensor::from_raw(mem, 0, 0, shape, dtype), region))
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        Ok(HostSlot::new(Arc::new(HostVec(vec![0; bytes]))))
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        Ok(Weight::new(w.meta(), Arc::new(weights::load(&w)?)))
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        if let Some(group) = groups.iter().find(|g| !matches!(g.kind, KvKind::Full | KvKind::Window { .. })) {
            return Err(Error::Unsupported(format!(
                "the reference has no KV groups of kind {:?}",
                group.kind
            )));
        }
        let page_bytes = groups.iter().map(KvGroupSpec::page_bytes).max().unwrap_or(0);
        let bytes = Mutex::new(vec![0; (page_bytes * u64::from(pages)) as usize]);
        let pool = Arc::new(Pool { bytes, page_bytes: page_bytes as usize, specs: groups.to_vec() });
        let layers = |(g, spec): (usize, &KvGroupSpec)| {
            (0..spec.layers).map(|layer| KvLayer::new(g as u32, layer, pool.clone())).collect()
        };
        let groups_of_layers = groups.iter().enumerate().map(layers).collect();
        Ok(KvPool { groups: groups_of_layers, specs: groups.to_vec(), pages, page_bytes, layout: 1 })
    }
    fn attn_plan(&self, spec: &AttnSpec, _: &StepCaps) -> Result<AttnPlan> {
        Ok(AttnPlan::new(*spec, 0, Arc::new(Mutex::new(Bound::default()))))
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        let slots: Slots = Mutex::new(vec![SlotState::default(); caps.rows as usize]);
        Ok(Sampler::new(Arc::new(slots)))
    }
    fn stream(&self, _: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        if let Some(comm) = comms.iter().find(|c| c.world > 1) {
            let text = format!("{:?} over {} ranks: the reference runs one rank", comm.group, comm.world);
            return Err(Error::Unsupported(text));
        }
        let (mem, arena) = self.memory.allocate(caps.arena_bytes);
        Ok(Box::new(ReferenceStream {
            id: self.streams.fetch_add(1, Ordering::Relaxed),
            memory: self.memory.clone(),
            mem,
            _arena: arena,
            capacity_bytes: caps.arena_bytes,
            height_bytes: 0,
            recording: None,
            control: Arc::default(),
        }))
    }
}

struct ReferenceStream {
    id: u32,
    memory: Arc<Registry>,
    mem: u32,
    _arena: Arc<Region>,
    capacity_bytes: u64,
    height_bytes: u64,
    recording: Option<Vec<Task>>,
    control: Arc<ReferenceControl>,
}

impl ReferenceStream {
    fn ticket(&self) -> Ticket {
        Ticket { stream: self.id, at: self.control.completed.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Copies between pages of some layers and a slot: for each page, each layer's bytes.
    fn exchange(&self, kv: &[KvLayer], pages: &[u32], mut slot: HostSlot, out: Exchange) -> Pending {
        let host = host_bytes(&mut slot);
        let mut at = 0;
        for page in pages {
            for layer in kv {
                let pool = layer.inner::<Pool>();
                let spec = &pool.specs[layer.group() as usize];
                let bytes = (spec.page_bytes() / u64::from(spec.layers)) as usize;
                let start = *page as usize * pool.page_bytes + layer.layer() as usize * bytes;
                let cached = &mut lock(&pool.bytes)[start..start + bytes];
                let hosted = &mut host[at..at + bytes];
                match out {
                    Exchange::Out => hosted.copy_from_slice(cached),
                    Exchange::In => cached.copy_from_slice(hosted),
                }
                at += bytes;
            }
        }
        Pending::new(self.ticket(), slot)
    }
}

#[derive(Clone, Copy)]
enum Exchange {
    Out,
    In,
}

impl Stream for ReferenceStream {
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        let tensor = Tensor::from_raw(self.mem, 0, self.height_bytes, shape, dtype);
        let height = (self.height_bytes + tensor.extent_bytes()).next_multiple_of(ALIGN_BYTES);
        assert!(
            height <= self.capacity_bytes,
            "the arena of {} bytes is full: {shape:?}",
            self.capacity_bytes
        );
        self.height_bytes = height;
        tensor
    }
    fn mark(&mut self) -> Mark {
        Mark(self.height_bytes)
    }
    fn release(&mut self, m: Mark) {
        self.height_bytes = m.0;
    }
    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()> {
        self.memory.view(dst).write(src);
        Ok(())
    }
    fn download(&mut self, src: Tensor, mut into: HostSlot) -> Result<Pending> {
        let bytes = self.memory.view(src).read();
        host_bytes(&mut into)[..bytes.len()].copy_from_slice(&bytes);
        Ok(Pending::new(self.ticket(), into))
    }
    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
        match &*lock(&self.control.aborted) {
            Some(reason) => Err(Error::DeviceLost { op: "wait".into(), reason: reason.clone() }),
            None => Ok(p.into_slot()),
        }
    }
    fn record(&mut self) -> Result<Ticket> {
        Ok(self.ticket())
    }
    fn after(&mut self, _: Ticket) -> Result<()> {
        Ok(())
    }
    fn control(&self) -> Arc<dyn Control> {
        self.control.clone()
    }
    fn plan(&mut self, _: &AttnPlan, _: &BatchMeta<'_>, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn write_weight(&mut self, w: &Weight, _: u32, _: &HostWeight) -> Result<()> {
        Err(Error::Unsupported(format!("the reference does not rewrite weights ({})", w.meta().name)))
    }
    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending> {
        Ok(self.exchange(kv, pages, into, Exchange::Out))
    }
    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending> {
        Ok(self.exchange(kv, pages, from, Exchange::In))
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        let Some(task) = bind(&self.memory, op) else { return compose::lower(self, op) };
        *lock(&self.control.last_op) = op.kind().name();
        match &mut self.recording {
            Some(tasks) => tasks.push(task),
            None => task(),
        }
        Ok(())
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        self.recording = Some(Vec::new());
        Ok(CaptureLevel::Any)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        let tasks = self.recording.take().unwrap_or_else(|| panic!("capture_end without capture_begin"));
        Ok(Graph::new(CaptureLevel::Any, Arc::new(tasks)))
    }
    fn capture_abort(&mut self) {
        self.recording = None;
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        g.inner::<Vec<Task>>().iter().for_each(|task| task());
        Ok(())
    }
}

fn host_bytes(slot: &mut HostSlot) -> &mut Vec<u8> {
    let memory = slot.exclusive().and_then(|m| (m as &mut dyn Any).downcast_mut::<HostVec>());
    &mut memory.unwrap_or_else(|| panic!("this host slot is shared or of another backend")).0
}

#[derive(Default)]
struct ReferenceControl {
    completed: AtomicU64,
    last_op: Mutex<&'static str>,
    aborted: Mutex<Option<String>>,
}

impl Control for ReferenceControl {
    fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }
    fn last_op(&self) -> String {
        (*lock(&self.last_op)).to_owned()
    }
    fn abort(&self, reason: &str) {
        *lock(&self.aborted) = Some(reason.into());
    }
}
