//! [`Rig`]: what a case runs on. Puts tensors between guard rows, runs the op eagerly or captured, reads results.

use std::sync::Arc;

use engine_core::backend::{
    Backend, Buffer, Invariance, KvGroupSpec, KvPool, MemKind, QueueKind, StepCaps, Stream, Uses, Weight,
    capture,
};
use engine_core::backend::{Fuse, HostPart};
use engine_core::{DType, Result, Tensor};

use super::collective::alone;
use super::data::{decode, encode, host_weight, part, word_bytes};
use super::spy::Spy;

/// How the step of a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Eager,
    /// Captured, then replayed twice from the same inputs.
    Captured,
}

/// What an op may do to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: its bytes must be the same afterwards.
    Read,
    /// Write it, all or in part.
    Write,
}

/// A named result.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: &'static str,
    pub dtype: DType,
    pub values: Vec<f64>,
}

/// One device set up for one case.
pub struct Rig {
    pub backend: Arc<dyn Backend>,
    pub stream: Spy,
    pub caps: StepCaps,
    mode: Mode,
    held: Vec<Held>,
    outputs: Vec<Output>,
}

struct Held {
    buffer: Buffer,
    /// Bytes of the buffer before the step, guards included.
    before: Vec<u8>,
    /// Byte range of the tensor between the guards.
    body: std::ops::Range<usize>,
    access: Access,
    what: &'static str,
}

/// Row slots, vocabulary and pages that rigs are made with.
pub const ROWS: u32 = 8;
pub const VOCAB: u32 = 1003;
pub const PAGES_PER_ROW: u32 = 16;

impl Rig {
    /// A rig on a device.
    ///
    /// # Errors
    /// From the device.
    pub fn new(backend: Arc<dyn Backend>, mode: Mode) -> Result<Self> {
        let caps = StepCaps {
            rows: ROWS,
            tokens: 256,
            logit_rows: 32,
            pages_per_row: PAGES_PER_ROW,
            groups: 1,
            vocab: VOCAB,
            logprobs: 8,
            drafts: 0,
            arena_bytes: 4 << 20,
            invariance: Invariance::Batch,
        };
        let inner = backend.stream(QueueKind::Compute, &caps, &alone())?;
        let stream = Spy { backend: backend.clone(), inner, seen: Vec::new(), capturing: false };
        Ok(Rig { backend, stream, caps, mode, held: Vec::new(), outputs: Vec::new() })
    }

    /// A float tensor holding `values`, rounded to `dtype`.
    pub fn floats(
        &mut self,
        what: &'static str,
        shape: &[u32],
        dtype: DType,
        values: &[f32],
        access: Access,
    ) -> Result<Tensor> {
        // NaN in the guards: an op that reads past a row poisons its result.
        self.put(what, shape, dtype, &encode(dtype, values), [0xFF; 4], access)
    }

    /// An i32 tensor.
    pub fn ints(
        &mut self,
        what: &'static str,
        shape: &[u32],
        values: &[i32],
        access: Access,
    ) -> Result<Tensor> {
        let words: Vec<u32> = values.iter().map(|v| *v as u32).collect();
        self.put(what, shape, DType::I32, &word_bytes(&words), INT_GUARD, access)
    }

    /// A u32 tensor.
    pub fn words(
        &mut self,
        what: &'static str,
        shape: &[u32],
        words: &[u32],
        access: Access,
    ) -> Result<Tensor> {
        self.put(what, shape, DType::U32, &word_bytes(words), INT_GUARD, access)
    }

    /// An output: NaN (or a huge integer) until the op writes it.
    pub fn blank(&mut self, what: &'static str, shape: &[u32], dtype: DType) -> Result<Tensor> {
        let guard = if dtype.is_float() { [0xFF; 4] } else { INT_GUARD };
        let count = shape.iter().product::<u32>() as usize;
        let body: Vec<u8> = guard.into_iter().cycle().take(count * dtype.size_bytes()).collect();
        self.put(what, shape, dtype, &body, guard, Access::Write)
    }

    /// A weight [n, k] of one part.
    pub fn weight(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        dtype: DType,
        values: &[f32],
        uses: Uses,
        act: DType,
    ) -> Result<Weight> {
        self.backend.load_weight(host_weight(vec![part(name, n, k, dtype, values)], Fuse::One, uses, act))
    }

    /// A vector [k], f32 unless said otherwise.
    pub fn vector(&mut self, name: &str, dtype: DType, values: &[f32]) -> Result<Weight> {
        self.weight(name, [1, values.len()], dtype, values, Uses::Vector, dtype)
    }

    /// A weight of several parts.
    pub fn fused(&mut self, parts: Vec<HostPart>, fuse: Fuse, uses: Uses, act: DType) -> Result<Weight> {
        self.backend.load_weight(host_weight(parts, fuse, uses, act))
    }

    /// A cache.
    pub fn pool(&mut self, spec: KvGroupSpec, pages: u32) -> Result<KvPool> {
        self.backend.kv_pool(&[spec], pages)
    }

    /// Enqueues what prepares a case (filling a cache); always eager, not part of what is tested.
    pub fn prepare(&mut self, f: impl FnOnce(&mut dyn Stream) -> Result<()>) -> Result<()> {
        f(&mut *self.stream.inner)
    }

    /// Runs what is tested, then checks guards and inputs.
    pub fn step(&mut self, f: impl Fn(&mut dyn Stream) -> Result<()>) -> Result<()> {
        match self.mode {
            Mode::Eager => f(&mut self.stream)?,
            Mode::Captured => {
                let (graph, ()) = capture(&mut self.stream, &f)?;
                if let Some(graph) = graph {
                    self.stream.replay(&graph)?;
                    self.reset()?;
                    self.stream.replay(&graph)?;
                }
            }
        }
        for i in 0..self.held.len() {
            let now = self.bytes_of(i)?;
            self.held[i].verify(&now);
        }
        Ok(())
    }

    /// Declares an output; its values as they are now.
    pub fn output(&mut self, name: &'static str, tensor: Tensor) -> Result<()> {
        let values = self.read(tensor)?;
        self.outputs.push(Output { name, dtype: tensor.dtype(), values });
        Ok(())
    }

    /// The values of any view of a tensor made here.
    pub fn read(&mut self, tensor: Tensor) -> Result<Vec<f64>> {
        let held = self.held.iter().position(|h| h.buffer.mem() == tensor.mem());
        let bytes = self.bytes_of(held.expect("a tensor of this rig"))?;
        let size = tensor.dtype().size_bytes();
        let [d0, d1, d2, d3] = tensor.shape().map(|d| d as usize);
        let [s0, s1, s2] = tensor.strides().map(|s| s as usize);
        let row = |i: usize| {
            tensor.at_bytes() as usize + (i / (d1 * d2) * s0 + i / d2 % d1 * s1 + i % d2 * s2) * size
        };
        let packed: Vec<u8> =
            (0..d0 * d1 * d2).flat_map(|i| bytes[row(i)..row(i) + d3 * size].to_vec()).collect();
        Ok(decode(tensor.dtype(), &packed))
    }

    /// The outputs declared.
    pub fn into_outputs(self) -> (Vec<Output>, Vec<super::spy::Seen>) {
        (self.outputs, self.stream.seen)
    }

    fn put(
        &mut self,
        what: &'static str,
        shape: &[u32],
        dtype: DType,
        body: &[u8],
        guard: [u8; 4],
        access: Access,
    ) -> Result<Tensor> {
        let cols = *shape.last().unwrap();
        let rows: u32 = shape[..shape.len() - 1].iter().product();
        let row_bytes = cols as usize * dtype.size_bytes();
        assert_eq!(body.len(), rows as usize * row_bytes, "{what} {shape:?}");
        let guard: Vec<u8> = guard.into_iter().cycle().take(row_bytes).collect();
        let before = [&guard[..], body, &guard[..]].concat();
        let buffer = self.backend.buffer(&[rows + 2, cols], dtype, MemKind::Device)?;
        self.stream.upload(&before, *buffer)?;
        let tensor = buffer.rows_at(1, rows).view(shape);
        let body = row_bytes..row_bytes + body.len();
        self.held.push(Held { buffer, before, body, access, what });
        Ok(tensor)
    }

    fn reset(&mut self) -> Result<()> {
        for held in &self.held {
            self.stream.upload(&held.before, *held.buffer)?;
        }
        Ok(())
    }

    fn bytes_of(&mut self, index: usize) -> Result<Vec<u8>> {
        let held = &self.held[index];
        let slot = self.backend.host_slot(held.before.len())?;
        let pending = self.stream.download(*held.buffer, slot)?;
        Ok(self.stream.wait(pending)?.bytes()[..held.before.len()].to_vec())
    }
}

/// As an index it is far out of bounds, as a value it is none that occurs.
const INT_GUARD: [u8; 4] = [0x7F; 4];

impl Held {
    fn verify(&self, now: &[u8]) {
        let (start, end) = (self.body.start, self.body.end);
        let guards_kept = now[..start] == self.before[..start] && now[end..] == self.before[end..];
        assert!(guards_kept, "the op wrote outside of {}", self.what);
        if self.access == Access::Read {
            assert!(now[start..end] == self.before[start..end], "the op changed its input {}", self.what);
        }
    }
}
