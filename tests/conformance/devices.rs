//! The devices of this build and host. A new backend adds one block.

use std::sync::Arc;

#[cfg(feature = "cpu")]
use backend_cpu::{CpuBackend, CpuConfig, SimdChoice};
use engine_core::backend::Backend;
use engine_core::backend::checked::Checked;

/// One device under test.
#[derive(Clone)]
pub struct Device {
    /// `cpu/avx2`: the backend, and the code path it was forced to.
    pub name: String,
    /// Column of the support matrix.
    pub column: &'static str,
    /// Wrapped in `Checked`, so that a case that breaks the seam's own rules fails at once.
    pub backend: Arc<dyn Backend>,
}

impl Device {
    /// A device under a name.
    pub fn new(name: impl Into<String>, column: &'static str, backend: Arc<dyn Backend>) -> Self {
        Device { name: name.into(), column, backend: Arc::new(Checked::new(backend)) }
    }
}

/// Every device that this build has and this host can run.
pub fn devices() -> Vec<Device> {
    let mut devices = Vec::new();
    #[cfg(feature = "cpu")]
    cpu(&mut devices);
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
