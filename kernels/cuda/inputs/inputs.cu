// NextInputs and PlanOnDevice.
#include "../include/common.cuh"

struct NextParams {
    const i32* prev; const i32* accepted; const i32* src; const i32* staged; const i32* rows; const i32* start;
    const i32* cu_q; const i32* tables; i32* ids; i32* positions; i32* slots; i32* kv_len;
    u32 tokens, sequences, groups, table_rows, pages, page_tokens;
};
static_assert(sizeof(NextParams) == 120, "params.rs");

__device__ void pad_token(const NextParams& p, u32 t) {
    p.ids[t] = -1;
    p.positions[t] = 0;
    for (u32 g = 0; g < p.groups; g++) p.slots[(u64)g * p.tokens + t] = -1;
}

// Block s < S makes the inputs of sequence s; block S those of tokens that belong to none.
extern "C" __global__ void next_inputs(const NextParams p) {
    let_next_start();
    wait_for_previous();
    u32 s = blockIdx.x;
    if (s == p.sequences) {
        for (u32 t = p.cu_q[s] + threadIdx.x; t < p.tokens; t += blockDim.x) pad_token(p, t);
        return;
    }
    i32 r = p.rows[s];
    u32 first = p.cu_q[s], end = min((u32)p.cu_q[s + 1], p.tokens);
    if (r < 0) {
        for (u32 t = first + threadIdx.x; t < end; t += blockDim.x) pad_token(p, t);
        if (threadIdx.x == 0) p.kv_len[s] = 0;
        return;
    }
    i32 start = p.start[s] + (p.accepted ? p.accepted[r] : 0);
    for (u32 t = first + threadIdx.x; t < end; t += blockDim.x) {
        i32 position = start + (i32)(t - first), from = p.src[t];
        p.ids[t] = from < 0 ? p.staged[t] : p.prev[from];
        p.positions[t] = position;
        for (u32 g = 0; g < p.groups; g++) {
            i32 page = p.tables[((u64)g * p.table_rows + r) * p.pages + position / p.page_tokens];
            p.slots[(u64)g * p.tokens + t] = page * (i32)p.page_tokens + position % (i32)p.page_tokens;
        }
    }
    if (threadIdx.x == 0) p.kv_len[s] = end > first ? start + (i32)(end - first) : 0;
}

struct PlanParams {
    const i32* rows; const i32* kv_len; const i32* cu_q;
    int4* items; i32* counts; int2* tiles;
    u32 generated, sequences, max_items, max_tiles;
    u32 fixed_chunk, target_items, tile_tokens, window;
};
static_assert(sizeof(PlanParams) == 80, "params.rs");

// Exclusive prefix sum over 1,024 threads; also gives the total. `shared` has room for 33.
__device__ u32 exclusive_scan(u32 x, u32* shared, u32& total) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, y = x;
    for (int o = 1; o < 32; o <<= 1) {
        u32 z = __shfl_up_sync(0xffffffffu, y, o);
        if (lane >= o) y += z;
    }
    __syncthreads();
    if (lane == 31) shared[warp] = y;
    __syncthreads();
    if (warp == 0) {
        u32 w = shared[lane], v = w;
        for (int o = 1; o < 32; o <<= 1) {
            u32 z = __shfl_up_sync(0xffffffffu, v, o);
            if (lane >= o) v += z;
        }
        shared[lane] = v - w;
        if (lane == 31) shared[32] = v;
    }
    __syncthreads();
    total = shared[32];
    return y - x + shared[warp];
}

// Keys token j of a row sees: [first, end).
__device__ __forceinline__ int2 seen_keys(const PlanParams& p, u32 s, u32 j, bool full) {
    i32 kv = p.kv_len[s], q = p.cu_q[s + 1] - p.cu_q[s];
    if (p.rows[s] < 0 || kv <= 0) return make_int2(0, 0);
    i32 end = full ? kv : kv - q + (i32)j + 1;
    i32 first = p.window ? max(0, end - (i32)p.window) : 0;
    return make_int2(first, end);
}

// Item `at`: chunk c of n of token j of row s, whose keys start at `begin`. Two int4: table row (-1: no keys), token,
// first key, end of keys; number of chunks, this one's index, item of the first one, position of the token.
__device__ void put_item(const PlanParams& p, u32 at, u32 s, u32 j, int2 keys, u32 begin, u32 chunk, u32 n, u32 c) {
    bool any = keys.y > keys.x;
    i32 position = p.kv_len[s] - (p.cu_q[s + 1] - p.cu_q[s]) + (i32)j;
    p.items[2 * at] = make_int4(any ? p.rows[s] : -1, p.cu_q[s] + (i32)j, max(keys.x, (i32)begin),
                                any ? min(keys.y, (i32)(begin + chunk)) : 0);
    p.items[2 * at + 1] = make_int4((i32)n, (i32)c, (i32)(at - c), position);
}

// Splits the keys of every generated token into chunks (items), and the prompt rows into query tiles. Chunks start at
// position 0 and, in batch-invariant mode, have one fixed length; otherwise their length balances the batch.
// counts: items, tiles, chunk length. One block of 1,024.
extern "C" __global__ void plan_attention(const PlanParams p0) {
    PlanParams p = p0;
    // Lets nothing start before it has ended: later kernels read the plan without waiting for the one ahead of them.
    wait_for_previous();
    __shared__ u32 shared[33];
    __shared__ u32 chunk_shared;
    bool full = p.window == 0xffffffffu;  // every key is seen
    if (full) p.window = 0;
    // Chunk length.
    u32 blocks = 0;
    for (u32 s = threadIdx.x; s < p.generated; s += blockDim.x)
        for (u32 j = 0; j < (u32)(p.cu_q[s + 1] - p.cu_q[s]); j++) {
            int2 keys = seen_keys(p, s, j, full);
            blocks += (keys.y + 63) / 64 - keys.x / 64;
        }
    u32 total;
    exclusive_scan(blocks, shared, total);
    if (threadIdx.x == 0) {
        u32 chunk = (total + p.target_items - 1) / max(p.target_items, 1u);
        chunk_shared = p.fixed_chunk ? p.fixed_chunk : max(chunk, 1u) * 64;
    }
    __syncthreads();
    u32 chunk = chunk_shared, base = 0;
    for (u32 s0 = 0; s0 < p.generated; s0 += blockDim.x) {
        u32 s = s0 + threadIdx.x, mine = 0;
        u32 tokens = s < p.generated ? p.cu_q[s + 1] - p.cu_q[s] : 0;
        for (u32 j = 0; j < tokens; j++) {
            int2 keys = seen_keys(p, s, j, full);
            u32 n = keys.y > keys.x ? (keys.y + chunk - 1) / chunk - keys.x / chunk : 1;
            mine += n;
        }
        u32 sum, at = base + exclusive_scan(mine, shared, sum);
        for (u32 j = 0; j < tokens; j++) {
            int2 keys = seen_keys(p, s, j, full);
            u32 first = keys.x / chunk;
            u32 n = keys.y > keys.x ? (keys.y + chunk - 1) / chunk - first : 1;
            for (u32 c = 0; c < n; c++, at++)
                if (at < p.max_items)
                    put_item(p, at, s, j, keys, (first + c) * chunk, chunk, n, c);
        }
        base += sum;
    }
    u32 items = base;
    base = 0;
    for (u32 s0 = p.generated; s0 < p.sequences; s0 += blockDim.x) {
        u32 s = s0 + threadIdx.x;
        u32 tokens = s < p.sequences ? p.cu_q[s + 1] - p.cu_q[s] : 0;
        u32 n = (tokens + p.tile_tokens - 1) / p.tile_tokens, sum, at = base + exclusive_scan(n, shared, sum);
        for (u32 c = 0; c < n; c++, at++)
            if (at < p.max_tiles) p.tiles[at] = make_int2((i32)s, (i32)(c * p.tile_tokens));
        base += sum;
    }
    if (threadIdx.x == 0) {
        p.counts[0] = min(items, p.max_items);
        p.counts[1] = min(base, p.max_tiles);
        p.counts[2] = (i32)chunk;
    }
}
