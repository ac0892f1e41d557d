//! `HostFallback` over a device that refuses one op at a time: all cases of the op still hold.

use std::sync::Arc;

use backend_cpu::reference::ReferenceBackend;
use engine_core::backend::host_fallback::HostFallback;
use engine_core::backend::{Backend, OpKind, OpSpec, Support};
use engine_core::forward_backend;

use super::check::{Verdict, check};
use super::{Device, cases};

/// Runs the cases of `op` on the CPU with `op` taken away.
///
/// # Panics
/// If one is wrong, or the op did not run on the reference.
pub fn without(cpu: Arc<dyn Backend>, op: OpKind) {
    let device: Arc<dyn Backend> = Arc::new(Refusing { inner: cpu, op });
    let fallback = Arc::new(HostFallback::new(device, Arc::new(ReferenceBackend::new())));
    let device = Device::new(format!("cpu without {}", op.name()), "cpu", fallback.clone());
    for (name, verdict) in check(&device, &cases(op)).verdicts {
        assert!(
            !matches!(verdict, Verdict::Wrong(_) | Verdict::No(_)),
            "{}: {name}: {verdict:?}",
            device.name
        );
    }
    assert!(fallback.counts().get(&op).is_some_and(|count| *count > 0), "{}: never fell back", device.name);
}

/// A device that lost one op.
struct Refusing {
    inner: Arc<dyn Backend>,
    op: OpKind,
}

impl Backend for Refusing {
    forward_backend!(
        inner: info memory overhead_bytes buffer host_slot load_weight kv_pool attn_plan sampler stream
    );
    fn supports(&self, op: &OpSpec) -> Support {
        match op.kind == self.op {
            true => Support::No(format!("{} was taken away", op.kind.name())),
            false => self.inner.supports(op),
        }
    }
}
