// Products from pyramid-table codes on the GPU (core/table_codes.h defines the codes).
//
// The kernels read the codes as fragments (cuda/fragments.h) behind a header with the table;
// cuda/table_decode.cuh says where a weight's bits lie.
#pragma once

#include "cuda/fragments.h"

namespace pvq {

constexpr int kNarrowRows = 8;  // of activations, for which the product has a kernel of its own

constexpr int64_t table_chunk_bytes(int bits) { return kTileRows * kChunkCols * bits / 8; }
// The 256 words of the table (word i holds the entries of code i, int8, first weight lowest) stand
// in front of the fragments.
constexpr int64_t kTableBytes = 256 * 4;
constexpr int64_t table_fragment_bytes(int64_t rows, int64_t cols, int bits) {
  return kTableBytes + tiles_of(rows) * (cols / kChunkCols) * table_chunk_bytes(bits);
}

// w [rows, cols] = row_scale * point, from fragments. Returns a cudaError_t.
int table_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int bits, RealType type, void* w, void* stream);

struct TableProduct {
  const uint8_t* fragments;
  const uint16_t* row_scale;  // [rows] bfloat16
  const void* x;              // [tokens, cols] of `type`, 16-byte aligned
  void* y;                    // [tokens, rows] of `type`
  void* workspace;            // table_product_workspace bytes, 16-byte aligned
  int64_t rows, cols;         // cols a multiple of 128 and of block
  int tokens;                 // 1 to kMaxProductTokens
  int bits;                   // 2, 3 or 4
  int block;                  // 0 (no rotation) or as product_block_supported says
  uint64_t seed;
  bool residual;  // activations in two int8 passes, 15 bits
  RealType type;
};

int64_t table_product_workspace(const TableProduct& task);

// y = rotate(x) W^T with int8 activations (one scale a token and 128 columns, 256 where more than
// kNarrowRows rows are multiplied together) and exact int32 sums of as many, added up in float32 in
// a fixed order. The residual pass quantizes what rounding left once more. One launch for one or
// two tokens of few columns, two launches beyond. Returns a cudaError_t.
int table_product_cuda(const TableProduct& task, void* stream);

}  // namespace pvq
