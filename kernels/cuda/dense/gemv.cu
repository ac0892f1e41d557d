// Gemm of one row, with the RMS norm in front of it: as fast as the weights can be read.
//
// A block stays on its multiprocessor and has a run of neighbouring rows of W. Its warps take them in pairs (r and
// r + 8 of 16, which an interleaved gate-up weight makes a gate and its up), `slices` warps to a pair, each a share of
// K. A lane always has DEPTH 16-byte loads of either row on the way, and the first are issued before the kernel ahead
// has ended, because no kernel writes weights. Sums wait in shared memory for one pass of the epilogue at the end.
// K is a multiple of 8; rows of W and x are 16-byte aligned.
#include "gemm.cuh"

constexpr u32 WARPS = 16, CHUNK = 256;  // CHUNK: elements of K a warp reads of a row at once
constexpr int DEPTH = 4;

template <class T> struct alignas(16) Eight { T v[8]; };

// x, normed where asked, into `xs` with zeros up to whole chunks.
template <class T> __device__ __forceinline__ void stage_x(const GemmParams& p, Eight<T>* xs, u32 chunks) {
    __shared__ float shared[33];
    const Eight<T>* x = (const Eight<T>*)p.x;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < chunks * 32; i += blockDim.x) {
        uint4 bits = i * 8 < p.k ? plain_load(x + i) : make_uint4(0, 0, 0, 0);
        *(uint4*)(xs + i) = bits;
        if (p.norm) {
            Eight<T> v = *(Eight<T>*)&bits;
#pragma unroll
            for (int j = 0; j < 8; j++) sum += to_float(v.v[j]) * to_float(v.v[j]);
        }
    }
    if (p.norm) {
        float scale = rsqrtf(block_sum(sum, shared) / p.k + p.eps);
        for (u32 i = threadIdx.x; i * 8 < p.k; i += blockDim.x) {
            Eight<T> v = xs[i];
            const float4* g = (const float4*)p.norm + i * 2;
            float4 a = g[0], b = g[1];
            float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int j = 0; j < 8; j++) v.v[j] = as<T>(to_float(v.v[j]) * scale * w[j]);
            xs[i] = v;
        }
    }
    __syncthreads();
}

template <class T> __device__ __forceinline__ float dot(float sum, const uint4& a, const float (&x)[8]) {
    const Eight<T>& v = *(const Eight<T>*)&a;
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(to_float(v.v[j]), x[j], sum);
    return sum;
}

template <class T> __device__ __forceinline__ void gemv(const GemmParams& p) {
    extern __shared__ uint4 shared_raw[];
    let_next_start();
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 chunks = (p.k + CHUNK - 1) / CHUNK, pairs = (p.n + 15) / 16 * 8;
    u32 first = (u64)blockIdx.x * pairs / gridDim.x, last = (u64)(blockIdx.x + 1) * pairs / gridDim.x;
    u32 slice = warp % p.slices, step = WARPS / p.slices;
    u32 from = slice * chunks / p.slices, end = (slice + 1) * chunks / p.slices;
    Eight<T>* xs = (Eight<T>*)shared_raw;
    float2* sums = (float2*)(xs + chunks * 32);  // [pair][slice]
    uint4 low[DEPTH], high[DEPTH];
    // What is fetched next.
    u32 fetch_pair = first + warp / p.slices, fetch_chunk = from;
    auto row_of = [&](u32 pair) {
        u32 row = min((pair >> 3) * 16 + (pair & 7), p.n - 1);
        return (const T*)p.w + (u64)row * p.k + lane * 8;
    };
    const T* fetch_row = row_of(fetch_pair);
    auto fetch = [&](int d) {
        if (fetch_pair >= last) return;
        u32 row = (fetch_pair >> 3) * 16 + (fetch_pair & 7), k = fetch_chunk * CHUNK;
        bool in = k + lane * 8 < p.k;
        const T* at = fetch_row + k;
        low[d] = in ? stream_load(at) : make_uint4(0, 0, 0, 0);
        high[d] = in && row + 8 < p.n ? stream_load(at + 8 * (u64)p.k) : make_uint4(0, 0, 0, 0);
        if (++fetch_chunk == end) {
            fetch_chunk = from;
            fetch_pair += step;
            fetch_row = row_of(fetch_pair);
        }
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++) fetch(d);
    wait_for_previous();
    stage_x(p, xs, chunks);
    u32 pair = first + warp / p.slices, chunk = from;
    float a = 0.0f, b = 0.0f;
    while (pair < last) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (pair >= last) break;
            Eight<T> xv = xs[chunk * 32 + lane];
            float x[8];
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = to_float(xv.v[j]);
            a = dot<T>(a, low[d], x);
            b = dot<T>(b, high[d], x);
            fetch(d);
            if (++chunk == end) {
                a = warp_sum(a), b = warp_sum(b);
                if (lane == 0) sums[(pair - first) * p.slices + slice] = make_float2(a, b);
                a = 0.0f, b = 0.0f, chunk = from, pair += step;
            }
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < last - first; i += blockDim.x) {
        float lo = 0.0f, hi = 0.0f;
        for (u32 s = 0; s < p.slices; s++) {
            float2 part = sums[i * p.slices + s];
            lo += part.x, hi += part.y;
        }
        u32 tile = (first + i) >> 3, r = (first + i) & 7;
        if (p.act >= ACT_SILU_MUL) {
            if (tile * 8 + r < p.out_cols) finish(p, 0, tile * 8 + r, lo, hi);
            continue;
        }
        if (tile * 16 + r < p.out_cols) finish(p, 0, tile * 16 + r, lo, 0.0f);
        if (tile * 16 + r + 8 < p.out_cols) finish(p, 0, tile * 16 + r + 8, hi, 0.0f);
    }
}
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) gemv_bf16(const GemmParams p) { gemv<bf16>(p); }
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) gemv_f16(const GemmParams p) { gemv<f16>(p); }
