//! Shorthand on `dyn Stream`: what layers call.

use super::{Act, ActFormat, Epilogue, Op, Stream, Weight};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Whether an activation keeps its plain form beside the quantized one (routers and LoRA read it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepPlain {
    No,
    Yes,
}

impl dyn Stream + '_ {
    /// Scratch for an activation of `rows` in the form `w` reads. [rows, K of w]
    pub fn act_for(&mut self, w: &Weight, rows: u32, dtype: DType, keep: KeepPlain) -> Act {
        let k = w.meta().k;
        match w.meta().act {
            ActFormat::Plain => self.scratch(&[rows, k], dtype).into(),
            ActFormat::Quantized { dtype: quantized, group } => {
                let groups = if group == 0 { 1 } else { k.div_ceil(group) };
                let values = self.scratch(&[rows, k], quantized);
                let scales = self.scratch(&[rows, groups], DType::F32);
                let plain = (keep == KeepPlain::Yes).then(|| self.scratch(&[rows, k], dtype));
                Act { plain, quant: Some((values, scales)) }
            }
        }
    }

    /// `Gemm` or `QuantizedMatmul` by the weight's format. x [T, K], out [T, N'].
    pub fn linear(&mut self, x: Act, w: &Weight, e: Epilogue<'_>, out: impl Into<Act>) -> Result<()> {
        let out = out.into();
        if w.meta().format.is_dense() {
            self.op(&Op::Gemm { x, w, e, out })
        } else {
            self.op(&Op::QuantizedMatmul { x, w, e, out })
        }
    }

    /// RMS norm, resolving a pending delta into the residual; see `Op::Norm`.
    pub fn norm(
        &mut self,
        x: Tensor,
        residual: Option<Tensor>,
        w: &Weight,
        eps: f32,
        out: Act,
    ) -> Result<()> {
        self.op(&Op::Norm { x, residual, w, eps, out })
    }
}
