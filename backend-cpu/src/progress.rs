//! How far a stream is: what other threads (waits, the watchdog, other streams, the memory table) look at.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use engine_core::backend::{Control, OpKind};
use engine_core::{Error, Result};

/// Progress of one stream. Shared by its handle, its workers and everyone who waits for it.
pub(crate) struct Progress {
    /// The last ticket whose work is done.
    completed: AtomicU64,
    /// Commands enqueued.
    published: AtomicU64,
    /// Commands each worker is past.
    passed: Box<[Padded]>,
    /// Index in `OpKind::ALL` of the op last started.
    op: AtomicU32,
    lost: AtomicBool,
    stopped: AtomicBool,
    reason: Mutex<Option<(String, String)>>,
    waiters: AtomicU32,
    gate: Mutex<()>,
    bell: Condvar,
}

#[repr(align(128))]
struct Padded(AtomicU64);

impl Progress {
    /// For a stream of `workers` threads.
    pub fn new(workers: usize) -> Self {
        Progress {
            completed: AtomicU64::new(0),
            published: AtomicU64::new(0),
            passed: (0..workers).map(|_| Padded(AtomicU64::new(0))).collect(),
            op: AtomicU32::new(0),
            lost: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            reason: Mutex::new(None),
            waiters: AtomicU32::new(0),
            gate: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    /// Commands enqueued so far.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }
    /// Makes commands up to `n` visible to the workers.
    pub fn publish(&self, n: u64) {
        self.published.store(n, Ordering::SeqCst);
    }
    /// Commands every worker is past.
    pub fn passed(&self) -> u64 {
        self.passed.iter().map(|p| p.0.load(Ordering::Acquire)).min().unwrap_or(0)
    }
    /// Worker `id` is past `n` commands.
    pub fn pass(&self, id: usize, n: u64) {
        self.passed[id].0.store(n, Ordering::Release);
        self.ring();
    }
    /// The work of ticket `at` is done.
    pub fn complete(&self, at: u64) {
        self.completed.store(at, Ordering::SeqCst);
        self.ring();
    }
    /// The op being run.
    #[inline(always)]
    pub fn started(&self, op: OpKind) {
        self.op.store(op as u32, Ordering::Relaxed);
    }
    /// Whether a kernel failed or the stream was aborted: nothing more is computed.
    #[inline(always)]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
    /// Whether the workers are gone.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
    /// The workers are gone.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.ring();
    }

    /// Marks the stream as lost; the first reason stays.
    pub fn lose(&self, op: &str, reason: String) {
        let mut why = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        why.get_or_insert((op.to_string(), reason));
        drop(why);
        self.lost.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// `DeviceLost` when the stream is lost.
    pub fn check(&self) -> Result<()> {
        if !self.is_lost() {
            return Ok(());
        }
        let why = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let (op, reason) = why.clone().unwrap_or_default();
        Err(Error::DeviceLost { op, reason })
    }

    /// Blocks until ticket `at` is done or the stream is lost.
    pub fn wait(&self, at: u64) -> Result<()> {
        self.wait_until(|| self.completed.load(Ordering::SeqCst) >= at);
        self.check()
    }

    /// Blocks, asleep, until `done` or the stream is lost. `done` must become true by [`Progress::pass`] or
    /// [`Progress::complete`].
    pub fn wait_until(&self, done: impl Fn() -> bool) {
        if done() {
            return;
        }
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiters.fetch_add(1, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        while !done() && !self.is_lost() && !self.is_stopped() {
            gate = self.bell.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits for ticket `at` of another stream; this stream is lost with it.
    pub fn wait_for(&self, other: &Progress, at: u64) {
        let done = || other.completed.load(Ordering::SeqCst) >= at;
        let mut gate = other.gate.lock().unwrap_or_else(PoisonError::into_inner);
        other.waiters.fetch_add(1, Ordering::SeqCst);
        while !done() && !other.is_lost() && !other.is_stopped() && !self.is_lost() {
            // Bounded, because an abort of this stream does not ring the other's bell.
            let slept = other.bell.wait_timeout(gate, Duration::from_millis(50));
            gate = slept.unwrap_or_else(PoisonError::into_inner).0;
        }
        other.waiters.fetch_sub(1, Ordering::SeqCst);
        if !done() {
            self.lose("After", format!("the stream it waited for ended before ticket {at}"));
        }
    }

    fn ring(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }
}

impl Control for Progress {
    fn completed(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }
    fn last_op(&self) -> String {
        let op = self.op.load(Ordering::Relaxed) as usize;
        OpKind::ALL.get(op).map_or("none", |op| op.name()).to_string()
    }
    fn abort(&self, reason: &str) {
        self.lose(&self.last_op(), reason.to_string());
    }
}
