//! [`Bound`]: a kernel with its operands resolved, and [`Work`]: what a stream's workers are given.

use std::sync::Arc;

use crate::faults;
use crate::memory::Region;
use crate::ops::{
    Kernel, RunPhase, attention, collective, elementwise, gemm, inputs, logprobs, movement, norm, quantized,
    rope, sample, sampler,
};
use crate::progress::Progress;
use crate::simd::enter;
use crate::threads::{Command, Phase, Worker};

macro_rules! bound {
    ($($name:ident($kernel:ty)),* $(,)?) => {
        /// Any bound kernel, without an allocation.
        pub(crate) enum Bound { $($name($kernel)),* }

        $(impl From<$kernel> for Bound {
            fn from(kernel: $kernel) -> Self {
                Bound::$name(kernel)
            }
        })*

        impl Command for Bound {
            fn walk(&self, step: &mut dyn FnMut(Phase<'_>)) {
                match self { $(Bound::$name(kernel) => walk(kernel, step)),* }
            }
        }
    };
}

bound!(
    Embed(movement::Embed),
    GatherRows(movement::GatherRows),
    ScatterRows(movement::ScatterRows),
    Copy(movement::Copy),
    CopyPages(movement::CopyPages),
    UpdateTables(movement::UpdateTables),
    NextInputs(inputs::NextInputs),
    PlanOnDevice(inputs::PlanOnDevice),
    Gemm(gemm::Gemm),
    QuantizedMatmul(quantized::QuantizedMatmul),
    Norm(norm::Norm),
    LayerNorm(norm::LayerNorm),
    Elementwise(elementwise::Elementwise),
    RopeKvWrite(rope::RopeKvWrite),
    Attention(attention::Attention),
    UpdateSampler(sampler::UpdateSampler),
    Sample(sample::Sample),
    LogProbs(logprobs::LogProbs),
    AllReduce(collective::AllReduce),
);

// SAFETY: kernels hold addresses of memory that outlives them (see `memory`), followed only by workers in order.
unsafe impl Send for Bound {}
// SAFETY: as above; the workers that share a kernel write disjoint parts of its results.
unsafe impl Sync for Bound {}

fn walk<K: Kernel>(kernel: &K, step: &mut dyn FnMut(Phase<'_>)) {
    let op = kernel.stands_for();
    for phase in 0..kernel.phases() {
        // SAFETY: bound kernels are sound to run on a path the machine has; workers carry no other.
        let run = |w: &Worker<'_>| unsafe { enter(w.path, RunPhase(kernel, w, phase)) };
        step(Phase { serial: kernel.serial(phase), op: Some(op), run: &run });
    }
    if cfg!(feature = "faults") {
        let run = |w: &Worker<'_>| {
            if faults::planted(op, w.path, kernel.way()) {
                // SAFETY: as above; this is a serial phase behind the kernel's own.
                unsafe { kernel.spoil() }
            }
        };
        step(Phase { serial: true, op: Some(op), run: &run });
    }
}

/// A captured list of kernels with everything they touch.
pub(crate) struct Recorded {
    pub kernels: Vec<Bound>,
    pub regions: Vec<Arc<Region>>,
    pub others: Vec<Arc<dyn std::any::Any + Send + Sync>>,
}

/// One command of a stream.
#[expect(
    clippy::large_enum_variant,
    reason = "commands live in a ring of equal slots; boxing them would allocate"
)]
pub(crate) enum Work {
    Run(Bound),
    Graph(Arc<Recorded>),
    /// Byte ranges to copy.
    Move(Span),
    Moves(Box<[Span]>),
    /// Ticket `.1` of this stream is done.
    Complete(Arc<Progress>, u64),
    /// Waits for ticket `.2` of another stream `.1`.
    After(Arc<Progress>, Arc<Progress>, u64),
}

/// `bytes` from one place to another.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub from: *const u8,
    pub into: *mut u8,
    pub bytes: usize,
}

// SAFETY: as for `Bound`.
unsafe impl Send for Work {}

impl Span {
    fn copy(&self) {
        // SAFETY: both ranges were resolved when the command was made and live until it is done.
        unsafe { std::ptr::copy(self.from, self.into, self.bytes) }
    }
}

impl Command for Work {
    fn walk(&self, step: &mut dyn FnMut(Phase<'_>)) {
        let mut serial = |run: &dyn Fn(&Worker<'_>)| step(Phase { serial: true, op: None, run });
        match self {
            Work::Run(kernel) => kernel.walk(step),
            Work::Graph(graph) => graph.kernels.iter().for_each(|kernel| kernel.walk(step)),
            Work::Move(span) => serial(&|_| span.copy()),
            Work::Moves(spans) => serial(&|_| spans.iter().for_each(Span::copy)),
            Work::Complete(progress, at) => serial(&|_| progress.complete(*at)),
            Work::After(own, other, at) => serial(&|_| own.wait_for(other, *at)),
        }
    }
}
