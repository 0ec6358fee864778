// The products of the planes; csrc/cuda/plane_wide_{4,6,8}.cu instantiate them.
//
// Limits at one token and 6 bits, a chunk (2048 weights): 1792 bytes, 55 clocks of an SM's share of
// an H200's memory; some 4 instructions for each register of the 32 that a lane decodes, 45 clocks
// of issue with loads and products.
#pragma once

#include "cuda/float16_wide.cuh"
#include "cuda/plane_decode.cuh"
#include "cuda/plane_matmul.h"
#include "cuda/plane_product_task.h"

namespace pvq {

template <int kBits, int kGroup>
struct PlaneOperand : Float16Operand {
  using Chunk = PlaneChunk<kBits, kGroup>;
  static constexpr int kChunkBytes = Chunk::kBytes;
  static constexpr int kMostColumns = 128;
  static constexpr Turns kTurns = Turns::kOfPairs;
  static PVQ_HD constexpr WideTile tile(int columns) { return float16_tile(columns, kChunkBytes); }

  struct Tile : Fragments {
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
  };
};

}  // namespace pvq
