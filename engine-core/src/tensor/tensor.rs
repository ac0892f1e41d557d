//! [`Tensor`]: a handle by value. It owns nothing and reads nothing; a backend resolves it to memory.

use super::DType;

/// A view of device memory: which memory, where in it, what shape. `Copy`, 64 bytes, no ownership.
///
/// Shapes are right-aligned: `[T, H]` is stored as `[1, 1, T, H]`. The last dimension is contiguous; `stride`
/// holds the element strides of the first three. `epoch` is the generation of the memory it was made from:
/// a backend that resolves a tensor of another epoch, or one that reaches past its memory, panics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tensor {
    mem: u32,
    epoch: u32,
    at: u64,
    shape: [u32; 4],
    stride: [u32; 3],
    dtype: DType,
}

impl Tensor {
    /// A contiguous tensor at byte `at` of memory `mem`, generation `epoch`. For backends only.
    ///
    /// # Panics
    /// If `shape` has more than four dimensions or a stride would overflow `u32`.
    pub fn from_raw(mem: u32, epoch: u32, at: u64, shape: &[u32], dtype: DType) -> Self {
        assert!(shape.len() <= 4, "a tensor has at most 4 dimensions, got {shape:?}");
        let mut full = [1u32; 4];
        full[4 - shape.len()..].copy_from_slice(shape);
        let mul =
            |a: u32, b: u32| a.checked_mul(b).unwrap_or_else(|| panic!("stride of {shape:?} overflows u32"));
        let s2 = full[3];
        let s1 = mul(s2, full[2]);
        let s0 = mul(s1, full[1]);
        Tensor { mem, epoch, at, shape: full, stride: [s0, s1, s2], dtype }
    }

    /// Identifier of the memory this tensor lies in.
    pub fn mem(&self) -> u32 {
        self.mem
    }
    /// Generation of that memory when this handle was made.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
    /// First byte, relative to the start of the memory.
    pub fn at_bytes(&self) -> u64 {
        self.at
    }
    /// All four dimensions, right-aligned (missing ones are 1).
    pub fn shape(&self) -> [u32; 4] {
        self.shape
    }
    /// Element strides of the first three dimensions; the last is 1.
    pub fn strides(&self) -> [u32; 3] {
        self.stride
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Size of the last dimension.
    pub fn cols(&self) -> usize {
        self.shape[3] as usize
    }
    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[0] as usize * self.shape[1] as usize * self.shape[2] as usize
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes from the first to just past the last element (0 when empty).
    pub fn extent_bytes(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let mut last = u64::from(self.shape[3]) - 1;
        for d in 0..3 {
            last += (u64::from(self.shape[d]) - 1) * u64::from(self.stride[d]);
        }
        (last + 1) * self.dtype.size_bytes() as u64
    }
    /// Whether elements follow each other without a gap in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut want = u64::from(self.shape[3]);
        for d in (0..3).rev() {
            if self.shape[d] != 1 && u64::from(self.stride[d]) != want {
                return false;
            }
            want *= u64::from(self.shape[d]);
        }
        true
    }

    /// Elements `start..start + len` of dimension `dim` (0 to 3, of the right-aligned shape).
    ///
    /// # Panics
    /// If the range does not lie inside the dimension.
    pub fn narrow(mut self, dim: usize, start: u32, len: u32) -> Self {
        assert!(
            start.checked_add(len).is_some_and(|e| e <= self.shape[dim]),
            "narrow of dimension {dim} to {start}..{start}+{len} of {:?}",
            self.shape
        );
        let stride = if dim == 3 { 1 } else { u64::from(self.stride[dim]) };
        self.at += u64::from(start) * stride * self.dtype.size_bytes() as u64;
        self.shape[dim] = len;
        self
    }
    /// Rows `start..start + len` of a `[T, N]` tensor.
    pub fn rows_at(self, start: u32, len: u32) -> Self {
        self.narrow(2, start, len)
    }
    /// Columns `start..start + len` of the last dimension.
    pub fn cols_at(self, start: u32, len: u32) -> Self {
        self.narrow(3, start, len)
    }
    /// The last dimension split into `[heads, size]`: `[T, heads·size]` becomes `[T, heads, size]`.
    ///
    /// # Panics
    /// If the tensor has more than three dimensions in use, or `heads · size` is not the last dimension.
    pub fn heads(self, heads: u32, size: u32) -> Self {
        assert!(self.shape[0] == 1, "heads() of a four-dimensional tensor {:?}", self.shape);
        assert_eq!(heads * size, self.shape[3], "heads() of {:?}", self.shape);
        Tensor {
            shape: [self.shape[1], self.shape[2], heads, size],
            stride: [self.stride[1], self.stride[2], size],
            ..self
        }
    }
    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the tensor is not contiguous or the number of elements differs.
    pub fn view(self, shape: &[u32]) -> Self {
        assert!(self.is_contiguous(), "view of a strided tensor {:?} {:?}", self.shape, self.stride);
        let t = Tensor::from_raw(self.mem, self.epoch, self.at, shape, self.dtype);
        assert_eq!(t.len(), self.len(), "view of {:?} as {shape:?}", self.shape);
        t
    }
    /// The same view of a copy in other memory: shape, strides and type stay. For wrappers of backends.
    pub fn moved_to(self, mem: u32, epoch: u32, at_bytes: u64) -> Self {
        Tensor { mem, epoch, at: at_bytes, ..self }
    }
    /// The same bytes read as another element type of the same size.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn cast_bits(self, dtype: DType) -> Self {
        assert_eq!(dtype.size_bytes(), self.dtype.size_bytes(), "cast_bits changes the element size");
        Tensor { dtype, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_keep_their_place() {
        let t = Tensor::from_raw(1, 2, 256, &[5, 12], DType::Bf16);
        assert_eq!((t.rows(), t.cols(), t.extent_bytes()), (5, 12, 120));
        let q = t.cols_at(4, 8).heads(2, 4);
        assert_eq!(q.shape(), [1, 5, 2, 4]);
        assert_eq!(q.strides(), [60, 12, 4]);
        assert_eq!(q.at_bytes(), 264);
        assert!(!q.is_contiguous());
        assert_eq!(q.extent_bytes(), (4 * 12 + 8) * 2);
        let r = t.rows_at(3, 2);
        assert!(r.is_contiguous());
        assert_eq!(r.view(&[24]).cols(), 24);
    }

    #[test]
    #[should_panic(expected = "narrow")]
    fn narrow_past_the_end_panics() {
        let _ = Tensor::from_raw(0, 0, 0, &[2, 2], DType::F32).rows_at(1, 2);
    }
}
