//! The paged KV cache: one region of equal-byte pages that all groups share.
//!
//! Within a page of a group: layer by layer, head by head, first the keys *transposed* [D][page_tokens], then the
//! values [page_tokens][Dv]. Attention keeps keys in vector lanes for q·k (one broadcast of a query element meets
//! sixteen keys, no sum across lanes) and value elements in lanes for p·v, and reads both without a stride.

use std::sync::Arc;

use engine_core::backend::{KvGroupSpec, KvKind, KvLayer, KvPool};
use engine_core::{DType, Error, Result};

use crate::memory::{Memory, Region, memory_info};

/// Identifies the layout above.
const LAYOUT: u64 = 0x6370_7500_0001;

/// The pool behind every `KvLayer`.
pub(crate) struct Pool {
    pub region: Arc<Region>,
    pub specs: Vec<KvGroupSpec>,
    pub pages: usize,
    pub page_bytes: usize,
}

/// One layer's share of the pool, as kernels see it.
#[derive(Clone, Copy)]
pub(crate) struct LayerView {
    base: *mut u8,
    pub page_bytes: usize,
    pub pages: usize,
    pub page_tokens: usize,
    pub heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
    pub dtype: DType,
}

impl LayerView {
    /// The layer's pages.
    pub fn new(layer: &KvLayer) -> Self {
        let pool: &Pool = layer.inner();
        let spec = &pool.specs[layer.group() as usize];
        let layer_bytes = spec.page_bytes() as usize / spec.layers.max(1) as usize;
        LayerView {
            base: pool.region.base().wrapping_add(layer.layer() as usize * layer_bytes),
            page_bytes: pool.page_bytes,
            pages: pool.pages,
            page_tokens: spec.page_tokens as usize,
            heads: spec.kv_heads as usize,
            k_dim: spec.k_dim as usize,
            v_dim: spec.v_dim as usize,
            dtype: spec.dtype,
        }
    }

    /// Keys of a head in a page, [D][page_tokens].
    #[inline(always)]
    pub fn key_block(&self, page: usize, head: usize) -> *mut u8 {
        let head_bytes = self.page_tokens * (self.k_dim + self.v_dim) * self.dtype.size_bytes();
        self.base.wrapping_add(page * self.page_bytes + head * head_bytes)
    }

    /// Values of a head in a page, [page_tokens][Dv].
    #[inline(always)]
    pub fn value_block(&self, page: usize, head: usize) -> *mut u8 {
        self.key_block(page, head).wrapping_add(self.page_tokens * self.k_dim * self.dtype.size_bytes())
    }
}

/// Allocates a pool.
///
/// # Errors
/// `OutOfMemory` naming the flags that help; `Unsupported` for a page size or type without a kernel.
pub(crate) fn pool(memory: &Arc<Memory>, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
    for spec in groups {
        check(spec)?;
    }
    let page_bytes = groups.iter().map(KvGroupSpec::page_bytes).max().unwrap_or(0).next_multiple_of(64);
    let what = format!("the KV cache ({pages} pages of {page_bytes} bytes)");
    let hint = "lower --kv-cache-memory-bytes or --max-model-len";
    let Some(bytes) = page_bytes.checked_mul(u64::from(pages)).and_then(|b| usize::try_from(b).ok()) else {
        let free_bytes = memory_info().free_bytes;
        return Err(Error::OutOfMemory { what, wanted_bytes: u64::MAX, free_bytes, hint: hint.into() });
    };
    let region = memory.allocate(bytes, &what, hint)?;
    let inner = Arc::new(Pool {
        region,
        specs: groups.to_vec(),
        pages: pages as usize,
        page_bytes: page_bytes as usize,
    });
    let layers = |g: usize, spec: &KvGroupSpec| {
        (0..spec.layers).map(|l| KvLayer::new(g as u32, l, inner.clone())).collect::<Vec<_>>()
    };
    Ok(KvPool {
        groups: groups.iter().enumerate().map(|(g, spec)| layers(g, spec)).collect(),
        specs: groups.to_vec(),
        pages,
        page_bytes,
        layout: LAYOUT,
    })
}

fn check(spec: &KvGroupSpec) -> Result<()> {
    if let KvKind::State { .. } = spec.kind {
        return Ok(());
    }
    if !matches!(spec.dtype, DType::F32 | DType::F16 | DType::Bf16) {
        let text = format!("the CPU keeps the KV cache in float32, float16 or bfloat16, not {}", spec.dtype);
        return Err(Error::Unsupported(text));
    }
    if spec.page_tokens == 0 {
        return Err(Error::Config("--block-size 0: a page holds at least one token".into()));
    }
    Ok(())
}
