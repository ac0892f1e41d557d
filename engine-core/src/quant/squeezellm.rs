//! SqueezeLLM: codes of 3 or 4 bits packed along K as GPTQ packs them, and for each output a table of what its codes
//! stand for. `qweight` [K · bits / 32, N], `lookup_table` [N, 2^bits]. w[n][k] = lookup_table[n][code].

use super::parts::{Packed, bits_at, word_at};
use crate::backend::{AuxKind, HostPart};
use crate::error::Result;

/// Every number of the part.
pub(super) fn dequantize(part: &HostPart, bits: u8) -> Result<Vec<f32>> {
    let bits = usize::from(bits);
    let p = Packed::new(part, |n, k| (k * bits).div_ceil(32) * n * 4)?;
    let table = p.companion(AuxKind::Scales, [p.n, 1 << bits])?;
    let mut out = Vec::with_capacity(p.n * p.k);
    for n in 0..p.n {
        for k in 0..p.k {
            let code = bits_at(bits, k, |w| word_at(&p.bytes, w * p.n + n));
            out.push(table.float((n << bits) + usize::from(code)));
        }
    }
    Ok(out)
}
