//! [`Spy`]: forwards to a stream and notes, op by op, what `supports` says and what ran.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_core::backend::{
    AttnPlan, Backend, BatchMeta, CaptureLevel, Control, Graph, HostSlot, HostWeight, KvLayer, Mark, Op,
    OpKind, OpSpec, Pending, Stream, Support, Ticket, Weight,
};
use engine_core::{DType, Error, Result, Tensor};

/// One op that was enqueued eagerly.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: OpKind,
    pub says: Support,
    /// The op the stream last started was this very op, not a part of its lowering.
    pub ran_as_itself: bool,
}

/// A stream that watches.
pub struct Spy {
    pub backend: Arc<dyn Backend>,
    pub inner: Box<dyn Stream>,
    pub seen: Vec<Seen>,
    pub capturing: bool,
}

impl Spy {
    /// Until the stream has run what was enqueued: only then does `last_op` speak of it.
    fn finish(&mut self) -> Result<()> {
        let ticket = self.inner.record()?;
        let control = self.inner.control();
        let limit = Instant::now() + Duration::from_secs(60);
        while control.completed() < ticket.at && Instant::now() < limit {
            std::thread::yield_now();
            // Fails when the device is lost meanwhile.
            self.inner.record()?;
        }
        Ok(())
    }
}

impl Stream for Spy {
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        let says = self.backend.supports(&OpSpec::from(op));
        if let Support::No(why) = says {
            return Err(Error::Unsupported(why));
        }
        self.inner.op(op)?;
        if !self.capturing {
            self.finish()?;
            let ran_as_itself = self.inner.control().last_op() == op.kind().name();
            self.seen.push(Seen { kind: op.kind(), says, ran_as_itself });
        }
        Ok(())
    }
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
        self.inner.upload(src, dst)
    }
    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending> {
        self.inner.download(src, into)
    }
    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
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
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        let level = self.inner.capture_begin()?;
        self.capturing = level != CaptureLevel::Never;
        Ok(level)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        self.capturing = false;
        self.inner.capture_end()
    }
    fn capture_abort(&mut self) {
        self.capturing = false;
        self.inner.capture_abort();
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        self.inner.replay(g)
    }
}
