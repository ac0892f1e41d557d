//! Reading and writing checkpoints: mapped files in, [`HostTensor`]s out, no copy where none is needed.
//!
//! [`Checkpoint`] is the door: it finds the weight files of a directory, reads their headers and answers by tensor
//! name. Every failure names the file and, where there is one, the tensor. Nothing in a file is trusted: lengths
//! are checked against the file before anything is allocated, and no pickled code runs.

pub mod checkpoint;
pub mod dtype;
pub mod fill;
pub mod gguf;
pub mod gguf_model;
mod index;
pub mod mmap;
mod pickle;
pub mod safetensors;
pub mod shapes;
pub mod source;
#[cfg(test)]
pub(crate) mod testing;
pub mod torch_bin;
mod torch_legacy;
mod torch_zip;
pub mod write;

pub use checkpoint::{Checkpoint, LoadFormat, weight_files};
pub use dtype::FileDType;
pub use mmap::{Advice, HostBytes};

/// One tensor of a checkpoint as it lies in its file: row-major, little-endian, contiguous. Older torch files promise
/// no alignment, so its elements are to be read as bytes.
#[derive(Clone, Debug)]
pub struct HostTensor {
    /// Its elements; a range of the mapped file where possible.
    pub bytes: HostBytes,
    /// Element type in the file.
    pub dtype: FileDType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
}

impl HostTensor {
    /// Number of elements.
    pub fn len(&self) -> u64 {
        // The readers have checked that this product fits the file.
        self.shape.iter().product()
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of `shape` elements of `dtype`; `None` when the product overflows or ends inside a byte.
pub(crate) fn shape_bytes(shape: &[u64], dtype: FileDType) -> Option<u64> {
    let len = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
    let bits = len.checked_mul(u64::from(dtype.size_bits()))?;
    (bits % 8 == 0).then_some(bits / 8)
}
