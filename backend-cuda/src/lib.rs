//! The CUDA backend: NVIDIA GPUs through the driver API, kernels of the `kernels` crate, cuBLASLt for large products.
//!
//! Nothing of CUDA is linked: the driver and cuBLASLt are opened at start-up, so that the same binary runs on a
//! machine without them. Files: [`driver`] (thin calls), [`gpu`] (context and kernels), `mem`, `device` (`Backend`),
//! `stream` (`Stream`), `graph`, `plan` (attention), `weights`, `blas`, `caps`, and `ops/` by family.

mod blas;
mod caps;
mod device;
mod driver;
mod gpu;
mod graph;
mod mem;
mod nvrtc;
mod ops;
mod plan;
mod stream;
mod weights;

use std::sync::Arc;

use engine_core::Result;
use engine_core::backend::Backend;

/// Which kernels serve a product: what conformance tests force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// As `StepCaps::invariance` asks.
    AsAsked,
    /// The fast ones, though a row's bits may then depend on its neighbours.
    Fast,
}

/// Opens device `index`.
///
/// # Errors
/// `Unsupported`, with what would work: no driver, one too old, no such device, or one too old.
pub fn open(index: u32) -> Result<Arc<dyn Backend>> {
    open_with(index, Paths::AsAsked)
}

/// Opens device `index` with a choice of kernels.
///
/// # Errors
/// As [`open`].
pub fn open_with(index: u32, paths: Paths) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(device::CudaBackend::open(index, paths)?))
}
