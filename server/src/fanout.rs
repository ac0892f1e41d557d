//! From one message per engine step to one stream per HTTP request.
//!
//! The engine thread hands a whole step over with one lock and one wake ([`FanoutSink`]). The fan-out task
//! ([`Fanout::run`]) sorts the rows into per-request inboxes and wakes only the tasks that have something to
//! send. An inbox merges what its reader has not taken yet, so a slow client costs four bytes per token.
//!
//! Exactly one terminal event per request: a row's sender is consumed by its last output, and a sender that is
//! dropped instead puts [`EngineFailure::Dropped`] into the inbox.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use engine_core::engine::types::{
    EngineFailure, FinishReason, FirstOutput, OutputSink, RequestId, RowOutput, StepOutputs, TokenLogprobs,
};
use tokio::sync::Notify;

use crate::client::EngineClient;
use crate::http::metrics::{Metrics, RequestRecord};

/// When the reader of a stream is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At the first token, then whenever this many tokens (at least 1) wait, and at the end.
    Tokens(u32),
    /// At the end only: nobody sees the text before.
    End,
}

/// What a sequence looks like to the metrics when it is opened.
#[derive(Clone, Copy, Debug)]
pub struct RowSpec {
    pub prompt_tokens: u32,
    pub max_tokens: u32,
}

/// Where the time of one sequence went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From its arrival to the first step it took part in.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// All that has arrived for one sequence since the last look.
#[derive(Debug, Default)]
pub struct Update {
    pub tokens: Vec<u32>,
    /// One entry per token when asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// With the first update only.
    pub prompt_logprobs: Option<Box<Vec<Option<TokenLogprobs>>>>,
    /// With the first update only.
    pub first: Option<FirstOutput>,
    /// With the last update, exactly once.
    pub finish: Option<FinishReason>,
    /// With the last update, when there was a token.
    pub timing: Option<Timing>,
}

impl Update {
    fn clear(&mut self) {
        self.tokens.clear();
        self.logprobs.clear();
        self.prompt_logprobs = None;
        self.first = None;
        self.finish = None;
        self.timing = None;
    }
}

/// The table of open requests and the task that feeds it.
pub struct Fanout {
    shards: [Mutex<Shard>; SHARDS],
    next_id: AtomicU64,
    handover: Arc<Handover>,
    metrics: Arc<Metrics>,
    lost: OnceLock<EngineFailure>,
}

type Shard = HashMap<u64, RowSender, BuildHasherDefault<IdHasher>>;
const SHARDS: usize = 16;
/// Step messages that may wait for the fan-out task before they are merged into one.
const MAX_WAITING_STEPS: usize = 64;

impl Fanout {
    /// An empty table and the sink to start the engine with.
    pub fn new(metrics: Arc<Metrics>) -> (Arc<Fanout>, FanoutSink) {
        let handover = Arc::new(Handover::default());
        let fanout = Fanout {
            shards: std::array::from_fn(|_| Mutex::new(Shard::default())),
            next_id: AtomicU64::new(1),
            handover: handover.clone(),
            metrics,
            lost: OnceLock::new(),
        };
        (Arc::new(fanout), FanoutSink { handover })
    }

    /// Distributes steps until the engine is gone. Run it as one task.
    pub async fn run(self: Arc<Self>) {
        let mut batches = Vec::new();
        loop {
            let lost = self.handover.take(&mut batches);
            for batch in &mut batches {
                self.distribute(batch);
            }
            self.handover.recycle(&mut batches);
            match lost {
                Some(failure) => return self.lose(failure),
                None => self.handover.ready.notified().await,
            }
        }
    }

    /// Registers the sequences of one HTTP request, before any of them is submitted.
    pub fn open(
        self: &Arc<Self>,
        engine: Arc<dyn EngineClient>,
        rows: &[RowSpec],
        wake: Wake,
    ) -> RequestStream {
        let first = self.next_id.fetch_add(rows.len() as u64, Ordering::Relaxed);
        let inbox = Arc::new(Inbox::new(rows.len(), wake));
        for (child, row) in rows.iter().enumerate() {
            let sender = RowSender {
                inbox: inbox.clone(),
                child: child as u32,
                record: RequestRecord::new(row.prompt_tokens, row.max_tokens),
                armed: true,
            };
            self.shard(first + child as u64).insert(first + child as u64, sender);
        }
        if let Some(failure) = self.lost.get() {
            self.fail_open(*failure);
        }
        let open = vec![true; rows.len()];
        RequestStream { inbox, first, open_rows: rows.len(), open, fanout: self.clone(), engine }
    }

    /// Sequences that have not ended.
    pub fn open_rows(&self) -> usize {
        self.shards.iter().map(|s| lock(s).len()).sum()
    }

    /// Ends every open sequence with this failure; returns their ids, to be aborted in the engine.
    pub fn fail_open(&self, failure: EngineFailure) -> Vec<RequestId> {
        let mut ids = Vec::new();
        for shard in &self.shards {
            let senders: Vec<_> = lock(shard).drain().collect();
            for (id, sender) in senders {
                ids.push(RequestId(id));
                self.metrics.request_finished(&sender.record, FinishReason::Error(failure));
                sender.finish(Update { finish: Some(FinishReason::Error(failure)), ..Update::default() });
            }
        }
        ids
    }

    /// Order matters: whoever opens a stream later sees the mark, whoever opened earlier is in the table.
    fn lose(&self, failure: EngineFailure) {
        let _ = self.lost.set(failure);
        self.fail_open(failure);
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[id as usize % SHARDS])
    }

    fn distribute(&self, batch: &mut Batch) {
        for row in batch.rows.drain(..) {
            let mut shard = self.shard(row.id.0);
            if row.finish.is_some() {
                let Some(mut sender) = shard.remove(&row.id.0) else { continue };
                drop(shard);
                self.metrics.row_output(&mut sender.record, &row, batch.at);
                if let Some(reason) = row.finish {
                    self.metrics.request_finished(&sender.record, reason);
                }
                sender.finish_row(row);
            } else if let Some(sender) = shard.get_mut(&row.id.0) {
                self.metrics.row_output(&mut sender.record, &row, batch.at);
                sender.inbox.push(sender.child, row, None);
            }
        }
    }

    /// Takes a sequence out of the table because the server ends it itself.
    fn close(&self, id: u64, reason: FinishReason) -> Option<Timing> {
        let mut sender = self.shard(id).remove(&id)?;
        sender.armed = false;
        self.metrics.request_finished(&sender.record, reason);
        sender.record.timing()
    }
}

/// The engine's end: one call per step.
pub struct FanoutSink {
    handover: Arc<Handover>,
}

impl OutputSink for FanoutSink {
    fn deliver(&mut self, outputs: &mut StepOutputs) {
        if outputs.rows.is_empty() {
            return;
        }
        self.handover.put(outputs);
    }

    fn engine_lost(&mut self, reason: &str) {
        tracing::error!(reason, "the engine is gone");
        self.handover.lose(EngineFailure::DeviceLost);
    }
}

impl Drop for FanoutSink {
    fn drop(&mut self) {
        self.handover.lose(EngineFailure::Dropped);
    }
}

/// The sequences of one HTTP request, as its handler reads them. Dropping it aborts what has not ended.
pub struct RequestStream {
    inbox: Arc<Inbox>,
    first: u64,
    open: Vec<bool>,
    open_rows: usize,
    fanout: Arc<Fanout>,
    engine: Arc<dyn EngineClient>,
}

impl RequestStream {
    /// Engine id of sequence `child`.
    pub fn id(&self, child: usize) -> RequestId {
        RequestId(self.first + child as u64)
    }

    /// The next sequence that has news, swapped into `update`; `None` when all have ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, update: &mut Update) -> Poll<Option<usize>> {
        loop {
            if self.open_rows == 0 {
                return Poll::Ready(None);
            }
            update.clear();
            let Some(child) = self.inbox.take(cx, update) else { return Poll::Pending };
            if !self.open[child] {
                continue;
            }
            if update.finish.is_some() {
                self.mark_closed(child);
            }
            return Poll::Ready(Some(child));
        }
    }

    /// [`Self::poll_next`] for use in an async function.
    pub async fn next(&mut self, update: &mut Update) -> Option<usize> {
        std::future::poll_fn(|cx| self.poll_next(cx, update)).await
    }

    /// Ends a sequence from the server's side (a stop string was found): the engine is told to drop it, and
    /// nothing more of it is seen here. Its timing, when it is still open in the table and had a token.
    pub fn close(&mut self, child: usize, reason: FinishReason) -> Option<Timing> {
        if !self.open[child] {
            return None;
        }
        self.mark_closed(child);
        let id = self.id(child);
        let timing = self.fanout.close(id.0, reason);
        self.engine.abort(id);
        timing
    }

    fn mark_closed(&mut self, child: usize) {
        self.open[child] = false;
        self.open_rows -= 1;
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        for child in 0..self.open.len() {
            self.close(child, FinishReason::Abort);
        }
    }
}

/// The only way into one sequence's inbox.
struct RowSender {
    inbox: Arc<Inbox>,
    child: u32,
    record: RequestRecord,
    armed: bool,
}

impl RowSender {
    fn finish_row(self, row: RowOutput) {
        let mut this = self;
        this.armed = false;
        let timing = this.record.timing();
        this.inbox.push(this.child, row, timing);
    }

    fn finish(self, update: Update) {
        let mut this = self;
        this.armed = false;
        this.inbox.push_end(this.child, update.finish);
    }
}

impl Drop for RowSender {
    fn drop(&mut self) {
        if self.armed {
            self.inbox.push_end(self.child, Some(FinishReason::Error(EngineFailure::Dropped)));
        }
    }
}

/// Where a request's outputs wait for its task.
struct Inbox {
    wake: Wake,
    state: Mutex<InboxState>,
}

struct InboxState {
    children: Box<[ChildBox]>,
    /// Children whose box is to be read, in order of arrival.
    ready: std::collections::VecDeque<u32>,
    waker: Option<Waker>,
    /// The reader found nothing and sleeps.
    asleep: bool,
}

#[derive(Default)]
struct ChildBox {
    update: Update,
    in_ready: bool,
    started: bool,
}

impl Inbox {
    fn new(children: usize, wake: Wake) -> Inbox {
        let state = InboxState {
            children: (0..children).map(|_| ChildBox::default()).collect(),
            ready: std::collections::VecDeque::with_capacity(children),
            waker: None,
            asleep: false,
        };
        Inbox { wake, state: Mutex::new(state) }
    }

    fn push(&self, child: u32, row: RowOutput, timing: Option<Timing>) {
        let mut state = lock(&self.state);
        let update = &mut state.children[child as usize].update;
        update.tokens.extend_from_slice(row.tokens.as_slice());
        if !row.logprobs.is_empty() {
            update.logprobs.extend(row.logprobs);
        }
        if row.prompt_logprobs.is_some() {
            update.prompt_logprobs = row.prompt_logprobs;
        }
        if row.first.is_some() {
            update.first = row.first;
        }
        update.finish = row.finish;
        update.timing = timing;
        state.mark(child, self.wake);
    }

    fn push_end(&self, child: u32, finish: Option<FinishReason>) {
        let mut state = lock(&self.state);
        state.children[child as usize].update.finish = finish;
        state.mark(child, self.wake);
    }

    /// Swaps the next ready child's news with `update` (which must be cleared), or registers the reader.
    fn take(&self, cx: &mut Context<'_>, update: &mut Update) -> Option<usize> {
        let mut state = lock(&self.state);
        let Some(child) = state.ready.pop_front() else {
            state.asleep = true;
            match &mut state.waker {
                Some(w) if w.will_wake(cx.waker()) => {}
                slot => *slot = Some(cx.waker().clone()),
            }
            return None;
        };
        let slot = &mut state.children[child as usize];
        std::mem::swap(&mut slot.update, update);
        slot.in_ready = false;
        slot.started = true;
        Some(child as usize)
    }
}

impl InboxState {
    /// Decides whether this child's news are worth a look, and wakes the reader if so.
    fn mark(&mut self, child: u32, wake: Wake) {
        let slot = &mut self.children[child as usize];
        let due = slot.update.finish.is_some()
            || match wake {
                Wake::Tokens(every) => !slot.started || slot.update.tokens.len() >= every as usize,
                Wake::End => false,
            };
        if !due {
            return;
        }
        if !slot.in_ready {
            slot.in_ready = true;
            self.ready.push_back(child);
        }
        if self.asleep {
            self.asleep = false;
            if let Some(w) = &self.waker {
                w.wake_by_ref();
            }
        }
    }
}

/// One step on its way from the engine thread.
struct Batch {
    at: Instant,
    rows: Vec<RowOutput>,
}

#[derive(Default)]
struct Handover {
    waiting: Mutex<Waiting>,
    ready: Notify,
}

#[derive(Default)]
struct Waiting {
    batches: Vec<Batch>,
    spare: Vec<Vec<RowOutput>>,
    lost: Option<EngineFailure>,
}

impl Handover {
    fn put(&self, outputs: &mut StepOutputs) {
        let mut waiting = lock(&self.waiting);
        if waiting.batches.len() >= MAX_WAITING_STEPS
            && let Some(last) = waiting.batches.last_mut()
        {
            last.rows.append(&mut outputs.rows);
            return;
        }
        let empty = waiting.spare.pop().unwrap_or_default();
        let rows = std::mem::replace(&mut outputs.rows, empty);
        waiting.batches.push(Batch { at: Instant::now(), rows });
        drop(waiting);
        self.ready.notify_one();
    }

    fn lose(&self, failure: EngineFailure) {
        lock(&self.waiting).lost.get_or_insert(failure);
        self.ready.notify_one();
    }

    fn take(&self, into: &mut Vec<Batch>) -> Option<EngineFailure> {
        let mut waiting = lock(&self.waiting);
        std::mem::swap(&mut waiting.batches, into);
        waiting.lost
    }

    fn recycle(&self, used: &mut Vec<Batch>) {
        let mut waiting = lock(&self.waiting);
        for batch in used.drain(..) {
            if waiting.spare.len() < 4 {
                waiting.spare.push(batch.rows);
            }
        }
    }
}

/// Ids are handed out in order, so they are their own hash.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 << 8) | u64::from(*b);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// A poisoned lock means a panic between two plain assignments; the data is still whole.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
