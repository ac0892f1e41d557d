//! Large dense products through cuBLASLt, opened at run time. Without the library our own kernels serve every size.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::cublaslt::sys as lt;
use engine_core::{DType, Error, Result};

use super::gpu::Gpu;
use super::mem::Region;

/// Workspace cuBLASLt is allowed (NVIDIA's advice for Hopper).
pub const WORKSPACE_BYTES: u64 = 32 << 20;
/// Shapes whose choice of kernel is remembered.
const MOST_SHAPES: usize = 4_096;

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
        Ok(Some(Blas { handle, workspace, chosen: HashMap::new() }))
    }

    /// Enqueues a product.
    pub fn run(&mut self, queue: lt::cudaStream_t, p: Product, o: Operands) -> Result<()> {
        if !self.chosen.contains_key(&p) {
            if self.chosen.len() >= MOST_SHAPES {
                self.forget();
            }
            let choice = self.choose(&p)?;
            self.chosen.insert(p, choice);
        }
        let c = &self.chosen[&p];
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
                &c.algo,
                self.workspace.address() as *mut _,
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

    fn choose(&self, p: &Product) -> Result<Choice> {
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
        let algo = self.heuristic(operation, [w, x, out], p)?;
        Ok(Choice { operation, w, x, out, algo })
    }

    fn heuristic(
        &self,
        operation: lt::cublasLtMatmulDesc_t,
        [w, x, out]: [lt::cublasLtMatrixLayout_t; 3],
        p: &Product,
    ) -> Result<lt::cublasLtMatmulAlgo_t> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: plain integers; zero bits are a value.
        let mut best: lt::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut found = 0;
        // SAFETY: live descriptors; room for one result.
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
                1,
                &mut best,
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
        Ok(best.algo)
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
