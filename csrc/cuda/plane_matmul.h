// Products from pyramid points on the GPU, kept as planes of small integers.
//
// A chunk (16 rows x 128 columns, fragments.h) of lane l = 4 g + t holds rows g and g + 8 (u = 0,
// 1) and columns 64 b + 16 t ... + 15 (b = 0, 1): four groups of 16 weights of a row. The weights
// are v = y + 2^(bits - 1), four at a time (a leaf q of the group, columns 4 q + i), in sections
// that give each lane its bytes in turn:
//
//   bits 4, 6   for b: 16 bytes  [u][q / 2][i], v mod 16 of leaf q in the low or high half
//   bits 6      16 bytes         [b][u][i], v / 16 of leaf q in bits 2 q and 2 q + 1
//   bits 8      for b, u: 16 bytes  [q][i]
//   all         [b][u] float16, the scale of the 16 weights, or [b][u][2] of 8 and 8
//
// weight = row_scale * scale * y. Four bits hold -8 ... 7, six -32 ... 31, eight -128 ... 127.
#pragma once

#include "cuda/fragments.h"

namespace pvq {

// group: weights that share a scale, 8 or 16.
constexpr int64_t plane_chunk_bytes(int bits, int group) {
  return kTileRows * kChunkCols * bits / 8 + kTileRows * kChunkCols / group * 2;
}

// For more tokens the matrix should be expanded once, and the library multiply.
constexpr int64_t kMaxPlaneTokens = 2048;

struct PlaneProduct {
  const uint8_t* fragments;
  const uint16_t* row_scale;  // [rows] bfloat16
  const void* x;              // [tokens, cols] of `type`, 16-byte aligned
  void* y;                    // [tokens, rows] of `type`
  void* workspace;            // plane_product_workspace bytes, 16-byte aligned
  int64_t rows, cols;         // cols a multiple of 128 and of block
  int tokens;                 // 1 or more
  int bits, group;            // 4, 6 or 8; 8 or 16
  int block;                  // as product_block_supported says
  uint64_t seed;
  RealType type;
};

int64_t plane_product_workspace(const PlaneProduct& task);

// y = rotate(x) W^T with float16 activations (in units of a power of two for each token, of up to
// 64 tokens for each 256 of its columns), weights scale * y rounded to float16, sums in float32 in
// a fixed order. Two launches. Returns a cudaError_t.
int plane_product_cuda(const PlaneProduct& task, void* stream);

// w [rows, cols] = row_scale * scale * y, from fragments. Returns a cudaError_t.
int plane_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int bits, int group, RealType type, void* w, void* stream);

}  // namespace pvq
