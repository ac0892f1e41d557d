#![allow(clippy::unwrap_used)]
//! Each rule broken once.

use super::*;
use crate::backend::null::NullBackend;
use crate::backend::{Epilogue, EwOp, Fuse, HostPart, Invariance, PartData, Shard, Uses, capture};
use crate::loader::HostBytes;
use crate::quant::WeightFormat;

fn caps() -> StepCaps {
    StepCaps {
        rows: 4,
        tokens: 16,
        logit_rows: 4,
        pages_per_row: 4,
        groups: 1,
        vocab: 100,
        logprobs: 2,
        drafts: 0,
        arena_bytes: 1 << 20,
        invariance: Invariance::Batch,
    }
}

struct Fixture {
    backend: Checked,
    stream: Box<dyn Stream>,
}

impl Fixture {
    fn new() -> Self {
        let backend = Checked::new(Arc::new(NullBackend::default()));
        let stream = backend.stream(QueueKind::Compute, &caps(), &[]).unwrap();
        Fixture { backend, stream }
    }

    fn weight(&self, n: u64, k: u64) -> Weight {
        let part = HostPart {
            name: "w".into(),
            data: PartData::Mapped(HostBytes::from(vec![0; (n * k * 4) as usize])),
            format: WeightFormat::Dense(DType::F32),
            shape: [n, k],
            aux: Vec::new(),
        };
        let (fuse, uses, shard) = (Fuse::One, Uses::Linear, Shard::Whole);
        let host =
            HostWeight { name: "w".into(), parts: vec![part], fuse, uses, shard, act_dtype: DType::F32 };
        self.backend.load_weight(host).unwrap()
    }

    fn floats(&mut self, shape: &[u32]) -> Tensor {
        self.stream.scratch(shape, DType::F32)
    }

    fn gemm(&mut self, x: Tensor, w: &Weight, out: Tensor) {
        let e = Epilogue::default();
        self.stream.op(&Op::Gemm { x: x.into(), w, e, out: out.into() }).unwrap();
    }
}

#[test]
fn right_calls_pass() {
    let mut f = Fixture::new();
    let w = f.weight(6, 4);
    let mark = f.stream.mark();
    let (x, out) = (f.floats(&[3, 4]), f.floats(&[3, 6]));
    f.gemm(x, &w, out);
    let (graph, ()) = capture(&mut *f.stream, |s| {
        let inner = s.mark();
        s.op(&Op::Elementwise { op: EwOp::Add, a: x, b: Some(x), out: x })?;
        s.release(inner);
        Ok(())
    })
    .unwrap();
    f.stream.release(mark);
    f.stream.replay(&graph.unwrap()).unwrap();
    f.backend.buffer(&[1], DType::F32, MemKind::Device).unwrap();
}

#[test]
#[should_panic(expected = "Gemm: x should be 3 rows of 4, got [1, 1, 3, 5]")]
fn a_wrong_shape() {
    let mut f = Fixture::new();
    let w = f.weight(6, 4);
    let (x, out) = (f.floats(&[3, 5]), f.floats(&[3, 6]));
    f.gemm(x, &w, out);
}

#[test]
#[should_panic(expected = "GatherRows: rows should be int32, got float32")]
fn a_wrong_type() {
    let mut f = Fixture::new();
    let (x, rows, out) = (f.floats(&[3, 5]), f.floats(&[2]), f.floats(&[2, 5]));
    f.stream.op(&Op::GatherRows { x, rows, out }).unwrap();
}

#[test]
#[should_panic(expected = "Gemm: out overlaps x")]
fn an_output_over_an_input() {
    let mut f = Fixture::new();
    let w = f.weight(4, 4);
    let x = f.floats(&[3, 4]);
    f.gemm(x, &w, x);
}

#[test]
#[should_panic(expected = "Elementwise: out overlaps a")]
fn a_partial_alias() {
    let mut f = Fixture::new();
    let x = f.floats(&[3, 4]);
    let (a, out) = (x.rows_at(0, 2), x.rows_at(1, 2));
    f.stream.op(&Op::Elementwise { op: EwOp::Scale(2.0), a, b: None, out }).unwrap();
}

#[test]
#[should_panic(expected = "Copy: x: a scratch tensor")]
fn stale_scratch() {
    let mut f = Fixture::new();
    let out = f.floats(&[4]);
    let mark = f.stream.mark();
    let x = f.floats(&[4]);
    f.stream.release(mark);
    f.stream.op(&Op::Copy { x, out }).unwrap();
}

#[test]
#[should_panic(expected = "before the marks inside it")]
fn marks_out_of_order() {
    let mut f = Fixture::new();
    let outer = f.stream.mark();
    f.floats(&[4]);
    let _inner = f.stream.mark();
    f.stream.release(outer);
}

#[test]
#[should_panic(expected = "not among the open marks")]
fn a_mark_released_twice() {
    let mut f = Fixture::new();
    let mark = f.stream.mark();
    f.stream.release(mark);
    f.stream.release(mark);
}

fn inside_a_capture(body: impl Fn(&mut dyn Stream, &Checked, Tensor)) {
    let mut f = Fixture::new();
    let t = f.floats(&[4]);
    let backend = &f.backend;
    let _ = capture(&mut *f.stream, |s| {
        body(s, backend, t);
        Ok(())
    });
}

#[test]
#[should_panic(expected = "upload inside a capture")]
fn an_upload_in_a_capture() {
    inside_a_capture(|s, _, t| s.upload(&[0; 4], t).unwrap());
}

#[test]
#[should_panic(expected = "plan inside a capture")]
fn a_plan_in_a_capture() {
    let mut f = Fixture::new();
    let spec = AttnSpec {
        group: 0,
        q_heads: 2,
        kv_heads: 1,
        k_dim: 8,
        v_dim: 8,
        mask: crate::backend::Mask::Causal,
        q_dtype: DType::F32,
        kv_dtype: DType::F32,
        page_tokens: 16,
    };
    let plan = f.backend.attn_plan(&spec, &caps()).unwrap();
    let _ = capture(&mut *f.stream, |s| s.plan(&plan, &BatchMeta { rows: &[], generated: 0 }, &mut []));
}

#[test]
#[should_panic(expected = "download inside a capture")]
fn a_download_in_a_capture() {
    let mut f = Fixture::new();
    let t = f.floats(&[4]);
    let slot = f.backend.host_slot(16).unwrap();
    let mut slot = Some(slot);
    let _ = capture(&mut *f.stream, |s| s.download(t, slot.take().unwrap()).map(|_| ()));
}

#[test]
#[should_panic(expected = "buffer inside a capture")]
fn an_allocation_in_a_capture() {
    inside_a_capture(|_, backend, _| drop(backend.buffer(&[1], DType::F32, MemKind::Device)));
}

#[test]
#[should_panic(expected = "plan: row 0 is Prompt, generated rows come first (1)")]
fn rows_out_of_order() {
    let rows = [Phase::Prompt, Phase::Generated].map(|phase| crate::backend::RowMeta {
        q_len: 1,
        kv_len_max: 1,
        phase,
    });
    check_batch(&BatchMeta { rows: &rows, generated: 1 }, &caps());
}

#[test]
#[should_panic(expected = "GateUp takes two parts of one shape")]
fn a_gate_without_up() {
    let f = Fixture::new();
    let part = HostPart {
        name: "gate".into(),
        data: PartData::Mapped(HostBytes::from(vec![0; 16])),
        format: WeightFormat::Dense(DType::F32),
        shape: [2, 2],
        aux: Vec::new(),
    };
    let (uses, shard) = (Uses::Linear, Shard::Whole);
    let host = HostWeight {
        name: "w".into(),
        parts: vec![part],
        fuse: Fuse::GateUp,
        uses,
        shard,
        act_dtype: DType::F32,
    };
    let _ = f.backend.load_weight(host);
}
