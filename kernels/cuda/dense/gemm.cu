// Gemm by our own kernels: a weight-streaming one on tensor cores for a few rows, a plain one for anything, and the
// pass that applies an epilogue to a finished product.
#include "gemm.cuh"

// Weight-streaming product of up to 8·TOKENS8 rows of x. A block makes 16 rows of W (16 output columns, or 8 gated
// ones); its WARPS warps take slices of K and join at the end, in a fixed order: a row's bits do not depend on its
// neighbours. Each thread reads 16 contiguous bytes of a weight row; that puts k = 8q..8q+7 (q = lane % 4) where the
// tensor core expects other indices, which is harmless because x is read in the same order.
// K is a multiple of 8, rows of x and W are 16-byte aligned.
template <class T, int TOKENS8, int WARPS> __device__ void stream_gemm(const GemmParams& p) {
    constexpr int DEPTH = TOKENS8 == 1 ? 4 : 2;  // k-blocks of 32 in flight
    __shared__ float joined[WARPS][TOKENS8][32][4];
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 r = lane >> 2, q = lane & 3;
    u32 n0 = blockIdx.x * 16, t0 = blockIdx.y * 8 * TOKENS8;
    u32 rows = min(p.rows - t0, 8u * TOKENS8);
    const T* w_low = (const T*)p.w + (u64)min(n0 + r, p.n - 1) * p.k;
    const T* w_high = (const T*)p.w + (u64)min(n0 + r + 8, p.n - 1) * p.k;
    const T* x = (const T*)p.x + (u64)t0 * p.x_stride;
    // Blocks of 32 of K, dealt out to warps in groups of DEPTH.
    u32 blocks = (p.k + 31) / 32;
    u32 groups = (blocks + DEPTH - 1) / DEPTH;
    float c[TOKENS8][4] = {};
    uint4 low[DEPTH], high[DEPTH];
    const uint4 zero = make_uint4(0, 0, 0, 0);
    auto fetch = [&](u32 group) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            u32 k = (group * DEPTH + d) * 32 + q * 8;
            bool in = k < p.k;
            low[d] = in ? stream_load(w_low + k) : zero;
            high[d] = in ? stream_load(w_high + k) : zero;
        }
    };
    u32 group = warp;
    if (group < groups) fetch(group);
    let_next_start();
    wait_for_previous();
    for (; group < groups; group += WARPS) {
        uint4 now_low[DEPTH], now_high[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) { now_low[d] = low[d]; now_high[d] = high[d]; }
        uint4 v[TOKENS8][DEPTH];
#pragma unroll
        for (int m = 0; m < TOKENS8; m++)
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                u32 k = (group * DEPTH + d) * 32 + q * 8, t = m * 8 + r;
                v[m][d] = t < rows && k < p.k ? plain_load(x + (u64)t * p.x_stride + k) : zero;
            }
        if (group + WARPS < groups) fetch(group + WARPS);
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            u32 a0[4] = {now_low[d].x, now_high[d].x, now_low[d].y, now_high[d].y};
            u32 a1[4] = {now_low[d].z, now_high[d].z, now_low[d].w, now_high[d].w};
#pragma unroll
            for (int m = 0; m < TOKENS8; m++) {
                mma16816<T>(c[m], a0, v[m][d].x, v[m][d].y);
                mma16816<T>(c[m], a1, v[m][d].z, v[m][d].w);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < TOKENS8; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) joined[warp][m][lane][i] = c[m][i];
    __syncthreads();
    // Fragment: i = 0, 1 are row r, tokens 2q and 2q + 1; i = 2, 3 are row r + 8.
    for (u32 i = threadIdx.x; i < TOKENS8 * 64; i += WARPS * 32) {
        u32 m = i / 64, l = (i / 2) % 32, odd = i & 1, t = m * 8 + (l & 3) * 2 + odd;
        if (t >= rows) continue;
        float lo = 0.0f, hi = 0.0f;
#pragma unroll
        for (int s = 0; s < WARPS; s++) { lo += joined[s][m][l][odd]; hi += joined[s][m][l][2 + odd]; }
        u32 row = l >> 2;
        if (p.act >= ACT_SILU_MUL) {
            u32 col = blockIdx.x * 8 + row;
            if (col < p.out_cols) finish(p, t0 + t, col, lo, hi);
        } else {
            if (n0 + row < p.out_cols) finish(p, t0 + t, n0 + row, lo, 0.0f);
            if (n0 + row + 8 < p.out_cols) finish(p, t0 + t, n0 + row + 8, hi, 0.0f);
        }
    }
}
#define STREAM(T, M, W) \
    extern "C" __global__ void __launch_bounds__(W * 32) stream_gemm_##T##_##M##_##W(const GemmParams p) { stream_gemm<T, M, W>(p); }
STREAM(bf16, 1, 8) STREAM(bf16, 2, 8) STREAM(bf16, 4, 8) STREAM(bf16, 1, 16) STREAM(bf16, 2, 16)
STREAM(f16, 1, 8) STREAM(f16, 2, 8) STREAM(f16, 4, 8) STREAM(f16, 1, 16) STREAM(f16, 2, 16)

// Any types, sizes and strides: one warp for 4 output columns of 4 rows, lanes along K.
extern "C" __global__ void gemm_any(const GemmParams p) {
    let_next_start();
    wait_for_previous();
    u32 lane = threadIdx.x & 31;
    u32 c = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    u32 t0 = blockIdx.y * 4;
    if (c >= p.out_cols) return;
    bool gated = p.act >= ACT_SILU_MUL;
    u64 low = gated ? gate_row(c) : c, high = low + 8;
    float a[4] = {}, b[4] = {};
    for (u32 k = lane; k < p.k; k += 32) {
        float g = load_as_float(p.w, p.w_dtype, low * p.k + k);
        float u = gated ? load_as_float(p.w, p.w_dtype, high * p.k + k) : 0.0f;
#pragma unroll
        for (int t = 0; t < 4; t++)
            if (t0 + t < p.rows) {
                float x = load_as_float(p.x, p.x_dtype, (u64)(t0 + t) * p.x_stride + k);
                a[t] += x * g;
                if (gated) b[t] += x * u;
            }
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
        float g = warp_sum(a[t]), u = warp_sum(b[t]);
        if (lane == 0 && t0 + t < p.rows) finish(p, t0 + t, c, g, u);
    }
}

// f32 operands in tiles of 64 × 64, for models that run in float32.
extern "C" __global__ void __launch_bounds__(256) gemm_f32(const GemmParams p) {
    let_next_start();
    wait_for_previous();
    __shared__ float xs[16][65], ws[16][65];
    const float* x = (const float*)p.x;
    const float* w = (const float*)p.w;
    u32 n0 = blockIdx.x * 64, t0 = blockIdx.y * 64, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float c[4][4] = {};
    for (u32 k0 = 0; k0 < p.k; k0 += 16) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < 64 * 16; i += 256) {
            u32 k = i % 16, r = i / 16;
            xs[k][r] = t0 + r < p.rows && k0 + k < p.k ? x[(u64)(t0 + r) * p.x_stride + k0 + k] : 0.0f;
            ws[k][r] = n0 + r < p.n && k0 + k < p.k ? w[(u64)(n0 + r) * p.k + k0 + k] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) c[i][j] += xs[k][ty + 16 * i] * ws[k][tx + 16 * j];
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 t = t0 + ty + 16 * i, n = n0 + tx + 16 * j;
            if (p.act < ACT_SILU_MUL) {
                if (t < p.rows && n < p.out_cols) finish(p, t, n, c[i][j], 0.0f);
                continue;
            }
            // Rows n and n + 8 of an interleaved weight: their threads are 8 lanes apart.
            float up = __shfl_down_sync(0xffffffffu, c[i][j], 8);
            u32 col = n / 16 * 8 + n % 16;
            if (tx < 8 && t < p.rows && col < p.out_cols) finish(p, t, col, c[i][j], up);
        }
}

// The epilogue of a product that lies in x [rows, n] (in the weight's row order).
extern "C" __global__ void gemm_epilogue(const GemmParams p) {
    let_next_start();
    wait_for_previous();
    u64 count = (u64)p.rows * p.out_cols;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        u32 t = i / p.out_cols, c = i % p.out_cols;
        bool gated = p.act >= ACT_SILU_MUL;
        u64 at = (u64)t * p.x_stride + (gated ? gate_row(c) : c);
        float product = load_as_float(p.x, p.x_dtype, at);
        finish(p, t, c, product, gated ? load_as_float(p.x, p.x_dtype, at + 8) : 0.0f);
    }
}

// The common epilogue alone: out = act(gate) · up of an interleaved product, 8 columns a thread, bf16 or f16.
template <class T> __device__ void gate_vectors(const GemmParams& p) {
    let_next_start();
    wait_for_previous();
    struct alignas(16) V { T v[8]; };
    u32 per_row = p.out_cols / 8;
    u64 count = (u64)p.rows * per_row;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        u32 t = i / per_row, c = i % per_row;
        const V* x = (const V*)((const T*)p.x + (u64)t * p.x_stride + (u64)c * 16);
        V g = x[0], u = x[1], y;
#pragma unroll
        for (int k = 0; k < 8; k++) y.v[k] = as<T>(gate(p.act, to_float(g.v[k]), to_float(u.v[k])));
        *(V*)((T*)p.out + (u64)t * p.out_stride + (u64)c * 8) = y;
    }
}
extern "C" __global__ void gate_bf16(const GemmParams p) { gate_vectors<bf16>(p); }
extern "C" __global__ void gate_f16(const GemmParams p) { gate_vectors<f16>(p); }
