// Norm (RMS) and LayerNorm over rows, with the residual sum in front.
#include "../include/common.cuh"

struct NormParams {
    const void* x; void* residual; const float* w; const float* bias; void* out;
    u64 x_stride, residual_stride, out_stride;
    u32 width; float eps; i32 x_dtype, residual_dtype, out_dtype; u32 pad;
};
static_assert(sizeof(NormParams) == 88, "params.rs");

template <class T> struct alignas(16) Vec { T v[16 / sizeof(T)]; };

// Rows of whole 16-byte vectors, all of one type T, at most CHUNKS vectors a thread: read once, kept in registers.
template <class T, int CHUNKS> __device__ void rms_vectors(const NormParams& p) {
    constexpr int N = 16 / sizeof(T);
    __shared__ float shared[33];
    const Vec<T>* x = (const Vec<T>*)((const T*)p.x + blockIdx.x * p.x_stride);
    Vec<T>* residual = p.residual ? (Vec<T>*)((T*)p.residual + blockIdx.x * p.residual_stride) : nullptr;
    Vec<T>* out = (Vec<T>*)((T*)p.out + blockIdx.x * p.out_stride);
    const float4* w = (const float4*)p.w;
    u32 vectors = p.width / N;
    float kept[CHUNKS][N];
    float sum = 0.0f;
    let_next_start();
    wait_for_previous();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 i = threadIdx.x + c * blockDim.x;
        if (i >= vectors) break;
        Vec<T> a = x[i];
        if (residual) {
            Vec<T> r = residual[i];
#pragma unroll
            for (int k = 0; k < N; k++) a.v[k] = as<T>(to_float(r.v[k]) + to_float(a.v[k]));
            residual[i] = a;
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            kept[c][k] = to_float(a.v[k]);
            sum += kept[c][k] * kept[c][k];
        }
    }
    float scale = rsqrtf(block_sum(sum, shared) / p.width + p.eps);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 i = threadIdx.x + c * blockDim.x;
        if (i >= vectors) break;
        Vec<T> y;
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            float4 g = w[(i * N + k) / 4];
            y.v[k] = as<T>(kept[c][k] * scale * g.x);
            y.v[k + 1] = as<T>(kept[c][k + 1] * scale * g.y);
            y.v[k + 2] = as<T>(kept[c][k + 2] * scale * g.z);
            y.v[k + 3] = as<T>(kept[c][k + 3] * scale * g.w);
        }
        out[i] = y;
    }
}
extern "C" __global__ void rms_norm_f32(const NormParams p) { rms_vectors<float, 8>(p); }
extern "C" __global__ void rms_norm_f16(const NormParams p) { rms_vectors<f16, 4>(p); }
extern "C" __global__ void rms_norm_bf16(const NormParams p) { rms_vectors<bf16, 4>(p); }

// Any width, types and strides. One block a row; x may be out.
__device__ void norm_any(const NormParams& p, bool center) {
    let_next_start();
    wait_for_previous();
    __shared__ double shared[33];
    u64 x = blockIdx.x * p.x_stride, r = blockIdx.x * p.residual_stride, o = blockIdx.x * p.out_stride;
    double sum = 0.0, squares = 0.0;
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        float v = load_as_float(p.x, p.x_dtype, x + i);
        if (p.residual) {
            v += load_as_float(p.residual, p.residual_dtype, r + i);
            v = round_as(p.residual_dtype, v);
            store_float(p.residual, p.residual_dtype, r + i, v);
        }
        sum += v;
        squares += (double)v * v;
    }
    double mean = center ? block_sum(sum, shared) / p.width : 0.0;
    double spread = 0.0;
    if (center) {
        for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
            double v = p.residual ? load_as_float(p.residual, p.residual_dtype, r + i) : load_as_float(p.x, p.x_dtype, x + i);
            spread += (v - mean) * (v - mean);
        }
    }
    double scale = 1.0 / sqrt(block_sum(center ? spread : squares, shared) / p.width + (double)p.eps);
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        double v = p.residual ? load_as_float(p.residual, p.residual_dtype, r + i) : load_as_float(p.x, p.x_dtype, x + i);
        float y = (float)((v - mean) * scale) * p.w[i] + (p.bias ? p.bias[i] : 0.0f);
        store_float(p.out, p.out_dtype, o + i, y);
    }
}
extern "C" __global__ void rms_norm_any(const NormParams p) { norm_any(p, false); }
extern "C" __global__ void layer_norm_any(const NormParams p) { norm_any(p, true); }
