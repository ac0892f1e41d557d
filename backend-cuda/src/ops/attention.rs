//! RopeKvWrite and PagedAttention.

use engine_core::backend::{AttnArgs, AttnPlan, Kv, KvLayer, Mask, Rope, RopeStyle};
use engine_core::{DType, Result, Tensor};
use kernels::params::{self, DECODE_WARPS};

use super::{code, rows};
use crate::device::CudaPool;
use crate::mem::lock;
use crate::plan::{Bound, CudaPlan, Prefill, window};
use crate::stream::CudaStream;

/// Threads of the prefill kernels of sm_90a: one warpgroup copies, two multiply.
const HOPPER_THREADS: u32 = 384;

impl CudaStream {
    pub(super) fn rope_kv_write(
        &mut self,
        [q, k, v]: [Tensor; 3],
        rope: Option<&Rope<'_>>,
        slots: Tensor,
        kv: &KvLayer,
    ) -> Result<()> {
        self.hold(kv.shared());
        let pool = kv.inner::<CudaPool>();
        let spec = &pool.specs[kv.group() as usize];
        let norms = rope.and_then(|r| r.qk_norm);
        let params = params::Rope {
            q: self.at(q),
            k: self.at(k),
            v: self.at(v),
            positions: self.at_or_null(rope.map(|r| r.positions)),
            table: self.vector(rope.map(|r| r.table)),
            q_norm: self.vector(norms.map(|n| n.0)),
            k_norm: self.vector(norms.map(|n| n.1)),
            slots: self.at(slots),
            cache: pool.layer(kv),
            page_stride: pool.page_stride,
            v_offset: v_offset(spec.kv_heads, spec.page_tokens, spec.k_dim, spec.dtype),
            q_stride: q.strides()[1],
            q_head_stride: q.strides()[2],
            k_stride: k.strides()[1],
            k_head_stride: k.strides()[2],
            v_stride: v.strides()[1],
            v_head_stride: v.strides()[2],
            q_heads: q.shape()[2],
            kv_heads: spec.kv_heads,
            k_dim: spec.k_dim,
            v_dim: spec.v_dim,
            rot: rope.map_or(0, |r| r.table.meta().k),
            page_tokens: spec.page_tokens,
            dtype: code(q.dtype()),
            kv_dtype: code(spec.dtype),
            interleaved: i32::from(rope.is_some_and(|r| r.style == RopeStyle::Interleaved)),
            eps: norms.map_or(0.0, |n| n.2),
        };
        let heads = params.q_heads + 2 * params.kv_heads;
        // Few tokens: a warp for each head; many: warps that take several.
        let (warps, blocks) = match q.shape()[1] {
            0..=256 => (4, heads.div_ceil(4)),
            _ => (8, 1),
        };
        self.launch("rope_kv_write", [q.shape()[1], blocks, 1], warps * 32, 0, &params)
    }

    pub(super) fn attention(
        &mut self,
        q: Tensor,
        kv: Kv<'_>,
        plan: &AttnPlan,
        args: &AttnArgs<'_>,
        out: Tensor,
    ) -> Result<()> {
        self.hold(plan.shared());
        let p = plan.inner::<CudaPlan>();
        let bound = lock(&p.state).bound;
        let params = self.attention_params(q, kv, plan, args, out, &bound);
        let aligned = params.q.is_multiple_of(16)
            && params.q_stride.is_multiple_of(8)
            && params.q_head_stride.is_multiple_of(8);
        let tokens = q.shape()[1];
        let Some(fast) = p.fast.as_ref().filter(|_| {
            aligned
                && params.k == 0
                && out.dtype() == q.dtype()
                && params.out.is_multiple_of(4)
                && params.out_stride.is_multiple_of(2)
        }) else {
            let shared = DECODE_WARPS * params.k_dim * 4;
            let grid = [tokens, params.q_heads.div_ceil(4), 1];
            return self.launch("attention_any", grid, 128, shared, &params);
        };
        if bound.generated > 0 {
            let grid = p.decode_grid(fast);
            self.launch(&fast.decode, grid, DECODE_WARPS * 32, fast.decode_shared_bytes, &params)?;
        }
        match &fast.prefill {
            Prefill::Tiles { name, shared_bytes } => {
                let grid = [bound.tiles, params.q_heads, 1];
                self.launch(name, grid, 128, *shared_bytes, &params)
            }
            Prefill::Hopper { name, shared_bytes } => {
                let Kv::Paged(layer) = kv else { panic!("no plan of paged rows for fresh keys") };
                let pool = layer.inner::<CudaPool>();
                let params = params::HopperAttn {
                    map: pool.head_rows(params.k_dim)?,
                    pool: pool.region.address(),
                    attn: params,
                };
                let grid = [params.attn.q_heads, bound.tiles, 1];
                self.launch(name, grid, HOPPER_THREADS, *shared_bytes, &params)
            }
        }
    }

    /// `Op::AttendNew` in one kernel, where there is one: every row has one generated token and the rotation is of whole
    /// heads in halves. `None` where rotation and attention are to run apart.
    pub(super) fn attend_new(
        &mut self,
        [q, k, v]: [Tensor; 3],
        rope: &Rope<'_>,
        slots: Tensor,
        kv: &KvLayer,
        plan: &AttnPlan,
        args: &AttnArgs<'_>,
        out: Tensor,
    ) -> Option<Result<()>> {
        let p = plan.inner::<CudaPlan>();
        let bound = lock(&p.state).bound;
        let spec = plan.spec();
        let fast = p.fast.as_ref().filter(|f| f.fuses && out.dtype() == q.dtype())?;
        let halves = rope.style == RopeStyle::Half && rope.qk_norm.is_none();
        let whole = rope.table.meta().k == spec.k_dim && [k.dtype(), v.dtype()] == [spec.kv_dtype; 2];
        if !bound.single || q.shape()[1] != bound.sequences || !halves || !whole {
            return None;
        }
        let attn = params::Attn {
            k: self.at(k),
            v: self.at(v),
            k_stride: k.strides()[1],
            k_head_stride: k.strides()[2],
            v_stride: v.strides()[1],
            v_head_stride: v.strides()[2],
            ..self.attention_params(q, Kv::Paged(kv), plan, args, out, &bound)
        };
        let strides = [attn.q_stride, attn.q_head_stride, attn.k_stride, attn.k_head_stride];
        let strides = strides.into_iter().chain([attn.v_stride, attn.v_head_stride, attn.out_stride]);
        if [attn.q, attn.k, attn.v, attn.out].iter().any(|a| a % 4 != 0)
            || strides.into_iter().any(|s| s % 2 != 0)
        {
            return None;
        }
        let params = params::AttnNew {
            attn,
            positions: self.at(rope.positions),
            slots: self.at(slots),
            angles: self.vector(Some(rope.table)),
            pad: 0,
        };
        self.hold(plan.shared());
        let name = fast.decode.replace("decode_", "decode_new_");
        let grid = p.decode_grid(fast);
        Some(self.launch(&name, grid, DECODE_WARPS * 32, fast.decode_shared_bytes, &params))
    }

    fn attention_params(
        &mut self,
        q: Tensor,
        kv: Kv<'_>,
        plan: &AttnPlan,
        args: &AttnArgs<'_>,
        out: Tensor,
        bound: &Bound,
    ) -> params::Attn {
        let (p, spec) = (plan.inner::<CudaPlan>(), plan.spec());
        let (cache, page_stride, fresh) = match kv {
            Kv::Paged(layer) => {
                self.hold(layer.shared());
                let pool = layer.inner::<CudaPool>();
                (pool.layer(layer), pool.page_stride, None)
            }
            Kv::Ragged { k, v } => (0, 0, Some((k, v))),
        };
        let kv_dtype = fresh.map_or(spec.kv_dtype, |(k, _)| k.dtype());
        params::Attn {
            q: self.at(q),
            out: self.at(out),
            lse: self.at_or_null(args.lse),
            sinks: self.vector(args.sinks),
            slopes: self.vector(args.slopes),
            cache,
            k: self.at_or_null(fresh.map(|f| f.0)),
            v: self.at_or_null(fresh.map(|f| f.1)),
            table: bound.table,
            rows: bound.rows,
            kv_len: bound.kv_len,
            cu_q: bound.cu_q,
            items: p.items.address(),
            counts: p.counts.address(),
            tiles: p.tiles.address(),
            partial: p.partial.address(),
            arrivals: p.arrivals.address(),
            page_stride,
            v_offset: v_offset(spec.kv_heads, spec.page_tokens, spec.k_dim, spec.kv_dtype),
            q_stride: q.strides()[1],
            q_head_stride: q.strides()[2],
            out_stride: rows(out).2 as u32,
            k_stride: fresh.map_or(0, |f| f.0.strides()[1]),
            k_head_stride: fresh.map_or(0, |f| f.0.strides()[2]),
            v_stride: fresh.map_or(0, |f| f.1.strides()[1]),
            v_head_stride: fresh.map_or(0, |f| f.1.strides()[2]),
            q_heads: spec.q_heads,
            kv_heads: spec.kv_heads,
            k_dim: spec.k_dim,
            v_dim: spec.v_dim,
            page_tokens: spec.page_tokens,
            pages: bound.pages,
            sequences: bound.sequences,
            window: window(spec.mask),
            full: u32::from(spec.mask == Mask::Full),
            q_dtype: code(q.dtype()),
            kv_dtype: code(kv_dtype),
            out_dtype: code(out.dtype()),
            scale: args.scale,
            soft_cap: args.soft_cap.unwrap_or(0.0),
            first_sequence: 0,
        }
    }
}

/// Where a page's values start, after its keys.
fn v_offset(kv_heads: u32, page_tokens: u32, k_dim: u32, dtype: DType) -> u64 {
    u64::from(kv_heads) * u64::from(page_tokens) * u64::from(k_dim) * dtype.size_bytes() as u64
}
