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

// The bits of an output.
__device__ __forceinline__ uint16_t round_output(const ProductTask& task, float value) {
  if (task.activations.type == RealType::kFloat16) return __half_as_ushort(__float2half_rn(value));
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

}  // namespace pvq
