//! The ROCm backend. Not written yet: it registers itself and says so at start-up.

use std::sync::Arc;

use engine_core::backend::Backend;
use engine_core::{Error, Result};

/// Opens device `index`.
///
/// # Errors
/// Always, for now: `Unsupported`, with what works instead.
pub fn open(index: u32) -> Result<Arc<dyn Backend>> {
    Err(Error::Unsupported(format!(
        "--device rocm:{index}: the ROCm backend of this build has no kernels yet; --device cpu runs everything"
    )))
}
