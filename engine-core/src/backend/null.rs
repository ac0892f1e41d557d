//! [`NullBackend`]: a device that does nothing, at once. For scheduler simulations and server load tests.
//!
//! It takes every call, allocates nothing in proportion to model or cache, and computes one thing: which token a
//! row samples, from the uploaded [`SampleRow`] alone. Token of (seed, position) = a hash of the two inside
//! [`NullConfig::ids`]; so a request gets the same tokens in every batch, after a preemption, eager or replayed.
//! Everything runs when it is enqueued. Memory that nobody wrote reads as zeros. With [`NullConfig::step_time`] a
//! download is not done before that time has passed since the one before it: a device of a known speed.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    AttnPlan, AttnSpec, Backend, BatchMeta, Buffer, CaptureLevel, CommConfig, Control, DeviceInfo, Graph,
    HostMemory, HostSlot, HostWeight, KvGroupSpec, KvLayer, KvPool, LogprobsOut, Mark, MemInfo, MemKind, Op,
    OpSpec, Pending, QueueKind, Sample, SampleRow, Sampler, StepCaps, Stream, Support, Ticket, Weight,
};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Alignment of every scratch tensor and buffer, in bytes: part of the seam, so that `Trace` sizes the arena of
/// any device.
pub const ALIGN_BYTES: u64 = 256;

/// What the do-nothing device pretends to be.
#[derive(Clone, Debug)]
pub struct NullConfig {
    /// Memory it reports, all free.
    pub memory_bytes: u64,
    /// Ids that are drawn; clipped to the vocabulary. Leave the special ids out to keep requests running.
    pub ids: Range<u32>,
    /// Whether it captures graphs.
    pub capture: CaptureLevel,
    /// From one download to the next: what a step takes. Zero: nothing is waited for.
    pub step_time: Duration,
}

impl Default for NullConfig {
    fn default() -> Self {
        NullConfig {
            memory_bytes: 64 << 30,
            ids: 0..u32::MAX,
            capture: CaptureLevel::Any,
            step_time: Duration::ZERO,
        }
    }
}

/// The token a row with this seed draws at this position, inside `ids`.
pub fn token_at(seed: u64, position: u32, ids: &Range<u32>) -> u32 {
    // SplitMix64's finalizer: well mixed and a few cycles.
    let mut x = seed ^ u64::from(position).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let span = u64::from(ids.end.saturating_sub(ids.start).max(1));
    ids.start + (((x >> 32) * span) >> 32) as u32
}

/// The do-nothing device.
pub struct NullBackend {
    info: DeviceInfo,
    config: NullConfig,
    memory: Arc<Memory>,
    streams: AtomicU32,
}

impl NullBackend {
    /// A device of this configuration.
    pub fn new(config: NullConfig) -> Self {
        let info = DeviceInfo {
            id: "null".into(),
            name: "no device".into(),
            arch: "none".into(),
            dtypes: vec![DType::Bf16, DType::F16, DType::F32],
            kv_dtypes: vec![DType::Bf16, DType::F16, DType::F32],
            page_tokens: vec![16, 32, 64, 128],
            capture: config.capture,
            graph_row_step: 8,
            default_batched_tokens: 2048,
            default_num_seqs: 256,
            units: 1,
        };
        NullBackend::with_info(info, config)
    }

    /// The same under another device's name and preferences (see `Trace`).
    pub fn with_info(info: DeviceInfo, config: NullConfig) -> Self {
        NullBackend { info, config, memory: Arc::new(Memory::default()), streams: AtomicU32::new(0) }
    }
}

impl Default for NullBackend {
    fn default() -> Self {
        NullBackend::new(NullConfig::default())
    }
}

impl Backend for NullBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> Result<MemInfo> {
        Ok(MemInfo { total_bytes: self.config.memory_bytes, free_bytes: self.config.memory_bytes })
    }
    fn supports(&self, _: &OpSpec) -> Support {
        Support::NATIVE
    }
    fn overhead_bytes(&self, _: &StepCaps) -> u64 {
        0
    }
    fn buffer(&self, shape: &[u32], dtype: DType, _: MemKind) -> Result<Buffer> {
        let (mem, epoch) = self.memory.lock().make();
        let freed = FreeOnDrop { memory: self.memory.clone(), mem };
        Ok(Buffer::new(Tensor::from_raw(mem, epoch, 0, shape, dtype), Arc::new(freed)))
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        Ok(HostSlot::new(Arc::new(HostVec(vec![0; bytes]))))
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        Ok(Weight::new(w.meta(), Arc::new(())))
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        let inner: Arc<dyn Any + Send + Sync> = Arc::new(());
        let layers = |(g, spec): (usize, &KvGroupSpec)| {
            (0..spec.layers).map(|layer| KvLayer::new(g as u32, layer, inner.clone())).collect()
        };
        Ok(KvPool {
            groups: groups.iter().enumerate().map(layers).collect(),
            specs: groups.to_vec(),
            pages,
            page_bytes: groups.iter().map(KvGroupSpec::page_bytes).max().unwrap_or(0),
            layout: 0,
        })
    }
    fn attn_plan(&self, spec: &AttnSpec, _: &StepCaps) -> Result<AttnPlan> {
        Ok(AttnPlan::new(*spec, 0, Arc::new(())))
    }
    fn sampler(&self, _: &StepCaps) -> Result<Sampler> {
        Ok(Sampler::new(Arc::new(())))
    }
    fn stream(&self, _: QueueKind, caps: &StepCaps, _: &[CommConfig]) -> Result<Box<dyn Stream>> {
        let (mem, epoch) = self.memory.lock().make();
        Ok(Box::new(NullStream {
            id: self.streams.fetch_add(1, Ordering::Relaxed),
            memory: self.memory.clone(),
            arena: Arena { mem, epoch, height_bytes: 0, capacity_bytes: caps.arena_bytes },
            ids: self.config.ids.start..self.config.ids.end.min(caps.vocab),
            level: self.config.capture,
            recording: None,
            pace: Pace { step_time: self.config.step_time, last: Instant::now(), open: VecDeque::new() },
            control: Arc::new(NullControl::default()),
        }))
    }
}

struct NullStream {
    id: u32,
    memory: Arc<Memory>,
    arena: Arena,
    ids: Range<u32>,
    level: CaptureLevel,
    recording: Option<Vec<Draw>>,
    pace: Pace,
    control: Arc<NullControl>,
}

/// When downloads are done.
struct Pace {
    step_time: Duration,
    /// When the last download enqueued will be done.
    last: Instant,
    /// Downloads by ticket and the time they are done, in order.
    open: VecDeque<(u64, Instant)>,
}

impl Pace {
    fn enqueue(&mut self, ticket: Ticket) {
        if self.step_time > Duration::ZERO {
            self.last = self.last.max(Instant::now()) + self.step_time;
            self.open.push_back((ticket.at, self.last));
        }
    }

    /// Sleeps until the download of this ticket is done.
    fn wait(&mut self, ticket: Ticket) {
        while self.open.front().is_some_and(|first| first.0 <= ticket.at) {
            if let Some((_, done)) = self.open.pop_front() {
                std::thread::sleep(done.saturating_duration_since(Instant::now()));
            }
        }
    }
}

/// What is left of an op that produces tokens: everything else computes nothing.
#[derive(Clone, Copy)]
enum Draw {
    Sample {
        rows: Tensor,
        draft: Option<Tensor>,
        ids: Tensor,
        last: Tensor,
        accepted: Option<Tensor>,
        logprobs: Option<LogprobsOut>,
    },
    LogProbs {
        ids: Tensor,
        out: LogprobsOut,
    },
}

impl NullStream {
    fn ticket(&self) -> Ticket {
        let at = self.control.completed.fetch_add(1, Ordering::Relaxed) + 1;
        Ticket { stream: self.id, at }
    }

    fn draw(&mut self, draw: Draw) {
        match &mut self.recording {
            Some(list) => list.push(draw),
            None => draw.run(&mut self.memory.lock(), &self.ids),
        }
    }
}

impl Stream for NullStream {
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        self.arena.take(shape, dtype)
    }
    fn mark(&mut self) -> Mark {
        Mark(self.arena.height_bytes)
    }
    fn release(&mut self, m: Mark) {
        self.arena.height_bytes = m.0;
    }
    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()> {
        assert!(
            src.len() as u64 <= dst.extent_bytes(),
            "upload of {} bytes into a tensor of {} bytes",
            src.len(),
            dst.extent_bytes()
        );
        self.memory.lock().at(dst).write(0, src);
        Ok(())
    }
    fn download(&mut self, src: Tensor, mut into: HostSlot) -> Result<Pending> {
        assert!(src.is_contiguous(), "download of a strided tensor");
        let slot = into.exclusive().and_then(|m| (m as &mut dyn Any).downcast_mut::<HostVec>());
        let Some(HostVec(bytes)) = slot else { panic!("this host slot is shared or of another backend") };
        let len = src.extent_bytes() as usize;
        assert!(len <= bytes.len(), "download of {len} bytes into a slot of {} bytes", bytes.len());
        self.memory.lock().at(src).read(&mut bytes[..len]);
        let ticket = self.ticket();
        self.pace.enqueue(ticket);
        Ok(Pending::new(ticket, into))
    }
    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
        self.pace.wait(p.ticket());
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
    fn write_weight(&mut self, _: &Weight, _: u32, _: &HostWeight) -> Result<()> {
        Ok(())
    }
    fn pages_out(&mut self, _: &[KvLayer], _: &[u32], into: HostSlot) -> Result<Pending> {
        Ok(Pending::new(self.ticket(), into))
    }
    fn pages_in(&mut self, _: &[KvLayer], _: &[u32], from: HostSlot) -> Result<Pending> {
        Ok(Pending::new(self.ticket(), from))
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        match *op {
            Op::Sample(Sample { rows, draft, ids, last, accepted, logprobs, .. }) => {
                self.draw(Draw::Sample { rows, draft, ids, last, accepted, logprobs });
            }
            Op::LogProbs { ids, out, .. } => self.draw(Draw::LogProbs { ids, out }),
            _ => {}
        }
        Ok(())
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        assert!(self.recording.is_none(), "capture inside a capture");
        if self.level != CaptureLevel::Never {
            self.recording = Some(Vec::new());
        }
        Ok(self.level)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        let list = self.recording.take().unwrap_or_else(|| panic!("capture_end without capture_begin"));
        Ok(Graph::new(self.level, Arc::new(list)))
    }
    fn capture_abort(&mut self) {
        self.recording = None;
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        let mut memory = self.memory.lock();
        for draw in g.inner::<Vec<Draw>>() {
            draw.run(&mut memory, &self.ids);
        }
        Ok(())
    }
}

impl Draw {
    fn run(&self, memory: &mut Regions, range: &Range<u32>) {
        match *self {
            Draw::Sample { rows, draft, ids, last, accepted, logprobs } => {
                Draw::sample(memory, range, (rows, draft), (ids, last, accepted), logprobs);
            }
            Draw::LogProbs { ids, out } => {
                for row in 0..ids.len() {
                    let id = memory.word(ids, 0, row);
                    logprobs_of(memory, range, out, row, id);
                }
            }
        }
    }

    /// Rows of one slot follow each other. Its drafts are accepted up to the first that differs from the token
    /// drawn; the rows after that give -1.
    fn sample(
        memory: &mut Regions,
        range: &Range<u32>,
        (rows, draft): (Tensor, Option<Tensor>),
        (ids, last, accepted): (Tensor, Tensor, Option<Tensor>),
        logprobs: Option<LogprobsOut>,
    ) {
        let count = rows.rows();
        let mut row = 0;
        while row < count {
            let slot = memory.word(rows, row, 0);
            let mut end = row + 1;
            while end < count && memory.word(rows, end, 0) == slot {
                end += 1;
            }
            if (slot as i32) < 0 {
                (row..end).for_each(|r| memory.set_word(ids, 0, r, u32::MAX));
                row = end;
                continue;
            }
            let mut rejected = false;
            while row < end && !rejected {
                let rule = memory.sample_row(rows, row);
                let id = token_at(rule.seed, rule.position, range);
                memory.set_word(ids, 0, row, id);
                memory.set_word(last, 0, slot as usize, id);
                if let Some(out) = logprobs {
                    logprobs_of(memory, range, out, row, id);
                }
                let wanted = draft.map_or(u32::MAX, |d| memory.word(d, 0, row));
                rejected = wanted != u32::MAX && wanted != id;
                row += 1;
            }
            if let Some(accepted) = accepted {
                memory.set_word(accepted, 0, slot as usize, (row as u32).wrapping_sub(end as u32));
            }
            (row..end).for_each(|r| memory.set_word(ids, 0, r, u32::MAX));
            row = end;
        }
    }
}

/// The given id at rank 1, then the ids after it, one nat less likely each.
fn logprobs_of(memory: &mut Regions, range: &Range<u32>, out: LogprobsOut, row: usize, id: u32) {
    let span = range.end.saturating_sub(range.start).max(1);
    for col in 0..out.ids.cols() {
        let place = col.saturating_sub(1) as u32;
        let other = range.start + (id.wrapping_sub(range.start).wrapping_add(place)) % span;
        memory.set_word(out.ids, row, col, if col == 0 { id } else { other });
        memory.set_word(out.values, row, col, (-1.0 - place as f32).to_bits());
    }
    memory.set_word(out.ranks, 0, row, 1);
}

/// The bump arena as heights only: which bytes a device would hand out.
pub(super) struct Arena {
    pub mem: u32,
    pub epoch: u32,
    pub height_bytes: u64,
    pub capacity_bytes: u64,
}

impl Arena {
    /// The next tensor, [`ALIGN_BYTES`] aligned.
    ///
    /// # Panics
    /// If it is full.
    pub fn take(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        let tensor = Tensor::from_raw(self.mem, self.epoch, self.height_bytes, shape, dtype);
        let height = (self.height_bytes + tensor.extent_bytes()).next_multiple_of(ALIGN_BYTES);
        assert!(
            height <= self.capacity_bytes,
            "the arena of {} bytes is full: {shape:?} of {dtype} needs it {height} bytes high",
            self.capacity_bytes
        );
        self.height_bytes = height;
        tensor
    }
}

/// Everything uploads, samples and downloads touch; grows to what was written.
#[derive(Default)]
struct Memory(Mutex<Regions>);

#[derive(Default)]
struct Regions {
    list: Vec<Region>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Region {
    epoch: u32,
    bytes: Vec<u8>,
}

/// A byte position of one region.
struct Place<'a> {
    bytes: &'a mut Vec<u8>,
    at: usize,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Regions> {
        lock(&self.0)
    }
}

impl Regions {
    fn make(&mut self) -> (u32, u32) {
        let mem = self.free.pop().unwrap_or_else(|| {
            self.list.push(Region::default());
            self.list.len() as u32 - 1
        });
        (mem, self.list[mem as usize].epoch)
    }

    fn drop_region(&mut self, mem: u32) {
        let region = &mut self.list[mem as usize];
        *region = Region { epoch: region.epoch + 1, bytes: Vec::new() };
        self.free.push(mem);
    }

    fn at(&mut self, t: Tensor) -> Place<'_> {
        let region = &mut self.list[t.mem() as usize];
        assert_eq!(region.epoch, t.epoch(), "stale tensor of memory {}", t.mem());
        Place { bytes: &mut region.bytes, at: t.at_bytes() as usize }
    }

    fn word(&mut self, t: Tensor, row: usize, col: usize) -> u32 {
        let mut word = [0; 4];
        let place = self.at(t);
        Place { at: place.at + word_offset(t, row, col), ..place }.read(&mut word);
        u32::from_ne_bytes(word)
    }

    fn set_word(&mut self, t: Tensor, row: usize, col: usize, word: u32) {
        self.at(t).write(word_offset(t, row, col), &word.to_ne_bytes());
    }

    fn sample_row(&mut self, rows: Tensor, row: usize) -> SampleRow {
        let mut bytes = [0; 4 * SampleRow::WORDS];
        let place = self.at(rows);
        Place { at: place.at + word_offset(rows, row, 0), ..place }.read(&mut bytes);
        let mut words = [0; SampleRow::WORDS];
        for (word, b) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
        }
        SampleRow::read(&words)
    }
}

/// Byte offset of a 4-byte element of a [rows, cols] tensor.
fn word_offset(t: Tensor, row: usize, col: usize) -> usize {
    assert!(row < t.shape()[2] as usize && col < t.cols(), "({row}, {col}) of {:?}", t.shape());
    (row * t.strides()[2] as usize + col) * 4
}

impl Place<'_> {
    fn write(self, offset: usize, src: &[u8]) {
        let (start, end) = (self.at + offset, self.at + offset + src.len());
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(src);
    }

    fn read(self, into: &mut [u8]) {
        let have = self.bytes.get(self.at..).unwrap_or_default();
        let n = have.len().min(into.len());
        into[..n].copy_from_slice(&have[..n]);
        into[n..].fill(0);
    }
}

struct FreeOnDrop {
    memory: Arc<Memory>,
    mem: u32,
}

impl Drop for FreeOnDrop {
    fn drop(&mut self) {
        self.memory.lock().drop_region(self.mem);
    }
}

struct HostVec(Vec<u8>);

impl HostMemory for HostVec {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Default)]
struct NullControl {
    completed: AtomicU64,
    aborted: Mutex<Option<String>>,
}

impl Control for NullControl {
    fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }
    fn last_op(&self) -> String {
        "none".into()
    }
    fn abort(&self, reason: &str) {
        *lock(&self.aborted) = Some(reason.into());
    }
}

/// Nothing here panics while it holds a lock but on a bug; the data stays usable then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Invariance, capture};

    fn caps() -> StepCaps {
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

    fn words(bytes: &[u8]) -> Vec<i32> {
        bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    struct Fixture {
        backend: NullBackend,
        stream: Box<dyn Stream>,
        sampler: Sampler,
        rows: Buffer,
        last: Buffer,
        ids: Buffer,
    }

    impl Fixture {
        fn new() -> Self {
            let backend = NullBackend::new(NullConfig { ids: 3..u32::MAX, ..NullConfig::default() });
            let stream = backend.stream(QueueKind::Compute, &caps(), &[]).unwrap();
            let sampler = backend.sampler(&caps()).unwrap();
            let rows = backend.buffer(&[4, 16], DType::U32, MemKind::Device).unwrap();
            let last = backend.buffer(&[4], DType::I32, MemKind::Device).unwrap();
            let ids = backend.buffer(&[4], DType::I32, MemKind::Device).unwrap();
            Fixture { backend, stream, sampler, rows, last, ids }
        }

        fn op(&mut self, draft: Option<Tensor>, accepted: Option<Tensor>) {
            let logits = self.stream.scratch(&[4, 100], DType::F32);
            let (rows, ids, last) = (*self.rows, *self.ids, *self.last);
            let sampler = &self.sampler;
            let sample =
                Sample { logits, sampler, rows, draft, mask: None, ids, last, accepted, logprobs: None };
            self.stream.op(&Op::Sample(sample)).unwrap();
        }

        fn upload_rows(&mut self, rows: &[(i32, u32)]) {
            let mut words = vec![0u32; 16 * rows.len()];
            for (&(slot, position), into) in rows.iter().zip(words.chunks_exact_mut(16)) {
                SampleRow { slot, seed: 7, position, ..SampleRow::PADDING }.write(into);
            }
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            self.stream.upload(&bytes, *self.rows).unwrap();
        }

        fn read(&mut self, t: Tensor) -> Vec<i32> {
            let slot = self.backend.host_slot(16).unwrap();
            let pending = self.stream.download(t, slot).unwrap();
            words(self.stream.wait(pending).unwrap().bytes())
        }
    }

    #[test]
    fn tokens_depend_on_seed_and_position_alone() {
        let mut f = Fixture::new();
        let token = |position| token_at(7, position, &(3..100)) as i32;
        f.upload_rows(&[(2, 5), (-1, 0), (0, 6), (3, 5)]);
        f.op(None, None);
        let ids = *f.ids;
        assert_eq!(f.read(ids), [token(5), -1, token(6), token(5)]);
        let last = *f.last;
        assert_eq!(f.read(last), [token(6), 0, token(5), token(5)]);
        assert!((0..10_000).all(|p| (3..100).contains(&token(p))));
    }

    #[test]
    fn downloads_are_a_step_apart_and_waited_for_in_any_order() {
        let step_time = Duration::from_millis(2);
        let backend = NullBackend::new(NullConfig { step_time, ..NullConfig::default() });
        let mut stream = backend.stream(QueueKind::Compute, &caps(), &[]).unwrap();
        let buffer = backend.buffer(&[4], DType::I32, MemKind::Device).unwrap();
        let start = Instant::now();
        let mut download = || stream.download(*buffer, backend.host_slot(16).unwrap()).unwrap();
        let [first, second, third] = [download(), download(), download()];
        stream.wait(second).unwrap();
        assert!(start.elapsed() >= 2 * step_time);
        stream.wait(first).unwrap();
        stream.wait(third).unwrap();
        assert!(start.elapsed() >= 3 * step_time);
    }

    #[test]
    fn a_graph_draws_from_what_is_uploaded_at_replay() {
        let mut f = Fixture::new();
        let (logits, rows, ids, last) = (f.stream.scratch(&[4, 100], DType::F32), *f.rows, *f.ids, *f.last);
        let sampler = f.sampler.clone();
        let (graph, ()) = capture(&mut *f.stream, |s| {
            s.op(&Op::Sample(Sample {
                logits,
                sampler: &sampler,
                rows,
                draft: None,
                mask: None,
                ids,
                last,
                accepted: None,
                logprobs: None,
            }))
        })
        .unwrap();
        assert_eq!(f.read(ids), [0; 4], "nothing runs during capture");
        f.upload_rows(&[(0, 9), (1, 10), (2, 11), (3, 12)]);
        f.stream.replay(&graph.unwrap()).unwrap();
        assert_eq!(f.read(ids), [9, 10, 11, 12].map(|p| token_at(7, p, &(3..100)) as i32));
    }

    #[test]
    fn drafts_are_accepted_up_to_the_first_that_differs() {
        let mut f = Fixture::new();
        let token = |position| token_at(7, position, &(3..100)) as i32;
        let draft = f.backend.buffer(&[4], DType::I32, MemKind::Device).unwrap();
        let accepted = f.backend.buffer(&[4], DType::I32, MemKind::Device).unwrap();
        f.upload_rows(&[(1, 5), (1, 6), (1, 7), (2, 8)]);
        let wanted: Vec<u8> =
            [token(5), 0, token(7), -1].iter().flat_map(|w: &i32| w.to_ne_bytes()).collect();
        f.stream.upload(&wanted, *draft).unwrap();
        f.op(Some(*draft), Some(*accepted));
        let ids = *f.ids;
        assert_eq!(f.read(ids), [token(5), token(6), -1, token(8)]);
        assert_eq!(f.read(*accepted), [0, -1, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "stale tensor")]
    fn a_dropped_buffer_is_stale() {
        let mut f = Fixture::new();
        let tensor = *f.backend.buffer(&[4], DType::I32, MemKind::Device).unwrap();
        let _ = f.read(tensor);
    }

    #[test]
    fn an_aborted_stream_fails_its_waits() {
        let mut f = Fixture::new();
        f.stream.control().abort("test");
        let slot = f.backend.host_slot(16).unwrap();
        let pending = f.stream.download(*f.ids, slot).unwrap();
        assert!(matches!(f.stream.wait(pending), Err(Error::DeviceLost { .. })));
    }
}
