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

    __device__ __forceinline__ void load(uint32_t from, const SharedWindow&, int lane) {
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

  static __device__ __forceinline__ void multiply_add(const Tile& tile, const Columns& columns,
                                                      const float (&scale)[2], float (&out)[4]) {
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      mma_float16(sum, tile.a[b][0], columns.v[b][0].x, columns.v[b][0].y);
      mma_float16(sum, tile.a[b][1], columns.v[b][0].z, columns.v[b][0].w);
      mma_float16(sum, tile.a[b][2], columns.v[b][1].x, columns.v[b][1].y);
      mma_float16(sum, tile.a[b][3], columns.v[b][1].z, columns.v[b][1].w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = __fmaf_rn(sum[i], scale[i & 1], out[i]);
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
