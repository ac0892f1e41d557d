//! Times the ops of a decoder layer of some shape on a device, each kind alone and all together:
//! `op-bench DEVICE CONFIG_DIR LAYERS ROWS[,ROWS..] CONTEXT [PROMPTS] [PROMPT]`.
//!
//! Decode: ROWS rows of one token over CONTEXT keys in shuffled pages. Prefill: PROMPTS prompts of PROMPT tokens.
//! Every figure is the median of captured replays over LAYERS distinct layers, divided by LAYERS; what a figure read
//! is given as a rate, for weights and for keys and values.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use engine_core::backend::{
    Activation, AttnArgs, AttnPlan, AttnSpec, Backend, BatchMeta, Buffer, Epilogue, Fuse, HostPart,
    HostWeight, Invariance, Kv, KvGroupSpec, KvKind, KvPool, Mask, MemKind, Op, PartData, Phase, QueueKind,
    Rope, RopeStyle, RowMeta, Shard, StepCaps, Stream, Uses, Weight, capture,
};
use engine_core::config::ModelConfig;
use engine_core::loader::fill::Fill;
use engine_core::quant::WeightFormat;
use engine_core::{DType, Tensor};
use server::cli::{DeviceChoice, DeviceKind};

const PAGE: u32 = 16;
const DTYPE: DType = DType::Bf16;

struct Layer {
    norm: Weight,
    qkv: Weight,
    o: Weight,
    gate_up: Weight,
    down: Weight,
}

struct Bench<'a> {
    backend: &'a dyn Backend,
    stream: Box<dyn Stream>,
    config: &'a ModelConfig,
    layers: Vec<Layer>,
    rope: Weight,
    caps: StepCaps,
}

/// One step's rows and where they lie.
struct Step {
    tokens: u32,
    tables: Buffer,
    rows: Buffer,
    kv_len: Buffer,
    cu_q: Buffer,
    positions: Buffer,
    slots: Buffer,
    kv: KvPool,
    plan: AttnPlan,
}

fn weight(b: &dyn Backend, name: &str, parts: &[u64], k: u64, fuse: Fuse, uses: Uses) -> Weight {
    let dtype = if uses == Uses::Vector { DType::F32 } else { DTYPE };
    let part = |(i, n): (usize, &u64)| HostPart {
        name: name.into(),
        data: PartData::Fill(Fill::new(i as u64, name, 0.0, 0.02)),
        format: WeightFormat::Dense(dtype),
        shape: [*n, k],
        aux: Vec::new(),
    };
    let parts = parts.iter().enumerate().map(part).collect();
    b.load_weight(HostWeight { name: name.into(), parts, fuse, uses, shard: Shard::Whole, act_dtype: DTYPE })
        .unwrap()
}

impl<'a> Bench<'a> {
    fn new(
        backend: &'a dyn Backend,
        c: &'a ModelConfig,
        layers: u32,
        rows: u32,
        tokens: u32,
        pages: u32,
    ) -> Self {
        let (h, i, d) = (u64::from(c.hidden_size), u64::from(c.intermediate_size), u64::from(c.head_dim));
        let (q, kv) = (u64::from(c.num_attention_heads) * d, u64::from(c.num_key_value_heads) * d);
        let w = |name: String, parts: &[u64], k, fuse| weight(backend, &name, parts, k, fuse, Uses::Linear);
        let layer = |l: u32| Layer {
            norm: weight(backend, "norm", &[1], h, Fuse::One, Uses::Vector),
            qkv: w(format!("{l} qkv"), &[q, kv, kv], h, Fuse::Stack),
            o: w(format!("{l} o"), &[h], q, Fuse::One),
            gate_up: w(format!("{l} gate_up"), &[i, i], h, Fuse::GateUp),
            down: w(format!("{l} down"), &[h], i, Fuse::One),
        };
        let caps = StepCaps {
            rows,
            tokens,
            logit_rows: rows,
            pages_per_row: pages,
            groups: 1,
            vocab: c.vocab_size,
            logprobs: 0,
            drafts: 0,
            arena_bytes: u64::from(tokens + 8) * (3 * h + i + 2 * q + 2 * kv) * 2 + (1 << 20),
            invariance: Invariance::None,
        };
        let rope = weight(backend, "rope", &[u64::from(pages * PAGE)], d, Fuse::One, Uses::Vector);
        let layers = (0..layers).map(layer).collect();
        let stream = backend.stream(QueueKind::Compute, &caps, &[]).unwrap();
        Bench { backend, stream, config: c, layers, rope, caps }
    }

    /// `sequences` rows of `q_len` tokens that end at `kv_len` keys.
    fn step(&mut self, sequences: u32, q_len: u32, kv_len: u32, phase: Phase) -> Step {
        let c = self.config;
        let group = KvGroupSpec {
            kind: KvKind::Full,
            layers: self.layers.len() as u32,
            kv_heads: c.num_key_value_heads,
            k_dim: c.head_dim,
            v_dim: c.head_dim,
            dtype: DTYPE,
            page_tokens: PAGE,
        };
        let spec = AttnSpec {
            group: 0,
            q_heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            k_dim: c.head_dim,
            v_dim: c.head_dim,
            mask: Mask::Causal,
            q_dtype: DTYPE,
            kv_dtype: DTYPE,
            page_tokens: PAGE,
        };
        let per_row = kv_len.div_ceil(PAGE);
        let pages = 1 + per_row * sequences;
        // A page's number is its place times a step that shares no factor with their count: all different, far apart.
        let step = (pages / 3..).find(|s| gcd(*s, pages) == 1).unwrap();
        let page = |i: u32| ((u64::from(i) * u64::from(step)) % u64::from(pages)) as i32;
        let mut tables = vec![0i32; (self.caps.rows * self.caps.pages_per_row) as usize];
        for s in 0..sequences {
            for p in 0..per_row {
                tables[(s * self.caps.pages_per_row + p) as usize] = page(s * per_row + p);
            }
        }
        let tokens = sequences * q_len;
        let position = |t: u32| kv_len - q_len + t % q_len;
        let slot = |t: u32| {
            let (s, at) = (t / q_len, position(t));
            page(s * per_row + at / PAGE) * PAGE as i32 + (at % PAGE) as i32
        };
        let ints = |b: &mut Self, shape: &[u32], values: &[i32]| {
            let buffer = b.backend.buffer(shape, DType::I32, MemKind::Device).unwrap();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            b.stream.upload(&bytes, buffer.tensor()).unwrap();
            buffer
        };
        let made = Step {
            tokens,
            tables: ints(self, &[1, self.caps.rows, self.caps.pages_per_row], &tables),
            rows: ints(self, &[sequences], &(0..sequences as i32).collect::<Vec<_>>()),
            kv_len: ints(self, &[sequences], &vec![kv_len as i32; sequences as usize]),
            cu_q: ints(
                self,
                &[sequences + 1],
                &(0..=sequences).map(|s| (s * q_len) as i32).collect::<Vec<_>>(),
            ),
            positions: ints(self, &[tokens], &(0..tokens).map(|t| position(t) as i32).collect::<Vec<_>>()),
            slots: ints(self, &[tokens], &(0..tokens).map(slot).collect::<Vec<_>>()),
            kv: self.backend.kv_pool(&[group], pages).unwrap(),
            plan: self.backend.attn_plan(&spec, &self.caps).unwrap(),
        };
        let metas = vec![RowMeta { q_len, kv_len_max: kv_len, phase }; sequences as usize];
        let generated = if phase == Phase::Generated { sequences as usize } else { 0 };
        self.stream.plan(&made.plan, &BatchMeta { rows: &metas, generated }, &mut []).unwrap();
        made
    }

    /// Microseconds a layer of what `body` enqueues for each layer, `replays` graph launches at a time.
    fn time(&mut self, step: &Step, replays: u32, body: &dyn Fn(&mut dyn Stream, &Ops<'_>, usize)) -> f64 {
        let (layers, config, rope) = (&self.layers, self.config, &self.rope);
        let s = &mut *self.stream;
        let mark = s.mark();
        let scratch = |s: &mut dyn Stream, width: u32| s.scratch(&[step.tokens, width], DTYPE);
        let d = config.head_dim;
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let parts = Ops {
            residual: scratch(s, config.hidden_size),
            x: scratch(s, config.hidden_size),
            qkv: scratch(s, q + 2 * kv),
            attended: scratch(s, q),
            inner: scratch(s, config.intermediate_size),
            layers,
            config,
            rope,
            step,
        };
        let all = |s: &mut dyn Stream| {
            let (rows, kv_len, cu_q) = (step.rows.tensor(), step.kv_len.tensor(), step.cu_q.tensor());
            s.op(&Op::PlanOnDevice { plan: &step.plan, rows, kv_len, cu_q, tables: step.tables.tensor() })?;
            (0..layers.len()).for_each(|l| body(s, &parts, l));
            Ok(())
        };
        all(s).unwrap();
        let (graph, ()) = capture(s, all).unwrap();
        let graph = graph.expect("a device that captures");
        let mut slot = Some(self.backend.host_slot(4).unwrap());
        let mut times: Vec<f64> = (0..7)
            .map(|_| {
                let begin = Instant::now();
                (0..replays).for_each(|_| s.replay(&graph).unwrap());
                let pending = s.download(step.rows.tensor().cols_at(0, 1), slot.take().unwrap()).unwrap();
                slot = Some(s.wait(pending).unwrap());
                begin.elapsed().as_secs_f64()
            })
            .collect();
        s.release(mark);
        times.sort_by(f64::total_cmp);
        times[3] * 1e6 / f64::from(replays) / layers.len() as f64
    }
}

/// What an op of a layer is given.
struct Ops<'a> {
    residual: Tensor,
    x: Tensor,
    qkv: Tensor,
    attended: Tensor,
    inner: Tensor,
    layers: &'a [Layer],
    config: &'a ModelConfig,
    rope: &'a Weight,
    step: &'a Step,
}

impl Ops<'_> {
    fn norm(&self, s: &mut dyn Stream, l: usize) {
        s.norm(self.residual, None, &self.layers[l].norm, 1e-5, self.x.into()).unwrap();
    }
    fn qkv(&self, s: &mut dyn Stream, l: usize) {
        self.norm_linear(s, l, &self.layers[l].qkv, Epilogue::default(), self.qkv);
    }
    fn norm_linear(&self, s: &mut dyn Stream, l: usize, w: &Weight, e: Epilogue<'_>, out: Tensor) {
        let (x, norm) = (self.residual, &self.layers[l].norm);
        s.op(&Op::NormLinear { x, residual: None, norm, eps: 1e-5, w, e, out: out.into() }).unwrap();
    }
    fn heads(&self) -> [Tensor; 3] {
        let c = self.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        [
            self.qkv.cols_at(0, q).heads(c.num_attention_heads, c.head_dim),
            self.qkv.cols_at(q, kv).heads(c.num_key_value_heads, c.head_dim),
            self.qkv.cols_at(q + kv, kv).heads(c.num_key_value_heads, c.head_dim),
        ]
    }
    fn rope(&self, s: &mut dyn Stream, l: usize) {
        let [q, k, v] = self.heads();
        let positions = self.step.positions.tensor();
        let rope = Rope { positions, table: self.rope, style: RopeStyle::Half, qk_norm: None };
        let kv = &self.step.kv.groups[0][l];
        s.op(&Op::RopeKvWrite { q, k, v, rope: Some(rope), slots: self.step.slots.tensor(), kv }).unwrap();
    }
    fn attention(&self, s: &mut dyn Stream, l: usize) {
        let scale = 1.0 / (self.config.head_dim as f32).sqrt();
        let args = AttnArgs { scale, ..AttnArgs::default() };
        let kv = Kv::Paged(&self.step.kv.groups[0][l]);
        let q = self.heads()[0];
        s.op(&Op::PagedAttention { q, kv, plan: &self.step.plan, args, out: self.attended.into() }).unwrap();
    }
    /// Rotation, cache write and attention as one op, as models have them.
    fn attend(&self, s: &mut dyn Stream, l: usize) {
        let [q, k, v] = self.heads();
        let positions = self.step.positions.tensor();
        let rope = Rope { positions, table: self.rope, style: RopeStyle::Half, qk_norm: None };
        let (slots, kv) = (self.step.slots.tensor(), &self.step.kv.groups[0][l]);
        let args = AttnArgs { scale: 1.0 / (self.config.head_dim as f32).sqrt(), ..AttnArgs::default() };
        let (plan, out) = (&self.step.plan, self.attended.into());
        s.op(&Op::AttendNew { q, k, v, rope: Some(rope), slots, kv, plan, args, out }).unwrap();
    }
    fn o(&self, s: &mut dyn Stream, l: usize) {
        let e = Epilogue { residual: Some(self.residual), ..Epilogue::default() };
        s.linear(self.attended.into(), &self.layers[l].o, e, self.residual).unwrap();
    }
    fn gate_up(&self, s: &mut dyn Stream, l: usize) {
        let e = Epilogue { act: Activation::SiluMul, ..Epilogue::default() };
        self.norm_linear(s, l, &self.layers[l].gate_up, e, self.inner);
    }
    fn down(&self, s: &mut dyn Stream, l: usize) {
        let e = Epilogue { residual: Some(self.residual), ..Epilogue::default() };
        s.linear(self.inner.into(), &self.layers[l].down, e, self.residual).unwrap();
    }
    fn matrices(&self, s: &mut dyn Stream, l: usize) {
        self.qkv(s, l);
        self.o(s, l);
        self.gate_up(s, l);
        self.down(s, l);
    }
    fn layer(&self, s: &mut dyn Stream, l: usize) {
        self.qkv(s, l);
        self.attend(s, l);
        self.o(s, l);
        self.gate_up(s, l);
        self.down(s, l);
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

type Body = dyn Fn(&mut dyn Stream, &Ops<'_>, usize);

/// Times each op and the layer; prints microseconds, and the rate of what it reads or computes.
fn report(b: &mut Bench<'_>, name: &str, step: &Step, replays: u32, kv_bytes: f64, attention_flops: f64) {
    let c = b.config;
    let (h, i, d) = (f64::from(c.hidden_size), f64::from(c.intermediate_size), f64::from(c.head_dim));
    let (q, kv) = (f64::from(c.num_attention_heads) * d, f64::from(c.num_key_value_heads) * d);
    let matrices = [(q + 2.0 * kv) * h, q * h, 2.0 * i * h, i * h];
    let all = matrices.iter().sum::<f64>() * 2.0;
    let rope_matrices = |s: &mut dyn Stream, p: &Ops<'_>, l: usize| {
        p.rope(s, l);
        p.matrices(s, l);
    };
    let ops: [(&str, f64, f64, &Body); 11] = [
        ("matrices", all, 0.0, &|s, p, l| p.matrices(s, l)),
        ("rope+mat", all, 0.0, &rope_matrices),
        ("rope+att", kv_bytes, attention_flops, &|s, p, l| {
            p.rope(s, l);
            p.attention(s, l)
        }),
        ("norm", 0.0, 0.0, &|s, p, l| p.norm(s, l)),
        ("qkv", matrices[0] * 2.0, 0.0, &|s, p, l| p.qkv(s, l)),
        ("rope", 0.0, 0.0, &|s, p, l| p.rope(s, l)),
        ("attention", kv_bytes, attention_flops, &|s, p, l| p.attention(s, l)),
        ("o", matrices[1] * 2.0, 0.0, &|s, p, l| p.o(s, l)),
        ("gate_up", matrices[2] * 2.0, 0.0, &|s, p, l| p.gate_up(s, l)),
        ("down", matrices[3] * 2.0, 0.0, &|s, p, l| p.down(s, l)),
        ("layer", all + kv_bytes, attention_flops, &|s, p, l| p.layer(s, l)),
    ];
    println!("{name}:");
    for (op, bytes, flops, body) in ops {
        let us = b.time(step, replays, body);
        let matrix_flops = if op == "attention" {
            0.0
        } else {
            (bytes - if op == "layer" { kv_bytes } else { 0.0 }) * f64::from(step.tokens)
        };
        println!(
            "  {op:10} {us:9.2} us  {:7.1} GB/s  {:6.1} TFLOP/s",
            bytes / us * 1e-3,
            (flops + matrix_flops) / us * 1e-6
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: u32| args.get(i).map_or(default, |a| a.parse().unwrap());
    let kind = if args[1] == "cpu" { DeviceKind::Cpu } else { DeviceKind::Cuda };
    let backend = server::device::open(DeviceChoice { kind, index: None }, Default::default()).unwrap();
    let config = ModelConfig::from_dir(std::path::Path::new(&args[2]), None).unwrap();
    let rows: Vec<u32> = args[4].split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect();
    let (context, prompts, prompt) = (number(5, 640), number(6, 0), number(7, 2_048));
    let most = rows.iter().copied().max().unwrap_or(1).max(prompts);
    let tokens = most.max(prompts * prompt);
    let pages = context.max(prompt).div_ceil(PAGE);
    let mut b = Bench::new(&*backend, &config, number(3, 8), most, tokens, pages);
    let kv_row = f64::from(config.num_key_value_heads * config.head_dim) * 4.0;
    for n in rows {
        let step = b.step(n, 1, context, Phase::Generated);
        let kv_bytes = f64::from(n) * f64::from(context) * kv_row;
        report(&mut b, &format!("decode of {n} rows over {context} keys"), &step, 10, kv_bytes, 0.0);
    }
    if prompts > 0 {
        let step = b.step(prompts, prompt, prompt, Phase::Prompt);
        let heads = f64::from(config.num_attention_heads * config.head_dim);
        let flops = 2.0 * f64::from(prompts) * f64::from(prompt) * f64::from(prompt) * heads;
        report(&mut b, &format!("prefill of {prompts} x {prompt}"), &step, 2, 0.0, flops);
    }
}
