//! Layers of one decoded row, captured and eager: a capture may fuse ops over each other, and must give what they give.

use engine_core::backend::{
    Activation, AttnArgs, Epilogue, Fuse, Kv, Mask, Op, Phase, Rope, RopeStyle, Stream, Uses, Weight,
};
use engine_core::{DType, Error, Result, Tensor};

use super::attention::{AttnCase, Paging, Seq, Setup};
use super::data::{host_weight, normal, part};
use super::rig::Access::{Read, Write};
use super::rig::{Mode, Output};
use super::{Device, Rig};

/// Rows and shapes with which layers are tried.
#[derive(Clone, Copy)]
struct Shape {
    dim: u32,
    q_heads: u32,
    kv_heads: u32,
    hidden: usize,
    inner: usize,
    kv_len: u32,
    window: Option<u32>,
    /// Norms of q and k, and biases.
    extras: bool,
}

const SHAPE: Shape = Shape {
    dim: 64,
    q_heads: 8,
    kv_heads: 2,
    hidden: 256,
    inner: 320,
    kv_len: 100,
    window: None,
    extras: false,
};

/// Head sizes, groups of more heads than a block takes, lengths about a tile, windows, rows of weights longer than a
/// stage of copies.
const SHAPES: [Shape; 9] = [
    SHAPE,
    Shape { dim: 128, q_heads: 4, kv_heads: 1, ..SHAPE },
    Shape { q_heads: 14, hidden: 896, kv_len: 250, extras: true, ..SHAPE },
    Shape { kv_len: 1, ..SHAPE },
    Shape { kv_len: 16, extras: true, ..SHAPE },
    Shape { kv_len: 17, dim: 128, ..SHAPE },
    Shape { kv_len: 255, dim: 128, window: Some(70), ..SHAPE },
    Shape { inner: 8_240, q_heads: 2, kv_heads: 1, kv_len: 33, ..SHAPE },
    Shape { hidden: 2_056, kv_len: 129, extras: true, ..SHAPE },
];

/// Captured layers of one row against the same ops enqueued one by one.
pub fn captured_equals_eager(device: &Device) {
    for dtype in [DType::F16, DType::Bf16] {
        for (i, shape) in SHAPES.iter().enumerate() {
            let run = |mode| run(device, shape, dtype, mode);
            match (run(Mode::Eager), run(Mode::Captured)) {
                (Ok(eager), Ok(captured)) => {
                    compare(&eager, &captured, &format!("{} {dtype} {i}", device.name))
                }
                (Err(Error::Unsupported(why)), _) => println!("{}: left out: {why}", device.name),
                (eager, captured) => {
                    panic!("{} {dtype} {i}: {:?} {:?}", device.name, eager.err(), captured.err())
                }
            }
        }
    }
}

fn compare(eager: &[Output], captured: &[Output], what: &str) {
    for (a, b) in eager.iter().zip(captured) {
        let power: f64 = a.values.iter().map(|x| x * x).sum();
        let error: f64 = a.values.iter().zip(&b.values).map(|(x, y)| (x - y) * (x - y)).sum();
        // Sums in another order, rounded to 16 bits ten times in a row.
        let most = if a.dtype == DType::F16 { 1e-5 } else { 3e-4 };
        assert!(error <= most * power && power > 0.0, "{what}: {} differs by {error:e} of {power:e}", a.name);
    }
}

struct Layer {
    norm: Weight,
    qkv: Weight,
    qkv_bias: Option<Weight>,
    qk_norm: Option<(Weight, Weight)>,
    o: Weight,
    gate_up: Weight,
    down: Weight,
}

fn load(rig: &mut Rig, s: &Shape, dtype: DType, l: usize) -> Result<Layer> {
    let (q, kv) = ((s.q_heads * s.dim) as usize, (s.kv_heads * s.dim) as usize);
    let mut linear = |name: &str, n: usize, k: usize| {
        let values = normal(&format!("{name}{l}"), n * k, 1.0 / (k as f32).sqrt());
        rig.weight(name, [n, k], dtype, &values, Uses::Linear, dtype)
    };
    let (qkv, o, down) =
        (linear("qkv", q + 2 * kv, s.hidden)?, linear("o", s.hidden, q)?, linear("down", s.hidden, s.inner)?);
    let values =
        |name: &str| normal(&format!("{name}{l}"), s.inner * s.hidden, 1.0 / (s.hidden as f32).sqrt());
    let parts = ["gate", "up"].map(|name| part(name, s.inner, s.hidden, dtype, &values(name)));
    let gate_up = rig.backend.load_weight(host_weight(parts.into(), Fuse::GateUp, Uses::Linear, dtype))?;
    let mut vector =
        |name: &str, n: usize| rig.vector(name, DType::F32, &normal(&format!("{name}{l}"), n, 0.5));
    Ok(Layer {
        norm: vector("norm", s.hidden)?,
        qkv_bias: if s.extras { Some(vector("bias", q + 2 * kv)?) } else { None },
        qk_norm: match s.extras {
            true => Some((vector("q norm", s.dim as usize)?, vector("k norm", s.dim as usize)?)),
            false => None,
        },
        qkv,
        o,
        gate_up,
        down,
    })
}

/// What a step reads and writes.
struct Step<'a> {
    shape: &'a Shape,
    setup: &'a Setup,
    args: AttnArgs<'a>,
    positions: Tensor,
    slots: Tensor,
    angles: &'a Weight,
    hidden: Tensor,
    qkv: Tensor,
    attended: Tensor,
    inner: Tensor,
}

impl Step<'_> {
    fn layer(&self, s: &mut dyn Stream, l: &Layer) -> Result<()> {
        let c = self.shape;
        let (x, out) = (self.hidden, self.hidden);
        let e = Epilogue { bias: l.qkv_bias.as_ref(), ..Epilogue::default() };
        let normed = |w, e, out: Tensor| Op::NormLinear {
            x,
            residual: None,
            norm: &l.norm,
            eps: 1e-5,
            w,
            e,
            out: out.into(),
        };
        s.op(&normed(&l.qkv, e, self.qkv))?;
        let (q, kv) = (c.q_heads * c.dim, c.kv_heads * c.dim);
        let qk_norm = l.qk_norm.as_ref().map(|(q, k)| (q, k, 1e-5));
        let rope = Rope { positions: self.positions, table: self.angles, style: RopeStyle::Half, qk_norm };
        s.op(&Op::AttendNew {
            q: self.qkv.cols_at(0, q).heads(c.q_heads, c.dim),
            k: self.qkv.cols_at(q, kv).heads(c.kv_heads, c.dim),
            v: self.qkv.cols_at(q + kv, kv).heads(c.kv_heads, c.dim),
            rope: Some(rope),
            slots: self.slots,
            kv: &self.setup.pool.groups[0][1],
            plan: &self.setup.plan,
            args: self.args,
            out: self.attended.into(),
        })?;
        let e = Epilogue { residual: Some(self.hidden), ..Epilogue::default() };
        s.linear(self.attended.into(), &l.o, e, out)?;
        let gate = Epilogue { act: Activation::SiluMul, ..Epilogue::default() };
        s.op(&normed(&l.gate_up, gate, self.inner))?;
        s.linear(self.inner.into(), &l.down, e, out)
    }
}

/// Two layers over the same cache, and a head in float32.
fn run(device: &Device, c: &Shape, dtype: DType, mode: Mode) -> Result<Vec<Output>> {
    const LOGITS: usize = 333;
    let mut rig = Rig::new(device.backend.clone(), mode)?;
    let mask = c.window.map_or(Mask::Causal, |tokens| Mask::Window { tokens });
    let case = AttnCase {
        q_heads: c.q_heads,
        kv_heads: c.kv_heads,
        dim: c.dim,
        mask,
        seqs: vec![Seq { id: 1, kv_len: c.kv_len, q_len: 1, phase: Phase::Generated }],
        paging: Paging::Shuffled,
        ..AttnCase::mixed(dtype)
    };
    let setup = case.set_up(&mut rig)?;
    case.fill(&mut rig, &setup, |s| 0..s.kv_len - 1)?;
    let layers = [load(&mut rig, c, dtype, 0)?, load(&mut rig, c, dtype, 1)?];
    let head = normal("head", LOGITS * c.hidden, 1.0 / (c.hidden as f32).sqrt());
    let head = rig.weight("head", [LOGITS, c.hidden], dtype, &head, Uses::Linear, dtype)?;
    let angles = normal("angles", (c.kv_len * c.dim) as usize, 1.0);
    let shape = [c.kv_len as usize, c.dim as usize];
    let angles = rig.weight("angles", shape, DType::F32, &angles, Uses::Vector, DType::F32)?;
    let width = (c.q_heads + 2 * c.kv_heads) * c.dim;
    let x = normal("x", c.hidden, 1.0);
    let step = Step {
        shape: c,
        args: AttnArgs { scale: case.scale(), ..AttnArgs::default() },
        positions: rig.ints("position", &[1], &[c.kv_len as i32 - 1], Read)?,
        slots: rig.ints("slot", &[1], &setup.slots[0][c.kv_len as usize - 1..], Read)?,
        angles: &angles,
        hidden: rig.floats("hidden", &[1, c.hidden as u32], dtype, &x, Write)?,
        qkv: rig.blank("qkv", &[1, width], dtype)?,
        attended: rig.blank("attended", &[1, c.q_heads * c.dim], dtype)?,
        inner: rig.blank("inner", &[1, c.inner as u32], dtype)?,
        setup: &setup,
    };
    let first = rig.ints("first row", &[1], &[0], Read)?;
    let picked = rig.blank("picked", &[1, c.hidden as u32], dtype)?;
    let logits = rig.blank("logits", &[1, LOGITS as u32], DType::F32)?;
    // One row of one token: what a bucket of one row binds.
    let (rows, kv_len) = (setup.rows.cols_at(0, 1), setup.kv_len.cols_at(0, 1));
    let (cu_q, tables) = (setup.cu_q.cols_at(0, 2), setup.tables);
    rig.step(|s| {
        s.op(&Op::PlanOnDevice { plan: &setup.plan, rows, kv_len, cu_q, tables })?;
        layers.iter().try_for_each(|l| step.layer(s, l))?;
        s.op(&Op::GatherRows { x: step.hidden, rows: first, out: picked })?;
        let (x, norm, e) = (picked, &layers[0].norm, Epilogue::default());
        s.op(&Op::NormLinear { x, residual: None, norm, eps: 1e-5, w: &head, e, out: logits.into() })
    })?;
    for (name, tensor) in [("attended", step.attended), ("hidden", step.hidden), ("logits", logits)] {
        rig.output(name, tensor)?;
    }
    // What the step wrote into the cache, seen through attention.
    let q = case.fresh(&mut rig, "q", c.q_heads, Read)?;
    let later = rig.blank("later", &[1, c.q_heads * c.dim], dtype)?;
    rig.prepare(|s| {
        let kv = Kv::Paged(&setup.pool.groups[0][1]);
        s.op(&Op::PagedAttention { q, kv, plan: &setup.plan, args: step.args, out: later.into() })
    })?;
    rig.output("later", later)?;
    Ok(rig.into_outputs().0)
}
