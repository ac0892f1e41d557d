//! [`CpuBackend`]: memory, weights, KV pool and streams of one machine.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use engine_core::backend::{
    AttnPlan, AttnSpec, Backend, Buffer, CaptureLevel, CommConfig, DeviceInfo, HostSlot, HostWeight,
    KvGroupSpec, KvPool, MemInfo, MemKind, OpSpec, QueueKind, Sampler, StepCaps, Stream, Support, Ticket,
    Weight,
};
use engine_core::{DType, Error, Result};

use crate::memory::{Memory, memory_info};
use crate::ops::sampler::SamplerState;
use crate::ops::{attention, gemm, norm, quantized, sample};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::simd::SimdPath;
use crate::stream::{CpuStream, Parts, STAGING_BYTES, Slot};
use crate::threads::Crew;
use crate::{kv, support, topology, weights};

/// Which instruction set to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SimdChoice {
    /// The fastest this machine has.
    #[default]
    Auto,
    /// This one; starting fails where the machine lacks it.
    Forced(SimdPath),
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuConfig {
    /// Workers of a compute stream; by default one per physical core this process may use.
    pub threads: Option<usize>,
    pub simd: SimdChoice,
}

/// The CPU as a device.
pub struct CpuBackend {
    info: DeviceInfo,
    cpus: Vec<Option<usize>>,
    shared: Arc<Shared>,
}

/// What streams share with their backend.
pub(crate) struct Shared {
    pub memory: Arc<Memory>,
    pub path: SimdPath,
    streams: Mutex<Vec<Weak<Progress>>>,
    next: AtomicU32,
}

impl Shared {
    /// Progress of the stream a ticket is from.
    pub fn progress_of(&self, t: Ticket) -> Result<Arc<Progress>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let found = streams.get(t.stream as usize).and_then(Weak::upgrade);
        found.ok_or_else(|| Error::DeviceLost {
            op: "After".into(),
            reason: format!("stream {} is gone", t.stream),
        })
    }
}

/// Most workers that can be asked for.
const MOST_THREADS: usize = 1024;

impl CpuBackend {
    /// Finds out what the machine has. Starts no thread yet: workers belong to streams.
    ///
    /// # Errors
    /// `Config` for zero (or absurdly many) threads or an instruction set the machine lacks.
    pub fn new(config: CpuConfig) -> Result<Self> {
        let cpus = match config.threads {
            None => topology::default_cpus(),
            Some(n) if (1..=MOST_THREADS).contains(&n) => topology::cpus_for(n),
            Some(n) => {
                let text = format!("{n} threads: the CPU backend takes 1 to {MOST_THREADS}");
                return Err(Error::Config(text));
            }
        };
        let path = match config.simd {
            SimdChoice::Auto => SimdPath::detect(),
            SimdChoice::Forced(path) if path.is_available() => path,
            SimdChoice::Forced(path) => {
                let have: Vec<_> = SimdPath::available().into_iter().map(SimdPath::name).collect();
                let text = format!("this CPU has no {}; it has {}", path.name(), have.join(", "));
                return Err(Error::Config(text));
            }
        };
        let shared = Shared {
            memory: Arc::new(Memory::default()),
            path,
            streams: Mutex::new(Vec::new()),
            next: AtomicU32::new(0),
        };
        Ok(CpuBackend { info: info(path, cpus.len()), cpus, shared: Arc::new(shared) })
    }

    /// The instruction set in use.
    pub fn path(&self) -> SimdPath {
        self.shared.path
    }

    /// Where each worker of a compute stream runs; `None` is anywhere.
    pub(crate) fn cpus(&self) -> &[Option<usize>] {
        &self.cpus
    }

    /// Workers of a compute stream.
    pub fn threads(&self) -> usize {
        self.cpus.len()
    }
}

fn info(path: SimdPath, threads: usize) -> DeviceInfo {
    DeviceInfo {
        id: "cpu".into(),
        name: topology::cpu_name(),
        arch: path.name().into(),
        dtypes: vec![DType::Bf16, DType::F32, DType::F16],
        kv_dtypes: vec![DType::Bf16, DType::F16, DType::F32],
        // Small pages waste least; a tile of attention spans four of them at no cost.
        page_tokens: vec![16, 32, 64, 128],
        capture: CaptureLevel::Any,
        graph_row_step: 1,
        default_batched_tokens: 2048,
        default_num_seqs: 64,
        units: threads as u32,
    }
}

fn worker_scratch_bytes(caps: &StepCaps) -> usize {
    let sampling = sample::scratch_bytes(caps.vocab as usize);
    gemm::SCRATCH_BYTES
        .max(quantized::SCRATCH_BYTES)
        .max(attention::SCRATCH_BYTES)
        .max(norm::SCRATCH_BYTES)
        .max(sampling)
}

impl Backend for CpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemInfo> {
        Ok(memory_info())
    }

    fn supports(&self, op: &OpSpec) -> Support {
        support::supports(op)
    }

    fn overhead_bytes(&self, caps: &StepCaps) -> u64 {
        let streams = gemm::WORK_BYTES + 2 * STAGING_BYTES;
        (streams + (self.cpus.len() + 1) * worker_scratch_bytes(caps)) as u64
    }

    fn buffer(&self, shape: &[u32], dtype: DType, _: MemKind) -> Result<Buffer> {
        let elements = shape.iter().map(|s| *s as usize).product::<usize>();
        let what = format!("a buffer {shape:?} {dtype}");
        let hint = "lower --max-num-batched-tokens or --max-num-seqs";
        let region = self.shared.memory.allocate(elements * dtype.size_bytes(), &what, hint)?;
        Ok(Buffer::new(region.tensor(0, shape, dtype), region))
    }

    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        let region = self.shared.memory.allocate(bytes, "a download", "lower --max-num-seqs")?;
        Ok(HostSlot::new(Arc::new(Slot { region, bytes })))
    }

    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        let (meta, loaded) = weights::load(&self.shared.memory, w)?;
        Ok(Weight::new(meta, Arc::new(loaded)))
    }

    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        kv::pool(&self.shared.memory, groups, pages)
    }

    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        support::attention(spec).map_err(Error::Unsupported)?;
        Ok(AttnPlan::new(*spec, 0, Arc::new(Plan::new(spec, caps))))
    }

    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        Ok(Sampler::new(Arc::new(SamplerState::new(&self.shared.memory, caps)?)))
    }

    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        if let Some(comm) = comms.iter().find(|c| c.world > 1) {
            let text = format!("{:?} over {} ranks: the CPU backend runs one rank", comm.group, comm.world);
            return Err(Error::Unsupported(text));
        }
        let cpus = match kind {
            QueueKind::Compute => self.cpus.clone(),
            QueueKind::Transfer => vec![None],
        };
        let memory = &self.shared.memory;
        let hint = "lower --max-num-batched-tokens";
        let progress = Arc::new(Progress::new(cpus.len()));
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let scratch = cpus
            .iter()
            .map(|_| memory.allocate(worker_scratch_bytes(caps), "a worker's scratch memory", hint))
            .collect::<Result<Vec<_>>>()?;
        let name = if kind == QueueKind::Compute { "cpu" } else { "cpu-copy" };
        let crew = Crew::start(&cpus, scratch, self.shared.path, progress.clone(), name)
            .map_err(|e| Error::Config(format!("cannot start {} worker threads: {e}", cpus.len())))?;
        memory.watch(&progress);
        let mut streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = streams.len().max(id as usize + 1);
        streams.resize(count, Weak::new());
        streams[id as usize] = Arc::downgrade(&progress);
        drop(streams);
        Ok(Box::new(CpuStream::new(Parts {
            shared: self.shared.clone(),
            crew,
            progress,
            id,
            arena: memory.allocate(caps.arena_bytes as usize, "the arena", hint)?,
            arena_bytes: caps.arena_bytes,
            work: memory.allocate(gemm::WORK_BYTES, "packed activations", hint)?,
            staging: memory.allocate(STAGING_BYTES, "the upload ring", hint)?,
        })))
    }
}
