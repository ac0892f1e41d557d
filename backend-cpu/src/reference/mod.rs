//! The specification of every op: plain scalar loops on slices, f32, written to be read.
//!
//! One file per family of ops. Tensors are row-major slices; shapes are in the letters of the seam (T tokens, S
//! sequences, H hidden, Hq/Hkv heads, D head size, N×K weight, V vocabulary, L logits rows, R row slots).
//! Arithmetic is f32 unless a comment says f64; narrower types are widened on reading and rounded once on
//! writing ([`dtype`]). [`ReferenceBackend`] runs these functions behind the seam. Nothing here is shared with the
//! SIMD kernels: they are tested against it.

pub mod attention;
mod backend;
mod bind;
pub mod collective;
pub mod dtype;
pub mod elementwise;
pub mod gemm;
pub mod inputs;
mod memory;
pub mod movement;
pub mod norm;
pub mod philox;
pub mod quantized;
pub mod rope;
pub mod sample;
mod sampler;
pub mod topk;
mod weights;

pub use backend::ReferenceBackend;
