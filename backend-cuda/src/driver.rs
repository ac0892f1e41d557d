//! Thin calls of the driver API: results instead of codes, owners that free what they own.

use std::ffi::{CStr, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;
use engine_core::{Error, Result};

/// `Ok`, or the device lost during `what`.
pub fn check(what: &str, code: sys::CUresult) -> Result<()> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::DeviceLost { op: what.to_owned(), reason: describe(code) })
}

/// The driver's own words for a code.
pub fn describe(code: sys::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the driver is loaded (it gave the code) and writes a pointer to a static string, or null.
    let known = unsafe { sys::cuGetErrorString(code, &mut text) } == sys::CUresult::CUDA_SUCCESS;
    if !known || text.is_null() {
        return format!("{code:?}");
    }
    // SAFETY: a null-terminated static string, by the API's contract.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{} ({code:?})", text.to_string_lossy())
}

/// A tensor map of a [rows, columns] array of 16-bit elements at `address`, for copies of boxes of
/// [columns, rows] = `part` with the 128-byte swizzle. `size` is [columns, rows].
///
/// # Errors
/// From the driver.
pub fn tensor_map(address: u64, size: [u64; 2], part: [u32; 2]) -> Result<[u64; 16]> {
    #[repr(C, align(64))]
    struct Aligned([u64; 16]);
    let mut map = Aligned([0; 16]);
    let (stride, step) = ([size[0] * 2], [1, 1]);
    // SAFETY: the map is as large and aligned as the driver wants it; the arrays have the two (one) entries it reads.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            std::ptr::from_mut(&mut map).cast(),
            // Elements are only moved: bits of bfloat16 serve for float16 too.
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address as *mut c_void,
            size.as_ptr(),
            stride.as_ptr(),
            part.as_ptr(),
            step.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("tensor map", code)?;
    Ok(map.0)
}

/// An event that waits by sleeping.
pub struct Event(pub sys::CUevent);

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new event without timing.
    pub fn new() -> Result<Self> {
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32
            | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        // SAFETY: a context is current; the handle is written on success.
        check("event", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Event(event))
    }
    /// Marks the end of what `stream` has been given.
    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both handles are live.
        check("event record", unsafe { sys::cuEventRecord(self.0, stream) })
    }
    /// Sleeps until the mark is reached.
    pub fn wait(&self, what: &str) -> Result<()> {
        // SAFETY: the handle is live.
        check(what, unsafe { sys::cuEventSynchronize(self.0) })
    }
    /// Whether it has been reached.
    pub fn is_done(&self) -> bool {
        // SAFETY: the handle is live.
        unsafe { sys::cuEventQuery(self.0) == sys::CUresult::CUDA_SUCCESS }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again. An error means the device is gone already.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// A point in time on the device.
pub struct Timestamp(sys::CUevent);

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Timestamp {}

impl Timestamp {
    /// Not reached yet.
    pub fn new() -> Result<Self> {
        let mut event = std::ptr::null_mut();
        // SAFETY: a context is current; the handle is written on success.
        check("event", unsafe { sys::cuEventCreate(&mut event, 0) })?;
        Ok(Timestamp(event))
    }
    /// Is reached when all that `stream` has been given is done.
    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both handles are live.
        check("event record", unsafe { sys::cuEventRecord(self.0, stream) })
    }
    /// Waits for it; milliseconds since `earlier`.
    pub fn since(&self, earlier: &Timestamp) -> Result<f32> {
        let mut ms = 0.0;
        // SAFETY: both handles are live and have been recorded.
        check("timing", unsafe { sys::cuEventSynchronize(self.0) })?;
        // SAFETY: as above; writes a number.
        check("timing", unsafe { sys::cuEventElapsedTime_v2(&mut ms, earlier.0, self.0) })?;
        Ok(ms)
    }
}

impl Drop for Timestamp {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// An in-order queue.
pub struct Queue(pub sys::CUstream);

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Queue {}

impl Queue {
    /// A queue of its own, not ordered with any other.
    pub fn new() -> Result<Self> {
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; the handle is written on success.
        check("stream", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(Queue(stream))
    }
    /// Zeroes `bytes` at `at`.
    pub fn fill(&self, at: u64, bytes: u64) -> Result<()> {
        // SAFETY: an allocation of the caller's that is at least as long.
        check("fill", unsafe { sys::cuMemsetD8Async(at, 0, bytes as usize, self.0) })
    }
    /// Waits until it is empty.
    pub fn synchronize(&self, what: &str) -> Result<()> {
        // SAFETY: the handle is live.
        check(what, unsafe { sys::cuStreamSynchronize(self.0) })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.0);
            let _ = sys::cuStreamDestroy_v2(self.0);
        }
    }
}

/// Host memory the device copies from and to without staging. Locking pages is slow (milliseconds in a virtual
/// machine), so buffers up to [`KEPT_BYTES`] are kept for the next one who asks.
pub struct Pinned {
    at: *mut u8,
    bytes: usize,
}

/// Size up to which a buffer is kept, and how many are.
const KEPT_BYTES: usize = 1 << 20;
const KEPT: usize = 256;

/// Page-locked buffers nobody uses: (size, address). They belong to the process, not to a device.
static SPARE: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

// SAFETY: plain memory; whoever shares it orders its accesses.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeroed page-locked memory of at least `bytes`.
    pub fn new(bytes: usize) -> Result<Self> {
        let size = bytes.max(1).next_power_of_two().max(4 << 10);
        if let Some(spare) = take_spare(size) {
            // SAFETY: `size` bytes at the address are ours now, and no copy is under way (see `drop`).
            unsafe { std::ptr::write_bytes(spare, 0, size) };
            return Ok(Pinned { at: spare, bytes: size });
        }
        let mut at: *mut c_void = std::ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: a context is current; the address is written on success.
        let code = unsafe { sys::cuMemHostAlloc(&mut at, size, flags) };
        if code != sys::CUresult::CUDA_SUCCESS {
            return Err(Error::OutOfMemory {
                what: "page-locked host memory".into(),
                wanted_bytes: size as u64,
                free_bytes: 0,
                hint: format!("free host memory or raise the limit on locked memory: {}", describe(code)),
            });
        }
        // SAFETY: `size` bytes at `at` are ours.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, size) };
        Ok(Pinned { at: at.cast(), bytes: size })
    }
    /// Where it starts.
    pub fn address(&self) -> *mut u8 {
        self.at
    }
    /// Its size.
    pub fn len(&self) -> usize {
        self.bytes
    }
    /// Its bytes. The device must not be writing to them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory lives as long as self and was zeroed; writers are ordered before readers by the seam's
        // rule that a slot is unreadable while a download is pending.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }
}

fn take_spare(size: usize) -> Option<*mut u8> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let i = spare.iter().position(|s| s.0 == size)?;
    Some(spare.swap_remove(i).1 as *mut u8)
}

impl Drop for Pinned {
    /// Copies from or to it must have ended: streams drop theirs after they are empty, slots after `wait`.
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bytes <= KEPT_BYTES && spare.len() < KEPT {
            spare.push((self.bytes, self.at as usize));
            return;
        }
        // SAFETY: ours, not used again.
        let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}
