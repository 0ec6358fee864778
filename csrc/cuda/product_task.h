// What a launch of a product needs: its activations, rotated and narrowed to the type that the
// tensor cores multiply, and its task.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/platform.h"
#include "cuda/fragments.h"
#include "cuda/work_split.h"

namespace pvq {

// Activations as a caller has them. Each token makes `slots` rows of the product's small operand:
// its values, and with the residual pass what rounding them left, in steps 254 times finer.
struct Activations {
  const void* x;  // [tokens, cols] of `type`
  RealType type;
  int64_t cols;
  int tokens, block;
  uint64_t seed;
  int slots;  // 1, or 2 with the residual pass
  bool sums;  // whether the product needs ChunkScale::sum

  PVQ_HD int rows() const { return tokens * slots; }
};

// A scale of 128 values and, where it is asked for, what they sum to, times the scale.
struct alignas(8) ChunkScale {
  float scale, sum;
};

// Rotated activations, value = scale * stored, with one scale a row and 128 columns:
//   values [chunks, stride, 128] int8, or float16 with a power of two as the scale. The 16-byte
//          pieces of odd rows are swapped in pairs, so that eight lanes that read one piece of two
//          rows never meet in a shared-memory bank.
//   scales [chunks, stride]
struct QuantizedActivations {
  void* values;
  ChunkScale* scales;
  int stride;      // rows of a chunk, at least Activations::rows()
  int item_bytes;  // 1 or 2

  static PVQ_HD constexpr int64_t bytes(int64_t chunks, int64_t stride, int item_bytes) {
    return chunks * stride * (kChunkCols * item_bytes + int(sizeof(ChunkScale)));
  }
  static PVQ_HD QuantizedActivations at(void* memory, int64_t chunks, int stride, int item_bytes) {
    uint8_t* values = static_cast<uint8_t*>(memory);
    return {values,
            reinterpret_cast<ChunkScale*>(values + chunks * stride * kChunkCols * item_bytes),
            stride, item_bytes};
  }
  // Piece `piece` (16 bytes) of a row of a chunk.
  PVQ_HD uint8_t* piece(int64_t chunk, int row, int piece) const {
    return static_cast<uint8_t*>(values) + (chunk * stride + row) * (kChunkCols * item_bytes) +
           ((piece ^ (row & 1)) << 4);
  }
};

struct ProductTask {
  const uint8_t* weights;  // fragments
  const uint16_t* row_scale;
  void* y;
  Activations activations;
  QuantizedActivations quantized;  // values null: the product quantizes itself
  int rows, chunks;                // chunks of a tile
  // Of the wide products: blocks that have written their sums of a group, and the sums.
  unsigned* counters;
  float* partials;
};

// Rotates and narrows the activations of a task. Rows of the quantized form beyond those of the
// activations become zeros, and so do `num_counters` counters. Returns a cudaError_t.
int quantize_activations(const ProductTask& task, int num_counters, cudaStream_t stream);

// Rows and activations that a block of the wide products takes at a time.
constexpr int kWideRows = 256;
constexpr int kWideSlots = 3;  // of partial sums a block: two cut groups, and a whole one

// The memory of a wide product besides its operands: `columns` rows of activations at a time.
struct WideWorkspace {
  int64_t quantized, counters, partials;  // bytes of each, which follow each other

  WideWorkspace(int64_t rows, int64_t chunks, int64_t stride, int item_bytes, int columns);
  int64_t bytes() const { return quantized + counters + partials; }
  int num_counters() const { return int(counters / sizeof(unsigned)); }
  // Points a task at it.
  void place(void* memory, int64_t stride, int item_bytes, ProductTask* task) const;
};

// How a wide product shares out its work.
struct WidePlan {
  WorkSplit split;
  int column_groups;  // groups of activations
};

struct DeviceLimits {
  int multiprocessors = 0, shared = 0, major = 0;
};

// Of the current device, read once.
const DeviceLimits& device_limits();

}  // namespace pvq
