// Random weights made on the device: the twin of engine-core's loader/fill.rs.
#include "../include/common.cuh"

struct FillParams {
    void* out; u64 key; u64 rows, cols;
    float scale, mean; i32 dtype; u32 interleave, row_offset, pad;
};
static_assert(sizeof(FillParams) == 56, "params.rs");

__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Row r goes to row r + row_offset, or to its place among gate and up rows.
extern "C" __global__ void fill_random(const FillParams p) {
    u64 count = p.rows * p.cols;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        u64 bits = mix(p.key + (i + 1) * 0x9E3779B97F4A7C15ull);
        i32 sum = (i32)((bits & 0xffff) + ((bits >> 16) & 0xffff) + ((bits >> 32) & 0xffff) + (bits >> 48));
        float x = __fadd_rn(__fmul_rn((float)(sum - 131070), p.scale), p.mean);
        u64 r = i / p.cols, c = i % p.cols;
        u64 row = p.interleave ? gate_row((u32)r) + p.row_offset : r + p.row_offset;
        store_float(p.out, p.dtype, row * p.cols + c, x);
    }
}
