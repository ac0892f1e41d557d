//! The devices of this build and host. A new backend adds one block.

use std::sync::Arc;

#[cfg(feature = "cpu")]
use backend_cpu::{CpuBackend, CpuConfig, SimdChoice};
use engine_core::backend::checked::Checked;
use engine_core::backend::{Backend, Invariance};

/// One device under test.
#[derive(Clone)]
pub struct Device {
    /// `cpu/avx2`: the backend, and the code path it was forced to.
    pub name: String,
    /// Column of the support matrix.
    pub column: &'static str,
    /// Wrapped in `Checked`, so that a case that breaks the seam's own rules fails at once.
    pub backend: Arc<dyn Backend>,
    /// Whether this code path promises that a row's bits do not depend on its neighbours.
    pub invariance: Invariance,
}

impl Device {
    /// A device under a name.
    pub fn new(name: impl Into<String>, column: &'static str, backend: Arc<dyn Backend>) -> Self {
        Device {
            name: name.into(),
            column,
            backend: Arc::new(Checked::new(backend)),
            invariance: Invariance::Batch,
        }
    }
}

/// Every device that this build has and this host can run.
pub fn devices() -> Vec<Device> {
    let mut devices = Vec::new();
    #[cfg(feature = "cpu")]
    cpu(&mut devices);
    #[cfg(feature = "cuda")]
    cuda(&mut devices);
    devices
}

/// The reference itself (its capture and seam are tested like any other's), and the CPU once per SIMD path.
#[cfg(feature = "cpu")]
fn cpu(devices: &mut Vec<Device>) {
    devices.push(Device::new(
        "reference",
        "reference",
        Arc::new(backend_cpu::reference::ReferenceBackend::new()),
    ));
    for path in backend_cpu::SimdPath::available() {
        let config = CpuConfig { threads: Some(2), simd: SimdChoice::Forced(path) };
        let backend = CpuBackend::new(config).expect("an available path");
        devices.push(Device::new(format!("cpu/{}", path.name()), "cpu", Arc::new(backend)));
    }
}

/// The first GPU, with the kernels of batch-invariant mode and with the fast ones; opened once in a process.
#[cfg(feature = "cuda")]
fn cuda(devices: &mut Vec<Device>) {
    type Opened = (&'static str, Invariance, Arc<dyn Backend>);
    static OPENED: std::sync::OnceLock<Vec<Opened>> = std::sync::OnceLock::new();
    let open = |(name, paths, invariance)| match backend_cuda::open_with(0, paths) {
        Ok(backend) => Some((name, invariance, backend)),
        Err(why) => {
            println!("left out: {name}: {why}");
            None
        }
    };
    let paths = [
        ("cuda", backend_cuda::Paths::AsAsked, Invariance::Batch),
        ("cuda/fast", backend_cuda::Paths::Fast, Invariance::None),
    ];
    let opened = OPENED.get_or_init(|| paths.into_iter().filter_map(open).collect());
    let device = |(name, invariance, backend): &Opened| Device {
        invariance: *invariance,
        ..Device::new(*name, "cuda", backend.clone())
    };
    devices.extend(opened.iter().map(device));
}
