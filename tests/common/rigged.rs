//! [`Rigged`]: a backend that counts what is enqueued on its streams and breaks on demand.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};

use engine_core::backend::{
    AttnPlan, AttnSpec, Backend, BatchMeta, Buffer, CaptureLevel, CommConfig, Control, DeviceInfo, Graph,
    HostSlot, HostWeight, KvGroupSpec, KvLayer, KvPool, Mark, MemInfo, MemKind, Op, OpSpec, Pending,
    QueueKind, Sampler, StepCaps, Stream, Support, Ticket, Weight,
};
use engine_core::{DType, Error, Result, Tensor};

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
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn memory(&self) -> Result<MemInfo> {
        self.inner.memory()
    }
    fn supports(&self, op: &OpSpec) -> Support {
        self.inner.supports(op)
    }
    fn overhead_bytes(&self, caps: &StepCaps) -> u64 {
        self.inner.overhead_bytes(caps)
    }
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer> {
        self.inner.buffer(shape, dtype, kind)
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        self.inner.host_slot(bytes)
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        self.inner.load_weight(w)
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        self.inner.kv_pool(groups, pages)
    }
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        self.inner.attn_plan(spec, caps)
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        self.inner.sampler(caps)
    }
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
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        self.inner.scratch(shape, dtype)
    }
    fn mark(&mut self) -> Mark {
        self.inner.mark()
    }
    fn release(&mut self, m: Mark) {
        self.inner.release(m);
    }
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
    fn record(&mut self) -> Result<Ticket> {
        self.inner.record()
    }
    fn after(&mut self, t: Ticket) -> Result<()> {
        self.inner.after(t)
    }
    fn control(&self) -> Arc<dyn Control> {
        self.inner.control()
    }
    fn plan(&mut self, p: &AttnPlan, b: &BatchMeta<'_>, into: &mut [u8]) -> Result<()> {
        self.inner.plan(p, b, into)
    }
    fn write_weight(&mut self, w: &Weight, slot: u32, src: &HostWeight) -> Result<()> {
        self.inner.write_weight(w, slot, src)
    }
    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending> {
        self.inner.pages_out(kv, pages, into)
    }
    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending> {
        self.inner.pages_in(kv, pages, from)
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        self.rig.ops.fetch_add(1, Relaxed);
        self.inner.op(op)
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        self.rig.captures.fetch_add(1, Relaxed);
        self.inner.capture_begin()
    }
    fn capture_end(&mut self) -> Result<Graph> {
        self.inner.capture_end()
    }
    fn capture_abort(&mut self) {
        self.inner.capture_abort();
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        self.rig.replays.fetch_add(1, Relaxed);
        self.inner.replay(g)
    }
}
