//! Large dense products through cuBLASLt, opened at run time. Without the library our own kernels serve every size.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::cublaslt::sys as lt;
use engine_core::{DType, Error, Result};

use super::driver::{Queue, Timestamp};
use super::gpu::Gpu;
use super::mem::Region;

/// Workspace cuBLASLt is allowed (NVIDIA's advice for Hopper).
pub const WORKSPACE_BYTES: u64 = 32 << 20;
/// Shapes whose choice of kernel is remembered.
const MOST_SHAPES: usize = 4_096;
/// Kernels the heuristic may propose for a shape.
const CANDIDATES: usize = 16;
/// Rows up to which the proposals are timed once: decode steps, whose shapes are few and come again and again.
const TIMED_ROWS: u32 = 256;
/// The oldest driver that measures time the way these bindings ask it to.
const TIMING_DRIVER: i32 = 12_080;

/// out [T, N] = x [T, K] · w [N, K]ᵀ + beta · out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub x_stride: u64,
    pub out_stride: u64,
    pub dtype: Float,
    pub out: Float,
}

/// A type cuBLASLt multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    F32,
    F16,
    Bf16,
}

impl Product {
    fn out_bytes(&self) -> u64 {
        u64::from(self.rows) * self.out_stride * if self.out == Float::F32 { 4 } else { 2 }
    }
}

impl Float {
    /// Of a tensor's type.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Float::F32),
            DType::F16 => Some(Float::F16),
            DType::Bf16 => Some(Float::Bf16),
            _ => None,
        }
    }
    fn code(self) -> lt::cudaDataType {
        match self {
            Float::F32 => lt::cudaDataType::CUDA_R_32F,
            Float::F16 => lt::cudaDataType::CUDA_R_16F,
            Float::Bf16 => lt::cudaDataType::CUDA_R_16BF,
        }
    }
}

/// Addresses of a product's operands; `c` is added, times beta.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    pub x: u64,
    pub w: u64,
    pub c: u64,
    pub out: u64,
    pub beta: f32,
}

/// A handle, its workspace, and the choices made so far.
pub struct Blas {
    handle: lt::cublasLtHandle_t,
    workspace: Arc<Region>,
    chosen: HashMap<Product, Choice>,
    gpu: Arc<Gpu>,
    /// Opened by the first shape that is timed.
    bench: Option<Bench>,
}

// SAFETY: the handle is used by one thread at a time (the stream that owns it).
unsafe impl Send for Blas {}

struct Choice {
    operation: lt::cublasLtMatmulDesc_t,
    w: lt::cublasLtMatrixLayout_t,
    x: lt::cublasLtMatrixLayout_t,
    out: lt::cublasLtMatrixLayout_t,
    algo: lt::cublasLtMatmulAlgo_t,
}

fn check(what: &str, code: lt::cublasStatus_t) -> Result<()> {
    if code == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(Error::DeviceLost { op: what.to_owned(), reason: format!("cuBLASLt: {code:?}") })
}

impl Blas {
    /// `None` when the machine has no cuBLASLt.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Option<Self>> {
        // SAFETY: only looks for the library.
        if !unsafe { lt::is_culib_present() } {
            tracing::info!("no cuBLASLt (libcublasLt.so): large products run on our own kernels, slower");
            return Ok(None);
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current; the handle is written on success.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        let workspace = Region::new(gpu, WORKSPACE_BYTES, "cuBLASLt workspace")?;
        Ok(Some(Blas { handle, workspace, chosen: HashMap::new(), gpu: gpu.clone(), bench: None }))
    }

    /// Enqueues a product.
    pub fn run(&mut self, queue: lt::cudaStream_t, p: Product, o: Operands) -> Result<()> {
        if !self.chosen.contains_key(&p) {
            if self.chosen.len() >= MOST_SHAPES {
                self.forget();
            }
            let choice = self.choose(&p, &o)?;
            self.chosen.insert(p, choice);
        }
        let choice = &self.chosen[&p];
        self.launch(queue, choice, &choice.algo, o, &self.workspace)
    }

    fn launch(
        &self,
        queue: lt::cudaStream_t,
        c: &Choice,
        algo: &lt::cublasLtMatmulAlgo_t,
        o: Operands,
        workspace: &Region,
    ) -> Result<()> {
        let alpha = 1.0f32;
        // SAFETY: descriptors of this shape; addresses checked against their allocations by the caller; scalars are on
        // the host and read before the call returns.
        let code = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                c.operation,
                std::ptr::from_ref(&alpha).cast(),
                o.w as *const _,
                c.w,
                o.x as *const _,
                c.x,
                std::ptr::from_ref(&o.beta).cast(),
                o.c as *const _,
                c.out,
                o.out as *mut _,
                c.out,
                algo,
                workspace.address() as *mut _,
                WORKSPACE_BYTES as usize,
                queue,
            )
        };
        check("Gemm", code)
    }

    /// The workspace, for graphs that hold on to it.
    pub fn workspace(&self) -> &Arc<Region> {
        &self.workspace
    }

    fn choose(&mut self, p: &Product, o: &Operands) -> Result<Choice> {
        let layout = |dtype: Float, rows: u32, cols: u32, stride: u64| {
            let mut made = std::ptr::null_mut();
            // SAFETY: the handle is written on success.
            let code = unsafe {
                lt::cublasLtMatrixLayoutCreate(
                    &mut made,
                    dtype.code(),
                    rows.into(),
                    cols.into(),
                    stride as i64,
                )
            };
            check("cublasLtMatrixLayoutCreate", code).map(|()| made)
        };
        // Column-major views: our row-major [T, K] is its [K, T].
        let w = layout(p.dtype, p.k, p.n, p.k.into())?;
        let x = layout(p.dtype, p.k, p.rows, p.x_stride)?;
        let out = layout(p.out, p.n, p.rows, p.out_stride)?;
        let operation = operation()?;
        let mut candidates = self.heuristic(operation, [w, x, out], p)?;
        let mut choice = Choice { operation, w, x, out, algo: candidates[0] };
        let timed = p.rows <= TIMED_ROWS && self.gpu.driver >= TIMING_DRIVER;
        if timed && candidates.len() > 1 && p.out_bytes() <= FLUSH_BYTES {
            choice.algo = candidates.swap_remove(self.fastest(&choice, &candidates, o)?);
        }
        Ok(choice)
    }

    /// The candidate that is fastest with cold caches, on a queue of its own: this one may be capturing.
    fn fastest(
        &mut self,
        c: &Choice,
        candidates: &[lt::cublasLtMatmulAlgo_t],
        o: &Operands,
    ) -> Result<usize> {
        if self.bench.is_none() {
            self.bench = Some(Bench::new(&self.gpu)?);
        }
        let Some(bench) = &self.bench else { return Ok(0) };
        let out = bench.flush.address();
        let o = Operands { c: out, out, beta: 0.0, ..*o };
        let mut best = vec![f32::INFINITY; candidates.len()];
        for _ in 0..TIMED_ROUNDS {
            for (algo, best) in candidates.iter().zip(&mut best) {
                let queue = bench.queue.0.cast();
                let ms = bench.time(|| self.launch(queue, c, algo, o, &bench.workspace))?;
                *best = best.min(ms);
            }
        }
        Ok((0..best.len()).min_by(|a, b| best[*a].total_cmp(&best[*b])).unwrap_or(0))
    }

    fn heuristic(
        &self,
        operation: lt::cublasLtMatmulDesc_t,
        [w, x, out]: [lt::cublasLtMatrixLayout_t; 3],
        p: &Product,
    ) -> Result<Vec<lt::cublasLtMatmulAlgo_t>> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: plain integers; zero bits are a value.
        let mut best: [lt::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut found = 0;
        // SAFETY: live descriptors; room for the results asked for.
        unsafe {
            check("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            let bytes = WORKSPACE_BYTES as usize;
            check(
                "cublasLtMatmulPreferenceSetAttribute",
                lt::cublasLtMatmulPreferenceSetAttribute(
                    preference,
                    lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    std::ptr::from_ref(&bytes).cast(),
                    size_of::<usize>(),
                ),
            )?;
            let code = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                w,
                x,
                out,
                out,
                preference,
                CANDIDATES as i32,
                best.as_mut_ptr(),
                &mut found,
            );
            let _ = lt::cublasLtMatmulPreferenceDestroy(preference);
            check("cublasLtMatmulAlgoGetHeuristic", code)?;
        }
        if found == 0 {
            return Err(Error::DeviceLost {
                op: "Gemm".into(),
                reason: format!("cuBLASLt has no kernel for {p:?}"),
            });
        }
        Ok(best[..found as usize].iter().map(|b| b.algo).collect())
    }

    fn forget(&mut self) {
        for (_, c) in self.chosen.drain() {
            // SAFETY: made by `choose`, not used again (launched work has copied them).
            unsafe {
                let _ = lt::cublasLtMatmulDescDestroy(c.operation);
                for layout in [c.w, c.x, c.out] {
                    let _ = lt::cublasLtMatrixLayoutDestroy(layout);
                }
            }
        }
    }
}

/// What timing takes: a queue and a workspace that no step uses, and memory that is written between two runs so that
/// weights come from memory as they do in a step; results land there too.
struct Bench {
    queue: Queue,
    workspace: Arc<Region>,
    flush: Arc<Region>,
    begin: Timestamp,
    end: Timestamp,
}

/// More than any device's last-level cache.
const FLUSH_BYTES: u64 = 160 << 20;
/// Runs of each candidate.
const TIMED_ROUNDS: usize = 6;

impl Bench {
    fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(Bench {
            queue: Queue::new()?,
            workspace: Region::new(gpu, WORKSPACE_BYTES, "timing of products")?,
            flush: Region::new(gpu, FLUSH_BYTES, "timing of products")?,
            begin: Timestamp::new()?,
            end: Timestamp::new()?,
        })
    }

    /// Milliseconds of what `run` enqueues.
    fn time(&self, run: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.queue.fill(self.flush.address(), FLUSH_BYTES)?;
        self.begin.record(self.queue.0)?;
        run()?;
        self.end.record(self.queue.0)?;
        self.end.since(&self.begin)
    }
}

/// W transposed, times x, in f32.
fn operation() -> Result<lt::cublasLtMatmulDesc_t> {
    let mut made = std::ptr::null_mut();
    // SAFETY: the handle is written on success; the attribute is a 4-byte enum.
    unsafe {
        check(
            "cublasLtMatmulDescCreate",
            lt::cublasLtMatmulDescCreate(
                &mut made,
                lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                lt::cudaDataType::CUDA_R_32F,
            ),
        )?;
        // CUBLAS_OP_T of cublas_api.h, which this module's bindings leave out.
        let transpose = 1i32;
        check(
            "cublasLtMatmulDescSetAttribute",
            lt::cublasLtMatmulDescSetAttribute(
                made,
                lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                std::ptr::from_ref(&transpose).cast(),
                4,
            ),
        )?;
    }
    Ok(made)
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.forget();
        // SAFETY: ours, not used again.
        let _ = unsafe { lt::cublasLtDestroy(self.handle) };
    }
}
