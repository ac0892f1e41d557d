//! [`Rigged`]: a backend that counts what is enqueued on its streams and breaks on demand.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};

use engine_core::backend::{
    Backend, CaptureLevel, CommConfig, Graph, HostSlot, Op, Pending, QueueKind, StepCaps, Stream,
};
use engine_core::{Error, Result, Tensor};
use engine_core::{forward_backend, forward_stream};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `wait` fails from then on.
    DeviceLost,
    /// `wait` panics.
    Panic,
    /// `wait` does not return until the fault is taken away.
    Hang,
}

/// Counters of all streams of one backend, and what is to go wrong.
#[derive(Default)]
pub struct Rig {
    pub uploads: AtomicU64,
    pub downloads: AtomicU64,
    /// Ops enqueued one by one, those of a capture among them.
    pub ops: AtomicU64,
    pub captures: AtomicU64,
    pub replays: AtomicU64,
    pub waits: AtomicU64,
    /// The fault, and the number of waits that still go well.
    fault: Mutex<Option<(u64, Fault)>>,
    mended: Condvar,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub uploads: u64,
    pub downloads: u64,
    pub ops: u64,
    pub captures: u64,
    pub replays: u64,
    pub waits: u64,
}

impl Rig {
    /// The fault strikes after `waits` more waits. What hangs because of another one goes on.
    pub fn plant(&self, waits: u64, fault: Fault) {
        *self.fault.lock().unwrap() = Some((waits, fault));
        self.mended.notify_all();
    }

    /// Takes the fault away; what hangs goes on.
    pub fn mend(&self) {
        *self.fault.lock().unwrap() = None;
        self.mended.notify_all();
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        Counts {
            uploads: self.uploads.load(Relaxed),
            downloads: self.downloads.load(Relaxed),
            ops: self.ops.load(Relaxed),
            captures: self.captures.load(Relaxed),
            replays: self.replays.load(Relaxed),
            waits: self.waits.load(Relaxed),
        }
    }

    fn before_wait(&self) -> Result<()> {
        self.waits.fetch_add(1, Relaxed);
        let mut fault = self.fault.lock().unwrap();
        match &mut *fault {
            None => Ok(()),
            Some((left @ 1.., _)) => {
                *left -= 1;
                Ok(())
            }
            Some((_, Fault::DeviceLost)) => {
                Err(Error::DeviceLost { op: "wait".into(), reason: "the rig pulled its plug".into() })
            }
            Some((_, Fault::Panic)) => {
                drop(fault);
                panic!("the rig panics")
            }
            Some((_, Fault::Hang)) => {
                let hangs = |f: &mut Option<_>| matches!(f, Some((_, Fault::Hang)));
                drop(self.mended.wait_while(fault, hangs).unwrap());
                Ok(())
            }
        }
    }
}

/// See the module.
pub struct Rigged {
    inner: Arc<dyn Backend>,
    rig: Arc<Rig>,
}

impl Rigged {
    /// `inner`, with a rig.
    #[expect(clippy::new_ret_no_self, reason = "handed out as a backend, with the rig beside it")]
    pub fn new(inner: Arc<dyn Backend>) -> (Arc<dyn Backend>, Arc<Rig>) {
        let rig = Arc::new(Rig::default());
        (Arc::new(Rigged { inner, rig: rig.clone() }), rig)
    }
}

impl Backend for Rigged {
    forward_backend!(
        inner: info memory supports overhead_bytes buffer host_slot load_weight kv_pool attn_plan sampler
    );
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        let inner = self.inner.stream(kind, caps, comms)?;
        Ok(Box::new(RiggedStream { inner, rig: self.rig.clone() }))
    }
}

struct RiggedStream {
    inner: Box<dyn Stream>,
    rig: Arc<Rig>,
}

impl Stream for RiggedStream {
    forward_stream!(
        inner: scratch mark release record after control plan write_weight pages_out pages_in capture_end
        capture_abort
    );
    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()> {
        self.rig.uploads.fetch_add(1, Relaxed);
        self.inner.upload(src, dst)
    }
    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending> {
        self.rig.downloads.fetch_add(1, Relaxed);
        self.inner.download(src, into)
    }
    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
        self.rig.before_wait()?;
        self.inner.wait(p)
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        self.rig.ops.fetch_add(1, Relaxed);
        self.inner.op(op)
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        self.rig.captures.fetch_add(1, Relaxed);
        self.inner.capture_begin()
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        self.rig.replays.fetch_add(1, Relaxed);
        self.inner.replay(g)
    }
}
