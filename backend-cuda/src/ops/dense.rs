//! Norms and matrix products.

use engine_core::backend::{Activation, Epilogue, Invariance, Weight};
use engine_core::{DType, Result, Tensor};
use kernels::params::{self, act};

use super::{code, rows};
use crate::blas::{Float, Operands, Product};
use crate::stream::CudaStream;
use crate::weights::CudaWeight;

/// Rows up to which the weight-streaming kernel beats cuBLASLt; without that, rows up to which it takes tiles of 16.
const STREAM_ROWS: u32 = 8;
const STREAM_TILE_ROWS: u32 = 16;
/// Rows of a product that goes through the temporary at once.
const TEMPORARY_ROWS: u32 = 4_096;
/// Blocks of the one-row kernel on a multiprocessor, its warps, and elements of K a warp reads at once.
const GEMV_BLOCKS: u32 = 2;
const GEMV_WARPS: u32 = 16;
const GEMV_CHUNK: u32 = 256;
/// Warps to a row there: more shorten a block's last round, fewer shorten the joining.
const GEMV_SLICES: u32 = 4;
/// Shared memory that kernel may have without being asked for.
const GEMV_SHARED_BYTES: u32 = 48 << 10;
/// Rows up to which float32 runs a warp a column.
const FLOAT_WARP_ROWS: u32 = 8;

fn act_code(a: Activation) -> i32 {
    match a {
        Activation::Identity => act::NONE,
        Activation::Silu => act::SILU,
        Activation::Gelu => act::GELU,
        Activation::GeluTanh => act::GELU_TANH,
        Activation::Relu => act::RELU,
        Activation::SiluMul => act::SILU_MUL,
        Activation::GeluTanhMul => act::GELU_TANH_MUL,
    }
}

impl CudaStream {
    pub(super) fn rms_norm(
        &mut self,
        x: Tensor,
        residual: Option<Tensor>,
        w: &Weight,
        eps: f32,
        out: Tensor,
    ) -> Result<()> {
        let params = self.norm_params(x, residual, w, None, eps, out);
        let count = rows(x).0;
        let size = x.dtype().size_bytes() as u64;
        let same = x.dtype() == out.dtype() && residual.is_none_or(|r| r.dtype() == x.dtype());
        let strides = [params.x_stride, params.out_stride, params.residual_stride];
        let aligned = [params.x, params.out, params.residual].iter().all(|a| a % 16 == 0)
            && strides.iter().all(|s| (s * size).is_multiple_of(16))
            && params.w.is_multiple_of(16);
        let vectors = u64::from(params.width) * size / 16;
        let most = if x.dtype() == DType::F32 { 8 } else { 4 };
        let threads = (vectors.div_ceil(2) as u32).next_multiple_of(32).clamp(64, 512);
        let fits =
            (u64::from(params.width) * size).is_multiple_of(16) && vectors <= u64::from(most * threads);
        let name = match x.dtype() {
            DType::F32 => "rms_norm_f32",
            DType::F16 => "rms_norm_f16",
            _ => "rms_norm_bf16",
        };
        if same && aligned && fits {
            return self.launch(name, [count, 1, 1], threads, 0, &params);
        }
        self.launch("rms_norm_any", [count, 1, 1], 256, 0, &params)
    }

    pub(super) fn layer_norm(
        &mut self,
        x: Tensor,
        residual: Option<Tensor>,
        w: &Weight,
        bias: Option<&Weight>,
        eps: f32,
        out: Tensor,
    ) -> Result<()> {
        let params = self.norm_params(x, residual, w, bias, eps, out);
        self.launch("layer_norm_any", [rows(x).0, 1, 1], 256, 0, &params)
    }

    fn norm_params(
        &mut self,
        x: Tensor,
        residual: Option<Tensor>,
        w: &Weight,
        bias: Option<&Weight>,
        eps: f32,
        out: Tensor,
    ) -> params::Norm {
        params::Norm {
            x: self.at(x),
            residual: self.at_or_null(residual),
            w: self.vector(Some(w)),
            bias: self.vector(bias),
            out: self.at(out),
            x_stride: rows(x).2,
            residual_stride: residual.map_or(0, |r| rows(r).2),
            out_stride: rows(out).2,
            width: x.cols() as u32,
            eps,
            x_dtype: code(x.dtype()),
            residual_dtype: residual.map_or(0, |r| code(r.dtype())),
            out_dtype: code(out.dtype()),
            pad: 0,
        }
    }

    pub(super) fn gemm(&mut self, x: Tensor, w: &Weight, e: &Epilogue<'_>, out: Tensor) -> Result<()> {
        let weight = self.weight(w);
        let params = self.gemm_params(x, weight, e, out);
        let half = matches!(weight.dtype, DType::F16 | DType::Bf16);
        let streams = half
            && x.dtype() == weight.dtype
            && params.k.is_multiple_of(8)
            && params.x.is_multiple_of(16)
            && params.x_stride.is_multiple_of(8)
            && self.shared.gpu.capability.0 >= 8;
        let name = if weight.dtype == DType::F16 { "f16" } else { "bf16" };
        if streams {
            return match (self.invariance, params.rows) {
                (Invariance::Batch, _) => self.stream_gemm(name, 4, &params),
                (_, 1) if self.gemv(name, &params)? => Ok(()),
                (_, 0..=STREAM_ROWS) => self.stream_gemm(name, 1, &params),
                _ if self.blas()?.is_some() => self.blas_gemm(weight, e, x, out, &params),
                (_, 0..=STREAM_TILE_ROWS) => self.stream_gemm(name, 2, &params),
                _ => self.stream_gemm(name, 4, &params),
            };
        }
        let float = weight.dtype == DType::F32 && x.dtype() == DType::F32;
        let few = self.invariance == Invariance::None && params.rows <= FLOAT_WARP_ROWS;
        if float && !few {
            let grid = [params.n.div_ceil(64), params.rows.div_ceil(64), 1];
            return self.launch("gemm_f32", grid, 256, 0, &params);
        }
        self.launch("gemm_any", [params.out_cols.div_ceil(4), params.rows.div_ceil(4), 1], 128, 0, &params)
    }

    fn gemm_params(&mut self, x: Tensor, w: &CudaWeight, e: &Epilogue<'_>, out: Tensor) -> params::Gemm {
        let (count, k, x_stride) = rows(x);
        let (_, out_cols, out_stride) = rows(out);
        params::Gemm {
            x: self.at(x),
            w: w.region.address(),
            out: self.at(out),
            bias: self.vector(e.bias),
            add: self.at_or_null(e.add),
            residual: self.at_or_null(e.residual),
            x_stride,
            out_stride,
            add_stride: e.add.map_or(0, |t| rows(t).2),
            residual_stride: e.residual.map_or(0, |t| rows(t).2),
            rows: count,
            n: w.rows,
            k,
            out_cols,
            x_dtype: code(x.dtype()),
            w_dtype: code(w.dtype),
            out_dtype: code(out.dtype()),
            add_dtype: e.add.map_or(0, |t| code(t.dtype())),
            residual_dtype: e.residual.map_or(0, |t| code(t.dtype())),
            act: act_code(e.act),
            scale: e.scale.unwrap_or(1.0),
            interleaved: u32::from(w.interleaved),
            norm: 0,
            eps: 0.0,
            slices: 1,
        }
    }

    /// `Op::NormLinear` in one kernel, where there is one: a single row of half-width values without pending delta.
    /// `None` where norm and product are to run apart.
    pub(crate) fn norm_gemm(
        &mut self,
        x: Tensor,
        (norm, eps): (&Weight, f32),
        w: &Weight,
        e: &Epilogue<'_>,
        out: Tensor,
    ) -> Result<Option<()>> {
        let weight = self.weight(w);
        let half = matches!(weight.dtype, DType::F16 | DType::Bf16) && x.dtype() == weight.dtype;
        if rows(x).0 != 1 || !half || self.invariance == Invariance::Batch {
            return Ok(None);
        }
        let norm = self.vector(Some(norm));
        let params = params::Gemm { norm, eps, ..self.gemm_params(x, weight, e, out) };
        let aligned = params.k.is_multiple_of(8) && params.x.is_multiple_of(16) && norm.is_multiple_of(16);
        let name = if weight.dtype == DType::F16 { "f16" } else { "bf16" };
        Ok((aligned && self.gemv(name, &params)?).then_some(()))
    }

    /// The kernel of one row; false where its sums do not fit into shared memory.
    fn gemv(&self, name: &str, p: &params::Gemm) -> Result<bool> {
        let pairs = p.n.div_ceil(16) * 8;
        let grid = (GEMV_BLOCKS * self.shared.gpu.units).min(pairs);
        let chunks = p.k.div_ceil(GEMV_CHUNK);
        let slices = GEMV_SLICES.min(1 << chunks.ilog2());
        let shared_bytes = chunks * GEMV_CHUNK * 2 + pairs.div_ceil(grid) * slices * 8;
        if shared_bytes > GEMV_SHARED_BYTES {
            return Ok(false);
        }
        let p = params::Gemm { slices, ..*p };
        self.launch(&format!("gemv_{name}"), [grid, 1, 1], GEMV_WARPS * 32, shared_bytes, &p)?;
        Ok(true)
    }

    /// The weight-streaming kernel with tiles of 8 · `eights` rows.
    fn stream_gemm(&self, name: &str, eights: u32, p: &params::Gemm) -> Result<()> {
        let tiles = p.n.div_ceil(16);
        // Few tiles leave multiprocessors idle: more warps a tile then.
        let warps = if eights < 4 && tiles <= 2 * self.shared.gpu.units { 16 } else { 8 };
        let grid = [tiles, p.rows.div_ceil(8 * eights), 1];
        self.launch(&format!("stream_gemm_{name}_{eights}_{warps}"), grid, warps * 32, 0, p)
    }

    /// cuBLASLt, straight into `out` where its epilogue is at most a residual; else through a temporary.
    fn blas_gemm(
        &mut self,
        w: &CudaWeight,
        e: &Epilogue<'_>,
        x: Tensor,
        out: Tensor,
        p: &params::Gemm,
    ) -> Result<()> {
        let (Some(dtype), Some(out_type)) = (Float::of(w.dtype), Float::of(out.dtype())) else {
            return self.launch("gemm_any", [p.out_cols.div_ceil(4), p.rows.div_ceil(4), 1], 128, 0, p);
        };
        let fused = e.residual.is_none_or(|r| r.dtype() == out.dtype() && rows(r).2 == p.out_stride);
        let plain = e.act == Activation::Identity && e.bias.is_none() && e.add.is_none() && e.scale.is_none();
        if plain && fused {
            let product = Product {
                rows: p.rows,
                n: p.n,
                k: p.k,
                x_stride: p.x_stride,
                out_stride: p.out_stride,
                dtype,
                out: out_type,
            };
            let (c, beta) = if p.residual == 0 { (p.out, 0.0) } else { (p.residual, 1.0) };
            return self.product(product, Operands { x: p.x, w: p.w, c, out: p.out, beta });
        }
        let mut from = 0;
        while from < p.rows {
            let count = TEMPORARY_ROWS.min(p.rows - from);
            self.blas_part(w, dtype, p, from, count, x.dtype())?;
            from += count;
        }
        Ok(())
    }

    /// Rows `from..from + count` of a product through the temporary.
    fn blas_part(
        &mut self,
        w: &CudaWeight,
        dtype: Float,
        p: &params::Gemm,
        from: u32,
        count: u32,
        x_type: DType,
    ) -> Result<()> {
        // A product that is only gated stays in the activations' type; others keep f32 until they are rounded once.
        let gated = p.act >= act::SILU_MUL && p.bias == 0 && p.add == 0 && p.residual == 0 && p.scale == 1.0;
        let narrow =
            gated && x_type == DType::Bf16 && p.out_dtype == p.x_dtype && p.out_cols.is_multiple_of(8);
        let narrow = narrow && p.out_stride.is_multiple_of(8) && p.out.is_multiple_of(16);
        let out = if narrow { dtype } else { Float::F32 };
        let size = if narrow { 2 } else { 4 };
        let temporary = self.temporary(u64::from(count) * u64::from(p.n) * size)?;
        let from = u64::from(from);
        let x = p.x + from * p.x_stride * w.dtype.size_bytes() as u64;
        let product =
            Product { rows: count, n: p.n, k: p.k, x_stride: p.x_stride, out_stride: p.n.into(), dtype, out };
        self.product(product, Operands { x, w: p.w, c: temporary, out: temporary, beta: 0.0 })?;
        let bytes = |dtype: i32| if dtype == params::dtype::F32 { 4 } else { 2 };
        let moved =
            |at: u64, stride: u64, dtype: i32| if at == 0 { 0 } else { at + from * stride * bytes(dtype) };
        let rest = params::Gemm {
            x: temporary,
            x_stride: p.n.into(),
            x_dtype: if narrow { p.x_dtype } else { params::dtype::F32 },
            rows: count,
            out: moved(p.out, p.out_stride, p.out_dtype),
            add: moved(p.add, p.add_stride, p.add_dtype),
            residual: moved(p.residual, p.residual_stride, p.residual_dtype),
            ..*p
        };
        let elements = u64::from(count) * u64::from(p.out_cols) / if narrow { 8 } else { 1 };
        let blocks = elements.div_ceil(256).min(u64::from(self.shared.gpu.units) * 16) as u32;
        self.launch(if narrow { "gate_bf16" } else { "gemm_epilogue" }, [blocks, 1, 1], 256, 0, &rest)
    }

    fn product(&mut self, product: Product, operands: Operands) -> Result<()> {
        let queue = self.queue.0.cast();
        match self.blas()? {
            Some(blas) => blas.run(queue, product, operands),
            None => panic!("a product for cuBLASLt without it"),
        }
    }
}
