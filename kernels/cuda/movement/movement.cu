// Embed, GatherRows, ScatterRows, Copy, CopyPages, UpdateTables, Elementwise, TopK, MergeStates.
#include "../include/common.cuh"

struct RowsParams {
    const void* x; const i32* rows; void* out;
    u64 x_stride, out_stride;
    u32 width, count; i32 x_dtype, out_dtype, mode; u32 limit;
};
static_assert(sizeof(RowsParams) == 64, "params.rs");

// out[i] = x[rows[i]]; a row < 0 gives zeros. One block a row. Widths of whole 16 bytes move as vectors.
extern "C" __global__ void gather_rows(const RowsParams p) {
    let_next_start();
    wait_for_previous();
    u32 i = blockIdx.x;
    i32 row = p.rows[i];
    u64 in = (u64)(row < 0 ? 0 : row) * p.x_stride, out = (u64)i * p.out_stride;
    u32 size = p.x_dtype == F32 ? 4 : 2;
    bool vectors = p.x_dtype == p.out_dtype && (p.width * size) % 16 == 0 &&
        (((u64)p.x + in * size) & 15) == 0 && (((u64)p.out + out * size) & 15) == 0;
    if (vectors) {
        uint4* to = (uint4*)((u8*)p.out + out * size);
        const uint4* from = (const uint4*)((const u8*)p.x + in * size);
        for (u32 c = threadIdx.x; c < p.width * size / 16; c += blockDim.x)
            to[c] = row < 0 ? make_uint4(0, 0, 0, 0) : from[c];
        return;
    }
    for (u32 c = threadIdx.x; c < p.width; c += blockDim.x)
        store_float(p.out, p.out_dtype, out + c, row < 0 ? 0.0f : load_as_float(p.x, p.x_dtype, in + c));
}

// out[rows[i]] = or += x[i]. Rows are walked in order by the block that owns a column, so repeats add in order.
extern "C" __global__ void scatter_rows(const RowsParams p) {
    let_next_start();
    wait_for_previous();
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.width) return;
    for (u32 i = 0; i < p.count; i++) {
        i32 row = p.rows[i];
        if (row < 0) continue;
        float x = load_as_float(p.x, p.x_dtype, (u64)i * p.x_stride + c);
        u64 at = (u64)row * p.out_stride + c;
        if (p.mode == 1) x += load_as_float(p.out, p.out_dtype, at);
        store_float(p.out, p.out_dtype, at, x);
    }
}

struct CopyParams {
    const void* x; void* out;
    u32 shape[4]; u32 x_stride[4]; u32 out_stride[4];
    i32 x_dtype, out_dtype;
};
static_assert(sizeof(CopyParams) == 72, "params.rs");

extern "C" __global__ void copy_strided(const CopyParams p) {
    let_next_start();
    wait_for_previous();
    u64 count = (u64)p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3];
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        u64 rest = i;
        u32 d3 = rest % p.shape[3]; rest /= p.shape[3];
        u32 d2 = rest % p.shape[2]; rest /= p.shape[2];
        u32 d1 = rest % p.shape[1]; u32 d0 = rest / p.shape[1];
        u64 from = (u64)d0 * p.x_stride[0] + (u64)d1 * p.x_stride[1] + (u64)d2 * p.x_stride[2] + d3;
        u64 to = (u64)d0 * p.out_stride[0] + (u64)d1 * p.out_stride[1] + (u64)d2 * p.out_stride[2] + d3;
        if (p.x_dtype == p.out_dtype && (p.x_dtype == F32 || p.x_dtype == I32 || p.x_dtype == U32))
            ((u32*)p.out)[to] = ((const u32*)p.x)[from];
        else if (p.x_dtype == p.out_dtype && p.x_dtype == B8) ((u8*)p.out)[to] = ((const u8*)p.x)[from];
        else if (p.x_dtype == p.out_dtype) ((u16*)p.out)[to] = ((const u16*)p.x)[from];
        else store_float(p.out, p.out_dtype, to, load_as_float(p.x, p.x_dtype, from));
    }
}

struct PagesParams {
    u8* pool; const i32* pairs;
    u64 layer_stride, page_stride, bytes;
    u32 count, pad;
};
static_assert(sizeof(PagesParams) == 48, "params.rs");

// Pages of one layer (blockIdx.y) in order of the pairs: each thread owns one 16-byte lane of every page, so a pair
// sees what the pairs before it wrote.
extern "C" __global__ void copy_pages(const PagesParams p) {
    let_next_start();
    wait_for_previous();
    u64 lane = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    u8* layer = p.pool + blockIdx.y * p.layer_stride;
    if (lane >= p.bytes) return;
    for (u32 i = 0; i < p.count; i++) {
        i32 from = p.pairs[2 * i], to = p.pairs[2 * i + 1];
        if (from < 0 || to < 0) continue;
        u8* a = layer + from * p.page_stride + lane;
        u8* b = layer + to * p.page_stride + lane;
        if (lane + 4 <= p.bytes) *(u32*)b = *(const u32*)a;
        else for (u64 c = lane; c < p.bytes; c++) b[c - lane] = a[c - lane];
    }
}

struct TablesParams { const i32* pairs; i32* tables; u32 count, limit; };
static_assert(sizeof(TablesParams) == 24, "params.rs");

// tables[pairs[i].0] = pairs[i].1, in order: a pair whose index comes again later writes nothing. Deltas are few.
extern "C" __global__ void update_tables(const TablesParams p) {
    let_next_start();
    wait_for_previous();
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += gridDim.x * blockDim.x) {
        i32 at = p.pairs[2 * i];
        bool last = at >= 0 && (u32)at < p.limit;
        for (u32 j = i + 1; last && j < p.count; j++) last = p.pairs[2 * j] != at;
        if (last) p.tables[at] = p.pairs[2 * i + 1];
    }
}

struct ElementwiseParams {
    const void* a; const void* b; void* out;
    u64 a_stride, b_stride, out_stride;
    u32 rows, cols; i32 op, a_dtype, b_dtype, out_dtype; float arg; u32 pad;
};
static_assert(sizeof(ElementwiseParams) == 80, "params.rs");

// Codes of `kernels::params::elementwise`.
extern "C" __global__ void elementwise(const ElementwiseParams p) {
    let_next_start();
    wait_for_previous();
    u64 count = (u64)p.rows * p.cols;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        u64 r = i / p.cols, c = i % p.cols;
        float a = load_as_float(p.a, p.a_dtype, r * p.a_stride + c);
        float b = p.b ? load_as_float(p.b, p.b_dtype, r * p.b_stride + c) : 0.0f;
        float y = a;
        switch (p.op) {
            case 0: y = a + b; break;
            case 1: y = a * b; break;
            case 2: y = silu(a) * b; break;
            case 3: y = gelu_tanh(a) * b; break;
            case 4: y = a; break;
            case 5: y = a * p.arg; break;
            case 6: y = p.arg * tanhf(a / p.arg); break;
        }
        store_float(p.out, p.out_dtype, r * p.out_stride + c, y);
    }
}

struct TopKParams {
    const void* x; i32* ids; void* vals;
    u64 x_stride; u32 width, k; i32 dtype; u32 pad;
};
static_assert(sizeof(TopKParams) == 48, "params.rs");

// One warp a row; k rounds of "the best after the last one": greater value (in total order), then smaller id.
extern "C" __global__ void top_k(const TopKParams p) {
    let_next_start();
    wait_for_previous();
    u32 row = blockIdx.x, lane = threadIdx.x;
    u64 last = ~0ull;
    for (u32 j = 0; j < p.k; j++) {
        u64 best = 0;
        for (u32 c = lane; c < p.width; c += 32) {
            u64 rank = rank_of(load_as_float(p.x, p.dtype, row * p.x_stride + c), c);
            if (rank < last) best = max(best, rank);
        }
        for (int o = 16; o > 0; o >>= 1) best = max(best, __shfl_xor_sync(0xffffffffu, best, o));
        if (lane == 0) {
            p.ids[row * p.k + j] = (i32)(0xffffffffu - (u32)best);
            store_float(p.vals, p.dtype, (u64)row * p.k + j, of_key((u32)(best >> 32)));
        }
        last = best;
    }
}

struct MergeParams {
    const void* parts; const float* lse; void* out;
    u32 n, m, width; i32 parts_dtype, out_dtype; u32 pad;
};
static_assert(sizeof(MergeParams) == 48, "params.rs");

// Attention over n parts of the keys joined by their log-sum-exp. One block an output row.
extern "C" __global__ void merge_states(const MergeParams p) {
    let_next_start();
    wait_for_previous();
    u32 i = blockIdx.x;
    float highest = NEG_INF;
    for (u32 j = 0; j < p.n; j++) highest = fmaxf(highest, p.lse[(u64)j * p.m + i]);
    float total = 0.0f;
    for (u32 j = 0; j < p.n; j++) if (highest > NEG_INF) total += expf(p.lse[(u64)j * p.m + i] - highest);
    for (u32 d = threadIdx.x; d < p.width; d += blockDim.x) {
        float sum = 0.0f;
        for (u32 j = 0; j < p.n; j++) {
            float lse = p.lse[(u64)j * p.m + i];
            if (lse > NEG_INF)
                sum += expf(lse - highest) * load_as_float(p.parts, p.parts_dtype, ((u64)j * p.m + i) * p.width + d);
        }
        store_float(p.out, p.out_dtype, (u64)i * p.width + d, total > 0.0f ? sum / total : 0.0f);
    }
}
