//! What one tensor argument must be, said once.

use crate::tensor::{DType, Tensor};

/// Checks of one op: every message names it.
pub(super) struct Args<'a> {
    pub op: &'static str,
    /// Panics for released scratch: op, argument, tensor.
    pub live: &'a dyn Fn(&str, &str, Tensor),
}

impl Args<'_> {
    /// `t` has exactly this shape (right-aligned, 1 in front) and one of these types.
    pub fn tensor(&self, arg: &str, t: Tensor, shape: &[usize], dtypes: &[DType]) {
        let mut wanted = [1; 4];
        wanted[4 - shape.len()..].copy_from_slice(shape);
        let got = t.shape().map(|d| d as usize);
        assert!(got == wanted, "{}: {arg} should be {shape:?}, got {:?}", self.op, t.shape());
        self.dtype(arg, t, dtypes);
        (self.live)(self.op, arg, t);
    }

    /// `t` has `rows` rows of `cols`, however its leading dimensions are cut.
    pub fn rows(&self, arg: &str, t: Tensor, rows: usize, cols: usize, dtypes: &[DType]) {
        let (r, c) = (t.rows(), t.cols());
        assert!(
            (r, c) == (rows, cols),
            "{}: {arg} should be {rows} rows of {cols}, got {:?}",
            self.op,
            t.shape()
        );
        self.dtype(arg, t, dtypes);
        (self.live)(self.op, arg, t);
    }

    /// An i32 vector.
    pub fn ints(&self, arg: &str, t: Tensor, len: usize) {
        self.tensor(arg, t, &[len], &[DType::I32]);
        assert!(t.is_contiguous(), "{}: {arg} should be contiguous", self.op);
    }

    /// `t` has one of these types.
    pub fn dtype(&self, arg: &str, t: Tensor, dtypes: &[DType]) {
        let names: Vec<_> = dtypes.iter().map(|d| d.name()).collect();
        assert!(
            dtypes.contains(&t.dtype()),
            "{}: {arg} should be {}, got {}",
            self.op,
            names.join(" or "),
            t.dtype()
        );
    }

    /// Two sizes that must agree.
    pub fn equal(&self, what: &str, got: usize, wanted: usize) {
        assert!(got == wanted, "{}: {what} should be {wanted}, got {got}", self.op);
    }

    /// `a` and `b` share no element.
    pub fn apart(&self, a: (&str, Tensor), b: (&str, Tensor)) {
        assert!(!overlap(a.1, b.1), "{}: {} overlaps {}", self.op, a.0, b.0);
    }

    /// `a` is the same tensor as `b`, or shares no element with it.
    pub fn same_or_apart(&self, a: (&str, Tensor), b: (&str, Tensor)) {
        if a.1 != b.1 {
            self.apart(a, b);
        }
    }
}

/// Floating-point activations.
pub(super) const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::Bf16];
pub(super) const F32: &[DType] = &[DType::F32];
pub(super) const I32: &[DType] = &[DType::I32];
pub(super) const U32: &[DType] = &[DType::U32];

/// Whether two tensors share a byte. Exact for contiguous ones and for column ranges of rows of equal pitch (q, k, v
/// of one projection); otherwise tensors whose extents cross count as overlapping.
fn overlap(a: Tensor, b: Tensor) -> bool {
    if a.mem() != b.mem() || a.is_empty() || b.is_empty() {
        return false;
    }
    let crossing =
        a.at_bytes() < b.at_bytes() + b.extent_bytes() && b.at_bytes() < a.at_bytes() + a.extent_bytes();
    if !crossing {
        return false;
    }
    let ((a_pitch, a_width), (b_pitch, b_width)) = (pitch(a), pitch(b));
    let pitch = match (a_pitch, b_pitch) {
        (Some(a), Some(b)) if a == b => a,
        (Some(p), None) if b_width <= p => p,
        (None, Some(p)) if a_width <= p => p,
        _ => return true,
    };
    // Column ranges on a circle of one pitch.
    let ahead = (b.at_bytes() + pitch - a.at_bytes() % pitch) % pitch;
    ahead < a_width || ahead + b_width > pitch
}

/// Bytes from one row to the next (`None`: one block) and bytes of a row without gaps.
fn pitch(t: Tensor) -> (Option<u64>, u64) {
    let size = t.dtype().size_bytes() as u64;
    let mut width = t.cols() as u64;
    for d in (0..3).rev() {
        let (count, stride) = (u64::from(t.shape()[d]), u64::from(t.strides()[d]));
        if count > 1 && stride != width {
            return (Some(stride * size), width * size);
        }
        if count > 1 {
            width *= count;
        }
    }
    (None, width * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_one_projection_are_apart() {
        let qkv = Tensor::from_raw(0, 0, 512, &[5, 32], DType::Bf16);
        let (q, k, v) = (qkv.cols_at(0, 16).heads(2, 8), qkv.cols_at(16, 8).heads(1, 8), qkv.cols_at(24, 8));
        for (a, b) in [(q, k), (k, q), (q, v), (v, k), (k, v)] {
            assert!(!overlap(a, b));
        }
        assert!(overlap(q, qkv) && overlap(qkv, v) && overlap(q, qkv.cols_at(15, 2)) && overlap(q, q));
        assert!(overlap(qkv.cols_at(31, 1), v) && !overlap(qkv.cols_at(23, 1), v));
        assert!(
            !overlap(qkv.rows_at(0, 2), qkv.rows_at(2, 3)) && overlap(qkv.rows_at(0, 3), qkv.rows_at(2, 3))
        );
        let row = qkv.rows_at(2, 1);
        assert!(overlap(row, q) && !overlap(row.cols_at(16, 4), q) && overlap(q, row.cols_at(14, 4)));
    }
}
