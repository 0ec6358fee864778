// Products from pyramid-table codes (core/table_codes.h) and overlapping-pyramid codes
// (core/overlap.h) on the GPU.
//
// The kernels read the codes as fragments (cuda/fragments.h) behind a header with the table;
// cuda/table_decode.cuh and cuda/overlap_decode.cuh say where a weight's bits lie.
#pragma once

#include "core/overlap.h"
#include "cuda/activation_points.h"
#include "cuda/fragments.h"

namespace pvq {

constexpr int kNarrowRows = 8;  // of activations, for which the product has a kernel of its own

// A code that products read through a table of words in shared memory: a table code of 2, 3 or 4
// bits a weight, or an overlapping-pyramid code of 4 to 8 bits for two weights.
struct TableFormat {
  bool overlap;
  int half_bits;  // twice the bits of a weight

  static PVQ_HD constexpr TableFormat table(int bits) { return {false, 2 * bits}; }
  static PVQ_HD constexpr TableFormat overlapping(int pair_bits) { return {true, pair_bits}; }
  PVQ_HD constexpr int chunk_bytes() const { return kTileRows * kChunkCols * half_bits / 16; }
  PVQ_HD constexpr int table_words() const {
    return overlap ? 1 << overlap_shape(half_bits).window_bits : 256;
  }
  // The table stands in front of the fragments. Its word i holds the entries of code i of a table
  // code, int8, first weight lowest, or the points of window i (overlap_decode.cuh).
  PVQ_HD constexpr int header_bytes() const { return table_words() * 4; }
  constexpr int64_t fragment_bytes(int64_t rows, int64_t cols) const {
    return header_bytes() + tiles_of(rows) * (cols / kChunkCols) * chunk_bytes();
  }
};

// w [rows, cols] = row_scale * point, from fragments. Returns a cudaError_t.
int table_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, TableFormat format, RealType type, void* w, void* stream);

struct TableProduct {
  const uint8_t* fragments;
  const uint16_t* row_scale;  // [rows] bfloat16
  const void* x;              // [tokens, cols] of `type`, 16-byte aligned
  void* y;                    // [tokens, rows] of `type`
  void* workspace;            // table_product_workspace bytes, 16-byte aligned
  int64_t rows, cols;         // cols a multiple of 128 and of block
  int tokens;                 // 1 to kMaxProductTokens
  TableFormat format;
  int block;  // 0 (no rotation) or as product_block_supported says
  uint64_t seed;
  bool residual;  // activations in two int8 passes, 15 bits
  RealType type;
  // Instead of x, if points.y is not null; then there is no rotation and no choice of passes.
  PointsOperand points;
};

int64_t table_product_workspace(const TableProduct& task);

// y = rotate(x) W^T with int8 activations (one scale a token and 128 columns, 256 where more than
// kNarrowRows rows are multiplied together, 1024 where more than 32 are) and exact int32 sums of as
// many, added up in float32 in a fixed order. The residual pass quantizes what rounding left once
// more. One launch for one token of few columns without it, else two launches. Points are
// multiplied as table_points.h says, in two launches. Returns a cudaError_t.
int table_product_cuda(const TableProduct& task, void* stream);

}  // namespace pvq
