//! [`CudaStream`]: the run-time surface. Every op is a kernel or two on one CUDA stream; nothing waits but `wait`.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::sys;
use engine_core::backend::{
    Act, AttnPlan, BatchMeta, CaptureLevel, Control, Graph, HostSlot, HostWeight, Invariance, KvLayer, Mark,
    Op, Pending, QueueKind, StepCaps, Stream, Ticket, Weight, compose,
};
use engine_core::{DType, Error, Result, Tensor};

use super::blas::Blas;
use super::device::{CudaPool, Shared};
use super::driver::{Event, Pinned, Queue, check};
use super::gpu::Gpu;
use super::graph::CudaGraph;
use super::mem::{ALIGN_BYTES, Region, Slot, lock};
use super::plan::{CudaPlan, HostMeta};
use super::weights::{self, CudaWeight};

/// Uploads that may be under way before the oldest is waited for.
const UPLOADS: usize = 8;
/// Blocks that may share one row of sampling.
pub const SAMPLE_SPLITS: u32 = 32;
/// Tickets remembered before completed ones are dropped.
const MOST_TICKETS: usize = 64;

/// One in-order queue.
pub struct CudaStream {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Queue,
    pub(crate) invariance: Invariance,
    pub(crate) blas: Library,
    /// Product before its gate, grown on demand.
    pub(crate) temporary: Arc<Region>,
    pub(crate) temporary_bytes: u64,
    /// Partial results and arrival counters of sampling.
    pub(crate) sample_partial: Arc<Region>,
    pub(crate) sample_arrivals: Arc<Region>,
    pub(crate) sample_rows: u32,
    id: u32,
    mem: u32,
    arena: Arc<Region>,
    capacity_bytes: u64,
    height_bytes: u64,
    uploads: Vec<Upload>,
    next_upload: usize,
    recording: Option<Vec<Arc<dyn Any + Send + Sync>>>,
    control: Arc<CudaControl>,
}

/// cuBLASLt, opened by the first product that wants it.
pub(crate) enum Library {
    Unopened,
    Absent,
    Open(Blas),
}

/// One page-locked buffer of the upload ring.
struct Upload {
    memory: Option<Pinned>,
    sent: Event,
}

impl CudaStream {
    /// A queue with its arena and private memory.
    pub fn new(shared: Arc<Shared>, id: u32, kind: QueueKind, caps: &StepCaps) -> Result<Self> {
        let gpu = &shared.gpu;
        gpu.bind()?;
        let arena = Region::new(gpu, caps.arena_bytes, "the arena of a step (--max-num-batched-tokens)")?;
        let invariance = shared.invariance(caps);
        let compute = kind == QueueKind::Compute;
        let wanted = compute && invariance == Invariance::None;
        let blas = if wanted { Library::Unopened } else { Library::Absent };
        let sample_rows = caps.rows.max(caps.logit_rows).max(engine_core::limits::LOGIT_ROWS_CHUNK);
        let per_token = shared.gated_bytes.load(Ordering::Relaxed);
        let temporary_bytes = if wanted { per_token * u64::from(caps.tokens.min(4_096)) } else { 0 };
        let control = Arc::new(CudaControl::new(gpu.clone()));
        lock(&shared.controls).insert(id, Arc::downgrade(&control));
        let uploads = (0..UPLOADS).map(|_| Ok(Upload { memory: None, sent: Event::new()? }));
        Ok(CudaStream {
            queue: Queue::new()?,
            invariance,
            blas,
            temporary: Region::new(gpu, temporary_bytes, "products before their gate")?,
            temporary_bytes,
            sample_partial: Region::new(gpu, u64::from(sample_rows * SAMPLE_SPLITS) * 8, "sampling")?,
            sample_arrivals: Region::new(gpu, u64::from(sample_rows) * 4, "sampling")?,
            sample_rows,
            id,
            mem: shared.registry.add(&arena),
            arena,
            capacity_bytes: caps.arena_bytes,
            height_bytes: 0,
            uploads: uploads.collect::<Result<_>>()?,
            next_upload: 0,
            recording: None,
            control,
            shared,
        })
    }

    /// The device address of a tensor; a graph under capture keeps its memory alive.
    pub(crate) fn at(&mut self, t: Tensor) -> u64 {
        let (region, at) = self.shared.registry.resolve(t);
        if self.recording.is_some() {
            self.hold(region);
        }
        at
    }

    /// The address of an optional tensor, 0 for none.
    pub(crate) fn at_or_null(&mut self, t: Option<Tensor>) -> u64 {
        t.map_or(0, |t| self.at(t))
    }

    /// A weight's device side, held by a graph under capture.
    pub(crate) fn weight<'w>(&mut self, w: &'w Weight) -> &'w CudaWeight {
        if self.recording.is_some() {
            self.hold(w.shared());
        }
        weights::inner(w)
    }

    /// The address of an optional vector, 0 for none.
    pub(crate) fn vector(&mut self, w: Option<&Weight>) -> u64 {
        w.map_or(0, |w| self.weight(w).region.address())
    }

    /// Keeps `what` alive as long as the graph under capture.
    pub(crate) fn hold(&mut self, what: Arc<dyn Any + Send + Sync>) {
        if let Some(held) = &mut self.recording
            && !held.iter().rev().take(64).any(|h| Arc::ptr_eq(h, &what))
        {
            held.push(what);
        }
    }

    /// Enqueues one kernel.
    pub(crate) fn launch<P: Copy>(
        &self,
        name: &str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        self.shared.gpu.launch(self.queue.0, name, grid, threads, shared_bytes, params)
    }

    /// cuBLASLt, unless this machine or this stream goes without.
    pub(crate) fn blas(&mut self) -> Result<Option<&mut Blas>> {
        if matches!(self.blas, Library::Unopened) {
            self.blas = match Blas::open(&self.shared.gpu)? {
                Some(blas) => Library::Open(blas),
                None => Library::Absent,
            };
            if let Library::Open(blas) = &self.blas {
                let workspace = blas.workspace().clone();
                self.hold(workspace);
            }
        }
        Ok(match &mut self.blas {
            Library::Open(blas) => Some(blas),
            _ => None,
        })
    }

    /// A temporary of at least `bytes`.
    pub(crate) fn temporary(&mut self, bytes: u64) -> Result<u64> {
        if bytes > self.temporary_bytes {
            self.temporary = Region::new(&self.shared.gpu, bytes, "products before their gate")?;
            self.temporary_bytes = bytes;
        }
        self.hold(self.temporary.clone());
        Ok(self.temporary.address())
    }

    /// An event after everything enqueued so far, findable by its ticket.
    fn ticket(&mut self) -> Result<Ticket> {
        let at = self.control.mark(self.queue.0)?;
        Ok(Ticket { stream: self.id, at })
    }

    /// The event of a ticket; `None` when it has completed.
    fn event(&self, ticket: Ticket) -> Option<Arc<Event>> {
        if ticket.stream == self.id {
            return self.control.event(ticket.at);
        }
        let controls = lock(&self.shared.controls);
        controls.get(&ticket.stream).and_then(Weak::upgrade)?.event(ticket.at)
    }

    fn fault(&self, e: Error) -> Error {
        match e {
            Error::DeviceLost { op, reason } => Error::DeviceLost {
                op: format!("{op} (last op started: {})", self.control.last_op()),
                reason,
            },
            other => other,
        }
    }

    /// Copies between pages of some layers and a slot: for each page, each layer's bytes.
    fn exchange(&mut self, kv: &[KvLayer], pages: &[u32], slot: HostSlot, way: Way) -> Result<Pending> {
        let host = slot_memory(&slot).0.address();
        let mut at = 0;
        for page in pages {
            for layer in kv {
                let pool = layer.inner::<CudaPool>();
                let bytes = CudaPool::layer_bytes(&pool.specs[layer.group() as usize]) as usize;
                let device = pool.layer(layer) + u64::from(*page) * pool.page_stride;
                assert!(
                    at + bytes <= slot_memory(&slot).0.len(),
                    "the slot is too small for {} pages",
                    pages.len()
                );
                // SAFETY: inside the slot (asserted) and the pool; the slot lives in the Pending until the copy is done.
                let code = unsafe {
                    let host = host.add(at);
                    match way {
                        Way::Out => sys::cuMemcpyDtoHAsync_v2(host.cast(), device, bytes, self.queue.0),
                        Way::In => sys::cuMemcpyHtoDAsync_v2(device, host.cast(), bytes, self.queue.0),
                    }
                };
                check("pages", code)?;
                at += bytes;
            }
        }
        Ok(Pending::new(self.ticket()?, slot))
    }
}

impl Drop for CudaStream {
    /// Upload buffers go back to their pool: nothing may be reading them.
    fn drop(&mut self) {
        lock(&self.shared.controls).remove(&self.id);
        if self.shared.gpu.bind().is_ok() {
            let _ = self.queue.synchronize("end of the stream");
        }
    }
}

#[derive(Clone, Copy)]
enum Way {
    Out,
    In,
}

fn slot_memory(slot: &HostSlot) -> &Slot {
    slot.memory().as_any().downcast_ref().unwrap_or_else(|| panic!("this host slot is of another backend"))
}

impl Stream for CudaStream {
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
        if src.is_empty() {
            return Ok(());
        }
        self.shared.gpu.bind()?;
        let to = self.at(dst.view(&[dst.len() as u32]));
        assert!(src.len() <= dst.len() * dst.dtype().size_bytes(), "upload past the tensor");
        let slot = &mut self.uploads[self.next_upload];
        self.next_upload = (self.next_upload + 1) % UPLOADS;
        if slot.memory.as_ref().is_some_and(|m| m.len() >= src.len()) {
            slot.sent.wait("upload")?;
        } else {
            slot.sent.wait("upload")?;
            slot.memory = Some(Pinned::new(src.len().next_power_of_two().max(64 << 10))?);
        }
        let Some(memory) = &slot.memory else { return Ok(()) };
        // SAFETY: the buffer is at least as long and no copy reads it (its event was waited for).
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), memory.address(), src.len()) };
        // SAFETY: bounds of the destination were checked by `at`.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, memory.address().cast(), src.len(), self.queue.0) };
        check("upload", code)?;
        slot.sent.record(self.queue.0)
    }
    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending> {
        self.shared.gpu.bind()?;
        assert!(src.is_contiguous(), "a download of a strided tensor {:?}", src.shape());
        let (from, bytes) = (self.at(src), src.len() * src.dtype().size_bytes());
        let memory = &slot_memory(&into).0;
        assert!(bytes <= memory.len(), "a download of {bytes} bytes into a slot of {}", memory.len());
        // SAFETY: both ranges were checked; the slot lives in the Pending until the copy is done.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(memory.address().cast(), from, bytes, self.queue.0) };
        check("download", code).map_err(|e| self.fault(e))?;
        Ok(Pending::new(self.ticket()?, into))
    }
    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
        self.shared.gpu.bind()?;
        self.control.check()?;
        if let Some(event) = self.event(p.ticket()) {
            event.wait("wait").map_err(|e| self.fault(e))?;
        }
        self.control.check()?;
        Ok(p.into_slot())
    }
    fn record(&mut self) -> Result<Ticket> {
        self.shared.gpu.bind()?;
        self.ticket()
    }
    fn after(&mut self, t: Ticket) -> Result<()> {
        self.shared.gpu.bind()?;
        let Some(event) = self.event(t) else { return Ok(()) };
        // SAFETY: both handles are live; the wait is of the event as recorded.
        check("after", unsafe { sys::cuStreamWaitEvent(self.queue.0, event.0, 0) })
    }
    fn control(&self) -> Arc<dyn Control> {
        self.control.clone()
    }
    fn plan(&mut self, p: &AttnPlan, b: &BatchMeta<'_>, _: &mut [u8]) -> Result<()> {
        let p = p.inner::<CudaPlan>();
        lock(&p.state).meta = HostMeta::of(b, p.tile_tokens, p.generated_tokens);
        Ok(())
    }
    fn write_weight(&mut self, w: &Weight, _: u32, _: &HostWeight) -> Result<()> {
        Err(Error::Unsupported(format!(
            "rewriting weights in place has no CUDA path yet ({})",
            w.meta().name
        )))
    }
    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending> {
        self.shared.gpu.bind()?;
        self.exchange(kv, pages, into, Way::Out)
    }
    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending> {
        self.shared.gpu.bind()?;
        self.exchange(kv, pages, from, Way::In)
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        self.shared.gpu.bind()?;
        *lock(&self.control.last_op) = op.kind().name();
        if let Op::NormLinear { x, residual: None, norm, eps, w, e, out: Act { plain: Some(out), .. } } = *op
            && self.norm_gemm(x, (norm, eps), w, &e, out).map_err(|e| self.fault(e))?.is_some()
        {
            return Ok(());
        }
        match self.enqueue(op) {
            Some(done) => done.map_err(|e| self.fault(e)),
            None => compose::lower(self, op),
        }
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        self.shared.gpu.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a live queue that is not capturing.
        check("capture", unsafe { sys::cuStreamBeginCapture_v2(self.queue.0, mode) })?;
        let mut held: Vec<Arc<dyn Any + Send + Sync>> = vec![self.arena.clone()];
        held.push(self.sample_partial.clone());
        held.push(self.sample_arrivals.clone());
        if let Library::Open(blas) = &self.blas {
            held.push(blas.workspace().clone());
        }
        self.recording = Some(held);
        Ok(CaptureLevel::Uniform)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        self.shared.gpu.bind()?;
        let held = self.recording.take().unwrap_or_else(|| panic!("capture_end without capture_begin"));
        let graph = CudaGraph::end(&self.shared.gpu, self.queue.0, held)?;
        Ok(Graph::new(CaptureLevel::Uniform, Arc::new(graph)))
    }
    fn capture_abort(&mut self) {
        self.recording = None;
        CudaGraph::abort(self.queue.0);
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        self.shared.gpu.bind()?;
        *lock(&self.control.last_op) = "replay";
        // SAFETY: the graph holds every allocation it touches.
        check("replay", unsafe { sys::cuGraphLaunch(g.inner::<CudaGraph>().exec, self.queue.0) })
            .map_err(|e| self.fault(e))
    }
}

/// The stream as other threads see it. `abort` fails the next wait; a wait inside the driver ends when the device does.
pub struct CudaControl {
    gpu: Arc<Gpu>,
    progress: Mutex<Progress>,
    last_op: Mutex<&'static str>,
    aborted: Mutex<Option<String>>,
}

/// Tickets given out, the events of those not known to have completed, and events to use again.
#[derive(Default)]
struct Progress {
    given: u64,
    completed: u64,
    pending: VecDeque<(u64, Arc<Event>)>,
    spare: Vec<Arc<Event>>,
}

impl Progress {
    /// Moves completed tickets to the past.
    fn advance(&mut self) {
        while self.pending.front().is_some_and(|(_, e)| e.is_done()) {
            let Some((at, event)) = self.pending.pop_front() else { return };
            self.completed = at;
            self.spare.push(event);
        }
    }
}

impl CudaControl {
    fn new(gpu: Arc<Gpu>) -> Self {
        CudaControl { gpu, progress: Mutex::default(), last_op: Mutex::default(), aborted: Mutex::default() }
    }

    /// A new ticket after everything `queue` has been given.
    fn mark(&self, queue: sys::CUstream) -> Result<u64> {
        let mut progress = lock(&self.progress);
        if progress.pending.len() >= MOST_TICKETS {
            progress.advance();
        }
        // One that another stream still waits for is not used again.
        let free = progress.spare.iter().position(|e| Arc::strong_count(e) == 1);
        let event = match free {
            Some(i) => progress.spare.swap_remove(i),
            None => Arc::new(Event::new()?),
        };
        event.record(queue)?;
        progress.given += 1;
        let at = progress.given;
        progress.pending.push_back((at, event));
        Ok(at)
    }

    /// The event of a ticket that has not completed.
    fn event(&self, at: u64) -> Option<Arc<Event>> {
        let progress = lock(&self.progress);
        progress.pending.iter().find(|p| p.0 == at).map(|p| p.1.clone())
    }

    fn check(&self) -> Result<()> {
        match &*lock(&self.aborted) {
            Some(reason) => Err(Error::DeviceLost { op: self.last_op(), reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

impl Control for CudaControl {
    fn completed(&self) -> u64 {
        let mut progress = lock(&self.progress);
        if self.gpu.bind().is_ok() {
            progress.advance();
        }
        progress.completed
    }
    fn last_op(&self) -> String {
        (*lock(&self.last_op)).to_owned()
    }
    fn abort(&self, reason: &str) {
        *lock(&self.aborted) = Some(reason.into());
    }
}
