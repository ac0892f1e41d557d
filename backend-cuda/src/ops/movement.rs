//! Embed, GatherRows, ScatterRows, Copy, CopyPages, UpdateTables, Elementwise, TopK, MergeStates.

use engine_core::backend::{EwOp, KvLayer, ScatterMode, Weight};
use engine_core::{Result, Tensor};
use kernels::params;

use super::{code, rows};
use crate::device::CudaPool;
use crate::stream::CudaStream;

/// Most blocks of a kernel that strides over its elements.
const MOST_BLOCKS: u64 = 4_096;

fn blocks(elements: u64, per_block: u64) -> u32 {
    elements.div_ceil(per_block).min(MOST_BLOCKS) as u32
}

impl CudaStream {
    pub(super) fn embed(&mut self, table: &Weight, ids: Tensor, out: Tensor) -> Result<()> {
        let (count, width, out_stride) = rows(out);
        let w = self.weight(table);
        let params = params::Rows {
            x: w.region.address(),
            rows: self.at(ids),
            out: self.at(out),
            x_stride: w.cols.into(),
            out_stride,
            width,
            count,
            x_dtype: code(w.dtype),
            out_dtype: code(out.dtype()),
            ..Default::default()
        };
        self.launch("gather_rows", [count, 1, 1], 128, 0, &params)
    }

    pub(super) fn gather_rows(&mut self, x: Tensor, index: Tensor, out: Tensor) -> Result<()> {
        let (count, width, out_stride) = rows(out);
        let params = params::Rows {
            x: self.at(x),
            rows: self.at(index),
            out: self.at(out),
            x_stride: rows(x).2,
            out_stride,
            width,
            count,
            x_dtype: code(x.dtype()),
            out_dtype: code(out.dtype()),
            ..Default::default()
        };
        self.launch("gather_rows", [count, 1, 1], 128, 0, &params)
    }

    pub(super) fn scatter_rows(
        &mut self,
        x: Tensor,
        index: Tensor,
        mode: ScatterMode,
        out: Tensor,
    ) -> Result<()> {
        let (count, width, x_stride) = rows(x);
        let params = params::Rows {
            x: self.at(x),
            rows: self.at(index),
            out: self.at(out),
            x_stride,
            out_stride: rows(out).2,
            width,
            count,
            x_dtype: code(x.dtype()),
            out_dtype: code(out.dtype()),
            mode: i32::from(mode == ScatterMode::Add),
            ..Default::default()
        };
        self.launch("scatter_rows", [width.div_ceil(64), 1, 1], 64, 0, &params)
    }

    pub(super) fn copy(&mut self, x: Tensor, out: Tensor) -> Result<()> {
        let strides = |t: Tensor| [t.strides()[0], t.strides()[1], t.strides()[2], 1];
        let params = params::Copy {
            x: self.at(x),
            out: self.at(out),
            shape: x.shape(),
            x_stride: strides(x),
            out_stride: strides(out),
            x_dtype: code(x.dtype()),
            out_dtype: code(out.dtype()),
        };
        self.launch("copy_strided", [blocks(x.len() as u64, 256), 1, 1], 256, 0, &params)
    }

    pub(super) fn copy_pages(&mut self, kv: &[KvLayer], pairs: Tensor) -> Result<()> {
        let Some(layer) = kv.first() else { return Ok(()) };
        self.hold(layer.shared());
        let pool = layer.inner::<CudaPool>();
        let (stretches, bytes) = pool.stretches;
        let params = params::Pages {
            pool: pool.region.address(),
            pairs: self.at(pairs),
            layer_stride: pool.layer_stride,
            page_stride: pool.page_stride,
            bytes,
            count: pairs.len() as u32 / 2,
            pad: 0,
        };
        let lanes = bytes.div_ceil(4 * 128) as u32;
        self.launch("copy_pages", [lanes, stretches, 1], 128, 0, &params)
    }

    pub(super) fn update_tables(&mut self, pairs: Tensor, tables: Tensor) -> Result<()> {
        let count = pairs.len() as u32 / 2;
        let params = params::Tables {
            pairs: self.at(pairs),
            tables: self.at(tables),
            count,
            limit: tables.len() as u32,
        };
        self.launch("update_tables", [blocks(count.into(), 128), 1, 1], 128, 0, &params)
    }

    pub(super) fn elementwise(&mut self, op: EwOp, a: Tensor, b: Option<Tensor>, out: Tensor) -> Result<()> {
        use params::elementwise as op_code;
        let (op, arg) = match op {
            EwOp::Add => (op_code::ADD, 0.0),
            EwOp::Mul => (op_code::MUL, 0.0),
            EwOp::SiluMul => (op_code::SILU_MUL, 0.0),
            EwOp::GeluTanhMul => (op_code::GELU_TANH_MUL, 0.0),
            EwOp::Cast => (op_code::CAST, 0.0),
            EwOp::Scale(s) => (op_code::SCALE, s),
            EwOp::SoftCap(cap) => (op_code::SOFT_CAP, cap),
        };
        let (count, cols, out_stride) = rows(out);
        let params = params::Elementwise {
            a: self.at(a),
            b: self.at_or_null(b),
            out: self.at(out),
            a_stride: rows(a).2,
            b_stride: b.map_or(0, |b| rows(b).2),
            out_stride,
            rows: count,
            cols,
            op,
            a_dtype: code(a.dtype()),
            b_dtype: b.map_or(0, |b| code(b.dtype())),
            out_dtype: code(out.dtype()),
            arg,
            pad: 0,
        };
        self.launch("elementwise", [blocks(out.len() as u64, 256), 1, 1], 256, 0, &params)
    }

    pub(super) fn top_k(&mut self, x: Tensor, ids: Tensor, vals: Tensor) -> Result<()> {
        let (count, width, x_stride) = rows(x);
        let params = params::TopK {
            x: self.at(x),
            ids: self.at(ids),
            vals: self.at(vals),
            x_stride,
            width,
            k: ids.cols() as u32,
            dtype: code(x.dtype()),
            pad: 0,
        };
        self.launch("top_k", [count, 1, 1], 32, 0, &params)
    }

    pub(super) fn merge_states(&mut self, parts: Tensor, lse: Tensor, out: Tensor) -> Result<()> {
        let [n, t, heads, width] = parts.shape();
        let params = params::Merge {
            parts: self.at(parts),
            lse: self.at(lse),
            out: self.at(out),
            n,
            m: t * heads,
            width,
            parts_dtype: code(parts.dtype()),
            out_dtype: code(out.dtype()),
            pad: 0,
        };
        self.launch("merge_states", [t * heads, 1, 1], 64, 0, &params)
    }
}
