//! [`Gpu`]: one device's context, what it is, and the kernels loaded for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Mutex;

use cudarc::driver::sys;
use engine_core::{Error, Result};

use super::driver::{check, describe};
use super::mem::lock;
use super::nvrtc;

/// Oldest driver this build runs with (CUDA 12.0, driver 525): graphs, launch attributes and lazy loading.
const OLDEST_DRIVER: i32 = 12_000;
/// Oldest compute capability with kernels.
const OLDEST_CAPABILITY: (i32, i32) = (7, 5);

/// A device and its kernels.
pub struct Gpu {
    context: sys::CUcontext,
    device: sys::CUdevice,
    functions: HashMap<&'static str, sys::CUfunction>,
    /// Shared memory allowed so far, by kernel.
    allowed: Mutex<HashMap<String, u32>>,
    /// What the vendor calls it.
    pub name: String,
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub units: u32,
    /// CUDA version of the driver: 1000 · major + 10 · minor.
    pub driver: i32,
}

// SAFETY: driver handles may be used from any thread that has made the context current; `bind` does.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

thread_local! {
    /// The context this thread has current.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

impl Gpu {
    /// Opens device `index` and loads every kernel.
    ///
    /// # Errors
    /// `Unsupported` in one sentence: no driver, no such device, too old.
    pub fn open(index: u32) -> Result<Self> {
        let no = |why: String| Error::Unsupported(format!("--device cuda:{index}: {why}"));
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(no(
                "this machine has no NVIDIA driver (libcuda.so.1 is not found); install one (525 or \
                 newer), or use --device cpu"
                    .into(),
            ));
        }
        let driver = start_driver().map_err(no)?;
        if driver < OLDEST_DRIVER {
            let have = format!("{}.{}", driver / 1000, driver % 1000 / 10);
            return Err(no(format!(
                "the NVIDIA driver supports CUDA {have}; 12.0 (driver 525) or newer is needed"
            )));
        }
        let device = device(index).map_err(no)?;
        let capability = (
            attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = device_name(device)?;
        if capability < OLDEST_CAPABILITY {
            let (major, minor) = capability;
            return Err(no(format!(
                "{name} has compute capability {major}.{minor}; kernels exist from 7.5 (Turing) on"
            )));
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: a valid device; the handle is written on success.
        check("context", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        let units =
            attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let mut gpu = Gpu {
            context,
            device,
            functions: HashMap::new(),
            allowed: Mutex::default(),
            name,
            capability,
            units,
            driver,
        };
        gpu.bind()?;
        gpu.load()?;
        Ok(gpu)
    }

    /// Makes the context current on this thread.
    pub fn bind(&self) -> Result<()> {
        if CURRENT.get() == self.context as usize {
            return Ok(());
        }
        // SAFETY: the context is retained until self is dropped.
        check("context", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        CURRENT.set(self.context as usize);
        Ok(())
    }

    /// Total and free memory in bytes.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check("memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((total as u64, free as u64))
    }

    /// Whether kernels may start before the one ahead has ended (sm_90 on).
    pub fn overlaps(&self) -> bool {
        self.capability.0 >= 9
    }

    /// Whether the images for this device have a kernel.
    pub fn has(&self, name: &str) -> bool {
        self.functions.contains_key(name)
    }

    /// Blocks of a kernel that fit on one multiprocessor.
    pub fn occupancy(&self, name: &str, threads: u32, shared_bytes: u32) -> Result<u32> {
        let mut blocks = 0;
        // SAFETY: a loaded function.
        let code = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.function(name),
                threads as i32,
                shared_bytes as usize,
            )
        };
        check("occupancy", code)?;
        Ok(blocks.max(1) as u32)
    }

    /// Lets a kernel use more than 48 KiB of shared memory. Never less than it was allowed before: others launch it too.
    pub fn allow_shared(&self, name: &str, bytes: u32) -> Result<()> {
        let mut allowed = lock(&self.allowed);
        if allowed.get(name).is_some_and(|most| *most >= bytes) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a loaded function.
        check(name, unsafe { sys::cuFuncSetAttribute(self.function(name), attribute, bytes as i32) })?;
        allowed.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// Enqueues one kernel with its argument struct.
    pub fn launch<P: Copy>(
        &self,
        queue: sys::CUstream,
        name: &str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: integers and byte arrays; zero bits are a value of the struct.
        let mut overlap: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        overlap.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        overlap.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: queue,
            attrs: &mut overlap,
            numAttrs: u32::from(self.overlaps()),
        };
        // SAFETY: the function takes one struct by value, of which `params` is the Rust twin (sizes asserted on both
        // sides); the driver copies it before it returns.
        let code = unsafe {
            sys::cuLaunchKernelEx(&config, self.function(name), arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        check(name, code)
    }

    fn function(&self, name: &str) -> sys::CUfunction {
        *self.functions.get(name).unwrap_or_else(|| panic!("no kernel {name} in the images"))
    }

    /// Loads every image, compiling the sources first where this build has none.
    fn load(&mut self) -> Result<()> {
        if kernels::cuda::IMAGES.is_empty() {
            for (name, image) in nvrtc::images(self.capability)? {
                self.load_image(name, image.as_ptr().cast())?;
            }
            return Ok(());
        }
        for image in kernels::cuda::IMAGES {
            self.load_image(image.name, image.bytes.as_ptr().cast())?;
        }
        Ok(())
    }

    fn load_image(&mut self, name: &str, image: *const c_void) -> Result<()> {
        let mut module = std::ptr::null_mut();
        // SAFETY: a whole image; the driver copies it.
        let code = unsafe { sys::cuModuleLoadData(&mut module, image) };
        if code == sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
            let (major, minor) = self.capability;
            return Err(Error::Unsupported(format!(
                "{}: this build has kernels for sm_{} and the device is sm_{major}{minor}; build with \
                 PALLIUM_CUDA_ARCHS={major}{minor}",
                self.name,
                kernels::cuda::ARCHS.replace(' ', ", sm_"),
            )));
        }
        check(name, code)?;
        let mut count = 0;
        // SAFETY: a loaded module.
        check(name, unsafe { sys::cuModuleGetFunctionCount(&mut count, module) })?;
        let mut functions = vec![std::ptr::null_mut(); count as usize];
        // SAFETY: room for `count` handles.
        check(name, unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) })?;
        for function in functions {
            let mut text = std::ptr::null();
            // SAFETY: a function of the module; its name lives as long as the module, which is never unloaded.
            let name: &'static str = unsafe {
                check(name, sys::cuFuncGetName(&mut text, function))?;
                std::ffi::CStr::from_ptr(text).to_str().unwrap_or_default()
            };
            if !name.starts_with(READS_THROUGH_L1) {
                prefer_shared(name, function)?;
            }
            self.functions.insert(name, function);
        }
        Ok(())
    }
}

/// Kernels that read one operand again and again through the first-level cache.
const READS_THROUGH_L1: &str = "stream_gemm";

/// Asks for the largest share of on-chip memory as shared memory. A multiprocessor must run empty before its share
/// changes: kernels that follow each other in a step overlap only when all of them want the same.
fn prefer_shared(name: &str, function: sys::CUfunction) -> Result<()> {
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
    // SAFETY: a loaded function.
    check(name, unsafe { sys::cuFuncSetAttribute(function, attribute, 100) })
}

impl Drop for Gpu {
    fn drop(&mut self) {
        CURRENT.set(0);
        // SAFETY: retained by `open`; nothing of ours outlives it (all hold an Arc of self).
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Starts the driver; its CUDA version, as 1000 · major + 10 · minor.
fn start_driver() -> std::result::Result<i32, String> {
    // SAFETY: the library is present.
    let code = unsafe { sys::cuInit(0) };
    if code != sys::CUresult::CUDA_SUCCESS {
        return Err(format!("the NVIDIA driver does not start: {}; use --device cpu", describe(code)));
    }
    let mut version = 0;
    // SAFETY: writes an integer.
    match unsafe { sys::cuDriverGetVersion(&mut version) } {
        sys::CUresult::CUDA_SUCCESS => Ok(version),
        code => Err(describe(code)),
    }
}

fn device(index: u32) -> std::result::Result<sys::CUdevice, String> {
    let (mut count, mut device) = (0, 0);
    // SAFETY: the driver is started; writes an integer.
    let _ = unsafe { sys::cuDeviceGetCount(&mut count) };
    if index as i32 >= count {
        return Err(format!("this machine has {count} CUDA devices (CUDA_VISIBLE_DEVICES hides some)"));
    }
    // SAFETY: a valid index.
    match unsafe { sys::cuDeviceGet(&mut device, index as i32) } {
        sys::CUresult::CUDA_SUCCESS => Ok(device),
        code => Err(describe(code)),
    }
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: a valid device; writes an integer.
    check("device attribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}

fn device_name(device: sys::CUdevice) -> Result<String> {
    let mut text = [0u8; 256];
    // SAFETY: room for 256 bytes, the last one left zero.
    check("device name", unsafe { sys::cuDeviceGetName(text.as_mut_ptr().cast(), 255, device) })?;
    let end = text.iter().position(|b| *b == 0).unwrap_or(0);
    let name = CString::new(&text[..end]).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}
