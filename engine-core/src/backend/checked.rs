//! [`Checked`]: validates what the seam states as prose, then forwards. On in tests and debug builds.
//!
//! A broken rule is a bug of the caller, so it panics, naming op, argument, what was expected and what came: shapes,
//! types, aliasing and index tensors of every op ([`ops`]), stale scratch, the nesting of marks, and what must not
//! happen inside a capture. Handles pass through unchanged: they belong to the inner backend.

mod ops;
mod tensors;

use std::any::Any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{
    AttnPlan, AttnSpec, Backend, BatchMeta, Buffer, CaptureLevel, CommConfig, Graph, HostSlot, HostWeight,
    KvGroupSpec, KvLayer, KvPool, Mark, MemKind, Op, Pending, Phase, QueueKind, Sampler, StepCaps, Stream,
    Ticket, Weight,
};
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use crate::{forward_backend, forward_stream};

/// A backend whose callers are checked.
pub struct Checked {
    inner: Arc<dyn Backend>,
    shared: Arc<Shared>,
}

impl Checked {
    /// Checks the callers of `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Checked { inner, shared: Arc::default() }
    }
}

/// A pool and what it was made of.
type MadePool = (Weak<dyn Any + Send + Sync>, Vec<KvGroupSpec>);

/// What a backend's streams and its load-time surface must agree on.
#[derive(Default)]
struct Shared {
    /// Captures under way.
    capturing: AtomicU32,
    pools: Mutex<Vec<MadePool>>,
}

impl Shared {
    fn no_capture(&self, what: &str) {
        let capturing = self.capturing.load(Ordering::SeqCst);
        assert!(capturing == 0, "{what} inside a capture: nothing may be allocated there");
    }

    /// The group spec a layer was made of, if this backend's `kv_pool` made it.
    fn spec_of(&self, layer: &KvLayer) -> Option<KvGroupSpec> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = layer.shared();
        let same = |w: &Weak<dyn Any + Send + Sync>| std::ptr::addr_eq(w.as_ptr(), Arc::as_ptr(&inner));
        let (_, specs) = pools.iter().find(|(pool, _)| same(pool))?;
        specs.get(layer.group() as usize).copied()
    }
}

impl Backend for Checked {
    forward_backend!(inner: info memory supports overhead_bytes);
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer> {
        self.shared.no_capture("buffer");
        assert!((1..=4).contains(&shape.len()), "buffer: 1 to 4 dimensions, got {shape:?}");
        self.inner.buffer(shape, dtype, kind)
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        self.shared.no_capture("host_slot");
        self.inner.host_slot(bytes)
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        self.shared.no_capture("load_weight");
        check_weight(&w);
        self.inner.load_weight(w)
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        self.shared.no_capture("kv_pool");
        assert!(!groups.is_empty(), "kv_pool: at least one group");
        assert!(pages >= 2, "kv_pool: at least page 0 and one to use, got {pages} pages");
        for (g, spec) in groups.iter().enumerate() {
            let sizes = [spec.layers, spec.kv_heads, spec.k_dim, spec.page_tokens];
            assert!(sizes.iter().all(|s| *s > 0), "kv_pool: group {g} has a size of zero: {spec:?}");
        }
        let pool = self.inner.kv_pool(groups, pages)?;
        if let Some(layer) = pool.groups.iter().flatten().next() {
            let mut pools = self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.retain(|(pool, _)| pool.strong_count() > 0);
            pools.push((Arc::downgrade(&layer.shared()), groups.to_vec()));
        }
        Ok(pool)
    }
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        self.shared.no_capture("attn_plan");
        assert!(
            spec.kv_heads > 0 && spec.q_heads.is_multiple_of(spec.kv_heads),
            "attn_plan: q_heads must be a multiple of kv_heads, got {} and {}",
            spec.q_heads,
            spec.kv_heads
        );
        assert!(spec.group < caps.groups, "attn_plan: group {} of {}", spec.group, caps.groups);
        self.inner.attn_plan(spec, caps)
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        self.shared.no_capture("sampler");
        self.inner.sampler(caps)
    }
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        self.shared.no_capture("stream");
        Ok(Box::new(CheckedStream {
            inner: self.inner.stream(kind, caps, comms)?,
            shared: self.shared.clone(),
            caps: caps.clone(),
            arena: None,
            height_bytes: 0,
            marks: Vec::new(),
            capturing: false,
        }))
    }
}

/// Parts of one weight fit each other.
fn check_weight(w: &HostWeight) {
    use super::{Fuse, Uses};
    let name = &w.name;
    assert!(!w.parts.is_empty(), "load_weight {name}: no parts");
    match w.fuse {
        Fuse::One | Fuse::Heads { .. } => {
            assert!(
                w.parts.len() == 1,
                "load_weight {name}: {:?} takes one part, got {}",
                w.fuse,
                w.parts.len()
            );
        }
        Fuse::GateUp => {
            let shapes: Vec<_> = w.parts.iter().map(|p| p.shape).collect();
            assert!(
                shapes.len() == 2 && shapes[0] == shapes[1],
                "load_weight {name}: GateUp takes two parts of one shape, got {shapes:?}"
            );
        }
        Fuse::Stack => {}
    }
    if w.uses != Uses::Vector {
        for part in &w.parts {
            let (k, wanted) = (part.shape[1], w.parts[0].shape[1]);
            assert!(k == wanted, "load_weight {name}: part {} has K {k}, the first has {wanted}", part.name);
        }
    }
}

struct CheckedStream {
    inner: Box<dyn Stream>,
    shared: Arc<Shared>,
    caps: StepCaps,
    /// Memory number of the arena, known from the first scratch tensor.
    arena: Option<u32>,
    /// End of the last live scratch tensor.
    height_bytes: u64,
    marks: Vec<(Mark, u64)>,
    capturing: bool,
}

impl CheckedStream {
    fn not_in_capture(&self, what: &str) {
        assert!(!self.capturing, "{what} inside a capture");
    }

    fn set_capturing(&mut self, on: bool) {
        if on != self.capturing {
            self.capturing = on;
            if on {
                self.shared.capturing.fetch_add(1, Ordering::SeqCst);
            } else {
                self.shared.capturing.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn live(&self, op: &str, arg: &str, t: Tensor) {
        if self.arena == Some(t.mem()) {
            let end = t.at_bytes() + t.extent_bytes();
            assert!(
                end <= self.height_bytes,
                "{op}: {arg}: a scratch tensor that ends at byte {end} was released (the arena is {} high)",
                self.height_bytes
            );
        }
    }
}

impl Drop for CheckedStream {
    fn drop(&mut self) {
        self.set_capturing(false);
    }
}

impl Stream for CheckedStream {
    forward_stream!(inner: control);
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor {
        let t = self.inner.scratch(shape, dtype);
        assert!(
            t.at_bytes().is_multiple_of(super::null::ALIGN_BYTES),
            "scratch: byte {} is not aligned to {}",
            t.at_bytes(),
            super::null::ALIGN_BYTES
        );
        self.arena = Some(t.mem());
        self.height_bytes = t.at_bytes() + t.extent_bytes();
        t
    }
    fn mark(&mut self) -> Mark {
        let mark = self.inner.mark();
        self.marks.push((mark, self.height_bytes));
        mark
    }
    fn release(&mut self, m: Mark) {
        let at = self.marks.iter().rposition(|(mark, _)| *mark == m);
        let Some(at) = at else {
            panic!("release of {m:?}, which is not among the open marks {:?}", self.marks)
        };
        assert!(
            at + 1 == self.marks.len() || self.marks[at + 1..].iter().all(|(mark, _)| *mark == m),
            "release of {m:?} before the marks inside it: {:?}",
            &self.marks[at + 1..]
        );
        self.height_bytes = self.marks[at].1;
        self.marks.truncate(at);
        self.inner.release(m);
    }
    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()> {
        self.not_in_capture("upload");
        self.live("upload", "dst", dst);
        assert!(dst.is_contiguous(), "upload into a strided tensor {:?}", dst.shape());
        let room = dst.extent_bytes();
        assert!(src.len() as u64 <= room, "upload of {} bytes into a tensor of {room}", src.len());
        self.inner.upload(src, dst)
    }
    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending> {
        self.not_in_capture("download");
        self.live("download", "src", src);
        assert!(src.is_contiguous(), "download of a strided tensor {:?}", src.shape());
        let (bytes, room) = (src.extent_bytes(), into.bytes().len() as u64);
        assert!(bytes <= room, "download of {bytes} bytes into a slot of {room}");
        self.inner.download(src, into)
    }
    fn wait(&mut self, p: Pending) -> Result<HostSlot> {
        self.not_in_capture("wait");
        self.inner.wait(p)
    }
    fn record(&mut self) -> Result<Ticket> {
        self.not_in_capture("record");
        self.inner.record()
    }
    fn after(&mut self, t: Ticket) -> Result<()> {
        self.not_in_capture("after");
        self.inner.after(t)
    }
    fn plan(&mut self, p: &AttnPlan, b: &BatchMeta<'_>, into: &mut [u8]) -> Result<()> {
        self.not_in_capture("plan");
        check_batch(b, &self.caps);
        let (len, wanted) = (into.len(), p.upload_bytes());
        assert!(len == wanted, "plan: the upload has {len} bytes for it, it needs {wanted}");
        self.inner.plan(p, b, into)
    }
    fn write_weight(&mut self, w: &Weight, slot: u32, src: &HostWeight) -> Result<()> {
        self.not_in_capture("write_weight");
        self.inner.write_weight(w, slot, src)
    }
    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending> {
        self.not_in_capture("pages_out");
        self.inner.pages_out(kv, pages, into)
    }
    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending> {
        self.not_in_capture("pages_in");
        self.inner.pages_in(kv, pages, from)
    }
    fn op(&mut self, op: &Op<'_>) -> Result<()> {
        let context = ops::Context { caps: &self.caps, spec_of: &|layer| self.shared.spec_of(layer) };
        ops::check(op, &context, &|op, arg, t| self.live(op, arg, t));
        self.inner.op(op)
    }
    fn capture_begin(&mut self) -> Result<CaptureLevel> {
        self.not_in_capture("capture_begin");
        let level = self.inner.capture_begin()?;
        self.set_capturing(level != CaptureLevel::Never);
        Ok(level)
    }
    fn capture_end(&mut self) -> Result<Graph> {
        assert!(self.capturing, "capture_end without capture_begin");
        self.set_capturing(false);
        self.inner.capture_end()
    }
    fn capture_abort(&mut self) {
        self.set_capturing(false);
        self.inner.capture_abort();
    }
    fn replay(&mut self, g: &Graph) -> Result<()> {
        self.not_in_capture("replay");
        self.inner.replay(g)
    }
}

/// Rows in the seam's order and within the caps.
fn check_batch(b: &BatchMeta<'_>, caps: &StepCaps) {
    let (rows, most) = (b.rows.len(), caps.rows as usize);
    assert!(rows <= most, "plan: {rows} rows, the stream was made for {most}");
    let tokens: u64 = b.rows.iter().map(|r| u64::from(r.q_len)).sum();
    assert!(
        tokens <= u64::from(caps.tokens),
        "plan: {tokens} tokens, the stream was made for {}",
        caps.tokens
    );
    for (i, row) in b.rows.iter().enumerate() {
        let wanted = if i < b.generated { Phase::Generated } else { Phase::Prompt };
        assert!(
            row.phase == wanted,
            "plan: row {i} is {:?}, generated rows come first ({})",
            row.phase,
            b.generated
        );
        let (q, kv) = (row.q_len, row.kv_len_max);
        assert!(q <= kv, "plan: row {i} has {q} queries and at most {kv} keys");
    }
}

#[cfg(test)]
mod tests;
