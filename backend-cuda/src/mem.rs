//! Device memory: allocations found by a tensor's memory number, and page-locked slots for downloads.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use cudarc::driver::sys;
use engine_core::backend::HostMemory;
use engine_core::{Error, Result, Tensor};

use super::driver::{Pinned, check};
use super::gpu::Gpu;

/// Scratch and buffers start on multiples of this.
pub const ALIGN_BYTES: u64 = 256;

/// One allocation of device memory, freed when nobody holds it.
pub struct Region {
    gpu: Arc<Gpu>,
    at: u64,
    bytes: u64,
    host: Option<Pinned>,
}

impl Region {
    /// Zeroed device memory for `what`.
    ///
    /// # Errors
    /// `OutOfMemory` with what was wanted and what is free.
    pub fn new(gpu: &Arc<Gpu>, bytes: u64, what: &str) -> Result<Arc<Self>> {
        gpu.bind()?;
        let mut at = 0;
        let size = bytes.max(1) as usize;
        // SAFETY: a context is current; the address is written on success.
        let code = unsafe { sys::cuMemAlloc_v2(&mut at, size) };
        if code != sys::CUresult::CUDA_SUCCESS {
            return Err(Error::OutOfMemory {
                what: what.to_owned(),
                wanted_bytes: bytes,
                free_bytes: gpu.memory()?.1,
                hint: "lower --gpu-memory-utilization, --max-num-seqs, --max-model-len or \
                       --kv-cache-memory-bytes, or end other programs on this GPU"
                    .into(),
            });
        }
        let region = Arc::new(Region { gpu: gpu.clone(), at, bytes, host: None });
        // SAFETY: the memory just allocated. The copy engine runs it on the default queue, which the wait ends.
        check(what, unsafe { sys::cuMemsetD8_v2(at, 0, size) })?;
        // SAFETY: the null stream of the current context.
        check(what, unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) })?;
        Ok(region)
    }

    /// Zeroed page-locked host memory that the device reads in place.
    pub fn pinned(gpu: &Arc<Gpu>, bytes: u64) -> Result<Arc<Self>> {
        gpu.bind()?;
        let host = Pinned::new(bytes as usize)?;
        let mut at = 0;
        // SAFETY: page-locked, device-mapped memory.
        check("pinned buffer", unsafe {
            sys::cuMemHostGetDevicePointer_v2(&mut at, host.address().cast(), 0)
        })?;
        Ok(Arc::new(Region { gpu: gpu.clone(), at, bytes, host: Some(host) }))
    }

    /// Its device address.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// Copies `bytes` to offset `at` and waits: for loading.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        assert!(at + bytes.len() as u64 <= self.bytes, "write past an allocation of {} bytes", self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: inside the allocation; the call returns when the source may be reused.
        check("copy to the device", unsafe {
            sys::cuMemcpyHtoD_v2(self.at + at, bytes.as_ptr().cast(), bytes.len())
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.host.is_none() && self.gpu.bind().is_ok() {
            // SAFETY: ours; freeing waits for the work that uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.at) };
        }
    }
}

/// Every allocation that tensors may name, by number. Numbers are not used twice.
#[derive(Default)]
pub struct Registry {
    regions: RwLock<Vec<Weak<Region>>>,
}

impl Registry {
    /// Gives an allocation a number.
    pub fn add(&self, region: &Arc<Region>) -> u32 {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.push(Arc::downgrade(region));
        regions.len() as u32 - 1
    }

    /// The allocation of a tensor and the tensor's device address.
    ///
    /// # Panics
    /// If it is gone, or the tensor reaches past its end: a bug, and never undefined behaviour.
    pub fn resolve(&self, t: Tensor) -> (Arc<Region>, u64) {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let region = regions.get(t.mem() as usize).and_then(Weak::upgrade);
        let region = region.unwrap_or_else(|| panic!("stale tensor of memory {}", t.mem()));
        let end = t.at_bytes() + t.extent_bytes();
        assert!(end <= region.bytes, "tensor ends at byte {end} of a memory of {}", region.bytes);
        let at = region.at + t.at_bytes();
        (region, at)
    }
}

/// A landing place for downloads.
pub struct Slot(pub Pinned);

impl HostMemory for Slot {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Locks; a poisoned lock is one whose holder met a bug elsewhere, and what it guards is plain data.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
