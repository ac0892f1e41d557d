//! Attention plans: which kernels serve a kind of layer, and how a step's keys are split among blocks.
//!
//! `Stream::plan` keeps what the host knows (rows by phase), `PlanOnDevice` makes the items and tiles on the device
//! from exact lengths. A capture without host plan is a decode step: every row is generated.

use std::sync::{Arc, Mutex};

use engine_core::backend::{AttnSpec, BatchMeta, Invariance, Mask, Phase, StepCaps};
use engine_core::{DType, Result};
use kernels::params::{
    DECODE_APART, DECODE_KEYS, DECODE_WARPS, HOPPER_BOX, HOPPER_KEYS, HOPPER_QUERIES, HOPPER_STAGES,
    PREFILL_QUERIES,
};

use super::gpu::Gpu;
use super::mem::Region;

/// Head sizes of the tensor-core kernels.
const HEAD_SIZES: [u32; 6] = [64, 80, 96, 112, 128, 256];
/// Tokens of generated rows a step may have per row slot, at least.
const GENERATED_TOKENS_PER_ROW: u32 = 8;
/// Keys an item has at least in batch-invariant mode, and the most items a row is split into there.
const FIXED_CHUNK: u32 = 256;
const FIXED_SPLITS: u32 = 32;

/// Device memory and choices of one plan.
pub struct CudaPlan {
    pub fast: Option<Fast>,
    /// [max_items, 2] of four words.
    pub items: Arc<Region>,
    /// Items, tiles, chunk length.
    pub counts: Arc<Region>,
    /// [max_tiles] of two words.
    pub tiles: Arc<Region>,
    pub partial: Arc<Region>,
    pub arrivals: Arc<Region>,
    pub max_items: u32,
    /// Tokens of generated rows that there are items for.
    pub generated_tokens: u32,
    pub max_tiles: u32,
    /// Queries of a prefill tile.
    pub tile_tokens: u32,
    pub fixed_chunk: u32,
    pub target_items: u32,
    /// KV heads, times the parts their q heads are taken in.
    pub lines: u32,
    pub state: Mutex<State>,
}

/// The tensor-core kernels of a head size and type.
pub struct Fast {
    pub decode: String,
    pub decode_shared_bytes: u32,
    pub decode_blocks: u32,
    /// Whether there is a decode kernel that rotates and writes new keys.
    pub fuses: bool,
    pub prefill: Prefill,
}

/// Which kernel takes prompts.
pub enum Prefill {
    /// Plain mma.
    Tiles { name: String, shared_bytes: u32 },
    /// Tensor copies and warpgroup products (sm_90a).
    Hopper { name: String, shared_bytes: u32 },
}

/// What the host said last, and what the device plan is bound to.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    pub meta: HostMeta,
    pub bound: Bound,
}

/// Rows of a step by phase, as the host knows them.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostMeta {
    pub rows: u32,
    pub generated: u32,
    /// Query tiles of the prompt rows.
    pub tiles: u32,
    /// Every row is generated and has one token.
    pub single: bool,
}

/// Addresses and sizes `PlanOnDevice` was given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    pub rows: u64,
    pub kv_len: u64,
    pub cu_q: u64,
    pub table: u64,
    pub pages: u32,
    pub sequences: u32,
    pub generated: u32,
    pub tiles: u32,
    /// Every row is generated and has one token.
    pub single: bool,
}

impl CudaPlan {
    /// Allocates a plan for the largest step.
    pub fn new(gpu: &Arc<Gpu>, spec: &AttnSpec, caps: &StepCaps, invariance: Invariance) -> Result<Self> {
        let fast = Fast::of(gpu, spec)?;
        let parts = (spec.q_heads / spec.kv_heads).div_ceil(16);
        let per_row = GENERATED_TOKENS_PER_ROW.max(1 + caps.drafts);
        let tokens = caps.tokens.max(caps.rows).min(caps.rows * per_row).max(64);
        let blocks = fast.as_ref().map_or(1, |f| f.decode_blocks);
        let target_items = (2 * blocks / (spec.kv_heads * parts)).max(1);
        let longest = caps.pages_per_row * spec.page_tokens;
        let (fixed_chunk, max_items) = match invariance {
            Invariance::None => (0, tokens + 2 * target_items),
            Invariance::Batch => {
                let chunk = (longest / FIXED_SPLITS).next_power_of_two().max(FIXED_CHUNK);
                (chunk, tokens * longest.div_ceil(chunk))
            }
        };
        let (max_items, with_parts) =
            if fast.is_some() { (max_items, u64::from(max_items)) } else { (tokens, 0) };
        let tile_tokens = match fast.as_ref().map(|f| &f.prefill) {
            Some(Prefill::Hopper { .. }) => HOPPER_QUERIES,
            _ => PREFILL_QUERIES,
        };
        let max_tiles = caps.tokens.max(caps.rows).div_ceil(tile_tokens) + caps.rows;
        let heads = u64::from(spec.q_heads);
        let memory = |bytes: u64| Region::new(gpu, bytes, "attention plan");
        Ok(CudaPlan {
            items: memory(u64::from(max_items) * 32)?,
            counts: memory(16)?,
            tiles: memory(u64::from(max_tiles) * 8)?,
            partial: memory(with_parts * heads * u64::from(spec.v_dim + 2) * 4)?,
            arrivals: memory(with_parts * u64::from(spec.kv_heads * parts) * 4)?,
            fast,
            max_items,
            generated_tokens: tokens,
            max_tiles,
            tile_tokens,
            fixed_chunk,
            target_items,
            lines: spec.kv_heads * parts,
            state: Mutex::default(),
        })
    }
}

impl CudaPlan {
    /// Blocks of the decode kernel: never more than there can be work for.
    pub fn decode_grid(&self, fast: &Fast) -> [u32; 3] {
        [fast.decode_blocks.min(self.max_items.saturating_mul(self.lines)), 1, 1]
    }
}

impl HostMeta {
    /// From the rows of a step, the queries of a prefill tile, and the tokens of generated rows that there are items
    /// for. Rows beyond them, which resume long answers after a preemption, go the way of prompts: right, though in
    /// another order of sums.
    pub fn of(batch: &BatchMeta<'_>, tile_tokens: u32, mut generated_tokens: u32) -> Self {
        let mut fits = |q_len: u32| {
            let left = generated_tokens.checked_sub(q_len);
            generated_tokens = left.unwrap_or(0);
            left.is_some()
        };
        let generated =
            batch.rows.iter().take_while(|r| r.phase == Phase::Generated && fits(r.q_len)).count();
        let prompts = &batch.rows[generated..];
        HostMeta {
            rows: batch.rows.len() as u32,
            generated: generated as u32,
            tiles: prompts.iter().map(|r| r.q_len.div_ceil(tile_tokens)).sum(),
            single: prompts.is_empty() && batch.rows.iter().all(|r| r.q_len == 1),
        }
    }
}

impl Fast {
    /// `None` where only the plain kernel serves: float32, mixed types, other head sizes, pages of part tiles.
    fn of(gpu: &Gpu, spec: &AttnSpec) -> Result<Option<Self>> {
        let name = match (spec.q_dtype, spec.kv_dtype) {
            (DType::Bf16, DType::Bf16) => "bf16",
            (DType::F16, DType::F16) => "f16",
            _ => return Ok(None),
        };
        let d = spec.k_dim;
        let fits = spec.v_dim == d && HEAD_SIZES.contains(&d) && spec.page_tokens.is_multiple_of(DECODE_KEYS);
        if !fits || gpu.capability.0 < 8 {
            return Ok(None);
        }
        let stages = match d {
            64 => 4,
            256 => 2,
            _ => 3,
        };
        let decode = format!("decode_{name}_{d}");
        let group = spec.q_heads / spec.kv_heads;
        let joined_bytes = if group <= DECODE_APART { DECODE_WARPS * group * d * 4 } else { 0 };
        let decode_shared_bytes = DECODE_WARPS * stages * 2 * DECODE_KEYS * (d + 8) * 2 + joined_bytes;
        gpu.allow_shared(&decode, decode_shared_bytes)?;
        let per_unit = gpu.occupancy(&decode, DECODE_WARPS * 32, decode_shared_bytes)?;
        let decode_blocks = per_unit * gpu.units;
        let fused = format!("decode_new_{name}_{d}");
        let fuses = gpu.has(&fused);
        if fuses {
            gpu.allow_shared(&fused, decode_shared_bytes)?;
        }
        let prefill = Prefill::of(gpu, name, spec)?;
        Ok(Some(Fast { decode, decode_shared_bytes, decode_blocks, fuses, prefill }))
    }
}

impl Prefill {
    fn of(gpu: &Gpu, name: &str, spec: &AttnSpec) -> Result<Self> {
        let d = spec.k_dim;
        let hopper = format!("prefill_hopper_{name}_{d}");
        if gpu.has(&hopper) && spec.page_tokens.is_multiple_of(HOPPER_BOX) {
            // Stages of keys and of values, barriers, and what aligning takes.
            let shared_bytes = 2 * HOPPER_STAGES * HOPPER_KEYS * d * 2 + 2_048;
            gpu.allow_shared(&hopper, shared_bytes)?;
            return Ok(Prefill::Hopper { name: hopper, shared_bytes });
        }
        let (name, shared_bytes) = (format!("prefill_{name}_{d}"), 2 * 2 * 64 * (d + 8) * 2);
        gpu.allow_shared(&name, shared_bytes)?;
        Ok(Prefill::Tiles { name, shared_bytes })
    }
}

/// The window of a mask as the kernels take it: 0 is none.
pub fn window(mask: Mask) -> u32 {
    match mask {
        Mask::Window { tokens } => tokens,
        Mask::Causal | Mask::Full => 0,
    }
}

#[cfg(test)]
mod tests {
    use engine_core::backend::RowMeta;

    use super::*;

    #[test]
    fn generated_rows_without_items_go_the_way_of_prompts() {
        let row = |q_len, phase| RowMeta { q_len, kv_len_max: 1_000, phase };
        let rows = [row(1, Phase::Generated), row(300, Phase::Generated), row(5, Phase::Prompt)];
        let of = |room| {
            let meta = HostMeta::of(&BatchMeta { rows: &rows, generated: 2 }, 64, room);
            (meta.generated, meta.tiles)
        };
        assert_eq!(of(301), (2, 1));
        assert_eq!(of(300), (1, 5 + 1));
        assert_eq!(of(0), (0, 1 + 5 + 1));
    }
}
