// What the operands of the wide products with float16 activations do alike (wide_product.cuh).
#pragma once

#include "cuda/float16_wide.h"
#include "cuda/wide_product.cuh"

namespace pvq {

struct Float16Operand {
  static constexpr int kHeaderBytes = 0;
  static constexpr bool kHalfOdd = false;

  struct Fragments {
    uint32_t a[2][4][4];  // [b][q], of columns 64 b + 16 t + 4 q + i

    __device__ __forceinline__ void clear() {
      wgmma_clear(a[0]);
      wgmma_clear(a[1]);
    }
    __device__ __forceinline__ void done() const {
      wgmma_done_with(a[0]);
      wgmma_done_with(a[1]);
    }
  };

  using Sum = float;
  static __device__ __forceinline__ float sum_of(Sum sum) { return sum; }

  template <int kSums>
  static __device__ __forceinline__ void multiply(const Fragments& tile, uint32_t section,
                                                  int section_bytes, bool add, Sum (&sums)[kSums]) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const uint64_t columns = wgmma_operand(section + b * section_bytes);
#pragma unroll
      for (int q = 0; q < 4; ++q)
        wgmma_float16(sums, tile.a[b][q], wgmma_step(columns, q), add || b + q > 0);
    }
  }
};

template <class Operand>
int launch_float16_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  switch (1 << task.quantized.group_bits) {  // as the activations were narrowed
    case 8:
      return launch_wide<Operand, 8>(task, multiprocessors, stream);
    case 16:
      return launch_wide<Operand, 16>(task, multiprocessors, stream);
    case 64:
      return launch_wide<Operand, 64>(task, multiprocessors, stream);
    default:
      if constexpr (Operand::kMostColumns == 128)
        return launch_wide<Operand, 128>(task, multiprocessors, stream);
      return cudaErrorInvalidValue;
  }
}

}  // namespace pvq
