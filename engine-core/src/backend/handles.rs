//! Opaque handles a backend gives out. What is inside is private to the backend that made them.

use std::any::Any;
use std::sync::Arc;

use super::CaptureLevel;
use super::args::{AttnSpec, KvGroupSpec, WeightMeta};
use crate::tensor::Tensor;

type Inner = Arc<dyn Any + Send + Sync>;

fn downcast<'a, T: Any>(what: &str, inner: &'a Inner) -> &'a T {
    inner.downcast_ref().unwrap_or_else(|| panic!("this {what} belongs to another backend"))
}

/// A loaded weight: this device's tiles.
#[derive(Clone)]
pub struct Weight {
    meta: Arc<WeightMeta>,
    inner: Inner,
}

impl Weight {
    /// For backends: a weight around their own representation.
    pub fn new(meta: WeightMeta, inner: Inner) -> Self {
        Weight { meta: Arc::new(meta), inner }
    }
    /// Name, shape, format.
    pub fn meta(&self) -> &WeightMeta {
        &self.meta
    }
    /// The backend's own representation.
    ///
    /// # Panics
    /// If another backend made it.
    pub fn inner<T: Any>(&self) -> &T {
        downcast("weight", &self.inner)
    }
    /// The representation as a shared handle, for graphs that keep it alive.
    pub fn shared(&self) -> Arc<dyn Any + Send + Sync> {
        self.inner.clone()
    }
}

/// Device memory that outlives a step. Derefs to its tensor; freed when the last clone is gone.
#[derive(Clone)]
pub struct Buffer {
    tensor: Tensor,
    inner: Inner,
}

impl Buffer {
    /// For backends.
    pub fn new(tensor: Tensor, inner: Inner) -> Self {
        Buffer { tensor, inner }
    }
    /// The whole buffer.
    pub fn tensor(&self) -> Tensor {
        self.tensor
    }
    /// The backend's own representation.
    ///
    /// # Panics
    /// If another backend made it.
    pub fn inner<T: Any>(&self) -> &T {
        downcast("buffer", &self.inner)
    }
}

impl std::ops::Deref for Buffer {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

/// One layer's share of the KV pool.
#[derive(Clone)]
pub struct KvLayer {
    group: u32,
    layer: u32,
    inner: Inner,
}

impl KvLayer {
    /// For backends: layer `layer` of group `group`; `inner` is shared by all layers of the pool.
    pub fn new(group: u32, layer: u32, inner: Inner) -> Self {
        KvLayer { group, layer, inner }
    }
    /// Group it belongs to.
    pub fn group(&self) -> u32 {
        self.group
    }
    /// Index within the group.
    pub fn layer(&self) -> u32 {
        self.layer
    }
    /// The backend's own representation of the pool.
    ///
    /// # Panics
    /// If another backend made it.
    pub fn inner<T: Any>(&self) -> &T {
        downcast("KV layer", &self.inner)
    }
    /// The pool as a shared handle.
    pub fn shared(&self) -> Arc<dyn Any + Send + Sync> {
        self.inner.clone()
    }
}

/// The paged KV cache: one pool of equal-byte pages shared by all groups. Page 0 is never handed out.
#[derive(Clone)]
pub struct KvPool {
    /// Per group, per layer.
    pub groups: Vec<Vec<KvLayer>>,
    pub specs: Vec<KvGroupSpec>,
    /// Pages of the pool, the unused page 0 included.
    pub pages: u32,
    /// Bytes of one page: the largest of the groups'.
    pub page_bytes: u64,
    /// Identifies the layout within a page; peers that exchange pages must agree on it.
    pub layout: u64,
}

/// Device-side plan of attention for one kind of layer.
#[derive(Clone)]
pub struct AttnPlan {
    spec: AttnSpec,
    upload_bytes: usize,
    inner: Inner,
}

impl AttnPlan {
    /// For backends. `upload_bytes` is what `Stream::plan` writes into the packed upload each step, at most.
    pub fn new(spec: AttnSpec, upload_bytes: usize, inner: Inner) -> Self {
        AttnPlan { spec, upload_bytes, inner }
    }
    /// What it was made for.
    pub fn spec(&self) -> &AttnSpec {
        &self.spec
    }
    /// Bytes of the packed upload it needs each step.
    pub fn upload_bytes(&self) -> usize {
        self.upload_bytes
    }
    /// The backend's own representation.
    ///
    /// # Panics
    /// If another backend made it.
    pub fn inner<T: Any>(&self) -> &T {
        downcast("attention plan", &self.inner)
    }
    /// As a shared handle.
    pub fn shared(&self) -> Arc<dyn Any + Send + Sync> {
        self.inner.clone()
    }
}

/// Per-slot sampling state on the device: counts for penalties, bias and allowed lists, bad words.
#[derive(Clone)]
pub struct Sampler {
    inner: Inner,
}

impl Sampler {
    /// For backends.
    pub fn new(inner: Inner) -> Self {
        Sampler { inner }
    }
    /// The backend's own representation.
    ///
    /// # Panics
    /// If another backend made it.
    pub fn inner<T: Any>(&self) -> &T {
        downcast("sampler", &self.inner)
    }
    /// As a shared handle.
    pub fn shared(&self) -> Arc<dyn Any + Send + Sync> {
        self.inner.clone()
    }
}

/// A captured sequence of ops. Keeps every allocation it touches alive.
#[derive(Clone)]
pub struct Graph {
    level: CaptureLevel,
    inner: Inner,
}

impl Graph {
    /// For backends.
    pub fn new(level: CaptureLevel, inner: Inner) -> Self {
        Graph { level, inner }
    }
    /// How it was captured.
    pub fn level(&self) -> CaptureLevel {
        self.level
    }
    /// The backend's own representation.
    ///
    /// # Panics
    /// If another backend made it.
    pub fn inner<T: Any>(&self) -> &T {
        downcast("graph", &self.inner)
    }
    /// As a shared handle.
    pub fn shared(&self) -> Arc<dyn Any + Send + Sync> {
        self.inner.clone()
    }
}

/// Host memory a device writes downloads into. Implemented by backends (pinned memory on a GPU).
pub trait HostMemory: Any + Send + Sync {
    /// The bytes. The backend writes only while the slot is inside a [`Pending`].
    fn bytes(&self) -> &[u8];
    /// For the backend that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A readable landing place for downloads; unreadable while a [`Pending`] holds it.
pub struct HostSlot {
    memory: Arc<dyn HostMemory>,
}

impl HostSlot {
    /// For backends.
    pub fn new(memory: Arc<dyn HostMemory>) -> Self {
        HostSlot { memory }
    }
    /// What the last finished download left.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }
    /// The memory, for the backend.
    pub fn memory(&self) -> &Arc<dyn HostMemory> {
        &self.memory
    }
    /// The memory for writing, for backends that complete downloads at once; `None` while it is shared.
    pub fn exclusive(&mut self) -> Option<&mut dyn HostMemory> {
        Arc::get_mut(&mut self.memory)
    }
}

/// A point in a stream's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// Which stream of the backend.
    pub stream: u32,
    /// Position in that stream's order; counts up from 1.
    pub at: u64,
}

/// A download under way: trade it for the slot with `Stream::wait`.
#[must_use = "a download is only readable after Stream::wait"]
pub struct Pending {
    ticket: Ticket,
    slot: HostSlot,
}

impl Pending {
    /// For backends.
    pub fn new(ticket: Ticket, slot: HostSlot) -> Self {
        Pending { ticket, slot }
    }
    /// When it is done.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
    /// For backends, once the ticket has completed.
    pub fn into_slot(self) -> HostSlot {
        self.slot
    }
}

/// A height of the scratch arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a mark is given back with Stream::release"]
pub struct Mark(pub u64);
