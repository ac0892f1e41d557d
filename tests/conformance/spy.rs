//! [`Spy`]: forwards to a stream and notes, op by op, what `supports` says and what ran.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_core::backend::{Backend, CaptureLevel, Graph, Op, OpKind, OpSpec, Stream, Support};
use engine_core::forward_stream;
use engine_core::{Error, Result};

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
    forward_stream!(
        inner: scratch mark release upload download wait record after control plan write_weight pages_out
        pages_in replay
    );
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
}
