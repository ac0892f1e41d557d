//! The CPU as a device: SIMD kernels chosen at run time, pinned workers, weights packed once at load.
//!
//! - `backend`, `stream`: the two traits of `engine_core::backend`.
//! - `memory`: allocations and the way from a tensor to an address. `kv`, `weights`: layouts.
//! - `bind`, `bound`: from an op to a kernel with its operands; `threads`: who runs it.
//! - `ops`: the kernels, written once against `simd::Simd`. `reference`: what they must compute.
//!
//! Batch invariance always holds: a row's bits depend on the row, the weights and the instruction set, never on the
//! number of rows, of threads, or on chunking.

mod backend;
mod bind;
mod bound;
pub mod faults;
mod kv;
mod measure;
mod memory;
mod ops;
mod plan;
mod progress;
pub mod reference;
mod simd;
mod stream;
mod strips;
mod support;
mod threads;
mod topology;
mod weights;

pub use backend::{CpuBackend, CpuConfig, SimdChoice};
pub use measure::Limits;
pub use simd::SimdPath;
