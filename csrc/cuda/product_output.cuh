// What all products do alike: shared memory by address, and writing an output.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/product_task.h"
#include "cuda/ptx.cuh"

namespace pvq {

constexpr int kSharedBytes = 227 * 1024;
// Shared addresses of a block start at 1 KB; what lies below belongs to the system.
constexpr int kFirstAddress = 1024;
constexpr int kEndAddress = kSharedBytes + kFirstAddress;
// 64 KB of table at a multiple of its size.
constexpr int kTableAddress = 0x10000;
constexpr int kTableEnd = 0x20000;

// Addresses within the block's shared memory, as loads take them. In a cluster the bits from 24 on
// name the block.
struct SharedWindow {
  uint32_t high;

  __device__ explicit SharedWindow(const uint8_t* first) {
    const uint32_t address = shared_address(first);
    if ((address & 0xFFFFFF) != kFirstAddress) __trap();
    high = address & 0xFF000000;
  }
  __device__ __forceinline__ uint32_t address(uint32_t offset) const { return high | offset; }
};

// sum: of integers times activations. The output is the row's scale times it.
__device__ __forceinline__ void write_output(const ProductTask& task, int64_t token, int64_t row,
                                             float sum) {
  const float value = sum * __uint_as_float(uint32_t(task.row_scale[row]) << 16);
  const int64_t place = token * task.rows + row;
  if (task.activations.type == FloatType::kFloat16) {
    static_cast<__half*>(task.y)[place] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(task.y)[place] = __float2bfloat16_rn(value);
  }
}

}  // namespace pvq
