// Attention of prompt tokens: flash-style over tiles of 64 keys that start at position 0, one head and 64 queries a
// block, 16 queries a warp, K and V through shared memory in two stages.
#include "attention.cuh"

constexpr int QUERIES = 64, WARPS = 4, KEYS = 64;

template <class T, int D> struct Prefill {
    static constexpr int ROW = D + 8;
    static constexpr int STAGE = 2 * KEYS * ROW;
    static constexpr int BYTES = 2 * STAGE * 2;

    // Keys first..first + 64 of head h; keys at or past `end` become zeros.
    static __device__ __forceinline__ void load(const AttnParams& p, T* stage, const i32* table, u32 h, i32 first, i32 end) {
#pragma unroll
        for (int i = 0; i < KEYS * D / 8 / (WARPS * 32); i++) {
            u32 c = threadIdx.x + WARPS * 32 * i, row = c / (D / 8), col = c % (D / 8);
            i32 key = first + (i32)row;
            bool in = key < end;
            i32 page = in ? table[key / (i32)p.page_tokens] : 0;
            const u8* from = p.cache + (i64)page * p.page_stride +
                (((u64)h * p.page_tokens + key % (i32)p.page_tokens) * D + col * 8) * 2;
            copy_async(stage + row * ROW + col * 8, from, in);
            copy_async(stage + (KEYS + row) * ROW + col * 8, from + p.v_offset, in);
        }
    }

    static __device__ void run(const AttnParams& p) {
        extern __shared__ uint4 shared_raw[];
        T* stages = (T*)shared_raw;
        let_next_start();
        wait_for_previous();
        if (blockIdx.x >= (u32)p.counts[1]) return;
        int2 tile = p.tiles[p.counts[1] - 1 - blockIdx.x];
        u32 head = blockIdx.y, h = head / (p.q_heads / p.kv_heads), s = tile.x;
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, q4 = lane & 3;
        i32 row = p.rows[s], q_first = p.cu_q[s], q_len = p.cu_q[s + 1] - q_first, kv = row < 0 ? 0 : p.kv_len[s];
        i32 j0 = tile.y + (i32)warp * 16 + (i32)r;  // this thread's queries: j0 and j0 + 8
        i32 position[2] = {kv - q_len + j0, kv - q_len + j0 + 8};
        i32 last = min(tile.y + QUERIES, q_len) - 1;
        i32 end = p.full ? kv : min(kv, kv - q_len + last + 1);
        i32 begin = p.window ? max(0, kv - q_len + tile.y + 1 - (i32)p.window) / KEYS : 0;
        i32 tiles = row < 0 ? 0 : (end + KEYS - 1) / KEYS;
        const i32* table = p.table + (u64)max(row, 0) * p.pages;
        u32 qa[D / 16][4];
        const T* q = (const T*)p.q + (u64)head * p.q_head_stride;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const u32* low = (const u32*)(q + (u64)(q_first + j0) * p.q_stride + k * 16 + q4 * 2);
            const u32* high = (const u32*)(q + (u64)(q_first + j0 + 8) * p.q_stride + k * 16 + q4 * 2);
            qa[k][0] = j0 < q_len ? low[0] : 0;
            qa[k][1] = j0 + 8 < q_len ? high[0] : 0;
            qa[k][2] = j0 < q_len ? low[4] : 0;
            qa[k][3] = j0 + 8 < q_len ? high[4] : 0;
        }
        float slope = p.slopes ? p.slopes[head] : 0.0f;
        bool plain = p.soft_cap <= 0.0f && !p.slopes;
        float o[D / 8][4] = {}, m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};
        if (begin < tiles) load(p, stages, table, h, begin * KEYS, end);
        copies_commit();
        for (i32 i = begin; i < tiles; i++) {
            if (i + 1 < tiles) load(p, stages + ((i + 1 - begin) & 1) * STAGE, table, h, (i + 1) * KEYS, end);
            copies_commit();
            copies_wait<1>();
            __syncthreads();
            const T* k_tile = stages + ((i - begin) & 1) * STAGE;
            const T* v_tile = k_tile + KEYS * ROW;
            u32 mat = lane >> 3, in = lane & 7;
            float c[KEYS / 8][4] = {};
#pragma unroll
            for (int k = 0; k < D / 16; k++)
#pragma unroll
                for (int n = 0; n < KEYS / 16; n++) {
                    u32 b[4];
                    load_matrices(b, k_tile + (n * 16 + (mat >> 1) * 8 + in) * ROW + k * 16 + (mat & 1) * 8);
                    mma<T>(c[2 * n], qa[k], b[0], b[1]);
                    mma<T>(c[2 * n + 1], qa[k], b[2], b[3]);
                }
            // Tiles that every query of the warp sees whole need no mask.
            i32 warp_first = kv - q_len + tile.y + (i32)warp * 16;
            bool masked = !((p.full && (i + 1) * KEYS <= kv) ||
                (!p.full && (i + 1) * KEYS - 1 <= warp_first && (p.window == 0 || warp_first + 15 - i * KEYS < (i32)p.window)));
            float top[2] = {NEG_INF, NEG_INF};
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    i32 key = i * KEYS + n * 8 + (i32)q4 * 2 + (e & 1), at = position[e >> 1];
                    float v = plain ? c[n][e] * p.scale : score_of(p, c[n][e], slope, key, at);
                    if (masked && !(key < kv && sees(p, at, key))) v = NEG_INF;
                    c[n][e] = v;
                    top[e >> 1] = fmaxf(top[e >> 1], v);
                }
            float factor[2];
#pragma unroll
            for (int x = 0; x < 2; x++) factor[x] = rescale(m[x], l[x], quad_max(top[x]));
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    c[n][e] = c[n][e] == NEG_INF ? 0.0f : __expf(c[n][e] - m[e >> 1]);
                    l[e >> 1] += c[n][e];
                }
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) o[n][e] *= factor[e >> 1];
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++) {
                u32 pa[4] = {pack2<T>(c[2 * k][0], c[2 * k][1]), pack2<T>(c[2 * k][2], c[2 * k][3]),
                             pack2<T>(c[2 * k + 1][0], c[2 * k + 1][1]), pack2<T>(c[2 * k + 1][2], c[2 * k + 1][3])};
#pragma unroll
                for (int d = 0; d < D / 16; d++) {
                    u32 b[4];
                    load_transposed(b, v_tile + (k * 16 + (mat & 1) * 8 + in) * ROW + d * 16 + (mat >> 1) * 8);
                    mma<T>(o[2 * d], pa, b[0], b[1]);
                    mma<T>(o[2 * d + 1], pa, b[2], b[3]);
                }
            }
            __syncthreads();
        }
        copies_wait<0>();
#pragma unroll
        for (int x = 0; x < 2; x++) {
            i32 j = j0 + 8 * x;
            float sum = quad_sum(l[x]), lse;
            if (j >= q_len) continue;
            float factor = finish_row(p, head, m[x], sum, lse);
            u64 at = (u64)(q_first + j) * p.out_stride + (u64)head * D + q4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *(u32*)((T*)p.out + at + n * 8) = pack2<T>(o[n][2 * x] * factor, o[n][2 * x + 1] * factor);
            if (p.lse && q4 == 0) p.lse[(u64)(q_first + j) * p.q_heads + head] = lse;
        }
    }
};
#define PREFILL(T, D) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) prefill_##T##_##D(const AttnParams p) { Prefill<T, D>::run(p); }
PREFILL(bf16, 64) PREFILL(bf16, 80) PREFILL(bf16, 96) PREFILL(bf16, 112) PREFILL(bf16, 128) PREFILL(bf16, 256)
PREFILL(f16, 64) PREFILL(f16, 80) PREFILL(f16, 96) PREFILL(f16, 112) PREFILL(f16, 128) PREFILL(f16, 256)
