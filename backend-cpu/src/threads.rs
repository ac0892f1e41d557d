//! The workers of a stream: pinned threads that walk one list of commands in lockstep.
//!
//! Every worker reads every command in order. A command's kernel is split into phases; a phase is either *serial*
//! (worker 0 runs it, the others go on) or *parallel* (all run it, claiming chunks by an atomic counter, so that a
//! slow core takes fewer chunks and delays nobody). Between two phases stands a barrier unless both are serial. The
//! barrier spins for some microseconds and then sleeps; a worker without commands sleeps too, so an idle stream
//! uses no CPU. With as many threads as cores or fewer, a phase boundary costs well under a microsecond.
//!
//! A panic in a kernel marks the stream as lost; the worker goes on walking (all kernels are skipped from then on),
//! so that nobody waits at a barrier forever.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine_core::backend::OpKind;

use crate::memory::Region;
use crate::progress::Progress;
use crate::simd::SimdPath;

/// Commands in flight at most; enqueueing one more waits.
pub(crate) const RING: usize = 1024;
/// How long a worker spins for its peers before it sleeps.
const SPIN: Duration = Duration::from_micros(40);

/// What a worker is given: its number, its scratch memory, and the chunk counter of the phase.
pub(crate) struct Worker<'a> {
    pub id: usize,
    pub count: usize,
    pub path: SimdPath,
    scratch: &'a Region,
    claim: &'a AtomicUsize,
}

impl Worker<'_> {
    /// Private memory of this worker; contents are whatever the last kernel left.
    #[inline(always)]
    pub fn scratch(&self) -> *mut u8 {
        self.scratch.base()
    }

    /// Bytes of [`Worker::scratch`].
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.len()
    }

    /// The next unclaimed chunk below `total`. All workers of a phase must use the same total.
    #[inline(always)]
    pub fn claim(&self, total: usize) -> Option<usize> {
        let i = self.claim.fetch_add(1, Ordering::Relaxed);
        (i < total).then_some(i)
    }
}

/// A list of commands as its workers see it.
pub(crate) trait Command: Send + 'static {
    /// Calls `step(serial, run)` for each phase, in order.
    fn walk(&self, step: &mut dyn FnMut(Phase<'_>));
}

/// One phase of a command.
pub(crate) struct Phase<'a> {
    pub serial: bool,
    /// Name for `last_op` and messages; none for the stream's own bookkeeping.
    pub op: Option<OpKind>,
    pub run: &'a dyn Fn(&Worker<'_>),
}

/// Workers and their ring of commands.
pub(crate) struct Crew<C: Command> {
    shared: Arc<Shared<C>>,
    threads: Vec<JoinHandle<()>>,
    next: u64,
    cleared: u64,
}

struct Shared<C> {
    slots: Box<[Slot<C>]>,
    progress: Arc<Progress>,
    stop: AtomicBool,
    arrivals: Event,
    claim: Padded<AtomicUsize>,
    arrived: Padded<AtomicU32>,
    round: Event,
    count: usize,
    spin: Duration,
    path: SimdPath,
}

struct Slot<C>(UnsafeCell<MaybeUninit<C>>);

// SAFETY: a slot is written by the one enqueuing thread while no worker may read it (its number is not published, or
// every worker is past it), and only read by workers after it is published.
unsafe impl<C: Send> Sync for Slot<C> {}

#[repr(align(128))]
struct Padded<T>(T);

impl<C: Command> Crew<C> {
    /// Starts `cpus.len()` workers, pinned where `cpus` names a CPU, each with one of `scratch`.
    pub fn start(
        cpus: &[Option<usize>],
        scratch: Vec<Arc<Region>>,
        path: SimdPath,
        progress: Arc<Progress>,
        name: &str,
    ) -> std::io::Result<Self> {
        let count = cpus.len();
        let enough = count <= std::thread::available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            slots: (0..RING).map(|_| Slot(UnsafeCell::new(MaybeUninit::uninit()))).collect(),
            progress,
            stop: AtomicBool::new(false),
            arrivals: Event::default(),
            claim: Padded(AtomicUsize::new(0)),
            arrived: Padded(AtomicU32::new(0)),
            round: Event::default(),
            count,
            // Spinning for a peer that waits for this very core would be in its way.
            spin: if enough { SPIN } else { Duration::ZERO },
            path,
        });
        let mut crew = Crew { shared, threads: Vec::with_capacity(count), next: 0, cleared: 0 };
        for (id, (cpu, scratch)) in cpus.iter().copied().zip(scratch).enumerate() {
            let shared = crew.shared.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{id}"));
            crew.threads.push(thread.spawn(move || {
                if let Some(cpu) = cpu {
                    crate::topology::pin_to(cpu);
                }
                shared.work(id, &scratch);
            })?);
        }
        Ok(crew)
    }

    /// Enqueues a command; waits only when [`RING`] commands are under way. Returns its number, from 1.
    pub fn push(&mut self, command: C) -> u64 {
        self.clear();
        if self.next - self.cleared >= RING as u64 {
            let oldest = self.cleared + 1;
            let progress = &self.shared.progress;
            progress.wait_until(|| progress.passed() >= oldest);
            // A lost stream still drains: its workers skip the work but walk on.
            while progress.passed() < oldest && !progress.is_stopped() {
                std::thread::yield_now();
            }
            self.clear();
        }
        let slot = &self.shared.slots[self.next as usize % RING];
        // SAFETY: the slot is empty (`clear` dropped what every worker is past) and not published.
        unsafe { (*slot.0.get()).write(command) };
        self.next += 1;
        self.shared.progress.publish(self.next);
        self.shared.arrivals.advance();
        self.next
    }

    /// Drops the commands that every worker is past.
    pub fn clear(&mut self) {
        let passed = self.shared.progress.passed();
        while self.cleared < passed {
            let slot = &self.shared.slots[self.cleared as usize % RING];
            // SAFETY: written by `push`, and no worker will look at it again.
            unsafe { (*slot.0.get()).assume_init_drop() };
            self.cleared += 1;
        }
    }
}

impl<C: Command> Drop for Crew<C> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.arrivals.advance();
        for thread in self.threads.drain(..) {
            // Workers catch panics, so a failed join has nothing to tell.
            let _ = thread.join();
        }
        self.clear();
        self.shared.progress.stop();
    }
}

impl<C: Command> Shared<C> {
    fn work(&self, id: usize, scratch: &Region) {
        let worker = Worker { id, count: self.count, path: self.path, scratch, claim: &self.claim.0 };
        let mut next = 0u64;
        let mut after_serial = true;
        while self.await_command(next) {
            let slot = &self.slots[next as usize % RING];
            // SAFETY: number `next` is published and this worker is not past it.
            let command = unsafe { (*slot.0.get()).assume_init_ref() };
            command.walk(&mut |phase| {
                if !(after_serial && phase.serial) {
                    self.barrier();
                }
                after_serial = phase.serial;
                if !phase.serial || id == 0 {
                    self.run(&worker, &phase);
                }
            });
            next += 1;
            self.progress.pass(id, next);
        }
    }

    fn run(&self, worker: &Worker<'_>, phase: &Phase<'_>) {
        if self.progress.is_lost() {
            return;
        }
        if let (0, Some(op)) = (worker.id, phase.op) {
            self.progress.started(op);
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (phase.run)(worker))) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            let op = phase.op.map_or("copy", OpKind::name);
            self.progress.lose(op, text.unwrap_or_else(|| "a kernel panicked".into()));
        }
    }

    /// Waits for command `next`; false when the crew is being stopped and nothing is left to do.
    fn await_command(&self, next: u64) -> bool {
        let ready = || self.progress.published() > next || self.stop.load(Ordering::SeqCst);
        self.arrivals.wait(self.spin, ready);
        self.progress.published() > next
    }

    fn barrier(&self) {
        if self.count == 1 {
            self.claim.0.store(0, Ordering::Relaxed);
            return;
        }
        // It cannot advance before this worker has arrived.
        let round = self.round.value.load(Ordering::Relaxed);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.count as u32 {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.claim.0.store(0, Ordering::Relaxed);
            self.round.advance();
        } else {
            self.round.wait(self.spin, || self.round.value.load(Ordering::SeqCst) != round);
        }
    }
}

/// A counter that threads wait on: spinning for a while, then asleep.
#[derive(Default)]
#[repr(align(128))]
struct Event {
    value: AtomicU64,
    sleepers: AtomicU32,
    gate: Mutex<()>,
    bell: Condvar,
}

impl Event {
    fn advance(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    /// Until `ready`, which only changes before an [`Event::advance`].
    fn wait(&self, spin: Duration, ready: impl Fn() -> bool) {
        if ready() {
            return;
        }
        if !spin.is_zero() {
            let start = Instant::now();
            loop {
                for _ in 0..16 {
                    if ready() {
                        return;
                    }
                    std::hint::spin_loop();
                }
                if start.elapsed() > spin {
                    break;
                }
            }
        }
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            gate = self.bell.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}
