//! Captured graphs.

use std::any::Any;
use std::sync::Arc;

use cudarc::driver::sys;
use engine_core::Result;

use super::driver::check;
use super::gpu::Gpu;

/// An instantiated graph and everything its kernels touch.
pub struct CudaGraph {
    pub exec: sys::CUgraphExec,
    gpu: Arc<Gpu>,
    _held: Vec<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: driver handles may be used from any thread; launches are ordered by the stream that replays.
unsafe impl Send for CudaGraph {}
// SAFETY: as above.
unsafe impl Sync for CudaGraph {}

impl CudaGraph {
    /// Ends the capture on `queue` and makes its graph ready to launch.
    pub fn end(gpu: &Arc<Gpu>, queue: sys::CUstream, held: Vec<Arc<dyn Any + Send + Sync>>) -> Result<Self> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the queue is capturing; the handle is written on success.
        check("capture", unsafe { sys::cuStreamEndCapture(queue, &mut graph) })?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: a live graph, which the executable form does not need afterwards.
        unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            check("graph", made)?;
            check("graph upload", sys::cuGraphUpload(exec, queue))?;
        }
        Ok(CudaGraph { exec, gpu: gpu.clone(), _held: held })
    }

    /// Throws the capture on `queue` away.
    pub fn abort(queue: sys::CUstream) {
        let mut graph = std::ptr::null_mut();
        // SAFETY: ending an invalid capture is allowed and gives a null graph.
        unsafe {
            let _ = sys::cuStreamEndCapture(queue, &mut graph);
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
        }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: ours, not used again; the driver keeps it until its launches have ended.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}
