//! RopeKvWrite, PagedAttention, AttendNew, MergeStates, CopyPages, PlanOnDevice.

use engine_core::backend::{
    AttnArgs, AttnPlan, AttnSpec, BatchMeta, Kv, KvGroupSpec, KvKind, KvPool, Mask, Op, OpKind, Phase, Rope,
    RopeStyle, RowMeta, Uses, Weight,
};
use engine_core::{DType, Result, Tensor};

use super::data::{normal, normal_range, permutation};
use super::rig::Access::{Read, Write};
use super::rig::{PAGES_PER_ROW, ROWS};
use super::{Case, FLOATS, Rig};

/// One sequence of a batch: what is cached after this step, and how much of it this step computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seq {
    /// Seeds its data.
    pub id: u32,
    pub kv_len: u32,
    pub q_len: u32,
    pub phase: Phase,
}

const fn prompt(id: u32, kv_len: u32, q_len: u32) -> Seq {
    Seq { id, kv_len, q_len, phase: Phase::Prompt }
}

const fn decode(id: u32, kv_len: u32) -> Seq {
    Seq { id, kv_len, q_len: 1, phase: Phase::Generated }
}

/// Which physical pages sequences get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Paging {
    /// One after the other, in order.
    Contiguous,
    /// All over the pool.
    Shuffled,
}

/// A batch over a cache.
#[derive(Clone, Debug)]
pub struct AttnCase {
    pub q_heads: u32,
    pub kv_heads: u32,
    pub dim: u32,
    pub page_tokens: u32,
    pub mask: Mask,
    pub dtype: DType,
    pub kv_dtype: DType,
    /// Generated rows first, as the seam wants it.
    pub seqs: Vec<Seq>,
    pub paging: Paging,
    pub soft_cap: Option<f32>,
    pub sinks: bool,
    pub slopes: bool,
}

/// What a batch needs on a device.
pub struct Setup {
    pub pool: KvPool,
    pub plan: AttnPlan,
    pub rows: Tensor,
    pub kv_len: Tensor,
    pub cu_q: Tensor,
    pub tables: Tensor,
    /// Physical slots of every position of sequence i.
    pub slots: Vec<Vec<i32>>,
}

impl AttnCase {
    /// A usual grouped-query layer with a batch of every kind of row.
    pub fn mixed(dtype: DType) -> Self {
        AttnCase {
            q_heads: 6,
            kv_heads: 2,
            dim: 16,
            page_tokens: 16,
            mask: Mask::Causal,
            dtype,
            kv_dtype: dtype,
            seqs: vec![
                decode(1, 33),
                decode(2, 16),
                decode(3, 17),
                Seq { q_len: 3, ..decode(4, 31) },
                prompt(5, 61, 61),
                prompt(6, 41, 9),
                prompt(7, 1, 1),
            ],
            paging: Paging::Shuffled,
            soft_cap: None,
            sinks: false,
            slopes: false,
        }
    }

    /// Tokens of this step.
    pub fn tokens(&self) -> u32 {
        self.seqs.iter().map(|s| s.q_len).sum()
    }

    fn spec(&self) -> AttnSpec {
        AttnSpec {
            group: 0,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            k_dim: self.dim,
            v_dim: self.dim,
            mask: self.mask,
            q_dtype: self.dtype,
            kv_dtype: self.kv_dtype,
            page_tokens: self.page_tokens,
        }
    }

    /// Rows of a float tensor of this batch: for each sequence its positions `range`, the same numbers in any batch.
    fn values(&self, what: &str, width: u32, range: impl Fn(&Seq) -> std::ops::Range<u32>) -> Vec<f32> {
        let of = |s: &Seq| {
            let r = range(s);
            normal_range(&format!("{what}{}", s.id), r.start * width..r.end * width)
        };
        self.seqs.iter().flat_map(of).collect()
    }

    /// [T, heads, dim] of the positions this step computes.
    pub fn fresh(
        &self,
        rig: &mut Rig,
        what: &'static str,
        heads: u32,
        access: super::Access,
    ) -> Result<Tensor> {
        let values = self.values(what, heads * self.dim, |s| s.kv_len - s.q_len..s.kv_len);
        let shape = [self.tokens(), heads, self.dim];
        rig.floats(what, &shape, self.dtype, &values, access)
    }

    /// Pool, plan and the batch's index tensors. The cache is empty.
    pub fn set_up(&self, rig: &mut Rig) -> Result<Setup> {
        let pages = ROWS * PAGES_PER_ROW + 1;
        let spec = KvGroupSpec {
            kind: match self.mask {
                Mask::Window { tokens } => KvKind::Window { tokens },
                _ => KvKind::Full,
            },
            layers: 2,
            kv_heads: self.kv_heads,
            k_dim: self.dim,
            v_dim: self.dim,
            dtype: self.kv_dtype,
            page_tokens: self.page_tokens,
        };
        let pool = rig.pool(spec, pages)?;
        let plan = rig.backend.attn_plan(&self.spec(), &rig.caps)?;
        let order = permutation("pages", (pages - 1) as usize);
        let page = |slot: usize, index: u32| {
            let i = slot as u32 * PAGES_PER_ROW + index;
            if self.paging == Paging::Contiguous { i as i32 + 1 } else { order[i as usize] + 1 }
        };
        let mut tables = vec![0i32; (ROWS * PAGES_PER_ROW) as usize];
        let mut slots = Vec::new();
        for (i, seq) in self.seqs.iter().enumerate() {
            let slot = self.slot(i);
            for index in 0..seq.kv_len.div_ceil(self.page_tokens) {
                tables[slot * PAGES_PER_ROW as usize + index as usize] = page(slot, index);
            }
            let place = |p: u32| {
                page(slot, p / self.page_tokens) * self.page_tokens as i32 + (p % self.page_tokens) as i32
            };
            slots.push((0..seq.kv_len).map(place).collect());
        }
        // A row of padding without tokens, and one with a token, as a captured bucket has them.
        let count = self.seqs.len() as u32 + 1;
        let mut rows: Vec<i32> = (0..self.seqs.len()).map(|i| self.slot(i) as i32).collect();
        let mut kv_len: Vec<i32> = self.seqs.iter().map(|s| s.kv_len as i32).collect();
        let mut cu_q = vec![0];
        for seq in &self.seqs {
            cu_q.push(cu_q[cu_q.len() - 1] + seq.q_len as i32);
        }
        rows.push(-1);
        kv_len.push(0);
        cu_q.push(cu_q[cu_q.len() - 1]);
        self.plan_on_host(rig, &plan)?;
        Ok(Setup {
            pool,
            plan,
            rows: rig.ints("rows", &[count], &rows, Read)?,
            kv_len: rig.ints("kv_len", &[count], &kv_len, Read)?,
            cu_q: rig.ints("cu_q", &[count + 1], &cu_q, Read)?,
            tables: rig.ints("tables", &[1, ROWS, PAGES_PER_ROW], &tables, Read)?,
            slots,
        })
    }

    /// Slot of sequence i: not its row.
    fn slot(&self, i: usize) -> usize {
        (i * 3 + 2) % ROWS as usize
    }

    fn plan_on_host(&self, rig: &mut Rig, plan: &AttnPlan) -> Result<()> {
        let mut rows: Vec<RowMeta> = self
            .seqs
            .iter()
            .map(|s| RowMeta { q_len: s.q_len, kv_len_max: s.kv_len, phase: s.phase })
            .collect();
        rows.push(RowMeta { q_len: 0, kv_len_max: 0, phase: Phase::Prompt });
        let generated = self.seqs.iter().filter(|s| s.phase == Phase::Generated).count();
        let mut bytes = vec![0; plan.upload_bytes()];
        let meta = BatchMeta { rows: &rows, generated };
        rig.prepare(|s| s.plan(plan, &meta, &mut bytes))
    }

    /// Writes the keys and values of positions `range` of every sequence into layer 1.
    pub fn fill(
        &self,
        rig: &mut Rig,
        setup: &Setup,
        range: impl Fn(&Seq) -> std::ops::Range<u32> + Copy,
    ) -> Result<()> {
        let slots: Vec<i32> = self
            .seqs
            .iter()
            .zip(&setup.slots)
            .flat_map(|(s, slots)| slots[range(s).start as usize..range(s).end as usize].to_vec())
            .collect();
        let count = slots.len() as u32;
        let width = self.kv_heads * self.dim;
        let shape = [count, self.kv_heads, self.dim];
        let k = rig.floats("cached k", &shape, self.dtype, &self.values("k", width, range), Read)?;
        let v = rig.floats("cached v", &shape, self.dtype, &self.values("v", width, range), Read)?;
        let zeros = vec![0.0; (count * self.q_heads * self.dim) as usize];
        let q = rig.floats("no q", &[count, self.q_heads, self.dim], self.dtype, &zeros, Write)?;
        let slots = rig.ints("cached slots", &[count], &slots, Read)?;
        let kv = &setup.pool.groups[0][1];
        rig.prepare(|s| s.op(&Op::RopeKvWrite { q, k, v, rope: None, slots, kv }))
    }

    /// Sinks and slopes, [Hq] each.
    fn head_weights(&self, rig: &mut Rig) -> Result<(Option<Weight>, Option<Weight>)> {
        let heads = self.q_heads as usize;
        let slopes: Vec<f32> = (0..heads).map(|h| 0.5f32.powi(h as i32 + 1)).collect();
        Ok((
            if self.sinks {
                Some(rig.vector("sinks", DType::F32, &normal("sinks", heads, 1.0))?)
            } else {
                None
            },
            if self.slopes { Some(rig.vector("slopes", DType::F32, &slopes)?) } else { None },
        ))
    }

    /// Attention over a filled cache; declares `out` and the log-sum-exp.
    pub fn run(&self, rig: &mut Rig) -> Result<()> {
        let setup = self.set_up(rig)?;
        self.fill(rig, &setup, |s| 0..s.kv_len)?;
        let q = self.fresh(rig, "q", self.q_heads, Read)?;
        self.attend(rig, &setup, q)
    }

    fn attend(&self, rig: &mut Rig, setup: &Setup, q: Tensor) -> Result<()> {
        let (sinks, slopes) = self.head_weights(rig)?;
        let out = rig.blank("out", &[self.tokens(), self.q_heads * self.dim], self.dtype)?;
        let lse = rig.blank("lse", &[self.tokens(), self.q_heads], DType::F32)?;
        let args = AttnArgs {
            scale: self.scale(),
            soft_cap: self.soft_cap,
            sinks: sinks.as_ref(),
            slopes: slopes.as_ref(),
            lse: Some(lse),
        };
        rig.step(|s| {
            s.op(&setup.bind())?;
            let kv = Kv::Paged(&setup.pool.groups[0][1]);
            s.op(&Op::PagedAttention { q, kv, plan: &setup.plan, args, out: out.into() })
        })?;
        rig.output("out", out)?;
        rig.output("lse", lse)
    }

    /// Of the products of queries and keys.
    pub fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    fn case(self, op: OpKind, what: impl std::fmt::Display) -> Case {
        let what = format!("{what}, kv {}", self.kv_dtype);
        Case::new(op, what, self.dtype, move |rig| self.run(rig))
    }
}

impl Setup {
    /// The op that binds the plan.
    pub fn bind(&self) -> Op<'_> {
        let Setup { plan, rows, kv_len, cu_q, tables, .. } = self;
        Op::PlanOnDevice { plan, rows: *rows, kv_len: *kv_len, cu_q: *cu_q, tables: *tables }
    }
}

/// Head shapes, page sizes, masks, extras, lengths about a page, every kind of row.
pub fn paged_attention() -> Vec<Case> {
    let op = OpKind::PagedAttention;
    let mut cases = Vec::new();
    for dtype in FLOATS {
        let mixed = AttnCase::mixed(dtype);
        for (q_heads, kv_heads, dim) in
            [(6, 2, 16), (1, 1, 1), (4, 4, 20), (8, 1, 64), (2, 1, 128), (3, 3, 80)]
        {
            let shape = AttnCase { q_heads, kv_heads, dim, ..mixed.clone() };
            cases.push(shape.case(op, format!("heads {q_heads}/{kv_heads} of {dim}")));
        }
        for kv_dtype in FLOATS {
            cases.push(AttnCase { kv_dtype, ..mixed.clone() }.case(op, "mixed types"));
        }
        for page_tokens in [8, 32, 64] {
            cases.push(AttnCase { page_tokens, ..mixed.clone() }.case(op, format!("pages of {page_tokens}")));
        }
        for mask in [Mask::Window { tokens: 1 }, Mask::Window { tokens: 20 }, Mask::Full] {
            cases.push(AttnCase { mask, ..mixed.clone() }.case(op, format!("{mask:?}")));
        }
        cases.push(AttnCase { soft_cap: Some(1.5), ..mixed.clone() }.case(op, "soft cap"));
        cases.push(AttnCase { sinks: true, ..mixed.clone() }.case(op, "sinks"));
        cases.push(AttnCase { slopes: true, ..mixed.clone() }.case(op, "slopes"));
        let all = AttnCase { soft_cap: Some(3.0), sinks: true, slopes: true, ..mixed.clone() };
        cases.push(AttnCase { mask: Mask::Window { tokens: 9 }, ..all }.case(op, "everything"));
        for kv_len in [1, 2, 15, 16, 17, 31, 32, 33, 200] {
            let seqs = vec![decode(1, kv_len), prompt(2, kv_len, kv_len), prompt(3, kv_len, 1)];
            cases.push(AttnCase { seqs, ..mixed.clone() }.case(op, format!("length {kv_len}")));
        }
        cases.extend(large_heads(dtype));
        cases.push(ragged(dtype, Mask::Full));
        cases.push(ragged(dtype, Mask::Causal));
    }
    cases
}

/// Head sizes that have kernels of their own on GPUs, with every mask and extra, over several tiles of keys.
fn large_heads(dtype: DType) -> Vec<Case> {
    let mut cases = Vec::new();
    for (q_heads, kv_heads, dim) in [(8, 2, 64), (4, 1, 128), (2, 2, 128)] {
        let seqs = vec![decode(1, 250), decode(2, 129), prompt(3, 200, 150), prompt(4, 130, 40)];
        let long = AttnCase { q_heads, kv_heads, dim, seqs, ..AttnCase::mixed(dtype) };
        let what = format!("long rows, heads {q_heads}/{kv_heads} of {dim}");
        let case = |c: AttnCase, with: &str| c.case(OpKind::PagedAttention, format!("{what}{with}"));
        cases.push(case(long.clone(), ""));
        cases.push(case(AttnCase { page_tokens: 64, ..long.clone() }, ", pages of 64"));
        cases.push(case(AttnCase { mask: Mask::Window { tokens: 70 }, ..long.clone() }, ", window"));
        cases.push(case(AttnCase { mask: Mask::Full, ..long.clone() }, ", no mask"));
        cases.push(case(AttnCase { soft_cap: Some(1.5), sinks: true, ..long.clone() }, ", soft cap, sinks"));
        cases.push(case(AttnCase { slopes: true, ..long.clone() }, ", slopes"));
    }
    cases
}

/// Fresh keys of the same batch, no cache (encoders).
fn ragged(dtype: DType, mask: Mask) -> Case {
    Case::new(OpKind::PagedAttention, format!("ragged {mask:?}"), dtype, move |rig| {
        let seqs = vec![prompt(1, 19, 19), prompt(2, 1, 1), prompt(3, 33, 33)];
        let case = AttnCase { seqs, mask, ..AttnCase::mixed(dtype) };
        let setup = case.set_up(rig)?;
        let q = case.fresh(rig, "q", case.q_heads, Read)?;
        let k = case.fresh(rig, "k", case.kv_heads, Read)?;
        let v = case.fresh(rig, "v", case.kv_heads, Read)?;
        let out = rig.blank("out", &[case.tokens(), case.q_heads * case.dim], dtype)?;
        let args = AttnArgs { scale: case.scale(), ..AttnArgs::default() };
        rig.step(|s| {
            s.op(&setup.bind())?;
            s.op(&Op::PagedAttention { q, kv: Kv::Ragged { k, v }, plan: &setup.plan, args, out: out.into() })
        })?;
        rig.output("out", out)
    })
}

/// The plan follows tables and lengths that change between two steps.
pub fn plan_on_device() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.push(Case::new(OpKind::PlanOnDevice, "twice", dtype, move |rig| {
            let case = AttnCase::mixed(dtype);
            let setup = case.set_up(rig)?;
            case.fill(rig, &setup, |s| 0..s.kv_len)?;
            let q = case.fresh(rig, "q", case.q_heads, Read)?;
            // One plan, one row, bound to sequence 4 first and to sequence 0 at half its length afterwards.
            let seqs = [(case.slot(4) as i32, 61), (case.slot(0) as i32, 20)];
            let mut bindings = Vec::new();
            for (slot, len) in seqs {
                bindings.push((
                    rig.ints("row", &[1], &[slot], Read)?,
                    rig.ints("length", &[1], &[len], Read)?,
                    rig.ints("bounds", &[2], &[0, 1], Read)?,
                    rig.blank("out", &[1, case.q_heads * case.dim], dtype)?,
                ));
            }
            let meta = RowMeta { q_len: 1, kv_len_max: 61, phase: Phase::Generated };
            let mut bytes = vec![0; setup.plan.upload_bytes()];
            rig.prepare(|s| s.plan(&setup.plan, &BatchMeta { rows: &[meta], generated: 1 }, &mut bytes))?;
            let args = AttnArgs { scale: case.scale(), ..AttnArgs::default() };
            let q = q.narrow(1, 0, 1);
            rig.step(|s| {
                for (rows, kv_len, cu_q, out) in &bindings {
                    let (rows, kv_len, cu_q, tables) = (*rows, *kv_len, *cu_q, setup.tables);
                    s.op(&Op::PlanOnDevice { plan: &setup.plan, rows, kv_len, cu_q, tables })?;
                    let kv = Kv::Paged(&setup.pool.groups[0][1]);
                    s.op(&Op::PagedAttention { q, kv, plan: &setup.plan, args, out: (*out).into() })?;
                }
                Ok(())
            })?;
            rig.output("first", bindings[0].3)?;
            rig.output("second", bindings[1].3)
        }));
    }
    cases
}

/// Rotation of part or all of a head, both pairings, head norms; seen through q and through attention.
pub fn rope_kv_write() -> Vec<Case> {
    rope_cases(OpKind::RopeKvWrite)
}

/// The fused form of the same.
pub fn attend_new() -> Vec<Case> {
    rope_cases(OpKind::AttendNew)
}

fn rope_cases(op: OpKind) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            for (dim, rot) in [(16, 16), (64, 32), (80, 80), (6, 2)] {
                for qk_norm in [false, true] {
                    let what = format!("{style:?} {rot} of {dim}, head norms {qk_norm}");
                    let case = AttnCase { dim, ..AttnCase::mixed(dtype) };
                    let rotation = RopeArgs { style, rot, qk_norm };
                    cases.push(Case::new(op, what, dtype, move |rig| {
                        rope_case(rig, op, &case, Some(rotation))
                    }));
                }
            }
        }
        for kv_dtype in FLOATS {
            let case = AttnCase { kv_dtype, ..AttnCase::mixed(dtype) };
            let rotation = RopeArgs { style: RopeStyle::Half, rot: 16, qk_norm: false };
            let what = format!("kv {kv_dtype}");
            cases.push(Case::new(op, what, dtype, move |rig| rope_case(rig, op, &case, Some(rotation))));
        }
        for (q_heads, kv_heads, dim) in [(8, 2, 64), (4, 1, 128), (12, 1, 128), (20, 1, 64)] {
            let lengths = [1, 16, 17, 33, 129, 250];
            let seqs = lengths.iter().zip(1..).map(|(len, id)| decode(id, *len)).collect();
            let case = AttnCase { q_heads, kv_heads, dim, seqs, ..AttnCase::mixed(dtype) };
            let rotation = RopeArgs { style: RopeStyle::Half, rot: dim, qk_norm: false };
            let what = format!("a decode step, heads {q_heads}/{kv_heads} of {dim}");
            cases.push(Case::new(op, what, dtype, move |rig| rope_case(rig, op, &case, Some(rotation))));
        }
        let case = AttnCase::mixed(dtype);
        cases.push(Case::new(op, "no rotation", dtype, move |rig| rope_case(rig, op, &case, None)));
    }
    cases
}

#[derive(Clone, Copy)]
struct RopeArgs {
    style: RopeStyle,
    rot: u32,
    qk_norm: bool,
}

/// q, k and v are columns of one tensor, as a fused projection leaves them. Then attention over the whole cache.
fn rope_case(rig: &mut Rig, op: OpKind, case: &AttnCase, rotation: Option<RopeArgs>) -> Result<()> {
    let setup = case.set_up(rig)?;
    case.fill(rig, &setup, |s| 0..s.kv_len - s.q_len)?;
    let (q_width, kv_width, tokens) = (case.q_heads * case.dim, case.kv_heads * case.dim, case.tokens());
    let qkv = case.values("qkv", q_width + 2 * kv_width, |s| s.kv_len - s.q_len..s.kv_len);
    let qkv = rig.floats("qkv", &[tokens, q_width + 2 * kv_width], case.dtype, &qkv, Write)?;
    let q = qkv.cols_at(0, q_width).heads(case.q_heads, case.dim);
    let k = qkv.cols_at(q_width, kv_width).heads(case.kv_heads, case.dim);
    let v = qkv.cols_at(q_width + kv_width, kv_width).heads(case.kv_heads, case.dim);
    let fresh = |s: &Seq| s.kv_len - s.q_len..s.kv_len;
    let positions: Vec<i32> = case.seqs.iter().flat_map(fresh).map(|p| p as i32).collect();
    let positions = rig.ints("positions", &[tokens], &positions, Read)?;
    let slots: Vec<i32> = case
        .seqs
        .iter()
        .zip(&setup.slots)
        .flat_map(|(s, slots)| slots[(s.kv_len - s.q_len) as usize..].to_vec())
        .collect();
    let slots = rig.ints("slots", &[tokens], &slots, Read)?;
    let table = rotation.map(|r| rope_table(rig, r.rot)).transpose()?;
    let norms = [
        rig.vector("q norm", case.dtype, &normal("q norm", case.dim as usize, 1.0))?,
        rig.vector("k norm", case.dtype, &normal("k norm", case.dim as usize, 1.0))?,
    ];
    let rope = rotation.zip(table.as_ref()).map(|(r, table)| Rope {
        positions,
        table,
        style: r.style,
        qk_norm: r.qk_norm.then_some((&norms[0], &norms[1], 1e-6)),
    });
    let out = rig.blank("out", &[tokens, q_width], case.dtype)?;
    let lse = rig.blank("lse", &[tokens, case.q_heads], DType::F32)?;
    let args = AttnArgs { scale: case.scale(), lse: Some(lse), ..AttnArgs::default() };
    let (plan, kv) = (&setup.plan, &setup.pool.groups[0][1]);
    // A decode step has a token a row and no row of padding without one.
    let count = case.seqs.len() as u32;
    let bind = match tokens == count {
        true => Op::PlanOnDevice {
            plan,
            rows: setup.rows.cols_at(0, count),
            kv_len: setup.kv_len.cols_at(0, count),
            cu_q: setup.cu_q.cols_at(0, count + 1),
            tables: setup.tables,
        },
        false => setup.bind(),
    };
    rig.step(|s| {
        s.op(&bind)?;
        match op {
            OpKind::AttendNew => {
                s.op(&Op::AttendNew { q, k, v, rope, slots, kv, plan, args, out: out.into() })
            }
            _ => {
                s.op(&Op::RopeKvWrite { q, k, v, rope, slots, kv })?;
                s.op(&Op::PagedAttention { q, kv: Kv::Paged(kv), plan, args, out: out.into() })
            }
        }
    })?;
    if op == OpKind::RopeKvWrite {
        // A fused kernel may keep the rotated queries to itself.
        rig.output("q", q)?;
    }
    rig.output("out", out)?;
    rig.output("lse", lse)?;
    written_keys(rig, case, &setup)
}

/// What was written into the cache, seen by queries that are not rotated.
fn written_keys(rig: &mut Rig, case: &AttnCase, setup: &Setup) -> Result<()> {
    let q = case.fresh(rig, "later q", case.q_heads, Read)?;
    let later = rig.blank("later", &[case.tokens(), case.q_heads * case.dim], case.dtype)?;
    let args = AttnArgs { scale: case.scale(), ..AttnArgs::default() };
    let (plan, kv) = (&setup.plan, Kv::Paged(&setup.pool.groups[0][1]));
    rig.prepare(|s| s.op(&Op::PagedAttention { q, kv, plan, args, out: later.into() }))?;
    rig.output("later", later)
}

/// [positions, rot] of base 10000, an attention factor of 1.1 in it.
fn rope_table(rig: &mut Rig, rot: u32) -> Result<Weight> {
    let (half, mut values) = (rot / 2, Vec::new());
    for p in 0..256 {
        let angle = |i: u32| f64::from(p) * 10_000f64.powf(-2.0 * f64::from(i) / f64::from(rot));
        values.extend((0..half).map(|i| (angle(i).cos() * 1.1) as f32));
        values.extend((0..half).map(|i| (angle(i).sin() * 1.1) as f32));
    }
    rig.weight("rope", [256, rot as usize], DType::F32, &values, Uses::Vector, DType::F32)
}

/// Pages copied inside the pool: one sequence's pages appear in another's table.
pub fn copy_pages() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.push(Case::new(OpKind::CopyPages, "fork", dtype, move |rig| {
            // Causal, so that every copied position is seen by some query.
            let case = AttnCase::mixed(dtype);
            let setup = case.set_up(rig)?;
            case.fill(rig, &setup, |s| 0..s.kv_len)?;
            let page =
                |seq: usize, position: u32| setup.slots[seq][position as usize] / case.page_tokens as i32;
            // Sequence 0 (33 tokens) gets two pages of sequence 4 (61 tokens); a padded pair; and a chain.
            let pairs = [page(4, 32), page(0, 32), -1, -1, page(4, 0), page(1, 15), page(1, 15), page(2, 0)];
            let pairs = rig.ints("pairs", &[4, 2], &pairs, Read)?;
            let q = case.fresh(rig, "q", case.q_heads, Read)?;
            let out = rig.blank("out", &[case.tokens(), case.q_heads * case.dim], dtype)?;
            let args = AttnArgs { scale: case.scale(), ..AttnArgs::default() };
            let (plan, kv) = (&setup.plan, &setup.pool.groups[0]);
            rig.step(|s| {
                s.op(&Op::CopyPages { kv, pairs })?;
                s.op(&setup.bind())?;
                s.op(&Op::PagedAttention { q, kv: Kv::Paged(&kv[1]), plan, args, out: out.into() })
            })?;
            rig.output("out", out)
        }));
    }
    cases
}

/// Two and five parts; a part without keys; a token without any.
pub fn merge_states() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for (parts, heads, dim) in [(2u32, 3u32, 16u32), (5, 1, 33)] {
            cases.push(Case::new(
                OpKind::MergeStates,
                format!("{parts} of {heads}x{dim}"),
                dtype,
                move |rig| {
                    let tokens = 4u32;
                    let count = (parts * tokens * heads) as usize;
                    let values = normal("parts", count * dim as usize, 1.0);
                    let mut lse = normal("lse", count, 4.0);
                    lse[0] = f32::NEG_INFINITY;
                    for part in 0..parts {
                        lse[((part * tokens + 3) * heads) as usize] = f32::NEG_INFINITY;
                    }
                    let x = rig.floats("parts", &[parts, tokens, heads, dim], dtype, &values, Read)?;
                    let lse = rig.floats("lse", &[parts, tokens, heads], DType::F32, &lse, Read)?;
                    let out = rig.blank("out", &[tokens, heads * dim], dtype)?;
                    rig.step(|s| s.op(&Op::MergeStates { parts: x, lse, out }))?;
                    rig.output("out", out)
                },
            ));
        }
    }
    cases
}
