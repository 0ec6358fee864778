// The skeleton of the products for many tokens, which table_wide.cuh and planes_wide.cuh fill in.
//
// A block multiplies 256 rows (16 tiles) with 8 kTokenTiles rows of activations over a part of the
// columns. A warp decodes two tiles of a chunk (128 columns) into registers, multiplies them with
// every activation of the chunk, which all warps read from shared memory, and folds the sums of the
// chunk into float sums, times the activations' scales. So a weight is decoded once for 64 tokens,
// and each activation that is read serves two products.
//
// With few rows the columns are split over the 2, 4 or 8 blocks of a cluster, which add up their
// sums through each other's shared memory, each a part of the rows, in a fixed order.
//
//   shared memory, by address        0x10000           0x20000
//   | ring of activations and scales | table           | ring of codes; at the end the sums |
//
// An Operand says how 16 rows x 128 columns are stored and multiplied:
//
//   kHeaderBytes, kChunkBytes   chunks of a tile follow each other behind a header, tiles likewise
//   kValueBytes                 of the 128 activations of a chunk and row
//   kTable                      whether it has a table; without, the ring of codes begins there
//   kMostDepth                  1 or 2, chunks that warps take side by side
//   kHalfOdd                    the result is 2 sums + the sum of the activations, not the sums
//   prepare(weights, table, threads)       fills the 64 KB of the table
//   copy_async(to_shared, weights, lane)   starts the copy of a chunk, each lane its own part
//   Tile      a chunk in registers: load(from_shared, window, lane)
//   Columns   eight rows of activations of a chunk in registers: load(from_shared, lane)
//   multiply_add(tile, columns, scale, out)   out += scale * (tile times columns)
#pragma once

#include <cooperative_groups.h>

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/product_task.h"
#include "cuda/ptx.cuh"

namespace pvq {

constexpr int kWideTiles = 2;  // of a warp
constexpr int kWideWarps = 8;  // that share the rows
constexpr int kWideRows = kWideWarps * kWideTiles * kTileRows;

template <class Operand, int kTokenTiles>
struct WideShape {
  static constexpr int kColumns = 8 * kTokenTiles;  // rows of activations
  // Few tokens leave registers for twice the warps, which then take two chunks at a time.
  static constexpr int kDepth = kTokenTiles <= 2 ? Operand::kMostDepth : 1;
  static constexpr int kThreads = kWideWarps * kDepth * 32;
  static constexpr int kCodeBytes = kWideWarps * kDepth * kWideTiles * Operand::kChunkBytes;
  static constexpr int kValueBytes = kColumns * Operand::kValueBytes;  // of a chunk
  static constexpr int kScaleBytes = kColumns * int(sizeof(ChunkScale));
  static constexpr int kActivationBytes = kDepth * (kValueBytes + kScaleBytes);
  static constexpr int kCodeRing = Operand::kTable ? kTableEnd : kTableAddress;
  static constexpr int kStages =
      std::min({8, (kEndAddress - kCodeRing) / kCodeBytes,
                (int(kTableAddress) - kFirstAddress) / kActivationBytes});
  static_assert(kStages >= 2);
  static constexpr int kSumsStride = kColumns + 8;  // floats; lanes of a half warp in other banks
  static_assert(kDepth * kWideRows * kSumsStride * 4 <= kEndAddress - kCodeRing);
};

template <class Operand, int kTokenTiles>
__global__ void __launch_bounds__(WideShape<Operand, kTokenTiles>::kThreads, 1)
    wide_kernel(const __grid_constant__ ProductTask task) {
#if __CUDA_ARCH__ >= 900
  using Shape = WideShape<Operand, kTokenTiles>;
  constexpr int kDepth = Shape::kDepth, kColumns = Shape::kColumns;
  extern __shared__ __align__(1024) uint8_t shared[];
  const SharedWindow window(shared);
  const int thread = threadIdx.x, lane = thread % 32;
  const int warp_row = thread / 32 % kWideWarps, warp_depth = thread / 32 / kWideWarps;
  const auto cluster = cooperative_groups::this_cluster();
  const int parts = int(cluster.num_blocks()), part = int(cluster.block_rank());
  const int first_chunk = int(int64_t(part) * task.chunks / parts);
  const int end_chunk = int(int64_t(part + 1) * task.chunks / parts);
  const int steps = (end_chunk - first_chunk + kDepth - 1) / kDepth;
  const int first_column = int(blockIdx.y) * kColumns;
  const int first_tile = int(blockIdx.z) * kWideWarps * kWideTiles;
  const int last_tile = (task.rows - 1) / kTileRows;

  // --- copies
  const int64_t tile_bytes = int64_t(task.chunks) * Operand::kChunkBytes;
  const uint8_t* codes[kWideTiles];
#pragma unroll
  for (int r = 0; r < kWideTiles; ++r)  // tiles beyond the last are multiplied, but not written
    codes[r] = task.weights + Operand::kHeaderBytes +
               min(first_tile + warp_row * kWideTiles + r, last_tile) * tile_bytes +
               (first_chunk + warp_depth) * Operand::kChunkBytes;
  const uint32_t code_slot =
      window.address(Shape::kCodeRing) +
      (warp_depth * kWideWarps + warp_row) * kWideTiles * Operand::kChunkBytes;
  const uint32_t activation_slot = window.address(kFirstAddress);
  const auto copy_codes = [&](int step, int slot) {
    if (first_chunk + step * kDepth + warp_depth < end_chunk) {
#pragma unroll
      for (int r = 0; r < kWideTiles; ++r)
        Operand::copy_async(code_slot + slot * Shape::kCodeBytes + r * Operand::kChunkBytes,
                            codes[r] + int64_t(step) * (kDepth * Operand::kChunkBytes), lane);
    }
  };
  const QuantizedActivations& a = task.quantized;
  const auto copy_activations = [&](int step, int slot) {
    constexpr int kValueUnits = Shape::kValueBytes / 16, kScaleUnits = Shape::kScaleBytes / 16;
    constexpr int kUnits = kValueUnits + kScaleUnits;  // of a chunk, 16 bytes each
    const uint32_t to = activation_slot + slot * Shape::kActivationBytes;
    for (int unit = thread; unit < kDepth * kUnits; unit += Shape::kThreads) {
      const int depth = unit / kUnits, offset = unit % kUnits;
      const int64_t chunk = first_chunk + step * kDepth + depth;
      if (chunk >= end_chunk) continue;
      const int64_t place = chunk * a.stride + first_column;
      const uint8_t* from =
          offset < kValueUnits
              ? static_cast<const uint8_t*>(a.values) + place * Operand::kValueBytes + offset * 16
              : reinterpret_cast<const uint8_t*>(a.scales + place) + (offset - kValueUnits) * 16;
      cp_async_16(to + (depth * kUnits + offset) * 16, from);
    }
  };

  // Weights do not depend on the kernel before, activations do. A stage is one group of copies; the
  // codes of all first stages travel with the activations of the first.
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) copy_codes(stage, stage);
  if constexpr (Operand::kTable)
    Operand::prepare(task.weights, shared + (kTableAddress - kFirstAddress), Shape::kThreads);
  wait_for_previous_kernel();
  allow_next_kernel();
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
    copy_activations(stage, stage);
    cp_async_commit();
  }

  // --- the product
  const int row = lane / 4, quarter = lane % 4;  // of the fragment
  float out[kWideTiles][kTokenTiles][4] = {};
  float offset[kTokenTiles][2] = {};
  int slot = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();  // the copies of all threads are there, and the slot before this one is free
    {
      const int ahead = slot ? slot - 1 : Shape::kStages - 1;
      copy_codes(step + Shape::kStages - 1, ahead);
      copy_activations(step + Shape::kStages - 1, ahead);
      cp_async_commit();
    }
    if (kDepth == 1 || first_chunk + step * kDepth + warp_depth < end_chunk) {
      typename Operand::Tile tile[kWideTiles];
#pragma unroll
      for (int r = 0; r < kWideTiles; ++r)
        tile[r].load(code_slot + slot * Shape::kCodeBytes + r * Operand::kChunkBytes, window, lane);
      const uint32_t values = activation_slot + slot * Shape::kActivationBytes +
                              warp_depth * (Shape::kValueBytes + Shape::kScaleBytes);
      const uint32_t scales = values + Shape::kValueBytes + quarter * (2 * sizeof(ChunkScale));
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        typename Operand::Columns columns;
        columns.load(values + n * (8 * Operand::kValueBytes), lane);
        const uint4 s = load_shared_vector(scales + n * (8 * sizeof(ChunkScale)));
        const float scale[2] = {__uint_as_float(s.x), __uint_as_float(s.z)};
        if (Operand::kHalfOdd) {
          offset[n][0] += __uint_as_float(s.y);
          offset[n][1] += __uint_as_float(s.w);
        }
#pragma unroll
        for (int r = 0; r < kWideTiles; ++r)
          Operand::multiply_add(tile[r], columns, scale, out[r][n]);
      }
    }
    if (++slot == Shape::kStages) slot = 0;
  }

  // --- the sums, by row and column
  cp_async_wait<0>();
  __syncthreads();  // nobody reads or fills the ring any more
  constexpr int kStride = Shape::kSumsStride;
  float* sums = reinterpret_cast<float*>(shared + (Shape::kCodeRing - kFirstAddress));
#pragma unroll
  for (int r = 0; r < kWideTiles; ++r)
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float2 pair = make_float2(out[r][n][2 * u], out[r][n][2 * u + 1]);
        if (Operand::kHalfOdd) pair = {2 * pair.x + offset[n][0], 2 * pair.y + offset[n][1]};
        const int at = (warp_row * kWideTiles + r) * kTileRows + u * 8 + row;
        *reinterpret_cast<float2*>(sums + (warp_depth * kWideRows + at) * kStride + n * 8 +
                                   2 * quarter) = pair;
      }
  cluster.sync();

  // --- this block's share of the rows: added up over the cluster, and written
  const int share = kWideRows / parts;
  for (int i = thread; i < share * (kColumns / 4); i += Shape::kThreads) {
    const int at = part * share + i % share, quad = i / share;
    float4 total = make_float4(0, 0, 0, 0);
    for (int p = 0; p < parts; ++p) {
      const float* from = cluster.map_shared_rank(sums, p) + at * kStride + quad * 4;
#pragma unroll
      for (int depth = 0; depth < kDepth; ++depth) {
        const float4 v = *reinterpret_cast<const float4*>(from + depth * kWideRows * kStride);
        total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
      }
    }
    const int64_t out_row = int64_t(first_tile) * kTileRows + at;
    if (out_row >= task.rows) continue;
    const int column = first_column + quad * 4, tokens = task.activations.tokens;
    if (task.activations.slots == 1) {
      const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (column + k < tokens) write_output(task, column + k, out_row, values[k]);
    } else {
      if (column / 2 < tokens) write_output(task, column / 2, out_row, total.x + total.y);
      if (column / 2 + 1 < tokens) write_output(task, column / 2 + 1, out_row, total.z + total.w);
    }
  }
  cluster.sync();  // the others have read this block's sums
#endif
}

// The split of the columns with the least time by the count of chunk steps: whole waves of blocks,
// each with its steps and a fixed part (filling the table and the rings, adding up).
inline int wide_split(int64_t blocks, int chunks, int multiprocessors) {
  constexpr int kFixedSteps = 8;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int split = 1; split <= 8 && split <= chunks; split *= 2) {
    // Clusters of 8 do not fill every SM: a cluster lies in one of the chip's processor groups.
    const int64_t places = split == 8 ? multiprocessors / 16 * 16 : multiprocessors;
    const int64_t waves = (blocks * split + places - 1) / places;
    const int64_t time = waves * ((chunks + split - 1) / split + kFixedSteps + split / 2);
    if (time < least) least = time, best = split;
  }
  return best;
}

template <class Operand, int kTokenTiles>
int launch_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = WideShape<Operand, kTokenTiles>;
  const int columns = (task.activations.rows() + Shape::kColumns - 1) / Shape::kColumns;
  const int row_groups = (task.rows + kWideRows - 1) / kWideRows;
  const int split = wide_split(int64_t(columns) * row_groups, task.chunks, multiprocessors);
  // The groups of tokens of one group of rows follow each other: they find its codes in the L2.
  const dim3 grid = {unsigned(split), unsigned(columns), unsigned(row_groups)};
  const auto kernel = wide_kernel<Operand, kTokenTiles>;
  return launch_overlapped(kernel, grid, Shape::kThreads, kSharedBytes, split, stream, task);
}

}  // namespace pvq
