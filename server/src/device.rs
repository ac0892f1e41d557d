//! `--device` to a backend: the only file that knows which backends this build has.

use std::sync::Arc;
use std::time::Duration;

use engine_core::backend::Backend;
#[cfg(feature = "cpu")]
use engine_core::backend::host_fallback::HostFallback;
use engine_core::backend::null::{NullBackend, NullConfig};
use engine_core::{Error, Result};

use crate::cli::{DeviceChoice, DeviceKind, EngineArgs};

/// What a backend needs to know beside the choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOptions {
    /// `--threads`, for the CPU.
    pub threads: Option<u32>,
    /// `--allow-host-fallback`: ops that a GPU's backend lacks run on the CPU.
    pub host_fallback: bool,
}

impl DeviceOptions {
    /// What the flags of an engine say.
    pub fn of(args: &EngineArgs) -> Self {
        DeviceOptions { threads: args.threads, host_fallback: args.allow_host_fallback }
    }
}

/// The devices this build was made with, as typed after `--device`.
pub fn built_in() -> Vec<&'static str> {
    let all = [
        ("cpu", cfg!(feature = "cpu")),
        ("cuda", cfg!(feature = "cuda")),
        ("rocm", cfg!(feature = "rocm")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    all.into_iter().filter(|d| d.1).map(|d| d.0).collect()
}

/// What a device can do at most, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineLimits {
    pub read_bytes_per_s: f64,
    /// Multiplications and additions of the widest multiply-add that the kernels use.
    pub flop_per_s: f64,
    pub threads: u32,
    /// Instruction set or architecture.
    pub kernels: &'static str,
}

/// Memory that is read to find a machine's bandwidth, if a quarter of what is free is no less.
#[cfg(feature = "cpu")]
const MEASURED_BYTES: u64 = 2 << 30;

/// Measures the limits of the device of this id (`DeviceInfo::id`), which should be idle; `None` for one that has no
/// such measurement.
///
/// # Errors
/// The device cannot be opened, or has too little memory free.
pub fn measure_limits(id: &str, options: DeviceOptions) -> Result<Option<MachineLimits>> {
    let _ = options;
    match id {
        #[cfg(feature = "cpu")]
        "cpu" => {
            let backend = cpu(options)?;
            let bytes = MEASURED_BYTES.min(backend.memory()?.free_bytes / 4);
            let limits = backend.measure_limits(bytes as usize)?;
            Ok(Some(MachineLimits {
                read_bytes_per_s: limits.read_bytes_per_s,
                flop_per_s: limits.flop_per_s,
                threads: limits.threads as u32,
                kernels: limits.path.name(),
            }))
        }
        _ => Ok(None),
    }
}

/// Opens the device. `auto` takes the first of cuda, rocm, wgpu, cpu that this build has and this machine runs.
///
/// # Errors
/// `Unsupported` with what would work: the backend is not in this build, or finds no device.
pub fn open(choice: DeviceChoice, options: DeviceOptions) -> Result<Arc<dyn Backend>> {
    let index = choice.index.unwrap_or(0);
    let device = match choice.kind {
        DeviceKind::Auto => open_auto(options)?,
        DeviceKind::Null => {
            tracing::warn!("--device null computes nothing: for load tests; answers are noise");
            let step_time = Duration::from_millis(u64::from(index));
            Arc::new(NullBackend::new(NullConfig { step_time, ..NullConfig::default() }))
        }
        kind => open_kind(kind, index, options)?,
    };
    if options.host_fallback { with_fallback(device) } else { Ok(device) }
}

/// Completes a GPU by the CPU's reference; a device that is none lacks nothing.
fn with_fallback(device: Arc<dyn Backend>) -> Result<Arc<dyn Backend>> {
    if !is_gpu(&device) {
        return Ok(device);
    }
    #[cfg(feature = "cpu")]
    return Ok(Arc::new(HostFallback::new(
        device,
        Arc::new(backend_cpu::reference::ReferenceBackend::new()),
    )));
    #[cfg(not(feature = "cpu"))]
    Err(Error::Unsupported(
        "--allow-host-fallback: this build has no CPU backend; build with --features cpu".into(),
    ))
}

/// Whether flags about a GPU mean something on this device.
pub fn is_gpu(device: &Arc<dyn Backend>) -> bool {
    ["cuda", "rocm", "wgpu"].iter().any(|gpu| device.info().id.starts_with(gpu))
}

fn open_auto(options: DeviceOptions) -> Result<Arc<dyn Backend>> {
    let mut reasons = Vec::new();
    for kind in [DeviceKind::Cuda, DeviceKind::Rocm, DeviceKind::Wgpu, DeviceKind::Cpu] {
        if !built_in().contains(&kind.name()) {
            continue;
        }
        match open_kind(kind, 0, options) {
            Ok(backend) => return Ok(backend),
            Err(e) => reasons.push(e.to_string()),
        }
    }
    Err(Error::Unsupported(format!("--device auto: no device runs here: {}", reasons.join("; "))))
}

fn open_kind(kind: DeviceKind, index: u32, options: DeviceOptions) -> Result<Arc<dyn Backend>> {
    // Each arm exists only in builds with its feature; the others fall through to the sentence below.
    let _ = (index, options);
    match kind {
        #[cfg(feature = "cpu")]
        DeviceKind::Cpu => Ok(Arc::new(cpu(options)?)),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => backend_cuda::open(index),
        #[cfg(feature = "rocm")]
        DeviceKind::Rocm => backend_rocm::open(index),
        #[cfg(feature = "wgpu")]
        DeviceKind::Wgpu => backend_wgpu::open(index),
        other => Err(Error::Unsupported(format!(
            "--device {}: this build has {}; build with --features {} for it",
            other.name(),
            built_in().join(", "),
            other.name()
        ))),
    }
}

#[cfg(feature = "cpu")]
fn cpu(options: DeviceOptions) -> Result<backend_cpu::CpuBackend> {
    let threads = options.threads.map(|n| n as usize);
    backend_cpu::CpuBackend::new(backend_cpu::CpuConfig { threads, ..backend_cpu::CpuConfig::default() })
}
