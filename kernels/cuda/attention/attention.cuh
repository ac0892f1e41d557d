// What the attention kernels share: operands, score rules, asynchronous copies, tensor-core fragments.
#pragma once
#include "../include/common.cuh"

struct AttnParams {
    const void* q; void* out; float* lse; const float* sinks; const float* slopes;
    const u8* cache; const void* k; const void* v;
    const i32* table; const i32* rows; const i32* kv_len; const i32* cu_q;
    const int4* items; const i32* counts; const int2* tiles;
    float* partial; u32* arrivals;
    u64 page_stride, v_offset;
    u32 q_stride, q_head_stride, out_stride, k_stride, k_head_stride, v_stride, v_head_stride;
    u32 q_heads, kv_heads, k_dim, v_dim, page_tokens, pages, sequences, window, full;
    i32 q_dtype, kv_dtype, out_dtype; float scale, soft_cap; u32 first_sequence;
};
static_assert(sizeof(AttnParams) == 240, "params.rs");

// The score of a raw dot product, before the mask.
__device__ __forceinline__ float score_of(const AttnParams& p, float dot, float slope, i32 key, i32 position) {
    float s = dot * p.scale;
    if (p.soft_cap > 0.0f) s = p.soft_cap * tanhf(s / p.soft_cap);
    return s + slope * (float)(key - position);
}
__device__ __forceinline__ bool sees(const AttnParams& p, i32 position, i32 key) {
    return p.full || (key <= position && (p.window == 0 || position - key < (i32)p.window));
}

__device__ __forceinline__ void copy_async(void* to, const void* from, bool in) {
#if __CUDA_ARCH__ >= 800
    u32 at = (u32)__cvta_generic_to_shared(to), bytes = in ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#else
    *(uint4*)to = in ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void copies_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

template <class T> __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> __device__ __forceinline__ void mma<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
template <> __device__ __forceinline__ void mma<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
__device__ __forceinline__ void load_matrices(u32 (&m)[4], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load_transposed(u32 (&m)[4], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(at) : "memory");
}
template <class T> __device__ __forceinline__ u32 pack2(float a, float b) {
    return (u32)as<T>(a).bits | ((u32)as<T>(b).bits << 16);
}
// Maximum and sum over the four threads that share a row of a fragment.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
// Online softmax of a fragment row pair: keeps maximum m and sum l, returns what earlier terms are scaled by.
__device__ __forceinline__ float rescale(float& m, float& l, float highest) {
    float now = fmaxf(m, highest);
    float factor = m == NEG_INF ? 0.0f : expf(m - now);
    m = now;
    l *= factor;
    return factor;
}
// The sink joins the softmax's denominator: returns what the weighted sum is to be multiplied by, and the
// log-sum-exp. No key at all gives zero and -infinity.
__device__ __forceinline__ float finish_row(const AttnParams& p, u32 head, float m, float l, float& lse) {
    if (m == NEG_INF) {
        lse = NEG_INF;
        return 0.0f;
    }
    if (p.sinks) {
        float sink = p.sinks[head], top = fmaxf(m, sink), factor = expf(m - top);
        l = l * factor + expf(sink - top);
        lse = top + logf(l);
        return factor / l;
    }
    lse = m + logf(l);
    return 1.0f / l;
}
