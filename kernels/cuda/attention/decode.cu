// Attention of generated tokens: the heads of one KV group packed into a tensor-core tile, keys split over blocks
// (items of the plan) and over the warps of a block; the block that finishes a token last joins its parts.
#include "attention.cuh"

constexpr int WARPS = 4, KEYS = 16;

template <class T, int D, int STAGES> struct Decode {
    static constexpr int ROW = D + 8;                      // padded: no two rows of a matrix start in one bank
    static constexpr int STAGE = 2 * KEYS * ROW;           // elements of K and V
    static constexpr int BYTES = WARPS * STAGES * STAGE * 2;

    // Keys tile·16.. of head h into a stage; keys outside [begin, end) become zeros.
    static __device__ __forceinline__ void load(const AttnParams& p, T* stage, i32 page, u32 h, i32 first, i32 begin, i32 end) {
        u32 lane = threadIdx.x & 31;
        const u8* base = p.cache + (i64)page * p.page_stride + ((u64)h * p.page_tokens + first % p.page_tokens) * D * 2;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            u32 c = lane + 32 * i, row = c / (D / 8), col = c % (D / 8);
            i32 key = first + (i32)row;
            bool in = key >= begin && key < end;
            copy_async(stage + row * ROW + col * 8, base + c * 16, in);
            copy_async(stage + (KEYS + row) * ROW + col * 8, base + p.v_offset + c * 16, in);
        }
    }

    static __device__ void run(const AttnParams& p) {
        extern __shared__ uint4 shared_raw[];
        T* stages = (T*)shared_raw + (threadIdx.x >> 5) * STAGES * STAGE;
        wait_for_previous();
        u32 group = p.q_heads / p.kv_heads, parts = (group + 15) / 16;
        u32 units = (u32)p.counts[0] * p.kv_heads * parts;
        for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
            u32 item = unit / (p.kv_heads * parts), rest = unit % (p.kv_heads * parts);
            one(p, stages, item, rest / parts, rest % parts, parts);
            __syncthreads();
        }
        let_next_start();
    }

    static __device__ void one(const AttnParams& p, T* stages, u32 item, u32 h, u32 part, u32 parts) {
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, q4 = lane & 3;
        int4 where = p.items[2 * item], split = p.items[2 * item + 1];
        u32 group = p.q_heads / p.kv_heads, first_head = h * group + part * 16, heads = min(group - part * 16, 16u);
        const T* q = (const T*)p.q + (u64)where.y * p.q_stride + (u64)first_head * p.q_head_stride;
        u32 qa[D / 16][4];
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const u32* low = (const u32*)(q + (u64)r * p.q_head_stride + k * 16 + q4 * 2);
            const u32* high = (const u32*)(q + (u64)(r + 8) * p.q_head_stride + k * 16 + q4 * 2);
            qa[k][0] = r < heads ? low[0] : 0;
            qa[k][1] = r + 8 < heads ? high[0] : 0;
            qa[k][2] = r < heads ? low[4] : 0;
            qa[k][3] = r + 8 < heads ? high[4] : 0;
        }
        float slope[2] = {0.0f, 0.0f};
        if (p.slopes) {
            if (r < heads) slope[0] = p.slopes[first_head + r];
            if (r + 8 < heads) slope[1] = p.slopes[first_head + r + 8];
        }
        i32 begin = where.z, end = where.w, position = split.w;
        i32 tile0 = begin / KEYS, tiles = where.x < 0 ? 0 : (end + KEYS - 1) / KEYS - tile0;
        i32 mine = tiles > (i32)warp ? (tiles - (i32)warp + WARPS - 1) / WARPS : 0;
        const i32* table = p.table + (u64)max(where.x, 0) * p.pages;
        i32 page_ids = 0;
        auto tile_first = [&](i32 i) { return (tile0 + (i32)warp + i * WARPS) * KEYS; };
        auto start = [&](i32 i) {
            if (i < mine) {
                if (i % 32 == 0) page_ids = i + (i32)lane < mine ? table[tile_first(i + lane) / (i32)p.page_tokens] : 0;
                i32 page = __shfl_sync(0xffffffffu, page_ids, i % 32);
                load(p, stages + (i % STAGES) * STAGE, page, h, tile_first(i), begin, end);
            }
            copies_commit();
        };
        float o[D / 8][4] = {}, m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};
        for (i32 i = 0; i < STAGES - 1; i++) start(i);
        for (i32 i = 0; i < mine; i++) {
            start(i + STAGES - 1);
            copies_wait<STAGES - 1>();
            __syncwarp();
            const T* k_tile = stages + (i % STAGES) * STAGE;
            const T* v_tile = k_tile + KEYS * ROW;
            float s[2][4] = {};
            u32 mat = lane >> 3, in = lane & 7;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                u32 b[4];
                load_matrices(b, k_tile + ((mat >> 1) * 8 + in) * ROW + k * 16 + (mat & 1) * 8);
                mma<T>(s[0], qa[k], b[0], b[1]);
                mma<T>(s[1], qa[k], b[2], b[3]);
            }
            float top[2] = {NEG_INF, NEG_INF};
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    i32 key = tile_first(i) + n * 8 + (i32)q4 * 2 + (e & 1);
                    bool in_range = key >= begin && key < end;
                    s[n][e] = in_range ? score_of(p, s[n][e], slope[e >> 1], key, position) : NEG_INF;
                    top[e >> 1] = fmaxf(top[e >> 1], s[n][e]);
                }
            float factor[2];
#pragma unroll
            for (int x = 0; x < 2; x++) factor[x] = rescale(m[x], l[x], quad_max(top[x]));
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[n][e] = s[n][e] == NEG_INF ? 0.0f : __expf(s[n][e] - m[e >> 1]);
                    l[e >> 1] += s[n][e];
                }
            u32 pa[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]),
                         pack2<T>(s[1][0], s[1][1]), pack2<T>(s[1][2], s[1][3])};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                u32 b[4];
                load_transposed(b, v_tile + ((mat & 1) * 8 + in) * ROW + d * 16 + (mat >> 1) * 8);
#pragma unroll
                for (int e = 0; e < 4; e++) { o[2 * d][e] *= factor[e >> 1]; o[2 * d + 1][e] *= factor[e >> 1]; }
                mma<T>(o[2 * d], pa, b[0], b[1]);
                mma<T>(o[2 * d + 1], pa, b[2], b[3]);
            }
            __syncwarp();
        }
        copies_wait<0>();
        join(p, o, m, l, item, where.y, split, h, part, parts, first_head, heads);
    }

    // Joins the warps' parts, then the blocks'.
    static __device__ void join(const AttnParams& p, float (&o)[D / 8][4], float (&m)[2], float (&l)[2], u32 item,
                                u32 token, int4 split, u32 h, u32 part, u32 parts, u32 first_head, u32 heads) {
        extern __shared__ uint4 shared_raw[];
        float* parts_o = (float*)shared_raw;  // [WARPS, 16, D]
        __shared__ float parts_m[WARPS][16], parts_l[WARPS][16];
        __shared__ u32 arrived;
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, q4 = lane & 3;
        l[0] = quad_sum(l[0]);
        l[1] = quad_sum(l[1]);
        __syncthreads();  // every warp is done with its stages
#pragma unroll
        for (int x = 0; x < 2; x++) {
            if (r + 8 * x >= heads) continue;
            float* to = parts_o + (warp * 16 + r + 8 * x) * D;
#pragma unroll
            for (int n = 0; n < D / 8; n++) *(float2*)(to + n * 8 + q4 * 2) = make_float2(o[n][2 * x], o[n][2 * x + 1]);
            if (q4 == 0) { parts_m[warp][r + 8 * x] = m[x]; parts_l[warp][r + 8 * x] = l[x]; }
        }
        __syncthreads();
        bool whole = split.x == 1;
        // Of each item and q head: D values, maximum, sum.
        float* mine = p.partial + ((u64)item * p.q_heads + first_head) * (D + 2);
        for (u32 row = warp; row < heads; row += WARPS) {
            float top = NEG_INF, sum = 0.0f, w[WARPS];
            for (int i = 0; i < WARPS; i++) top = fmaxf(top, parts_m[i][row]);
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                w[i] = parts_m[i][row] == NEG_INF ? 0.0f : __expf(parts_m[i][row] - top);
                sum += w[i] * parts_l[i][row];
            }
            float lse, factor = whole ? finish_row(p, first_head + row, top, sum, lse) : 1.0f;
            for (u32 d = lane; d < D; d += 32) {
                float y = 0.0f;
#pragma unroll
                for (int i = 0; i < WARPS; i++) y += w[i] > 0.0f ? w[i] * parts_o[(i * 16 + row) * D + d] : 0.0f;
                if (whole) store_float(p.out, p.out_dtype, (u64)token * p.out_stride + (u64)(first_head + row) * D + d, y * factor);
                else mine[row * (D + 2) + d] = y;
            }
            if (lane == 0) {
                if (!whole) { mine[row * (D + 2) + D] = top; mine[row * (D + 2) + D + 1] = sum; }
                else if (p.lse) p.lse[(u64)token * p.q_heads + first_head + row] = lse;
            }
        }
        if (whole) return;
        __threadfence();
        __syncthreads();
        u32* counter = p.arrivals + ((u64)split.z * p.kv_heads + h) * parts + part;
        if (threadIdx.x == 0) arrived = atomicAdd(counter, 1) + 1;
        __syncthreads();
        if (arrived != (u32)split.x) return;
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        const float* all = p.partial + ((u64)split.z * p.q_heads + first_head) * (D + 2);
        u64 stride = (u64)p.q_heads * (D + 2);
        for (u32 row = warp; row < heads; row += WARPS) {
            const float* from = all + row * (D + 2);
            float top = NEG_INF, sum = 0.0f, y[(D + 31) / 32] = {};
            for (i32 c = 0; c < split.x; c++) top = fmaxf(top, __ldcg(from + c * stride + D));
            for (i32 c = 0; c < split.x; c++) {
                const float* of = from + c * stride;
                float mc = __ldcg(of + D), w = mc == NEG_INF ? 0.0f : __expf(mc - top);
                sum += w * __ldcg(of + D + 1);
#pragma unroll
                for (int i = 0; i < (D + 31) / 32; i++)
                    if (lane + 32 * i < D) y[i] += w * __ldcg(of + lane + 32 * i);
            }
            float lse, factor = finish_row(p, first_head + row, top, sum, lse);
#pragma unroll
            for (int i = 0; i < (D + 31) / 32; i++)
                if (lane + 32 * i < D)
                    store_float(p.out, p.out_dtype, (u64)token * p.out_stride + (u64)(first_head + row) * D + lane + 32 * i, y[i] * factor);
            if (lane == 0 && p.lse) p.lse[(u64)token * p.q_heads + first_head + row] = lse;
        }
    }
};
#define DECODE(T, D, S) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) decode_##T##_##D(const AttnParams p) { Decode<T, D, S>::run(p); }
DECODE(bf16, 64, 4) DECODE(bf16, 80, 3) DECODE(bf16, 96, 3) DECODE(bf16, 112, 3) DECODE(bf16, 128, 3) DECODE(bf16, 256, 2)
DECODE(f16, 64, 4) DECODE(f16, 80, 3) DECODE(f16, 96, 3) DECODE(f16, 112, 3) DECODE(f16, 128, 3) DECODE(f16, 256, 2)
