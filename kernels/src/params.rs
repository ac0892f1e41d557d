//! Arguments of the CUDA and HIP kernels, by value. Field for field what the `.cu` files declare; addresses are `u64`,
//! 0 is none. The sources assert the same sizes.

/// Codes of element types (`enum DType` in common.cuh).
pub mod dtype {
    pub const F32: i32 = 0;
    pub const F16: i32 = 1;
    pub const BF16: i32 = 2;
    pub const I32: i32 = 3;
    pub const U32: i32 = 4;
    pub const BYTE: i32 = 5;
}

/// Codes of activations (`enum Act`).
pub mod act {
    pub const NONE: i32 = 0;
    pub const SILU: i32 = 1;
    pub const GELU: i32 = 2;
    pub const GELU_TANH: i32 = 3;
    pub const RELU: i32 = 4;
    pub const SILU_MUL: i32 = 5;
    pub const GELU_TANH_MUL: i32 = 6;
}

/// Codes of elementwise ops.
pub mod elementwise {
    pub const ADD: i32 = 0;
    pub const MUL: i32 = 1;
    pub const SILU_MUL: i32 = 2;
    pub const GELU_TANH_MUL: i32 = 3;
    pub const CAST: i32 = 4;
    pub const SCALE: i32 = 5;
    pub const SOFT_CAP: i32 = 6;
}

/// Query tokens a block of the prefill kernels takes.
pub const PREFILL_QUERIES: u32 = 64;
/// The same on sm_90a; its key tiles, their stages, and the tokens of one copy: pages must be whole multiples.
pub const HOPPER_QUERIES: u32 = 128;
pub const HOPPER_KEYS: u32 = 128;
pub const HOPPER_STAGES: u32 = 2;
pub const HOPPER_BOX: u32 = 16;
/// Keys a tile of the decode kernels has; pages must be whole multiples.
pub const DECODE_KEYS: u32 = 16;
/// Warps of a decode block.
pub const DECODE_WARPS: u32 = 4;
/// Heads of a KV group up to which the parts of a decode block have shared memory of their own.
pub const DECODE_APART: u32 = 4;
/// Ids of a slot's ring of generated ids.
pub const HISTORY: u32 = 16_384;

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident[$size:literal] { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            #[allow(missing_docs)]
            pub struct $name { $(pub $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
            impl Default for $name {
                fn default() -> Self {
                    // SAFETY: integers, floats and arrays of them; all zero bits are a value of each.
                    unsafe { std::mem::zeroed() }
                }
            }
        )*
    };
}

params! {
    /// `gather_rows`, `scatter_rows`.
    Rows[64] {
        x: u64, rows: u64, out: u64, x_stride: u64, out_stride: u64,
        width: u32, count: u32, x_dtype: i32, out_dtype: i32, mode: i32, limit: u32,
    }
    /// `copy_strided`.
    Copy[72] {
        x: u64, out: u64, shape: [u32; 4], x_stride: [u32; 4], out_stride: [u32; 4], x_dtype: i32, out_dtype: i32,
    }
    /// `copy_pages`.
    Pages[48] { pool: u64, pairs: u64, layer_stride: u64, page_stride: u64, bytes: u64, count: u32, pad: u32 }
    /// `update_tables`.
    Tables[24] { pairs: u64, tables: u64, count: u32, limit: u32 }
    /// `elementwise`.
    Elementwise[80] {
        a: u64, b: u64, out: u64, a_stride: u64, b_stride: u64, out_stride: u64,
        rows: u32, cols: u32, op: i32, a_dtype: i32, b_dtype: i32, out_dtype: i32, arg: f32, pad: u32,
    }
    /// `top_k`.
    TopK[48] { x: u64, ids: u64, vals: u64, x_stride: u64, width: u32, k: u32, dtype: i32, pad: u32 }
    /// `merge_states`.
    Merge[48] {
        parts: u64, lse: u64, out: u64, n: u32, m: u32, width: u32, parts_dtype: i32, out_dtype: i32, pad: u32,
    }
    /// `next_inputs`.
    Next[120] {
        prev: u64, accepted: u64, src: u64, staged: u64, rows: u64, start: u64, cu_q: u64, tables: u64,
        ids: u64, positions: u64, slots: u64, kv_len: u64,
        tokens: u32, sequences: u32, groups: u32, table_rows: u32, pages: u32, page_tokens: u32,
    }
    /// `plan_attention`.
    Plan[80] {
        rows: u64, kv_len: u64, cu_q: u64, items: u64, counts: u64, tiles: u64,
        generated: u32, sequences: u32, max_items: u32, max_tiles: u32,
        fixed_chunk: u32, target_items: u32, tile_tokens: u32, window: u32,
    }
    /// The norm kernels.
    Norm[88] {
        x: u64, residual: u64, w: u64, bias: u64, out: u64, x_stride: u64, residual_stride: u64, out_stride: u64,
        width: u32, eps: f32, x_dtype: i32, residual_dtype: i32, out_dtype: i32, pad: u32,
    }
    /// `rope_kv_write`.
    Rope[152] {
        q: u64, k: u64, v: u64, positions: u64, table: u64, q_norm: u64, k_norm: u64, slots: u64, cache: u64,
        page_stride: u64, v_offset: u64,
        q_stride: u32, q_head_stride: u32, k_stride: u32, k_head_stride: u32, v_stride: u32, v_head_stride: u32,
        q_heads: u32, kv_heads: u32, k_dim: u32, v_dim: u32, rot: u32, page_tokens: u32,
        dtype: i32, kv_dtype: i32, interleaved: i32, eps: f32,
    }
    /// The matrix product kernels and their epilogue.
    Gemm[144] {
        x: u64, w: u64, out: u64, bias: u64, add: u64, residual: u64,
        x_stride: u64, out_stride: u64, add_stride: u64, residual_stride: u64,
        rows: u32, n: u32, k: u32, out_cols: u32,
        x_dtype: i32, w_dtype: i32, out_dtype: i32, add_dtype: i32, residual_dtype: i32, act: i32,
        scale: f32, interleaved: u32, norm: u64, eps: f32, slices: u32,
    }
    /// The attention kernels.
    Attn[240] {
        q: u64, out: u64, lse: u64, sinks: u64, slopes: u64, cache: u64, k: u64, v: u64,
        table: u64, rows: u64, kv_len: u64, cu_q: u64, items: u64, counts: u64, tiles: u64, partial: u64, arrivals: u64,
        page_stride: u64, v_offset: u64,
        q_stride: u32, q_head_stride: u32, out_stride: u32,
        k_stride: u32, k_head_stride: u32, v_stride: u32, v_head_stride: u32,
        q_heads: u32, kv_heads: u32, k_dim: u32, v_dim: u32, page_tokens: u32, pages: u32, sequences: u32,
        window: u32, full: u32,
        q_dtype: i32, kv_dtype: i32, out_dtype: i32, scale: f32, soft_cap: f32, first_sequence: u32,
    }
    /// The decode kernels that also rotate and write the new keys.
    AttnNew[272] { attn: Attn, positions: u64, slots: u64, angles: u64, pad: u64 }
    /// What the sampler knows by slot.
    SamplerState[72] {
        header: u64, counts: u64, bias: u64, allowed: u64, stops: u64, history: u64, bad_words: u64,
        vocab: u32, history_length: u32, bad_words_length: u32, slots: u32,
    }
    /// `sample_rows`, `sample_drafts`.
    Sample[168] {
        state: SamplerState,
        logits: u64, rows: u64, draft: u64, mask: u64, ids: u64, last: u64, accepted: u64, partial: u64, arrivals: u64,
        logits_stride: u64, count: u32, splits: u32, mask_words: u32, pad: u32,
    }
    /// `update_sampler`.
    Update[88] { state: SamplerState, records: u64, words: u32, pad: u32 }
    /// `log_probs`.
    LogProbs[64] {
        logits: u64, given: u64, ids: u64, values: u64, ranks: u64, logits_stride: u64, out_stride: u64,
        vocab: u32, top: u32,
    }
    /// `fill_random`.
    Fill[56] {
        out: u64, key: u64, rows: u64, cols: u64, scale: f32, mean: f32, dtype: i32, interleave: u32,
        row_offset: u32, pad: u32,
    }
}

/// The prefill kernels of sm_90a: a tensor map of the KV pool as rows of a head, where the pool starts, and the rest.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct HopperAttn {
    pub map: [u64; 16],
    pub pool: u64,
    pub attn: Attn,
}
const _: () = assert!(size_of::<HopperAttn>() == 384);
