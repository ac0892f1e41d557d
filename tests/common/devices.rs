//! The devices that models are run on.

use std::sync::Arc;

use backend_cpu::reference::ReferenceBackend;
use backend_cpu::{CpuBackend, CpuConfig, SimdChoice, SimdPath};
use engine_core::backend::Backend;

/// Gives a backend each time it is asked.
pub type Device<'a> = dyn Fn() -> Arc<dyn Backend> + 'a;

/// The CPU as a user gets it, on two threads.
pub fn cpu() -> Arc<dyn Backend> {
    open_cpu(SimdChoice::Auto)
}

/// The scalar reference.
pub fn reference() -> Arc<dyn Backend> {
    Arc::new(ReferenceBackend::new())
}

/// Runs `check` with each instruction set that this host has.
pub fn on_each_simd_path(check: &dyn Fn(&Device<'_>)) {
    for path in SimdPath::available() {
        println!("{path:?}");
        check(&|| open_cpu(SimdChoice::Forced(path)));
    }
}

/// Runs `check` on the first GPU, or prints that it was left out.
#[cfg(feature = "cuda")]
pub fn on_cuda(check: &dyn Fn(&Device<'_>)) {
    match backend_cuda::open(0) {
        Ok(backend) => check(&|| backend.clone()),
        Err(why) => println!("left out: {why}"),
    }
}

fn open_cpu(simd: SimdChoice) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuConfig { threads: Some(2), simd }).unwrap())
}
