//! [`EngineHandle`]: how any thread talks to the engine thread. Never blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::metrics::{Board, EngineFigures};
use super::types::{Refused, Request, RequestId};

/// Bounds of the queue in front of the engine.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Requests that may wait.
    pub requests: usize,
    /// Prompt tokens that may wait; `None` leaves it to `requests`.
    pub tokens: Option<usize>,
}

/// What the engine thread can be told.
pub(super) enum Message {
    Submit(Box<Request>),
    Abort(RequestId),
    ResetPrefixCache,
    /// End now; what is open fails with `ShuttingDown`.
    Stop,
}

/// Whether the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineState {
    Running,
    /// Asked to stop, or stopped.
    Stopped,
    /// The device or the engine thread is lost.
    Lost,
}

/// What handle and engine thread share.
pub(super) struct Shared {
    limits: QueueLimits,
    max_model_len: u32,
    queued: AtomicUsize,
    queued_tokens: AtomicUsize,
    state: AtomicU8,
    started: Instant,
    /// Milliseconds since `started` of the last step's end; 0 while there is no work.
    busy_since_ms: AtomicU64,
    pub(super) board: Board,
}

impl Shared {
    /// The request left the queue: it runs, or has ended.
    pub(super) fn dequeue(&self, prompt_tokens: usize) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.queued_tokens.fetch_sub(prompt_tokens, Ordering::Relaxed);
    }

    pub(super) fn set_state(&self, state: EngineState) {
        let code = match state {
            EngineState::Running => 0,
            EngineState::Stopped => 1,
            EngineState::Lost => 2,
        };
        self.state.fetch_max(code, Ordering::AcqRel);
    }

    /// There is work: from now on time without a step's end is a stall.
    pub(super) fn busy(&self) {
        if self.busy_since_ms.load(Ordering::Relaxed) == 0 {
            self.progress(Progress::Stepped);
        }
    }

    /// Called after each step, and with `Idle` before sleeping.
    pub(super) fn progress(&self, now: Progress) {
        let at = match now {
            Progress::Stepped => self.started.elapsed().as_millis() as u64 + 1,
            Progress::Idle => 0,
        };
        self.busy_since_ms.store(at, Ordering::Relaxed);
    }
}

/// What the engine thread has just done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Stepped,
    Idle,
}

/// Submits and aborts requests. Clones share one engine.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: Sender<Message>,
}

impl EngineHandle {
    pub(super) fn new(limits: QueueLimits, max_model_len: u32) -> (Self, Arc<Shared>, Receiver<Message>) {
        let (inbox, outbox) = channel();
        let shared = Arc::new(Shared {
            limits,
            max_model_len,
            queued: AtomicUsize::new(0),
            queued_tokens: AtomicUsize::new(0),
            state: AtomicU8::new(0),
            started: Instant::now(),
            busy_since_ms: AtomicU64::new(0),
            board: Board::default(),
        });
        (EngineHandle { shared: shared.clone(), inbox }, shared, outbox)
    }

    /// Queues a request, or refuses it at once. An accepted request gets exactly one terminal event.
    ///
    /// # Errors
    /// [`Refused`]: the queue is full, the request can never fit, or the engine does not run.
    pub fn submit(&self, request: Request) -> Result<(), Refused> {
        let shared = &*self.shared;
        if self.state() != EngineState::Running {
            return Err(Refused::NotRunning);
        }
        let (prompt, length) = (request.prompt.len(), shared.max_model_len as usize);
        if prompt == 0 || prompt >= length {
            return Err(Refused::NeverFits(format!(
                "the prompt has {prompt} tokens; between 1 and {} fit with one token to generate \
                 (the context length is {length}, --max-model-len)",
                length - 1
            )));
        }
        let limit = shared.limits.requests;
        let room = |queued: usize| (queued < limit).then_some(queued + 1);
        if let Err(queued) = shared.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            return Err(Refused::QueueFull { queued, limit });
        }
        let tokens = shared.queued_tokens.fetch_add(prompt, Ordering::Relaxed);
        if let Some(limit) = shared.limits.tokens.filter(|limit| tokens > 0 && tokens + prompt > *limit) {
            shared.dequeue(prompt);
            return Err(Refused::QueueTokensFull { queued: tokens, limit });
        }
        self.inbox.send(Message::Submit(Box::new(request))).map_err(|_| {
            shared.dequeue(prompt);
            Refused::NotRunning
        })
    }

    /// Ends a request; its pages are free before the next step. Unknown ids are ignored.
    pub fn abort(&self, id: RequestId) {
        self.tell(Message::Abort(id));
    }

    /// Forgets every cached prefix.
    pub fn reset_prefix_cache(&self) {
        self.tell(Message::ResetPrefixCache);
    }

    /// Ends the engine; open requests fail with `ShuttingDown`.
    pub fn stop(&self) {
        self.shared.set_state(EngineState::Stopped);
        self.tell(Message::Stop);
    }

    /// Whether it runs.
    pub fn state(&self) -> EngineState {
        match self.shared.state.load(Ordering::Acquire) {
            0 => EngineState::Running,
            1 => EngineState::Stopped,
            _ => EngineState::Lost,
        }
    }

    /// How long work has been in hand without a step ending; `None` when idle.
    pub fn stalled_for(&self) -> Option<Duration> {
        let since = self.shared.busy_since_ms.load(Ordering::Relaxed);
        let now = self.shared.started.elapsed();
        (since != 0).then(|| now.saturating_sub(Duration::from_millis(since)))
    }

    /// The engine's figures now.
    pub fn figures(&self) -> EngineFigures {
        self.shared.board.read()
    }

    /// Requests accepted and not yet running.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }

    fn tell(&self, message: Message) {
        // A closed inbox means the engine has ended: nothing is left to tell it.
        let _ = self.inbox.send(message);
    }
}
