//! The seam between the engine and a device: [`Backend`] at load time, [`Stream`] at run time.
//!
//! The four pillars are `Op::PagedAttention`, `Op::Gemm`, `Op::QuantizedMatmul` and graph capture
//! ([`Stream::capture_begin`], [`Stream::replay`]). Compute is one method, [`Stream::op`]: an op is data, so a
//! wrapper forwards one method, a graph is a list of ops, and [`Backend::supports`] asks about the very op. A
//! backend matches the ops it has a kernel for and ends with `_ => compose::lower(self, op)`.
//!
//! Letters: T tokens in the batch · S sequences · R row slots · L logits rows · H hidden · Hq/Hkv query and KV
//! heads · D head size · N×K weight (out × in) · E experts · V vocabulary · G KV groups · P pages · w ranks.
//!
//! # Rules
//!
//! 1. [`Weight`], [`KvLayer`], [`AttnPlan`], [`Sampler`], [`Graph`] are opaque: layout is private to the backend
//!    that made them. A `Graph` keeps every allocation it touched alive. A stale or out-of-bounds [`Tensor`]
//!    panics in release too, never undefined behaviour; shapes are checked by [`checked`]. Outputs alias inputs
//!    only where the op says so.
//! 2. Quantization is a property of a `Weight` and of an [`Act`], never of a model. `quant/` turns a checkpoint
//!    into host parts with a format each and says how they fuse, are used and shard; `load_weight` makes whatever
//!    tiles its kernel wants; a producer writes its `Act` in the form the next weight reads (`Stream::act_for`, see [`sugar`]).
//! 3. The host never needs what only the device knows: step N+1 is enqueued before step N's tokens are seen. Page
//!    tables live on the device and get deltas; [`Stream::plan`] works from upper bounds, `Op::PlanOnDevice` from
//!    exact lengths inside the graph; a row that ended unseen at N runs once more at N+1 and so owns the page for
//!    that token.
//! 4. Capture runs on padding only. Inside it: no plan, upload, download, wait or allocation; launch geometry
//!    depends on the bucket and [`StepCaps`], never on lengths. A row of padding reads nothing and writes nothing.
//!    The number of graphs is bounded by `limits::MAX_GRAPHS`.
//! 5. Kernels are chosen by a row's [`Phase`], never by its `q_len`, and KV tiles start at position 0: else batch
//!    invariance fails. A row may carry several query tokens in any step.
//! 6. Verification of drafts: draw the target's token at each of the 1 + k positions with the (seed, position)
//!    noise and accept while it equals the draft.
//! 7. Rows that need the host between steps say so; forward and sample are separate graphs then.
//! 8. Layers hand on `Hidden { residual, delta }` and whoever norms next resolves it. Collectives give the same
//!    bits on every rank.
//! 9. Errors are only what the caller cannot foresee: out of memory, device lost, peer lost. A wrong shape is a
//!    bug: [`checked`] panics with op, argument, expected and actual shape.
//! 10. Four backends are no device: [`trace`] records ops and computes nothing, [`checked`] validates and
//!     forwards, [`host_fallback`] runs a missing op on a reference backend, [`null`] does nothing at all (for
//!     scheduler and server load tests).
//! 11. Choice at start-up is text the operator can act on: which op, layer and format is unsupported here and what
//!     would work.
//! 12. `backend-cpu/src/reference/` is the specification of every op.

pub mod args;
pub mod caps;
pub mod capture;
pub mod checked;
pub mod compose;
mod forward;
mod handles;
pub mod host_fallback;
pub mod null;
pub mod op;
pub mod sample_row;
pub mod sugar;
#[cfg(test)]
mod testing;
pub mod trace;

use std::sync::Arc;

pub use args::*;
pub use caps::{CaptureLevel, DeviceInfo, Invariance, MemInfo, OpSpec, StepCaps, Support};
pub use capture::capture;
pub use handles::{
    AttnPlan, Buffer, Graph, HostMemory, HostSlot, KvLayer, KvPool, Mark, Pending, Sampler, Ticket, Weight,
};
pub use op::{NextInputs, Op, OpKind, Sample};
pub use sample_row::{SampleRow, SlotRecord};

use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// The load-time surface of one device.
pub trait Backend: Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;
    /// Its memory now.
    fn memory(&self) -> Result<MemInfo>;
    /// Whether and how an op runs here. Asked at load, never per step.
    fn supports(&self, op: &OpSpec) -> Support;
    /// Memory beyond weights, KV, buffers and arena: graphs, collectives, libraries.
    fn overhead_bytes(&self, caps: &StepCaps) -> u64;
    /// Zeroed memory that outlives a step.
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer>;
    /// A landing place for downloads of up to `bytes`.
    fn host_slot(&self, bytes: usize) -> Result<HostSlot>;
    /// Any format into this device's tiles. Called from several loader threads at once.
    fn load_weight(&self, w: HostWeight) -> Result<Weight>;
    /// One pool of `pages` equal-byte pages shared by all groups.
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool>;
    /// A plan for one kind of attention layer.
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan>;
    /// Per-slot sampling state.
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler>;
    /// An in-order queue with an arena of `caps.arena_bytes`.
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>>;
}

/// The run-time surface: an in-order queue. Ops enqueue; none allocates, synchronises or validates.
pub trait Stream: Send {
    /// A temporary from the bump arena: the same calls give the same addresses. Contents are undefined.
    ///
    /// # Panics
    /// If the arena is full: `Trace` sized it, so this is a bug.
    fn scratch(&mut self, shape: &[u32], dtype: DType) -> Tensor;
    /// The arena's height now.
    fn mark(&mut self) -> Mark;
    /// Gives back everything drawn since `m`; those tensors are stale from here on.
    fn release(&mut self, m: Mark);
    /// Copies `src` to the start of `dst`; `src` is free when this returns.
    fn upload(&mut self, src: &[u8], dst: Tensor) -> Result<()>;
    /// Copies a contiguous `src` into the slot.
    fn download(&mut self, src: Tensor, into: HostSlot) -> Result<Pending>;
    /// Blocks (without spinning) until the download is done.
    fn wait(&mut self, p: Pending) -> Result<HostSlot>;
    /// A ticket for everything enqueued so far.
    fn record(&mut self) -> Result<Ticket>;
    /// What is enqueued from here on waits for another stream's ticket.
    fn after(&mut self, t: Ticket) -> Result<()>;
    /// For other threads: progress and abort.
    fn control(&self) -> Arc<dyn Control>;
    /// Writes the plan's bytes for this batch into its place of the packed upload, from upper bounds.
    fn plan(&mut self, p: &AttnPlan, b: &BatchMeta<'_>, into: &mut [u8]) -> Result<()>;
    /// Rewrites a weight's slot in place (LoRA), under live graphs.
    fn write_weight(&mut self, w: &Weight, slot: u32, src: &HostWeight) -> Result<()>;
    /// Copies pages to the host.
    fn pages_out(&mut self, kv: &[KvLayer], pages: &[u32], into: HostSlot) -> Result<Pending>;
    /// Copies pages from the host; the slot comes back with the pending.
    fn pages_in(&mut self, kv: &[KvLayer], pages: &[u32], from: HostSlot) -> Result<Pending>;
    /// Enqueues one op: the only compute method.
    fn op(&mut self, op: &Op<'_>) -> Result<()>;
    /// Starts recording; `Never` means ops will run eagerly instead. Use [`capture`].
    fn capture_begin(&mut self) -> Result<CaptureLevel>;
    /// Ends recording.
    fn capture_end(&mut self) -> Result<Graph>;
    /// Throws the recording away.
    fn capture_abort(&mut self);
    /// Enqueues a whole graph: one launch.
    fn replay(&mut self, g: &Graph) -> Result<()>;
}

/// A stream seen from another thread (watchdog, health).
pub trait Control: Send + Sync {
    /// The last ticket that has completed.
    fn completed(&self) -> u64;
    /// Name of the op last started, for messages.
    fn last_op(&self) -> String;
    /// Makes the stream fail its waits and drop its work.
    fn abort(&self, reason: &str);
}
