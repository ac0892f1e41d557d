//! What the tests of the backend share: a backend with a stream, tensors from numbers, a small generator.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::cell::RefCell;

use backend_cpu::{CpuBackend, CpuConfig, SimdChoice, SimdPath};
use engine_core::backend::*;
use engine_core::loader::HostBytes;
use engine_core::quant::WeightFormat;
use engine_core::{DType, Tensor};
use half::{bf16, f16};

pub const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// The largest step of the tests.
pub fn caps() -> StepCaps {
    StepCaps {
        rows: 16,
        tokens: 1024,
        logit_rows: 16,
        pages_per_row: 256,
        groups: 1,
        vocab: 1000,
        logprobs: 8,
        drafts: 0,
        arena_bytes: 64 << 20,
        invariance: Invariance::Batch,
    }
}

/// A backend with one compute stream.
pub struct Rig {
    pub backend: CpuBackend,
    pub stream: Box<dyn Stream>,
    buffers: RefCell<Vec<Buffer>>,
}

impl Rig {
    pub fn new(path: SimdPath, threads: usize) -> Rig {
        Rig::with(path, threads, &caps())
    }

    pub fn with(path: SimdPath, threads: usize, caps: &StepCaps) -> Rig {
        let config = CpuConfig { threads: Some(threads), simd: SimdChoice::Forced(path) };
        let backend = CpuBackend::new(config).unwrap();
        let stream = backend.stream(QueueKind::Compute, caps, &[]).unwrap();
        Rig { backend, stream, buffers: RefCell::default() }
    }

    /// An empty (zero) tensor that lives as long as the rig.
    pub fn empty(&self, shape: &[u32], dtype: DType) -> Tensor {
        let buffer = self.backend.buffer(shape, dtype, MemKind::Device).unwrap();
        let t = buffer.tensor();
        self.buffers.borrow_mut().push(buffer);
        t
    }

    pub fn floats(&mut self, values: &[f32], shape: &[u32], dtype: DType) -> Tensor {
        let t = self.empty(shape, dtype);
        self.stream.upload(&encode(values, dtype), t).unwrap();
        t
    }

    pub fn ints(&mut self, values: &[i32], shape: &[u32]) -> Tensor {
        let t = self.empty(shape, DType::I32);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.stream.upload(&bytes, t).unwrap();
        t
    }

    pub fn bytes(&mut self, t: Tensor) -> Vec<u8> {
        let slot = self.backend.host_slot(t.extent_bytes() as usize).unwrap();
        let pending = self.stream.download(t, slot).unwrap();
        self.stream.wait(pending).unwrap().bytes().to_vec()
    }

    pub fn read(&mut self, t: Tensor) -> Vec<f32> {
        decode(&self.bytes(t), t.dtype())
    }

    pub fn read_ints(&mut self, t: Tensor) -> Vec<i32> {
        self.bytes(t).as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }

    pub fn op(&mut self, op: Op<'_>) {
        self.stream.op(&op).unwrap()
    }

    /// A matrix [N, K] of one part.
    pub fn weight(&self, values: &[f32], [n, k]: [usize; 2], dtype: DType, uses: Uses) -> Weight {
        self.fused(&[(values, [n, k])], dtype, Fuse::One, uses)
    }

    pub fn vector(&self, values: &[f32]) -> Weight {
        self.weight(values, [1, values.len()], DType::F32, Uses::Vector)
    }

    pub fn fused(&self, parts: &[(&[f32], [usize; 2])], dtype: DType, fuse: Fuse, uses: Uses) -> Weight {
        let part = |(values, [n, k]): &(&[f32], [usize; 2])| HostPart {
            name: "part".into(),
            data: PartData::Mapped(HostBytes::from(encode(values, dtype))),
            format: WeightFormat::Dense(dtype),
            shape: [*n as u64, *k as u64],
            aux: Vec::new(),
        };
        let weight = HostWeight {
            name: "weight".into(),
            parts: parts.iter().map(part).collect(),
            fuse,
            uses,
            shard: Shard::Whole,
            act_dtype: dtype,
        };
        self.backend.load_weight(weight).unwrap()
    }
}

pub fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

pub fn decode(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// What a tensor of `dtype` holds of `values`.
pub fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    decode(&encode(values, dtype), dtype)
}

/// Values in [-1, 1) that depend on the seed alone.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678_9ABC_DEF0;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Asserts closeness relative to the largest wanted value.
#[track_caller]
pub fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}: element {i} is {g}, wanted {w} (scale {scale})");
    }
}

/// Rounding error of a type, with room for sums.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1.5e-3,
        _ => 1e-2,
    }
}
