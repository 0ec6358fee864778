// The products of the table codes and the overlapping-pyramid codes for many tokens;
// csrc/cuda/table_wide_{2,3,4}.cu and overlap_wide_{4..8}.cu instantiate them.
//
// Limits at 64 tokens and 2 bits, 64 rows of a chunk: the tensor cores take 128 clocks of an SM;
// shared memory some 180 (64 wavefronts of table, 64 of activations, 32 of codes, 16 of scales);
// issue some 130 (decoding 50, folding 48).
#pragma once

#include "cuda/overlap_decode.cuh"
#include "cuda/table_product_task.h"
#include "cuda/wide_product.cuh"

namespace pvq {

template <class Chunk>
struct TableOperand {
  static constexpr int kHeaderBytes = Chunk::kHeaderBytes;
  static constexpr int kChunkBytes = Chunk::kBytes;
  static constexpr bool kHalfOdd = Chunk::kHalfOdd;
  // At 2 bits decoding a chunk takes no longer than multiplying it.
  static constexpr Turns kTurns = Chunk::kBytes > 512 ? Turns::kOfPairs : Turns::kOfProducts;
  static PVQ_HD constexpr WideTile tile(int columns) {
    return table_wide_tile(Chunk::kFormat, columns);
  }

  template <int kThreads>
  static __device__ __forceinline__ void prepare(const uint8_t* weights, uint8_t* table) {
    fill_table<Chunk, kThreads>(weights, table);
  }

  struct Tile {
    uint32_t w[4][4];

    __device__ __forceinline__ void load(uint32_t from, int lane) {
      const LaneTable table{uint32_t(lane * 4)};
      Chunk chunk;
      chunk.load(from, lane);
      chunk.template decode<0>(table, w[0]);
      chunk.template decode<1>(table, w[1]);
      chunk.template decode<2>(table, w[2]);
      chunk.template decode<3>(table, w[3]);
#pragma unroll
      for (int s = 0; s < 4; ++s) Chunk::to_signed_columns(w[s]);
    }
    __device__ __forceinline__ void clear() { wgmma_clear(w); }
    __device__ __forceinline__ void done() const { wgmma_done_with(w); }
  };

  using Sum = int;
  static __device__ __forceinline__ float sum_of(Sum sum) { return static_cast<float>(sum); }

  template <int kSums>
  static __device__ __forceinline__ void multiply(const Tile& tile, uint32_t section, int, bool add,
                                                  Sum (&sums)[kSums]) {
    const uint64_t b = wgmma_operand(section);
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma_int8(sums, tile.w[s], wgmma_step(b, s), add || s > 0);
  }
};

template <class Chunk>
int launch_table_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Operand = TableOperand<Chunk>;
  switch (1 << task.quantized.group_bits) {
    case 16:
      return launch_wide<Operand, 16>(task, multiprocessors, stream);
    case 32:
      return launch_wide<Operand, 32>(task, multiprocessors, stream);
    case 64:
      return launch_wide<Operand, 64>(task, multiprocessors, stream);
    default:
      return launch_wide<Operand, 128>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
