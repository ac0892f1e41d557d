//! Tensors as handles: no arithmetic happens here.

mod dtype;
#[expect(clippy::module_inception, reason = "tensor::Tensor is the field's own name")]
mod tensor;

pub use dtype::DType;
pub use tensor::Tensor;
