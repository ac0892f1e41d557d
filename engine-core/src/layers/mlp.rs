//! The gated feed-forward block.

use super::{Hidden, StepContext};
use crate::backend::sugar::KeepPlain;
use crate::backend::{Activation, Epilogue, Op, Stream, Weight};
use crate::config::{HiddenAct, ModelConfig};
use crate::error::{Error, Result};

/// Feed-forward of one layer: down(act(gate(x)) · up(x)).
pub struct Mlp {
    /// [H]
    pub norm: Weight,
    /// Gate and up fused: [2·I, H]
    pub gate_up: Weight,
    pub gate_up_bias: Option<Weight>,
    /// [H, I]
    pub down: Weight,
    pub down_bias: Option<Weight>,
    /// One that halves.
    pub act: Activation,
    pub eps: f32,
}

impl Mlp {
    /// hidden + mlp(norm(hidden)).
    pub fn forward(&self, s: &mut dyn Stream, ctx: &StepContext<'_>, h: Hidden) -> Result<Hidden> {
        let rows = h.residual.rows() as u32;
        let mark = s.mark();
        let (x, residual) = h.to_norm();
        let inner = s.act_for(&self.down, rows, ctx.dtype, KeepPlain::No);
        let e = Epilogue { bias: self.gate_up_bias.as_ref(), act: self.act, ..Epilogue::default() };
        let (norm, eps, w) = (&self.norm, self.eps, &self.gate_up);
        s.op(&Op::NormLinear { x, residual, norm, eps, w, e, out: inner })?;
        let e = Epilogue { bias: self.down_bias.as_ref(), residual: Some(h.residual), ..Epilogue::default() };
        s.linear(inner, &self.down, e, h.residual)?;
        s.release(mark);
        Ok(Hidden { residual: h.residual, delta: None })
    }
}

/// The gated activation of a configuration.
///
/// # Errors
/// `Unsupported` naming `hidden_act` when no gated form of it is known.
pub fn gated(c: &ModelConfig) -> Result<Activation> {
    match c.hidden_act {
        HiddenAct::Silu => Ok(Activation::SiluMul),
        HiddenAct::GeluTanh => Ok(Activation::GeluTanhMul),
        other => Err(Error::Unsupported(format!(
            "config.json: hidden_act {other:?} has no gated form here; silu and gelu_pytorch_tanh do"
        ))),
    }
}
