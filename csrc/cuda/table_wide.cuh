// The products of the table codes for many tokens; csrc/cuda/table_wide_{2,3,4}.cu instantiate
// them.
//
// Limits at 64 tokens and 2 bits, a chunk (2048 weights): 32 int8 products, some 53 clocks of an
// SM's tensor cores at the rate of mma.sync; 24 wavefronts of codes and table and 34 of
// activations; decoding 65, folding 64 and loading 12 instructions, 37 clocks of issue.
#pragma once

#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"
#include "cuda/wide_product.cuh"

namespace pvq {

template <int kBits>
struct TableOperand {
  using Chunk = TableChunk<kBits>;
  static constexpr int kHeaderBytes = int(kTableBytes);
  static constexpr int kChunkBytes = Chunk::kBytes;
  static constexpr int kValueBytes = kChunkCols;
  static constexpr bool kTable = true;
  static constexpr int kMostDepth = 2;
  static constexpr bool kHalfOdd = kBits == 3;

  static __device__ __forceinline__ void prepare(const uint8_t* weights, uint8_t* table,
                                                 int threads) {
    fill_table(weights, table, threads);
  }
  static __device__ __forceinline__ void copy_async(uint32_t to, const uint8_t* from, int lane) {
    Chunk::copy_async(to, from, lane);
  }

  struct Tile {
    uint32_t w[4][4];

    __device__ __forceinline__ void load(uint32_t from, int lane) {
      const LaneTable table{uint32_t(kTableAddress | lane * 4)};
      Chunk chunk;
      chunk.load(from, lane);
      chunk.template decode<0>(table, w[0]);
      chunk.template decode<1>(table, w[1]);
      chunk.template decode<2>(table, w[2]);
      chunk.template decode<3>(table, w[3]);
    }
  };

  // A lane's 32 columns of one row: pieces 2 quarter and 2 quarter + 1, which are neighbours
  // whichever way the row's pieces are swapped.
  struct Columns {
    uint4 low, high;

    __device__ __forceinline__ void load(uint32_t from, int lane) {
      const int row = lane / 4, quarter = lane % 4;
      const uint32_t piece = row * kValueBytes + ((2 * quarter ^ (row & 1)) << 4);
      low = load_shared_vector(from + piece);
      high = load_shared_vector(from + (piece ^ 16));
    }
  };

  // Integers on top of kMagicBits.
  using Sum = int;
  static __device__ __forceinline__ float sum_of(Sum sum) { return __int_as_float(sum) - kMagic; }

  template <int kTiles, int kPairs>
  static __device__ __forceinline__ void multiply(const Tile (&tile)[kTiles],
                                                  const Columns (&columns)[kPairs],
                                                  Sum (&sums)[kTiles][kPairs][4]) {
    const int magic[4] = {kMagicBits, kMagicBits, kMagicBits, kMagicBits};
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPairs; ++p)
        mma_int8(sums[r][p], tile[r].w[0], columns[p].low.x, columns[p].low.y, magic);
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPairs; ++p)
        mma_int8(sums[r][p], tile[r].w[1], columns[p].low.z, columns[p].low.w, sums[r][p]);
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPairs; ++p)
        mma_int8(sums[r][p], tile[r].w[2], columns[p].high.x, columns[p].high.y, sums[r][p]);
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPairs; ++p)
        mma_int8(sums[r][p], tile[r].w[3], columns[p].high.z, columns[p].high.w, sums[r][p]);
  }
};

template <int kBits>
int launch_table_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  switch (table_wide_step(task.activations.rows())) {
    case 16:
      return launch_wide<TableOperand<kBits>, 2>(task, multiprocessors, stream);
    case 32:
      return launch_wide<TableOperand<kBits>, 4>(task, multiprocessors, stream);
    default:
      return launch_wide<TableOperand<kBits>, 8>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
