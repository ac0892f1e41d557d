//! Lowering of fused ops into required ones. A backend without a kernel for a fused op ends its match here.

use super::sugar::KeepPlain;
use super::{Kv, Op, Stream};
use crate::error::{Error, Result};

/// Splits a fused op into required ones and enqueues those.
///
/// # Errors
/// `Unsupported` for a required op: the backend has no kernel for it, and `supports` should have said so at load.
pub fn lower(s: &mut dyn Stream, op: &Op<'_>) -> Result<()> {
    match *op {
        Op::NormLinear { x, residual, norm, eps, w, e, out } => {
            let mark = s.mark();
            let normed = s.act_for(w, x.rows() as u32, x.dtype(), KeepPlain::No);
            s.op(&Op::Norm { x, residual, w: norm, eps, out: normed })?;
            s.linear(normed, w, e, out)?;
            s.release(mark);
            Ok(())
        }
        Op::AttendNew { q, k, v, rope, slots, kv, plan, args, out } => {
            s.op(&Op::RopeKvWrite { q, k, v, rope, slots, kv })?;
            s.op(&Op::PagedAttention { q, kv: Kv::Paged(kv), plan, args, out })
        }
        Op::AllReduceNorm { group, x, residual, w, eps, out } => {
            s.op(&Op::AllReduce { group, x })?;
            s.op(&Op::Norm { x, residual: Some(residual), w, eps, out })
        }
        _ => Err(Error::Unsupported(format!("op {} has no kernel on this device", op.kind().name()))),
    }
}
