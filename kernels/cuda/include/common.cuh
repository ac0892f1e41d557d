// What every kernel shares: element types without the toolkit's headers (so that NVRTC needs none), dynamic loads
// and stores, reductions, the dependency hooks of programmatic launch.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// Codes of `kernels::params::dtype`.
enum DType { F32 = 0, F16 = 1, BF16 = 2, I32 = 3, U32 = 4, B8 = 5 };

struct bf16 { u16 bits; };
struct f16 { u16 bits; };

#define NEG_INF __int_as_float(0xff800000)

// With programmatic dependent launch a kernel may start before the one ahead of it has ended: every kernel calls this
// before it touches anything that one wrote, and ends only after it has, so that the one ahead of that has ended too.
// Below sm_90 it is nothing.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel of the stream take what multiprocessors have free. Called first thing: the next one reads
// ahead what nobody writes (weights), and otherwise waits, which costs nothing.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
// Round to nearest, ties to even.
__device__ __forceinline__ u16 f32_to_bf16(float x) {
#if __CUDA_ARCH__ >= 800
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    u32 b = __float_as_uint(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return (u16)((b >> 16) | 64);
    return (u16)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
#endif
}
__device__ __forceinline__ u16 f32_to_f16(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ void from_float(float x, float& y) { y = x; }
__device__ __forceinline__ void from_float(float x, bf16& y) { y.bits = f32_to_bf16(x); }
__device__ __forceinline__ void from_float(float x, f16& y) { y.bits = f32_to_f16(x); }
template <class T> __device__ __forceinline__ T as(float x) { T y; from_float(x, y); return y; }

// Element i of an array whose type is known at run time only: for operands off the hot path.
__device__ __forceinline__ float load_as_float(const void* p, i32 dtype, u64 i) {
    if (dtype == F32) return ((const float*)p)[i];
    if (dtype == BF16) return to_float(((const bf16*)p)[i]);
    return to_float(((const f16*)p)[i]);
}
__device__ __forceinline__ void store_float(void* p, i32 dtype, u64 i, float x) {
    if (dtype == F32) ((float*)p)[i] = x;
    else if (dtype == BF16) ((bf16*)p)[i] = as<bf16>(x);
    else ((f16*)p)[i] = as<f16>(x);
}
__device__ __forceinline__ float round_as(i32 dtype, float x) {
    if (dtype == F32) return x;
    if (dtype == BF16) return to_float(as<bf16>(x));
    return to_float(as<f16>(x));
}

template <class V> __device__ __forceinline__ V warp_sum(V x) {
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
    return x;
}
// The sum over a block of whole warps, in every thread. `shared` has room for 33.
template <class V> __device__ __forceinline__ V block_sum(V x, V* shared) {
    x = warp_sum(x);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    if (warp == 0) {
        V y = lane < warps ? shared[lane] : (V)0;
        y = warp_sum(y);
        if (lane == 0) shared[32] = y;
    }
    __syncthreads();
    return shared[32];
}

// A float's place in total order, as an unsigned integer.
__device__ __forceinline__ u32 order_key(float x) {
    u32 b = __float_as_uint(x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float of_key(u32 k) { return __uint_as_float(k & 0x80000000u ? k & 0x7fffffffu : ~k); }
// Greater value first, then smaller id.
__device__ __forceinline__ u64 rank_of(float x, u32 id) { return ((u64)order_key(x) << 32) | (0xffffffffu - id); }

// Activations of epilogues; codes of `kernels::params::act`.
enum Act { ACT_NONE = 0, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_RELU, ACT_SILU_MUL, ACT_GELU_TANH_MUL };
__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * erfcf(-x * 0.70710678118654752f); }
__device__ __forceinline__ float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
__device__ __forceinline__ float activate(i32 act, float x) {
    switch (act) {
        case ACT_SILU: return silu(x);
        case ACT_GELU: return gelu(x);
        case ACT_GELU_TANH: return gelu_tanh(x);
        case ACT_RELU: return fmaxf(x, 0.0f);
        default: return x;
    }
}
__device__ __forceinline__ float gate(i32 act, float g, float u) {
    return (act == ACT_SILU_MUL ? silu(g) : gelu_tanh(g)) * u;
}
// Row of an interleaved gate-up weight that holds gate row i; its up row is 8 further.
__device__ __forceinline__ u32 gate_row(u32 i) { return (i >> 3) * 16 + (i & 7); }
