// What the matrix product kernels share: operands, the epilogue, the tensor-core step, loads.
#pragma once
#include "../include/common.cuh"

struct GemmParams {
    const void* x; const void* w; void* out;
    const float* bias; const void* add; const void* residual;
    u64 x_stride, out_stride, add_stride, residual_stride;
    u32 rows, n, k, out_cols;
    i32 x_dtype, w_dtype, out_dtype, add_dtype, residual_dtype, act;
    float scale; u32 interleaved;
    const float* norm;  // RMS norm of x in front of the product, where the kernel has it
    float eps; u32 slices;
};
static_assert(sizeof(GemmParams) == 144, "params.rs");

// out = residual + scale * act(product + bias + add) for output column c of row t; `up` is the second product of an
// activation that halves. bias and add are in the order gate then up, whatever the weight's order.
__device__ __forceinline__ void finish(const GemmParams& p, u32 t, u32 c, float product, float up) {
    float y;
    if (p.act >= ACT_SILU_MUL) {
        u32 d = p.out_cols + c;
        if (p.bias) { product += p.bias[c]; up += p.bias[d]; }
        if (p.add) {
            product += load_as_float(p.add, p.add_dtype, t * p.add_stride + c);
            up += load_as_float(p.add, p.add_dtype, t * p.add_stride + d);
        }
        y = gate(p.act, product, up);
    } else {
        if (p.bias) product += p.bias[c];
        if (p.add) product += load_as_float(p.add, p.add_dtype, t * p.add_stride + c);
        y = activate(p.act, product);
    }
    y *= p.scale;
    if (p.residual) y += load_as_float(p.residual, p.residual_dtype, t * p.residual_stride + c);
    store_float(p.out, p.out_dtype, t * p.out_stride + c, y);
}

template <class T> __device__ __forceinline__ void mma16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> __device__ __forceinline__ void mma16816<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
template <> __device__ __forceinline__ void mma16816<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ __forceinline__ uint4 stream_load(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
// Not through the read-only path: x was written by the kernel before, which may have ended after this one began.
__device__ __forceinline__ uint4 plain_load(const void* p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
