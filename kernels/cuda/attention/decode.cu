// Attention of generated tokens: the heads of one KV group packed into a tensor-core tile, keys split over blocks
// (items of the plan) and over the warps of a block; the block that finishes a token last joins its parts.
#include "attention.cuh"

// `decode_new` also makes the keys it attends to last: it rotates q and each token's new key, and writes that and the
// value into the cache, where nothing but later steps reads them.
struct NewParams { AttnParams attn; const i32* positions; const i32* slots; const float* angles; u64 pad; };
static_assert(sizeof(NewParams) == 272, "params.rs");

constexpr int WARPS = 4, KEYS = 16;
constexpr u32 APART = 4;  // heads of a KV group whose parts have memory of their own

// (a, b) of two columns and their partners half a head further, rotated; rounds as `rope_kv_write` does.
template <class T> __device__ __forceinline__ void rotate(u32& a, u32& b, float2 c, float2 s) {
    float a0 = to_float(T{(u16)(a & 0xffff)}), a1 = to_float(T{(u16)(a >> 16)});
    float b0 = to_float(T{(u16)(b & 0xffff)}), b1 = to_float(T{(u16)(b >> 16)});
    a = pack2<T>(__fsub_rn(__fmul_rn(a0, c.x), __fmul_rn(b0, s.x)), __fsub_rn(__fmul_rn(a1, c.y), __fmul_rn(b1, s.y)));
    b = pack2<T>(__fadd_rn(__fmul_rn(b0, c.x), __fmul_rn(a0, s.x)), __fadd_rn(__fmul_rn(b1, c.y), __fmul_rn(a1, s.y)));
}

template <class T, int D, int STAGES, bool NEW> struct Decode {
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

    // A block's share of the work: a chunk of the keys of a token, for the heads of (a part of) one KV group.
    struct Unit {
        int4 where, split;
        u32 item, h, part;
    };
    // What one warp copies of a unit: every WARPS-th tile of KEYS keys.
    struct Copies {
        const i32* table;
        i32 begin, end, tile0, mine, page_ids;
        u32 h;
    };

    static __device__ __forceinline__ Unit unit_at(const AttnParams& p, u32 unit, u32 parts) {
        u32 item = unit / (p.kv_heads * parts), rest = unit % (p.kv_heads * parts);
        return {p.items[2 * item], p.items[2 * item + 1], item, rest / parts, rest % parts};
    }

    static __device__ __forceinline__ i32 tile_first(const Copies& c, i32 i) {
        return (c.tile0 + (i32)(threadIdx.x >> 5) + i * WARPS) * KEYS;
    }

    // Starts the copies of this warp's tile i; a group is committed even when there is none.
    static __device__ __forceinline__ void start(const AttnParams& p, T* stages, Copies& c, i32 i) {
        if (i < c.mine) {
            i32 ahead = i + (i32)(threadIdx.x & 31);
            if (i % 32 == 0) c.page_ids = ahead < c.mine ? c.table[tile_first(c, ahead) / (i32)p.page_tokens] : 0;
            i32 page = __shfl_sync(0xffffffffu, c.page_ids, i % 32);
            load(p, stages + (i % STAGES) * STAGE, page, c.h, tile_first(c, i), c.begin, c.end);
        }
        copies_commit();
    }

    // The copies of a unit, the first ones started.
    static __device__ __forceinline__ Copies begin(const AttnParams& p, T* stages, const Unit& u) {
        Copies c;
        i32 warp = threadIdx.x >> 5;
        c.begin = u.where.z, c.end = u.where.w, c.tile0 = c.begin / KEYS, c.h = u.h, c.page_ids = 0;
        i32 tiles = u.where.x < 0 ? 0 : (c.end + KEYS - 1) / KEYS - c.tile0;
        c.mine = tiles > warp ? (tiles - warp + WARPS - 1) / WARPS : 0;
        c.table = p.table + (u64)max(u.where.x, 0) * p.pages;
        for (i32 i = 0; i < STAGES - 1; i++) start(p, stages, c, i);
        return c;
    }

    // Where a token stands, and where its key goes.
    struct Place { i32 position, slot; };
    // A token's new key, not rotated yet, and value: a pair of columns, its partner and pairs of values a lane.
    struct Fresh {
        i32 key;  // -1: not this warp's
        u32 low, high, v[D / 64];
        float2 cosine, sine;
    };

    // Reads it where the unit ends with it and the tile is this warp's. Nothing waits for what is read before that tile.
    static __device__ __forceinline__ Fresh fresh_key(const AttnParams& p, const float* angles, const Unit& u, const Copies& c) {
        Fresh f;
        i32 key = u.split.w;
        bool mine = c.mine > 0 && key >= c.begin && key < c.end && (u32)(key / KEYS - c.tile0) % WARPS == threadIdx.x >> 5;
        f.key = mine ? key : -1;
        if (!mine) return f;
        u32 t = u.where.y, i = (threadIdx.x & 31) * 2, first = min(i, D / 2 - 2);
        const T* k = (const T*)p.k + (u64)t * p.k_stride + (u64)u.h * p.k_head_stride;
        const T* v = (const T*)p.v + (u64)t * p.v_stride + (u64)u.h * p.v_head_stride;
        f.low = *(const u32*)(k + first), f.high = *(const u32*)(k + D / 2 + first);
        f.cosine = *(const float2*)(angles + first), f.sine = *(const float2*)(angles + D / 2 + first);
#pragma unroll
        for (int j = 0; j < D / 64; j++) f.v[j] = *(const u32*)(v + j * 64 + i);
        return f;
    }

    // Rotates it, puts it into row `row` of its tile and, for the first part of a group, into the cache.
    static __device__ __forceinline__ void put_fresh(const AttnParams& p, Fresh& f, const Unit& u, i32 slot, T* row) {
        u32 i = (threadIdx.x & 31) * 2;
        bool in = i < D / 2;
        rotate<T>(f.low, f.high, f.cosine, f.sine);
        if (in) *(u32*)(row + i) = f.low, *(u32*)(row + D / 2 + i) = f.high;
#pragma unroll
        for (int j = 0; j < D / 64; j++) *(u32*)(row + KEYS * ROW + j * 64 + i) = f.v[j];
        if (u.part > 0 || slot < 0) return;
        u8* cache = (u8*)p.cache + (u64)(slot / (i32)p.page_tokens) * p.page_stride;
        u64 at = ((u64)u.h * p.page_tokens + slot % (i32)p.page_tokens) * D;
        T* to = (T*)cache + at;
        T* v_to = (T*)(cache + p.v_offset) + at;
        if (in) *(u32*)(to + i) = f.low, *(u32*)(to + D / 2 + i) = f.high;
#pragma unroll
        for (int j = 0; j < D / 64; j++) *(u32*)(v_to + j * 64 + i) = f.v[j];
    }

    static __device__ void run(const AttnParams& p, const NewParams* fused) {
        extern __shared__ uint4 shared_raw[];
        T* stages = (T*)shared_raw + (threadIdx.x >> 5) * STAGES * STAGE;
        // Fused, only q and the new keys come from the kernel ahead: what the plan says and the keys of earlier steps are
        // there since `plan_attention` has ended, which lets nothing start before.
        if (!NEW) wait_for_previous();
        u32 group = p.q_heads / p.kv_heads, parts = (group + 15) / 16, at = blockIdx.x;
        // Read beside the count that says whether there is such a unit: items up to the grid's size always exist.
        Unit u = unit_at(p, at, parts);
        u32 units = (u32)p.counts[0] * p.kv_heads * parts;
        if (at >= units) {
            if (NEW) wait_for_previous();
            return;
        }
        // Parts of few heads are joined in memory of their own, so that the next unit's copies run meanwhile.
        bool apart = group <= APART;
        float* joined = (float*)shared_raw + (apart ? BYTES / 4 : 0);
        Copies c = begin(p, stages, u);
        Place place = {0, -1};
        if constexpr (NEW) {
            place = {fused->positions[u.where.y], fused->slots[u.where.y]};
            wait_for_previous();
        }
        while (true) {
            u32 next = at + gridDim.x;
            bool more = next < units;
            Unit following = unit_at(p, more ? next : at, parts);
            u32 first_head = u.h * group + u.part * 16, heads = min(group - u.part * 16, 16u);
            float o[D / 8][4] = {}, m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};
            sum_keys(p, fused, place, stages, u, c, first_head, heads, o, m, l);
            // Not before: the next kernel would take the room of this one's second round.
            if (!more) let_next_start();
            if (more && apart) c = begin(p, stages, following);
            if constexpr (NEW) place = {fused->positions[following.where.y], fused->slots[following.where.y]};
            join(p, joined, o, m, l, u.item, u.where.y, u.split, u.h, u.part, parts, first_head, heads);
            if (!more) break;
            if (!apart) {
                __syncthreads();
                c = begin(p, stages, following);
            }
            u = following, at = next;
        }
        copies_wait<0>();
    }

    // This warp's tiles of a unit: weighted values o, maximum m, sum l of the rows of a fragment.
    static __device__ __forceinline__ void sum_keys(const AttnParams& p, const NewParams* fused, Place place, T* stages, const Unit& u,
                                                    Copies& c, u32 first_head, u32 heads, float (&o)[D / 8][4], float (&m)[2], float (&l)[2]) {
        u32 lane = threadIdx.x & 31, r = lane >> 2, q4 = lane & 3;
        const T* q = (const T*)p.q + (u64)u.where.y * p.q_stride + (u64)first_head * p.q_head_stride;
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
        Fresh fresh;
        if constexpr (NEW) {
            const float* angles = fused->angles + (u64)place.position * D;
            fresh = fresh_key(p, angles, u, c);
#pragma unroll
            for (int k = 0; k < D / 32; k++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    u32 i = k * 16 + j * 8 + q4 * 2;
                    float2 cosine = *(const float2*)(angles + i), sine = *(const float2*)(angles + D / 2 + i);
                    rotate<T>(qa[k][2 * j], qa[k + D / 32][2 * j], cosine, sine);
                    if (heads > 8) rotate<T>(qa[k][2 * j + 1], qa[k + D / 32][2 * j + 1], cosine, sine);
                }
        }
        float slope[2] = {0.0f, 0.0f};
        if (p.slopes) {
            if (r < heads) slope[0] = p.slopes[first_head + r];
            if (r + 8 < heads) slope[1] = p.slopes[first_head + r + 8];
        }
        i32 begin = c.begin, end = c.end, position = u.split.w;
        for (i32 i = 0; i < c.mine; i++) {
            start(p, stages, c, i + STAGES - 1);
            copies_wait<STAGES - 1>();
            __syncwarp();
            if constexpr (NEW) {
                i32 at = fresh.key - tile_first(c, i);
                if (fresh.key >= 0 && at >= 0 && at < KEYS) {
                    put_fresh(p, fresh, u, place.slot, stages + (i % STAGES) * STAGE + at * ROW);
                    __syncwarp();
                }
            }
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
                    i32 key = tile_first(c, i) + n * 8 + (i32)q4 * 2 + (e & 1);
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
    }

    // Joins the warps' parts (in `parts_o` [WARPS, heads, D]), then the blocks'.
    static __device__ void join(const AttnParams& p, float* parts_o, float (&o)[D / 8][4], float (&m)[2], float (&l)[2],
                                u32 item, u32 token, int4 split, u32 h, u32 part, u32 parts, u32 first_head, u32 heads) {
        __shared__ float parts_m[WARPS][16], parts_l[WARPS][16];
        __shared__ u32 arrived;
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, q4 = lane & 3;
        l[0] = quad_sum(l[0]);
        l[1] = quad_sum(l[1]);
        __syncthreads();  // every warp is done with its stages
#pragma unroll
        for (int x = 0; x < 2; x++) {
            if (r + 8 * x >= heads) continue;
            float* to = parts_o + (warp * heads + r + 8 * x) * D;
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
                for (int i = 0; i < WARPS; i++) y += w[i] > 0.0f ? w[i] * parts_o[(i * heads + row) * D + d] : 0.0f;
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
            // Several parts at a time, so that their reads are under way together.
            constexpr int BATCH = D <= 128 ? 8 : 4, EACH = (D + 31) / 32;
            float top = NEG_INF, sum = 0.0f, y[EACH] = {};
            for (i32 c0 = 0; c0 < split.x; c0 += BATCH) {
                float mc[BATCH], lc[BATCH], yc[BATCH][EACH], now = top;
#pragma unroll
                for (int c = 0; c < BATCH; c++) {
                    const float* of = from + min(c0 + c, split.x - 1) * stride;
                    mc[c] = __ldcg(of + D), lc[c] = __ldcg(of + D + 1);
#pragma unroll
                    for (int i = 0; i < EACH; i++) yc[c][i] = lane + 32 * i < D ? __ldcg(of + lane + 32 * i) : 0.0f;
                }
#pragma unroll
                for (int c = 0; c < BATCH; c++) {
                    if (c0 + c >= split.x) mc[c] = NEG_INF;
                    now = fmaxf(now, mc[c]);
                }
                if (now == NEG_INF) continue;
                float before = __expf(top - now);
                sum *= before, top = now;
#pragma unroll
                for (int i = 0; i < EACH; i++) y[i] *= before;
#pragma unroll
                for (int c = 0; c < BATCH; c++) {
                    float w = __expf(mc[c] - now);
                    sum += w * lc[c];
#pragma unroll
                    for (int i = 0; i < EACH; i++) y[i] += w * yc[c][i];
                }
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
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) decode_##T##_##D(const AttnParams p) { Decode<T, D, S, false>::run(p, nullptr); }
#define DECODE_NEW(T, D, S) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) decode_new_##T##_##D(const NewParams p) { Decode<T, D, S, true>::run(p.attn, &p); }
DECODE_NEW(bf16, 64, 4) DECODE_NEW(bf16, 128, 3) DECODE_NEW(f16, 64, 4) DECODE_NEW(f16, 128, 3)
DECODE(bf16, 64, 4) DECODE(bf16, 80, 3) DECODE(bf16, 96, 3) DECODE(bf16, 112, 3) DECODE(bf16, 128, 3) DECODE(bf16, 256, 2)
DECODE(f16, 64, 4) DECODE(f16, 80, 3) DECODE(f16, 96, 3) DECODE(f16, 112, 3) DECODE(f16, 128, 3) DECODE(f16, 256, 2)
