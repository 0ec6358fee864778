// The products of the planes; csrc/cuda/plane_wide_{4,6,8}.cu instantiate them.
//
// Limits at one token and 6 bits, a chunk (2048 weights): 1792 bytes, 55 clocks of an SM's share of
// an H200's memory; some 4 instructions for each register of the 32 that a lane decodes, 45 clocks
// of issue with loads and products.
#pragma once

#include "cuda/plane_decode.cuh"
#include "cuda/plane_matmul.h"
#include "cuda/plane_product_task.h"
#include "cuda/wide_product.cuh"

namespace pvq {

template <int kBits, int kGroup>
struct PlaneOperand {
  using Chunk = PlaneChunk<kBits, kGroup>;
  static constexpr int kHeaderBytes = 0;
  static constexpr int kChunkBytes = Chunk::kBytes;
  static constexpr bool kHalfOdd = false;
  static constexpr bool kAhead = true;
  static PVQ_HD constexpr WideTile tile(int columns) {
    return plane_wide_tile(kBits, kGroup, columns);
  }

  struct Tile {
    uint32_t a[2][4][4];  // [b][q] fragments

    __device__ __forceinline__ void load(uint32_t from, int lane) {
      Chunk chunk;
      chunk.load(from, lane);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int q = 0; q < 4; ++q)
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            uint32_t pair[2];
            chunk.weights(b, u, q, pair);
            a[b][q][u] = pair[0];
            a[b][q][2 + u] = pair[1];
          }
    }
    __device__ __forceinline__ void done() const {
      wgmma_done_with(a[0]);
      wgmma_done_with(a[1]);
    }
  };

  using Sum = float;
  static __device__ __forceinline__ float sum_of(Sum sum) { return sum; }

  template <int kSums>
  static __device__ __forceinline__ void multiply(const Tile& tile, uint32_t section,
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

template <int kBits, int kGroup>
int launch_plane_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  switch (plane_step(task.activations.rows())) {
    case 8:
      return launch_wide<PlaneOperand<kBits, kGroup>, 8>(task, multiprocessors, stream);
    case 16:
      return launch_wide<PlaneOperand<kBits, kGroup>, 16>(task, multiprocessors, stream);
    default:
      return launch_wide<PlaneOperand<kBits, kGroup>, 64>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
