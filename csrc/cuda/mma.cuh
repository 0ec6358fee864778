// Tensor-core products as one function each: D += A B for tiles 16 x 16 and 16 x 8, float32 sums.
//
// Lane = 4 g + q. A (row-major): a0 (g; 2q, 2q + 1), a1 (g + 8; same), a2 (g; 2q + 8, 2q + 9),
// a3 (g + 8; same). B: b0 (2q, 2q + 1; g), b1 (2q + 8, 2q + 9; g). D: d0, d1 (g; 2q, 2q + 1),
// d2, d3 (g + 8; same). The lower half of a register is the element named first.
// (PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".)
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/ptx.cuh"

namespace pvq {

__device__ inline void mma(__half, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  mma_float16(d, a, b0, b1);
}

__device__ inline void mma(__nv_bfloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  mma_bfloat16(d, a, b0, b1);
}

}  // namespace pvq
