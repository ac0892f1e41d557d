// Attention of any head size and types, paged or ragged: one warp for a token and a head. For shapes the tensor-core
// kernels do not take, and for float32.
#include "attention.cuh"

constexpr u32 MOST_PER_LANE = 16;  // head sizes up to 512

extern "C" __global__ void __launch_bounds__(128) attention_any(const AttnParams p) {
    let_next_start();
    wait_for_previous();
    extern __shared__ float queries[];
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 t = blockIdx.x, h = blockIdx.y * 4 + warp;
    if (h >= p.q_heads) return;
    if ((i32)t >= p.cu_q[p.sequences]) return;
    u32 low = 0, high = p.sequences;  // the row with cu_q[s] <= t < cu_q[s + 1]
    while (high - low > 1) {
        u32 mid = (low + high) / 2;
        if (p.cu_q[mid] <= (i32)t) low = mid; else high = mid;
    }
    i32 row = p.rows[low], q_len = p.cu_q[low + 1] - p.cu_q[low], j = (i32)t - p.cu_q[low];
    i32 kv = row < 0 ? 0 : (p.k ? q_len : p.kv_len[low]);
    i32 position = kv - q_len + j;
    i32 end = p.full ? kv : min(kv, position + 1);
    i32 begin = p.window ? max(0, position + 1 - (i32)p.window) : 0;
    float* q = queries + warp * p.k_dim;
    for (u32 d = lane; d < p.k_dim; d += 32)
        q[d] = load_as_float(p.q, p.q_dtype, (u64)t * p.q_stride + (u64)h * p.q_head_stride + d);
    __syncwarp();
    u32 kh = h / (p.q_heads / p.kv_heads);
    float slope = p.slopes ? p.slopes[h] : 0.0f, m = NEG_INF, l = 0.0f, acc[MOST_PER_LANE] = {};
    // Base element of key (or value) `key` of this head.
    auto place = [&](i32 key, bool value) -> u64 {
        u32 dim = value ? p.v_dim : p.k_dim;
        if (p.k)
            return (u64)(p.cu_q[low] + key) * (value ? p.v_stride : p.k_stride) +
                (u64)kh * (value ? p.v_head_stride : p.k_head_stride);
        return ((u64)kh * p.page_tokens + key % p.page_tokens) * dim;
    };
    auto page_of = [&](i32 key, bool value) -> const void* {
        if (p.k) return value ? p.v : p.k;
        i32 page = p.table[(u64)row * p.pages + key / p.page_tokens];
        return p.cache + page * p.page_stride + (value ? p.v_offset : 0);
    };
    for (i32 k0 = begin / 32 * 32; k0 < end; k0 += 32) {
        i32 key = k0 + (i32)lane;
        float s = NEG_INF;
        if (key >= begin && key < end) {
            const void* base = page_of(key, false);
            u64 at = place(key, false);
            float dot = 0.0f;
            for (u32 d = 0; d < p.k_dim; d++) dot += q[d] * load_as_float(base, p.kv_dtype, at + d);
            s = score_of(p, dot, slope, key, position);
        }
        float factor = rescale(m, l, warp_max(s));
        float e = s == NEG_INF ? 0.0f : expf(s - m);
        l += warp_sum(e);
#pragma unroll
        for (u32 i = 0; i < MOST_PER_LANE; i++) acc[i] *= factor;
        for (i32 c = max(begin - k0, 0); c < min(32, end - k0); c++) {
            float w = __shfl_sync(0xffffffffu, e, c);
            const void* base = page_of(k0 + c, true);
            u64 at = place(k0 + c, true);
#pragma unroll
            for (u32 i = 0; i < MOST_PER_LANE; i++)
                if (lane + 32 * i < p.v_dim) acc[i] += w * load_as_float(base, p.kv_dtype, at + lane + 32 * i);
        }
    }
    float lse, factor = finish_row(p, h, m, l, lse);
#pragma unroll
    for (u32 i = 0; i < MOST_PER_LANE; i++)
        if (lane + 32 * i < p.v_dim)
            store_float(p.out, p.out_dtype, (u64)t * p.out_stride + (u64)h * p.v_dim + lane + 32 * i, acc[i] * factor);
    if (p.lse && lane == 0) p.lse[(u64)t * p.q_heads + h] = lse;
}
