//! Grouped-query attention over the paged cache, with rotary embedding and optional per-head norms.

use super::{Hidden, StepContext};
use crate::backend::sugar::KeepPlain;
use crate::backend::{AttnArgs, Epilogue, Op, Rope, RopeStyle, Stream, Weight};
use crate::error::Result;

/// Attention of one layer.
pub struct Attention {
    /// [H]
    pub norm: Weight,
    /// q, k and v stacked: [(Hq + 2·Hkv)·D, H]
    pub qkv: Weight,
    pub qkv_bias: Option<Weight>,
    /// [H, Hq·D]
    pub o: Weight,
    pub o_bias: Option<Weight>,
    /// Norms over each head of q and of k: [D]
    pub qk_norm: Option<(Weight, Weight)>,
    /// [positions, rot], shared by all layers.
    pub rope: Weight,
    pub shape: AttentionShape,
}

/// Sizes and place in the cache of one attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub q_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub eps: f32,
    /// Multiplies q·k.
    pub scale: f32,
    /// KV group and index within it.
    pub group: u32,
    pub index: u32,
}

impl Attention {
    /// hidden + attention(norm(hidden)).
    pub fn forward(&self, s: &mut dyn Stream, ctx: &StepContext<'_>, h: Hidden) -> Result<Hidden> {
        let a = self.shape;
        let rows = h.residual.rows() as u32;
        let mark = s.mark();
        let (x, residual) = h.to_norm();
        let (q_width, kv_width) = (a.q_heads * a.head_dim, a.kv_heads * a.head_dim);
        let qkv = s.scratch(&[rows, q_width + 2 * kv_width], ctx.dtype);
        s.op(&Op::NormLinear {
            x,
            residual,
            norm: &self.norm,
            eps: a.eps,
            w: &self.qkv,
            e: Epilogue { bias: self.qkv_bias.as_ref(), ..Epilogue::default() },
            out: qkv.into(),
        })?;
        let out = s.act_for(&self.o, rows, ctx.dtype, KeepPlain::No);
        let rope = Rope {
            positions: ctx.positions,
            table: &self.rope,
            style: RopeStyle::Half,
            qk_norm: self.qk_norm.as_ref().map(|(q, k)| (q, k, a.eps)),
        };
        s.op(&Op::AttendNew {
            q: qkv.cols_at(0, q_width).heads(a.q_heads, a.head_dim),
            k: qkv.cols_at(q_width, kv_width).heads(a.kv_heads, a.head_dim),
            v: qkv.cols_at(q_width + kv_width, kv_width).heads(a.kv_heads, a.head_dim),
            rope: Some(rope),
            slots: ctx.slots_of(a.group),
            kv: &ctx.kv.groups[a.group as usize][a.index as usize],
            plan: &ctx.plans[a.group as usize],
            args: AttnArgs { scale: a.scale, ..AttnArgs::default() },
            out,
        })?;
        let e = Epilogue { bias: self.o_bias.as_ref(), residual: Some(h.residual), ..Epilogue::default() };
        s.linear(out, &self.o, e, h.residual)?;
        s.release(mark);
        Ok(Hidden { residual: h.residual, delta: None })
    }
}

impl Hidden {
    /// Input and in-place residual of the norm that resolves this.
    pub fn to_norm(self) -> (crate::Tensor, Option<crate::Tensor>) {
        match self.delta {
            Some(delta) => (delta, Some(self.residual)),
            None => (self.residual, None),
        }
    }
}
