// RopeKvWrite: per-head norm, rotation of q in place and of k, and the write of k and v into their page.
#include "../include/common.cuh"

struct RopeParams {
    void* q; const void* k; const void* v;
    const i32* positions; const float* table; const float* q_norm; const float* k_norm; const i32* slots;
    void* cache;
    u64 page_stride, v_offset;
    u32 q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride;
    u32 q_heads, kv_heads, k_dim, v_dim, rot, page_tokens;
    i32 dtype, kv_dtype, interleaved; float eps;
};
static_assert(sizeof(RopeParams) == 152, "params.rs");

struct alignas(4) Two { u16 v[2]; };
struct alignas(8) Four { u16 v[4]; };

// The common case, two elements (of v: four) a lane at a time: halves rotated, no norm, 16-bit values that the cache
// keeps as they are. Rounds as `rope_head` does.
template <class T> __device__ __forceinline__ void rope_head_pairs(const RopeParams& p, u32 t, u32 head, i32 slot, u8* cache, u32 offset) {
    u32 lane = threadIdx.x & 31;
    if (head >= p.q_heads + p.kv_heads) {
        u32 h = head - p.q_heads - p.kv_heads;
        const T* v = (const T*)p.v + (u64)t * p.v_stride + (u64)h * p.v_head_stride;
        T* to = (T*)(cache + p.v_offset) + ((u64)h * p.page_tokens + offset) * p.v_dim;
        for (u32 i = lane * 4; i < p.v_dim; i += 128) *(Four*)(to + i) = *(const Four*)(v + i);
        return;
    }
    bool is_q = head < p.q_heads;
    u32 h = is_q ? head : head - p.q_heads, half = p.rot / 2;
    T* x = is_q ? (T*)p.q + (u64)t * p.q_stride + (u64)h * p.q_head_stride
                : (T*)p.k + (u64)t * p.k_stride + (u64)h * p.k_head_stride;
    T* to = is_q ? x : (T*)cache + ((u64)h * p.page_tokens + offset) * p.k_dim;
    const float* angles = p.table + (u64)p.positions[t] * p.rot;
    for (u32 i = lane * 2; i < half; i += 64) {
        Two a = *(const Two*)(x + i), b = *(const Two*)(x + half + i), low, high;
        float2 c = *(const float2*)(angles + i), s = *(const float2*)(angles + half + i);
        float cs[2] = {c.x, c.y}, sn[2] = {s.x, s.y};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float first = to_float(T{a.v[j]}), second = to_float(T{b.v[j]});
            low.v[j] = as<T>(__fsub_rn(__fmul_rn(first, cs[j]), __fmul_rn(second, sn[j]))).bits;
            high.v[j] = as<T>(__fadd_rn(__fmul_rn(second, cs[j]), __fmul_rn(first, sn[j]))).bits;
        }
        *(Two*)(to + i) = low;
        *(Two*)(to + half + i) = high;
    }
    if (!is_q)
        for (u32 i = p.rot + lane * 2; i < p.k_dim; i += 64) *(Two*)(to + i) = *(const Two*)(x + i);
}
template <class T> __device__ __forceinline__ bool goes_in_pairs(const RopeParams& p) {
    return !p.q_norm && !p.interleaved && p.kv_dtype == p.dtype && p.rot > 0 && p.rot % 4 == 0 && p.k_dim % 2 == 0 &&
        p.v_dim % 4 == 0 && p.q_stride % 4 == 0 && p.q_head_stride % 4 == 0 && p.k_stride % 4 == 0 &&
        p.k_head_stride % 4 == 0 && p.v_stride % 4 == 0 && p.v_head_stride % 4 == 0 &&
        (((u64)p.q | (u64)p.k | (u64)p.v | (u64)p.table) & 7) == 0;
}
template <> __device__ __forceinline__ bool goes_in_pairs<float>(const RopeParams& p) { return false; }
template <> __device__ __forceinline__ void rope_head_pairs<float>(const RopeParams&, u32, u32, i32, u8*, u32) {}

// One warp a head: q heads, then k heads, then v heads. Cache: per page K [Hkv, page_tokens, D], then V.
template <class T> __device__ void rope_head(const RopeParams& p, u32 t, u32 head, i32 slot, u8* cache, u32 offset);
template <class T> __device__ void rope_token(const RopeParams& p) {
    u32 t = blockIdx.x, warps = blockDim.x >> 5;
    i32 slot = p.slots[t];
    u32 page = slot < 0 ? 0 : slot / p.page_tokens, offset = slot < 0 ? 0 : slot % p.page_tokens;
    u8* cache = (u8*)p.cache + page * p.page_stride;
    bool pairs = goes_in_pairs<T>(p);
    for (u32 head = blockIdx.y * warps + (threadIdx.x >> 5); head < p.q_heads + 2 * p.kv_heads; head += gridDim.y * warps) {
        if (head >= p.q_heads && slot < 0) return;
        if (pairs) rope_head_pairs<T>(p, t, head, slot, cache, offset);
        else rope_head<T>(p, t, head, slot, cache, offset);
    }
}

template <class T> __device__ void rope_head(const RopeParams& p, u32 t, u32 head, i32 slot, u8* cache, u32 offset) {
    u32 lane = threadIdx.x & 31;
    if (head >= p.q_heads + p.kv_heads) {
        u32 h = head - p.q_heads - p.kv_heads;
        const T* v = (const T*)p.v + (u64)t * p.v_stride + (u64)h * p.v_head_stride;
        u64 at = ((u64)h * p.page_tokens + offset) * p.v_dim;
        for (u32 i = lane; i < p.v_dim; i += 32) store_float(cache + p.v_offset, p.kv_dtype, at + i, to_float(v[i]));
        return;
    }
    bool is_q = head < p.q_heads;
    u32 h = is_q ? head : head - p.q_heads;
    T* x = is_q ? (T*)p.q + (u64)t * p.q_stride + (u64)h * p.q_head_stride
                : (T*)p.k + (u64)t * p.k_stride + (u64)h * p.k_head_stride;
    const float* w = is_q ? p.q_norm : p.k_norm;
    u64 at = ((u64)h * p.page_tokens + offset) * p.k_dim;
    // In f64, and products below without fused adds: q is rounded to 16 bits next, and must round as the reference does.
    double scale = 1.0;
    if (w) {
        double sum = 0.0;
        for (u32 i = lane; i < p.k_dim; i += 32) sum += (double)to_float(x[i]) * to_float(x[i]);
        scale = 1.0 / sqrt(warp_sum(sum) / p.k_dim + (double)p.eps);
    }
    auto get = [&](u32 i) { return w ? (float)(to_float(x[i]) * scale) * w[i] : to_float(x[i]); };
    auto put = [&](u32 i, float y) {
        if (is_q) x[i] = as<T>(y);
        else store_float(cache, p.kv_dtype, at + i, y);
    };
    u32 half = p.rot / 2;
    const float* angles = p.table ? p.table + (u64)p.positions[t] * p.rot : nullptr;
    for (u32 i = lane; i < half; i += 32) {
        float c = angles[i], s = angles[half + i];
        u32 first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : half + i;
        float a = get(first), b = get(second);
        put(first, __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
        put(second, __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
    }
    if (is_q && !w) return;
    for (u32 i = p.rot + lane; i < p.k_dim; i += 32) put(i, get(i));
}
// rot is 0 without a rotation.
extern "C" __global__ void rope_kv_write(const RopeParams p) {
    let_next_start();
    wait_for_previous();
    if (p.dtype == F32) rope_token<float>(p);
    else if (p.dtype == BF16) rope_token<bf16>(p);
    else rope_token<f16>(p);
}
