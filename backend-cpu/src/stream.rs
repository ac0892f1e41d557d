//! [`CpuStream`]: an in-order queue with a scratch arena, run by its own workers.
//!
//! `op` resolves the tensors, picks the kernel and enqueues it; nothing waits for execution, so the caller prepares
//! step N+1 while N runs. A capture keeps the bound kernels in a list; a replay enqueues that list as one command.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use engine_core::backend::{
    AttnPlan, BatchMeta, CaptureLevel, Control, Graph, HostMemory, HostSlot, HostWeight, KvLayer, Mark, Op,
    Pending, Stream, Ticket, Weight, compose,
};
use engine_core::{DType, Error, Result, Tensor};

use crate::backend::Shared;
use crate::bind::bind;
use crate::bound::{Recorded, Span, Work};
use crate::kv::{LayerView, Pool};
use crate::memory::{Region, View};
use crate::progress::Progress;
use crate::simd::SimdPath;
use crate::threads::Crew;

/// Bytes of uploads on their way at most; a longer one waits for its own parts.
pub(crate) const STAGING_BYTES: usize = 8 << 20;
const ALIGN: u64 = 256;
/// Objects held for commands under way before idle ones are dropped.
const HELD: usize = 64;

/// See the module text.
pub struct CpuStream {
    shared: Arc<Shared>,
    crew: Crew<Work>,
    progress: Arc<Progress>,
    id: u32,
    tickets: u64,
    arena: Arc<Region>,
    arena_bytes: u64,
    top: u64,
    work: Arc<Region>,
    staging: Staging,
    held: Vec<Arc<dyn Any + Send + Sync>>,
    recording: Option<Recorded>,
}

/// What `Backend::stream` has made for a stream.
pub(crate) struct Parts {
    pub shared: Arc<Shared>,
    pub crew: Crew<Work>,
    pub progress: Arc<Progress>,
    pub id: u32,
    pub arena: Arc<Region>,
    pub arena_bytes: u64,
    pub work: Arc<Region>,
    pub staging: Arc<Region>,
}

/// A ring of bytes between `upload` and the workers.
struct Staging {
    region: Arc<Region>,
    head: usize,
    tail: usize,
    /// Command that reads a piece, and where the piece ends.
    pieces: VecDeque<(u64, usize)>,
}

/// Host memory a download lands in.
pub(crate) struct Slot {
    pub region: Arc<Region>,
    pub bytes: usize,
}

impl HostMemory for Slot {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the region has these bytes; the backend writes them only while the slot is inside a `Pending`,
        // where nobody can call this.
        unsafe { std::slice::from_raw_parts(self.region.base(), self.bytes) }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl CpuStream {
    pub(crate) fn new(p: Parts) -> Self {
        CpuStream {
            shared: p.shared,
            crew: p.crew,
            progress: p.progress,
            id: p.id,
            tickets: 0,
            arena: p.arena,
            arena_bytes: p.arena_bytes,
            top: 0,
            work: p.work,
            staging: Staging {
                region: p.staging,
                head: 0,
                tail: 0,
                pieces: VecDeque::with_capacity(crate::threads::RING + 1),
            },
            held: Vec::with_capacity(HELD + 1),
            recording: None,
        }
    }

    /// The memory a tensor names, checked; noted when recording.
    pub(crate) fn view(&mut self, t: Tensor) -> View {
        if t.mem() == self.arena.id() && t.epoch() == self.arena.tensor(0, &[1], DType::U8).epoch() {
            let end = t.at_bytes() + t.extent_bytes();
            assert!(end <= self.top, "stale scratch: {t:?} ends at {end}, the arena's top is {}", self.top);
        } else if self.recording.is_some()
            && let Some(owner) = self.owner(t)
            && let Some(recording) = &mut self.recording
            && !recording.regions.iter().any(|r| Arc::ptr_eq(r, &owner))
        {
            recording.regions.push(owner);
        }
        self.shared.memory.resolve(t)
    }

    /// The owner of a tensor's memory.
    pub(crate) fn owner(&self, t: Tensor) -> Option<Arc<Region>> {
        self.shared.memory.owner(t)
    }

    /// Keeps an object alive as long as commands (or the graph being recorded) point into it.
    pub(crate) fn keep(&mut self, object: Arc<dyn Any + Send + Sync>) {
        let known = |list: &[Arc<dyn Any + Send + Sync>]| list.iter().any(|o| Arc::ptr_eq(o, &object));
        if let Some(recording) = &mut self.recording {
            if !known(&recording.others) {
                recording.others.push(object);
            }
            return;
        }
        // Weights and pools free their memory late by themselves; plans and samplers do not.
        if object.is::<crate::weights::CpuWeight>() || object.is::<Pool>() || known(&self.held) {
            return;
        }
        if self.held.len() == HELD {
            let published = self.progress.published();
            self.progress.wait_until(|| self.progress.passed() >= published);
            self.held.clear();
        }
        self.held.push(object);
    }

    /// Shared memory for kernels' private use.
    pub(crate) fn work(&self) -> *mut u8 {
        self.work.base()
    }

    /// The instruction set of this backend.
    pub(crate) fn path(&self) -> SimdPath {
        self.shared.path
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.crew.push(Work::Complete(self.progress.clone(), self.tickets));
        Ticket { stream: self.id, at: self.tickets }
    }

    fn outside_capture(&self, what: &str) {
        assert!(self.recording.is_none(), "{what} inside a capture");
    }

    fn slot_bytes(slot: &HostSlot, wanted: usize) -> *mut u8 {
        let Some(slot) = slot.memory().as_any().downcast_ref::<Slot>() else {
            panic!("this host slot belongs to another backend");
        };
        assert!(wanted <= slot.bytes, "{wanted} bytes into a host slot of {}", slot.bytes);
        slot.region.base()
    }

    /// Where each layer of each page lies in the pool and in a slot.
    fn page_spans(kv: &[KvLayer], pages: &[u32], slot: *mut u8) -> (Vec<(*mut u8, *mut u8, usize)>, usize) {
        let mut at = 0usize;
        let mut spans = Vec::with_capacity(kv.len() * pages.len());
        for page in pages {
            for layer in kv {
                let view = LayerView::new(layer);
                assert!((*page as usize) < view.pages, "page {page} of {}", view.pages);
                let bytes =
                    view.heads * view.page_tokens * (view.k_dim + view.v_dim) * view.dtype.size_bytes();
                spans.push((view.key_block(*page as usize, 0), slot.wrapping_add(at), bytes));
                at += bytes;
            }
        }
        (spans, at)
    }
}

impl Stream for CpuStream {
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        let at = self.top.next_multiple_of(ALIGN);
        let t = self.arena.tensor(at, shape, dtype);
        let end = at + t.extent_bytes();
        assert!(
            end <= self.arena_bytes,
            "scratch {shape:?} {dtype} ends at byte {end} of an arena of {}",
            self.arena_bytes
        );
        self.top = end;
        t
    }

    fn mark(&mut self) -> Mark {
        Mark(self.top)
    }

    fn release(&mut self, m: Mark) {
        assert!(m.0 <= self.top, "a mark at {} above the arena's top {}", m.0, self.top);
        self.top = m.0;
    }

    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()> {
        self.outside_capture("upload");
        self.progress.check()?;
        assert!(
            dst.is_contiguous() && src.len() as u64 <= dst.extent_bytes(),
            "upload of {} bytes",
            src.len()
        );
        let into: *mut u8 = self.view(dst).ptr();
        for (i, piece) in src.chunks(STAGING_BYTES / 2).enumerate() {
            let from = self.staging.reserve(piece.len(), &self.progress);
            // SAFETY: `reserve` gives bytes of the staging region that no command reads any more.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), from, piece.len()) };
            let into = into.wrapping_add(i * (STAGING_BYTES / 2));
            let number = self.crew.push(Work::Move(Span { from, into, bytes: piece.len() }));
            self.staging.pieces.push_back((number, self.staging.head));
        }
        Ok(())
    }

    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending> {
        self.outside_capture("download");
        self.progress.check()?;
        assert!(src.is_contiguous(), "download of a strided tensor");
        let bytes = src.extent_bytes() as usize;
        let from = self.view(src).ptr();
        let to = Self::slot_bytes(&into, bytes);
        self.crew.push(Work::Move(Span { from, into: to, bytes }));
        Ok(Pending::new(self.ticket(), into))
    }

    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
        self.outside_capture("wait");
        let ticket = p.ticket();
        if ticket.stream == self.id {
            self.progress.wait(ticket.at)?;
        } else {
            self.shared.progress_of(ticket)?.wait(ticket.at)?;
        }
        Ok(p.into_slot())
    }

    fn record(&mut self) -> Result<Ticket> {
        self.outside_capture("record");
        self.progress.check()?;
        Ok(self.ticket())
    }

    fn after(&mut self, t: Ticket) -> Result<()> {
        self.outside_capture("after");
        self.progress.check()?;
        if t.stream != self.id {
            let other = self.shared.progress_of(t)?;
            self.crew.push(Work::After(self.progress.clone(), other, t.at));
        }
        Ok(())
    }

    fn control(&self) -> Arc<dyn Control> {
        self.progress.clone()
    }

    fn plan(&mut self, _: &AttnPlan, _: &BatchMeta<'_>, _: &mut [u8]) -> Result<()> {
        // Everything a plan needs is made by `PlanOnDevice` from exact lengths.
        Ok(())
    }

    fn write_weight(&mut self, w: &Weight, _: u32, _: &HostWeight) -> Result<()> {
        let text = format!("{}: rewriting weights in place (LoRA) has no CPU kernel yet", w.meta().name);
        Err(Error::Unsupported(text))
    }

    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending> {
        self.outside_capture("pages_out");
        self.progress.check()?;
        let (spans, bytes) = Self::page_spans(kv, pages, Self::slot_bytes(&into, 0));
        Self::slot_bytes(&into, bytes);
        let spans = spans.into_iter().map(|(pool, slot, bytes)| Span { from: pool, into: slot, bytes });
        self.crew.push(Work::Moves(spans.collect()));
        Ok(Pending::new(self.ticket(), into))
    }

    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending> {
        self.outside_capture("pages_in");
        self.progress.check()?;
        let (spans, bytes) = Self::page_spans(kv, pages, Self::slot_bytes(&from, 0));
        Self::slot_bytes(&from, bytes);
        let spans = spans.into_iter().map(|(pool, slot, bytes)| Span { from: slot, into: pool, bytes });
        self.crew.push(Work::Moves(spans.collect()));
        Ok(Pending::new(self.ticket(), from))
    }

    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        self.progress.check()?;
        let Some(bound) = bind(self, op) else {
            return compose::lower(self, op);
        };
        match &mut self.recording {
            Some(recording) => recording.kernels.push(bound),
            None => {
                self.crew.push(Work::Run(bound));
            }
        }
        Ok(())
    }

    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        self.outside_capture("capture_begin");
        self.progress.check()?;
        let regions = vec![self.arena.clone(), self.work.clone()];
        self.recording = Some(Recorded { kernels: Vec::new(), regions, others: Vec::new() });
        Ok(CaptureLevel::Any)
    }

    fn capture_end(&mut self) -> Result<Graph> {
        let Some(recorded) = self.recording.take() else {
            panic!("capture_end without capture_begin");
        };
        Ok(Graph::new(CaptureLevel::Any, Arc::new(recorded)))
    }

    fn capture_abort(&mut self) {
        self.recording = None;
    }

    fn replay(&mut self, g: &Graph) -> Result<()> {
        self.outside_capture("replay");
        self.progress.check()?;
        let Ok(recorded) = g.shared().downcast::<Recorded>() else {
            panic!("this graph belongs to another backend");
        };
        let own = recorded.regions.first().is_some_and(|arena| Arc::ptr_eq(arena, &self.arena));
        assert!(own, "this graph was captured on another stream");
        self.crew.push(Work::Graph(recorded));
        Ok(())
    }
}

impl Staging {
    /// `bytes` in one piece, waiting for earlier uploads where they are in the way.
    fn reserve(&mut self, bytes: usize, progress: &Progress) -> *mut u8 {
        let size = self.region.len();
        // A piece does not wrap: the rest of the ring is left out.
        if self.head % size + bytes > size {
            self.head = self.head.next_multiple_of(size);
        }
        loop {
            let passed = progress.passed();
            while self.pieces.front().is_some_and(|p| p.0 <= passed) {
                self.tail = self.pieces.pop_front().map_or(self.tail, |p| p.1);
            }
            if self.pieces.is_empty() {
                self.tail = self.head;
            }
            if self.head + bytes - self.tail <= size {
                break;
            }
            if let Some((number, _)) = self.pieces.front().copied() {
                progress.wait_until(|| progress.passed() >= number);
                if progress.is_lost() {
                    std::thread::yield_now();
                }
            }
        }
        let at = self.head % size;
        self.head += bytes;
        self.region.base().wrapping_add(at)
    }
}
