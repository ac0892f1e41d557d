// Hopper's own instructions: barriers of asynchronous copies, tensor copies, products of a warpgroup.
// Formats are those of the PTX manual, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "attention.cuh"

// An opaque descriptor that the driver encodes.
struct alignas(64) TensorMap { u64 words[16]; };

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ void barrier_init(u32 at, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(u32 at, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 at, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\nbra again;\nover:\n}\n" ::"r"(at), "r"(parity) : "memory");
}
// A box of the tensor at (column, row) into shared memory.
__device__ __forceinline__ void tensor_copy(u32 to, const TensorMap* map, i32 column, i32 row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving what reads or writes accumulators over a wait.
template <int N> __device__ __forceinline__ void keep(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// Of a tile with rows of 128 bytes in the 128-byte swizzle: groups of 8 rows are 1,024 bytes apart; `next` is the
// distance of the next 64 columns where the tile is read transposed.
__device__ __forceinline__ u64 tile_descriptor(u32 at, u32 next) {
    return (u64)((at & 0x3ffff) >> 4) | (u64)((next & 0x3ffff) >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)
#define WGMMA_128(TYPE, TRANSPOSED)                                                                                    \
    asm volatile(                                                                                                      \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                                               \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                      \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                             \
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                             \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"                                            \
        "{%64,%65,%66,%67}, %68, p, 1, 1, " TRANSPOSED ";\n}\n"                                                        \
        : F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48)                                                                \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define WGMMA_64(TYPE, TRANSPOSED)                                                                                     \
    asm volatile(                                                                                                      \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "                                                \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                      \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31},"                                            \
        "{%32,%33,%34,%35}, %36, p, 1, 1, " TRANSPOSED ";\n}\n"                                                        \
        : F16(d, 0), F16(d, 16)                                                                                        \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

// d (+)= a · b, a from registers; b is [n, k] as it lies, or [k, n] (`Transposed`).
template <class T> __device__ __forceinline__ void product(float (&d)[64], const u32 (&a)[4], u64 b, i32 add);
template <> __device__ __forceinline__ void product<bf16>(float (&d)[64], const u32 (&a)[4], u64 b, i32 add) { WGMMA_128("bf16", "0"); }
template <> __device__ __forceinline__ void product<f16>(float (&d)[64], const u32 (&a)[4], u64 b, i32 add) { WGMMA_128("f16", "0"); }
template <class T> __device__ __forceinline__ void product_transposed(float (&d)[64], const u32 (&a)[4], u64 b);
template <> __device__ __forceinline__ void product_transposed<bf16>(float (&d)[64], const u32 (&a)[4], u64 b) { i32 add = 1; WGMMA_128("bf16", "1"); }
template <> __device__ __forceinline__ void product_transposed<f16>(float (&d)[64], const u32 (&a)[4], u64 b) { i32 add = 1; WGMMA_128("f16", "1"); }
template <class T> __device__ __forceinline__ void product_transposed(float (&d)[32], const u32 (&a)[4], u64 b);
template <> __device__ __forceinline__ void product_transposed<bf16>(float (&d)[32], const u32 (&a)[4], u64 b) { i32 add = 1; WGMMA_64("bf16", "1"); }
template <> __device__ __forceinline__ void product_transposed<f16>(float (&d)[32], const u32 (&a)[4], u64 b) { i32 add = 1; WGMMA_64("f16", "1"); }
#endif
