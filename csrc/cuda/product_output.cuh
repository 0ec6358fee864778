// What all products do alike: shared memory by address, and writing an output.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/product_task.h"
#include "cuda/ptx.cuh"
#include "cuda/shared_memory.h"

namespace pvq {

// Address of byte `offset` (below 32 KB) of the rows' second halves.
__device__ __forceinline__ uint32_t beside_table(uint32_t offset) {
  return kTableAddress + 128 + ((offset & ~127u) << 1) + (offset & 127);
}

// Addresses are compile-time constants because dynamic shared memory always begins here.
__device__ __forceinline__ void check_first_address(const uint8_t* first) {
  if (shared_address(first) != uint32_t(kFirstAddress)) __trap();
}

__device__ __forceinline__ float row_scale_of(const ProductTask& task, int64_t row) {
  return __uint_as_float(uint32_t(task.row_scale[row]) << 16);
}

// Writes an output, `value` with its row's scale.
__device__ __forceinline__ void write_scaled(const ProductTask& task, int64_t token, int64_t row,
                                             float value) {
  const int64_t place = token * task.rows + row;
  if (task.activations.type == RealType::kFloat16) {
    static_cast<__half*>(task.y)[place] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(task.y)[place] = __float2bfloat16_rn(value);
  }
}

}  // namespace pvq
