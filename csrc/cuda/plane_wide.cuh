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
  static constexpr int kValueBytes = kChunkCols * 2;
  static constexpr bool kTable = false;
  static constexpr int kMostDepth = 1;
  static constexpr bool kHalfOdd = false;

  static __device__ __forceinline__ void copy_async(uint32_t to, const uint8_t* from, int lane) {
    Chunk::copy_async(to, from, lane);
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
  };

  // A lane's 2 x 16 columns of one row of activations: pieces 8 b + 2 quarter and the next.
  struct Columns {
    uint4 v[2][2];

    __device__ __forceinline__ void load(uint32_t from, int lane) {
      const int row = lane / 4, quarter = lane % 4;
      const uint32_t piece = row * kValueBytes + ((2 * quarter ^ (row & 1)) << 4);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        v[b][0] = load_shared_vector(from + b * kChunkCols + piece);
        v[b][1] = load_shared_vector(from + b * kChunkCols + (piece ^ 16));
      }
    }
  };

  using Sum = float;
  static __device__ __forceinline__ float sum_of(Sum sum) { return sum; }

  template <int kTiles, int kPairs>
  static __device__ __forceinline__ void multiply(const Tile (&tile)[kTiles],
                                                  const Columns (&columns)[kPairs],
                                                  Sum (&sums)[kTiles][kPairs][4]) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPairs; ++p)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[r][p][i] = 0;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
#pragma unroll
          for (int p = 0; p < kPairs; ++p) {
            const uint4& v = columns[p].v[b][q / 2];
            mma_float16(sums[r][p], tile[r].a[b][q], q % 2 ? v.z : v.x, q % 2 ? v.w : v.y);
          }
  }
};

template <int kBits, int kGroup>
int launch_plane_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  switch (plane_step(task.activations.rows())) {
    case 8:
      return launch_wide<PlaneOperand<kBits, kGroup>, 1>(task, multiprocessors, stream);
    case 16:
      return launch_wide<PlaneOperand<kBits, kGroup>, 2>(task, multiprocessors, stream);
    default:
      return launch_wide<PlaneOperand<kBits, kGroup>, 8>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
