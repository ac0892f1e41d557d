// Attention of prompt tokens on sm_90a. A block stays on its multiprocessor and takes work (one head, 128 queries) until
// there is none. A warp reads what the work is and copies tiles of 128 keys and values (boxes of 16 tokens of a page)
// ahead into two stages, on into the next work; two warpgroups of 64 queries multiply. The scores of the next
// tile are computed while this one's are exponentiated and the one before's values are summed (FlashAttention-3,
// Shah et al. 2024, without its exchange between the warpgroups).
#include "hopper.cuh"

struct alignas(64) HopperParams { TensorMap map; u64 pool; AttnParams attn; };
static_assert(sizeof(HopperParams) == 384, "params.rs");

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int KEYS = 128, QUERIES = 128, BOX = 16, STAGES = 2;
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What is to be done: a head, some queries of a row, the keys they see.
struct Work { i32 row, q_first, q_len, kv, first_query, begin, end, tiles; u32 head, more; };

template <class T, int D> struct Hopper {
    static constexpr u32 HALF = KEYS * 128, TILE = D / 64 * HALF;
    const HopperParams& hp;
    const AttnParams& p;
    u32 stages, barriers;
    Work* works;  // two slots

    __device__ __forceinline__ u32 k_tile(u32 s) const { return stages + s * TILE; }
    __device__ __forceinline__ u32 v_tile(u32 s) const { return stages + (STAGES + s) * TILE; }
    __device__ __forceinline__ u32 full_k(u32 s) const { return barriers + s * 8; }
    __device__ __forceinline__ u32 full_v(u32 s) const { return barriers + (STAGES + s) * 8; }
    __device__ __forceinline__ u32 empty_k(u32 s) const { return barriers + (2 * STAGES + s) * 8; }
    __device__ __forceinline__ u32 empty_v(u32 s) const { return barriers + (3 * STAGES + s) * 8; }
    __device__ __forceinline__ u32 full_work(u32 s) const { return barriers + (4 * STAGES + s) * 8; }
    __device__ __forceinline__ u32 empty_work(u32 s) const { return barriers + (5 * STAGES + s) * 8; }

    // Longest first: the plan's tiles backwards, all heads of one side by side.
    __device__ __forceinline__ Work work_at(u32 at, u32 count) const {
        Work g;
        g.more = at < count * p.q_heads;
        if (!g.more) return g;
        int2 tile = p.tiles[count - 1 - at / p.q_heads];
        g.head = at % p.q_heads;
        g.row = p.rows[tile.x], g.q_first = p.cu_q[tile.x], g.q_len = p.cu_q[tile.x + 1] - g.q_first;
        g.kv = g.row < 0 ? 0 : p.kv_len[tile.x], g.first_query = tile.y;
        i32 last = min(tile.y + QUERIES, g.q_len) - 1;
        g.end = p.full ? g.kv : min(g.kv, g.kv - g.q_len + last + 1);
        g.begin = p.window ? max(0, g.kv - g.q_len + tile.y + 1 - (i32)p.window) / KEYS : 0;
        g.tiles = g.row < 0 ? 0 : max(0, (g.end + KEYS - 1) / KEYS - g.begin);
        return g;
    }

    // One warp hands out work and copies.
    __device__ void feed() const {
        u32 done = 0, slot = 0, count = p.counts[1];
        for (u32 at = blockIdx.x + gridDim.x * blockIdx.y;; at += gridDim.x * gridDim.y, slot++) {
            Work g = work_at(at, count);
            u32 s = slot % STAGES;
            barrier_wait(empty_work(s), (slot / STAGES & 1) ^ 1);
            if ((threadIdx.x & 31) == 0) {
                works[s] = g;
                barrier_arrive(full_work(s));
            }
            if (!g.more) return;
            copy(g, done);
            done += g.tiles;
        }
    }

    // The tiles of some work, after `done` others. A lane has a box of 16 tokens.
    __device__ __forceinline__ void copy(const Work& g, u32 done) const {
        u32 lane = threadIdx.x & 31, h = g.head / (p.q_heads / p.kv_heads);
        const i32* table = p.table + (u64)g.row * p.pages;
        u64 layer = (u64)p.cache - hp.pool;
        for (i32 it = 0; it < g.tiles; it++) {
            u32 s = (done + it) % STAGES, parity = ((done + it) / STAGES & 1) ^ 1;
            i32 tile = (g.begin + it) * KEYS, key = tile + (i32)lane * BOX;
            bool in = lane < KEYS / BOX && key < g.end;
            u32 boxes = min((g.end - tile + BOX - 1) / BOX, KEYS / BOX), bytes = boxes * D * BOX * 2;
            u64 at = 0;
            if (in) {
                i32 page = table[key / (i32)p.page_tokens];
                at = layer + page * p.page_stride + ((u64)h * p.page_tokens + key % (i32)p.page_tokens) * D * 2;
            }
            barrier_wait(empty_k(s), parity);
            if (lane == 0) barrier_expect(full_k(s), bytes);
            __syncwarp();
            if (in)
#pragma unroll
                for (int c = 0; c < D / 64; c++)
                    tensor_copy(k_tile(s) + c * HALF + lane * BOX * 128, &hp.map, c * 64, (i32)(at / (D * 2)), full_k(s));
            barrier_wait(empty_v(s), parity);
            if (lane == 0) barrier_expect(full_v(s), bytes);
            __syncwarp();
            if (in)
#pragma unroll
                for (int c = 0; c < D / 64; c++)
                    tensor_copy(v_tile(s) + c * HALF + lane * BOX * 128, &hp.map, c * 64, (i32)((at + p.v_offset) / (D * 2)), full_v(s));
        }
    }

    // Scores of tile `it`, not yet waited for.
    __device__ __forceinline__ void start_scores(float (&s)[64], const u32 (&q)[D / 16][4], u32 stage) const {
        products_begin();
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            product<T>(s, q[k], tile_descriptor(k_tile(stage) + k / 4 * HALF + k % 4 * 32, 0), k > 0);
        products_commit();
    }
    // o += p · values of a tile, not yet waited for.
    __device__ __forceinline__ void start_values(float (&o)[D / 2], const u32 (&pa)[KEYS / 16][4], u32 stage) const {
        products_begin();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
            product_transposed<T>(o, pa[k], tile_descriptor(v_tile(stage) + k * 2048, HALF));
        products_commit();
    }

    // Scores to weights: mask, running maximum m and sum l of this thread's two rows; returns the factors of what was
    // summed before. Weights are relative to 2^(m · scale2).
    __device__ __forceinline__ void soften(float (&s)[64], float (&m)[2], float (&l)[2], float (&factor)[2], const Work& g,
                                           i32 tile, const i32 (&position)[2], float slope, float scale2, bool plain) const {
        u32 q4 = threadIdx.x & 3;
        i32 first = tile * KEYS, low = position[0] - (i32)((threadIdx.x & 31) >> 2);  // the warp's first position
        bool whole = p.full ? first + KEYS <= g.kv
                            : first + KEYS - 1 <= low && (p.window == 0 || low + 15 - first < (i32)p.window);
        if (!plain || !whole) {
#pragma unroll
            for (int i = 0; i < 64; i++) {
                i32 key = first + i / 4 * 8 + (i32)q4 * 2 + (i & 1), at = position[i >> 1 & 1];
                if (!plain) s[i] = score_of(p, s[i], slope, key, at);
                if (!(key < g.kv && sees(p, at, key))) s[i] = NEG_INF;
            }
        }
        float top[2] = {NEG_INF, NEG_INF};
#pragma unroll
        for (int i = 0; i < 64; i++) top[i >> 1 & 1] = fmaxf(top[i >> 1 & 1], s[i]);
        float base[2];
#pragma unroll
        for (int x = 0; x < 2; x++) {
            float now = fmaxf(m[x], quad_max(top[x]));
            base[x] = now == NEG_INF ? 0.0f : now * scale2;
            factor[x] = exp2_fast(m[x] * scale2 - base[x]);
            m[x] = now;
            l[x] *= factor[x];
        }
#pragma unroll
        for (int i = 0; i < 64; i++) {
            s[i] = exp2_fast(fmaf(s[i], scale2, -base[i >> 1 & 1]));
            l[i >> 1 & 1] += s[i];
        }
    }

    static __device__ __forceinline__ void pack(u32 (&pa)[KEYS / 16][4], const float (&s)[64]) {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            const float* c = s + k * 8;
            pa[k][0] = pack2<T>(c[0], c[1]), pa[k][1] = pack2<T>(c[2], c[3]);
            pa[k][2] = pack2<T>(c[4], c[5]), pa[k][3] = pack2<T>(c[6], c[7]);
        }
    }

    // Values past the last key may be anything, and zero times that must be zero.
    __device__ __forceinline__ void clear_tail(const Work& g, i32 tile, u32 stage) const {
        i32 from = g.end - tile * KEYS;
        if (from >= KEYS) return;
        for (u32 i = threadIdx.x % 128; i < (KEYS - from) * 8 * (D / 64); i += 128) {
            u32 c = i / ((KEYS - from) * 8), rest = i % ((KEYS - from) * 8);
            u32 at = v_tile(stage) + c * HALF + (from + rest / 8) * 128 + rest % 8 * 16;
            asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(at), "r"(0) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128) : "memory");
    }

    // One warpgroup: 64 queries of each work.
    __device__ void take() const {
        u32 done = 0;
        for (u32 slot = 0;; slot++) {
            u32 s = slot % STAGES;
            barrier_wait(full_work(s), slot / STAGES & 1);
            Work g = works[s];
            __syncwarp();
            if ((threadIdx.x & 31) == 0) barrier_arrive(empty_work(s));
            if (!g.more) return;
            attend(g, done);
            done += g.tiles;
        }
    }

    // Some work, whose tiles come after `done` others.
    __device__ __forceinline__ void attend(const Work& g, u32 done) const {
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, q4 = lane & 3, head = g.head;
        i32 tiles = g.tiles;
        i32 j0 = g.first_query + (i32)(warp - 4) * 16 + (i32)r;
        i32 position[2] = {g.kv - g.q_len + j0, g.kv - g.q_len + j0 + 8};
        u32 q[D / 16][4];
        const T* from = (const T*)p.q + (u64)head * p.q_head_stride;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const u32* low = (const u32*)(from + (u64)(g.q_first + j0) * p.q_stride + k * 16 + q4 * 2);
            const u32* high = (const u32*)(from + (u64)(g.q_first + j0 + 8) * p.q_stride + k * 16 + q4 * 2);
            q[k][0] = j0 < g.q_len ? low[0] : 0;
            q[k][1] = j0 + 8 < g.q_len ? high[0] : 0;
            q[k][2] = j0 < g.q_len ? low[4] : 0;
            q[k][3] = j0 + 8 < g.q_len ? high[4] : 0;
        }
        float slope = p.slopes ? p.slopes[head] : 0.0f;
        bool plain = p.soft_cap <= 0.0f && !p.slopes;
        float scale2 = plain ? p.scale * LOG2E : LOG2E;
        float s[64], o[D / 2] = {}, m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f}, factor[2];
        u32 pa[KEYS / 16][4];
        if (tiles > 0) {
            u32 first = done % STAGES;
            barrier_wait(full_k(first), done / STAGES & 1);
            start_scores(s, q, first);
            products_wait<0>();
            keep(s);
            if (lane == 0) barrier_arrive(empty_k(first));
            soften(s, m, l, factor, g, g.begin, position, slope, scale2, plain);
            pack(pa, s);
            for (i32 it = 1; it < tiles; it++) {
                u32 at = done + it, now = at % STAGES, before = (at - 1) % STAGES;
                barrier_wait(full_k(now), at / STAGES & 1);
                keep(s);
                start_scores(s, q, now);
                barrier_wait(full_v(before), (at - 1) / STAGES & 1);
                keep(o);
                start_values(o, pa, before);
                products_wait<1>();
                keep(s);
                if (lane == 0) barrier_arrive(empty_k(now));
                soften(s, m, l, factor, g, g.begin + it, position, slope, scale2, plain);
                products_wait<0>();
                keep(o);
                if (lane == 0) barrier_arrive(empty_v(before));
#pragma unroll
                for (int i = 0; i < D / 2; i++) o[i] *= factor[i >> 1 & 1];
                pack(pa, s);
            }
            u32 last = (done + tiles - 1) % STAGES;
            barrier_wait(full_v(last), (done + tiles - 1) / STAGES & 1);
            clear_tail(g, g.begin + tiles - 1, last);
            keep(o);
            start_values(o, pa, last);
            products_wait<0>();
            keep(o);
            if (lane == 0) barrier_arrive(empty_v(last));
        }
        float natural = plain ? p.scale : 1.0f;
#pragma unroll
        for (int x = 0; x < 2; x++) {
            i32 j = j0 + 8 * x;
            float sum = quad_sum(l[x]), lse;
            if (j >= g.q_len) continue;
            float by = finish_row(p, head, m[x] == NEG_INF ? NEG_INF : m[x] * natural, sum, lse);
            u64 at = (u64)(g.q_first + j) * p.out_stride + (u64)head * D + q4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *(u32*)((T*)p.out + at + n * 8) = pack2<T>(o[n * 4 + 2 * x] * by, o[n * 4 + 2 * x + 1] * by);
            if (p.lse && q4 == 0) p.lse[(u64)(g.q_first + j) * p.q_heads + head] = lse;
        }
    }

    static __device__ __forceinline__ void run(const HopperParams& hp) {
        extern __shared__ uint4 shared_raw[];
        const AttnParams& p = hp.attn;
        u32 raw = (u32)__cvta_generic_to_shared(shared_raw), stages = (raw + 1023) & ~1023u;
        __shared__ Work works[STAGES];
        Hopper self{hp, p, stages, stages + 2 * STAGES * TILE, works};
        let_next_start();
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; s++) {
                barrier_init(self.full_k(s), 1), barrier_init(self.full_v(s), 1), barrier_init(self.full_work(s), 1);
                barrier_init(self.empty_k(s), 8), barrier_init(self.empty_v(s), 8), barrier_init(self.empty_work(s), 8);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
        wait_for_previous();
        if (threadIdx.x < 128) {
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
            if (threadIdx.x < 32) self.feed();
        } else {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
            self.take();
        }
    }
};
#define HOPPER(T, D) \
    extern "C" __global__ void __launch_bounds__(384, 1) prefill_hopper_##T##_##D(const __grid_constant__ HopperParams p) { Hopper<T, D>::run(p); }
HOPPER(bf16, 64) HOPPER(bf16, 128) HOPPER(f16, 64) HOPPER(f16, 128)
#endif
