//! [`Trace`]: records what a run would do on a device, and computes nothing.
//!
//! It follows the real backend's answers to `supports`: a native op is noted, a composed one is lowered (so the list
//! shows what runs), a refused one fails as it would at load. Weights are metas only, buffers and cache take no
//! memory. Before a byte of weights is read it says the exact height of the scratch arena, the largest private
//! workspace, and how many uploads, launches and downloads a step makes. Sampled ids are those of [`super::null`].

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::null::{ALIGN_BYTES, NullBackend, NullConfig};
use super::{
    AttnPlan, Backend, BatchMeta, Buffer, CaptureLevel, CommConfig, Graph, HostSlot, HostWeight, KvGroupSpec,
    KvPool, MemKind, Op, OpKind, OpSpec, Pending, QueueKind, StepCaps, Stream, Support, Weight, compose,
};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use crate::{forward_backend, forward_stream};

/// A recording stand-in for a device.
pub struct Trace {
    real: Arc<dyn Backend>,
    null: NullBackend,
    log: Arc<Mutex<Log>>,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// Every required op in order.
    pub ops: Vec<TracedOp>,
    /// Things the host made the device start: ops outside of a capture, and replays.
    pub launches: u64,
    pub replays: u64,
    pub graphs: u64,
    pub plans: u64,
    pub uploads: u64,
    pub upload_bytes: u64,
    pub downloads: u64,
    pub download_bytes: u64,
    /// High-water mark of the scratch arena.
    pub arena_bytes: u64,
    /// Largest private workspace of a native op.
    pub workspace_bytes: u64,
    pub buffer_bytes: u64,
    pub weight_bytes: u64,
    pub kv_bytes: u64,
}

/// One op: its kind and main operands.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedOp {
    pub kind: OpKind,
    /// Shapes and types of the main input, second input and output.
    pub x: Option<Operand>,
    pub y: Option<Operand>,
    pub out: Option<Operand>,
    /// [N, K] of the weight it reads.
    pub weight: Option<[u32; 2]>,
    /// It was recorded into a graph, not started.
    pub captured: bool,
}

/// Shape (right-aligned) and type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    pub shape: [u32; 4],
    pub dtype: DType,
}

impl Trace {
    /// Stands in for `real`, following its `supports`.
    pub fn for_backend(real: Arc<dyn Backend>) -> Self {
        let info = real.info().clone();
        let config = NullConfig { capture: info.capture, ..NullConfig::default() };
        Trace { null: NullBackend::with_info(info, config), real, log: Arc::default() }
    }

    /// What was recorded so far.
    pub fn log(&self) -> Log {
        lock(&self.log).clone()
    }

    /// What was recorded since the last call; the high-water marks and memory totals stay.
    pub fn take(&self) -> Log {
        let mut log = lock(&self.log);
        let taken = log.clone();
        *log = Log {
            arena_bytes: taken.arena_bytes,
            workspace_bytes: taken.workspace_bytes,
            buffer_bytes: taken.buffer_bytes,
            weight_bytes: taken.weight_bytes,
            kv_bytes: taken.kv_bytes,
            ..Log::default()
        };
        taken
    }
}

impl Log {
    /// One line an op, as golden lists keep them.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        for op in &self.ops {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{op}");
        }
        text
    }

    /// How often a kind of op occurs.
    pub fn count(&self, kind: OpKind) -> usize {
        self.ops.iter().filter(|op| op.kind == kind).count()
    }
}

impl fmt::Display for TracedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        for operand in [self.x, self.y].into_iter().flatten() {
            write!(f, " {operand}")?;
        }
        if let Some([n, k]) = self.weight {
            write!(f, " weight [{n}, {k}]")?;
        }
        self.out.map_or(Ok(()), |out| write!(f, " -> {out}"))
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.shape.iter().position(|d| *d != 1).unwrap_or(3);
        write!(f, "{:?} {}", &self.shape[used..], self.dtype)
    }
}

impl Backend for Trace {
    forward_backend!(null: info host_slot attn_plan sampler);
    forward_backend!(real: memory supports overhead_bytes);
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer> {
        let buffer = self.null.buffer(shape, dtype, kind)?;
        lock(&self.log).buffer_bytes += buffer.extent_bytes();
        Ok(buffer)
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        lock(&self.log).weight_bytes += w.meta().bytes;
        self.null.load_weight(w)
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        let pool = self.null.kv_pool(groups, pages)?;
        lock(&self.log).kv_bytes += pool.page_bytes * u64::from(pages);
        Ok(pool)
    }
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        // The arena's size is what a trace finds out.
        let caps = StepCaps { arena_bytes: u64::MAX / 2, ..caps.clone() };
        let inner = self.null.stream(kind, &caps, comms)?;
        Ok(Box::new(TraceStream { inner, real: self.real.clone(), log: self.log.clone(), capturing: false }))
    }
}

struct TraceStream {
    inner: Box<dyn Stream>,
    real: Arc<dyn Backend>,
    log: Arc<Mutex<Log>>,
    capturing: bool,
}

impl TraceStream {
    fn note(&mut self, op: &Op<'_>, workspace_bytes: u64) {
        let operand = |t: Option<Tensor>| t.map(|t| Operand { shape: t.shape(), dtype: t.dtype() });
        let (x, y, out) = op.main_tensors();
        let mut log = lock(&self.log);
        log.workspace_bytes = log.workspace_bytes.max(workspace_bytes);
        log.launches += u64::from(!self.capturing);
        log.ops.push(TracedOp {
            kind: op.kind(),
            x: operand(x),
            y: operand(y),
            out: operand(out),
            weight: op.weight().map(|w| [w.meta().n, w.meta().k]),
            captured: self.capturing,
        });
    }
}

impl Stream for TraceStream {
    forward_stream!(inner: mark release wait record after control write_weight pages_out pages_in);
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        let t = self.inner.scratch(shape, dtype);
        let height = (t.at_bytes() + t.extent_bytes()).next_multiple_of(ALIGN_BYTES);
        let mut log = lock(&self.log);
        log.arena_bytes = log.arena_bytes.max(height);
        t
    }
    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()> {
        let mut log = lock(&self.log);
        log.uploads += 1;
        log.upload_bytes += src.len() as u64;
        drop(log);
        self.inner.upload(src, dst)
    }
    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending> {
        let mut log = lock(&self.log);
        log.downloads += 1;
        log.download_bytes += src.extent_bytes();
        drop(log);
        self.inner.download(src, into)
    }
    fn plan(&mut self, p: &AttnPlan, b: &BatchMeta<'_>, into: &mut [u8]) -> Result<()> {
        lock(&self.log).plans += 1;
        self.inner.plan(p, b, into)
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        match self.real.supports(&OpSpec::from(op)) {
            Support::Native { workspace_bytes, .. } => {
                self.note(op, workspace_bytes);
                self.inner.op(op)
            }
            Support::Composed => compose::lower(self, op),
            Support::No(why) => Err(Error::Unsupported(format!("op {}: {why}", op.kind().name()))),
        }
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        let level = self.inner.capture_begin()?;
        self.capturing = level != CaptureLevel::Never;
        Ok(level)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        self.capturing = false;
        lock(&self.log).graphs += 1;
        self.inner.capture_end()
    }
    fn capture_abort(&mut self) {
        self.capturing = false;
        self.inner.capture_abort();
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        let mut log = lock(&self.log);
        log.replays += 1;
        log.launches += 1;
        drop(log);
        self.inner.replay(g)
    }
}

/// Nothing panics while it holds the log; its counts stay usable anyway.
fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::{Picky, caps, weight};
    use super::super::{Epilogue, capture};
    use super::*;

    fn trace(composed: &'static [OpKind], refused: &'static [OpKind]) -> Trace {
        Trace::for_backend(Arc::new(Picky::new(composed, refused)))
    }

    fn norm_linear(s: &mut dyn Stream, norm: &Weight, w: &Weight) -> Result<()> {
        let (x, out) = (s.scratch(&[3, 8], DType::F32), s.scratch(&[3, 20], DType::F32));
        let e = Epilogue::default();
        s.op(&Op::NormLinear { x, residual: None, norm, eps: 1e-5, w, e, out: out.into() })
    }

    #[test]
    fn a_composed_op_is_listed_as_what_runs() {
        let trace = trace(&[OpKind::NormLinear], &[]);
        let (norm, w) = (weight(&trace, 1, 8), weight(&trace, 20, 8));
        let mut stream = trace.stream(QueueKind::Compute, &caps(), &[]).unwrap();
        norm_linear(&mut *stream, &norm, &w).unwrap();
        let log = trace.log();
        let wanted = "Norm [3, 8] float32 weight [1, 8] -> [3, 8] float32\n\
                      Gemm [3, 8] float32 weight [20, 8] -> [3, 20] float32\n";
        assert_eq!(log.listing(), wanted);
        // x and out at 256 bytes each, and what the lowering draws between them.
        assert_eq!(log.arena_bytes, 768);
        assert_eq!((log.launches, log.weight_bytes), (2, 4 * (8 + 160)));
    }

    #[test]
    fn a_native_op_is_listed_as_itself_with_its_workspace() {
        let trace = trace(&[], &[]);
        let (norm, w) = (weight(&trace, 1, 8), weight(&trace, 20, 8));
        let mut stream = trace.stream(QueueKind::Compute, &caps(), &[]).unwrap();
        norm_linear(&mut *stream, &norm, &w).unwrap();
        let log = trace.log();
        assert_eq!((log.count(OpKind::NormLinear), log.ops.len()), (1, 1));
        assert_eq!((log.arena_bytes, log.workspace_bytes), (512, Picky::WORKSPACE_BYTES));
    }

    #[test]
    fn a_refused_op_fails_with_the_devices_reason() {
        let trace = trace(&[], &[OpKind::NormLinear]);
        let (norm, w) = (weight(&trace, 1, 8), weight(&trace, 20, 8));
        let mut stream = trace.stream(QueueKind::Compute, &caps(), &[]).unwrap();
        let error = norm_linear(&mut *stream, &norm, &w).unwrap_err();
        assert_eq!(error.to_string(), "op NormLinear: this device refuses NormLinear");
    }

    #[test]
    fn a_captured_step_is_one_launch() {
        let trace = trace(&[OpKind::NormLinear], &[]);
        let (norm, w) = (weight(&trace, 1, 8), weight(&trace, 20, 8));
        let mut stream = trace.stream(QueueKind::Compute, &caps(), &[]).unwrap();
        let (graph, ()) = capture(&mut *stream, |s| norm_linear(s, &norm, &w)).unwrap();
        assert!(trace.take().ops.iter().all(|op| op.captured));
        let packed = trace.buffer(&[64], DType::I32, MemKind::Device).unwrap();
        stream.upload(&[0; 200], *packed).unwrap();
        stream.replay(&graph.unwrap()).unwrap();
        let slot = trace.host_slot(256).unwrap();
        let pending = stream.download(*packed, slot).unwrap();
        stream.wait(pending).unwrap();
        let log = trace.take();
        assert_eq!(
            (log.uploads, log.upload_bytes, log.launches, log.downloads, log.download_bytes),
            (1, 200, 1, 1, 256)
        );
        assert!(log.ops.is_empty());
    }
}
