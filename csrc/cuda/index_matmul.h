// Products on the GPU from exact indices, which are decoded as they are multiplied: pyramids of 8
// and 16 dimensions in as many bits as in the file.
//
// A group is a number of `bits` bits: from the highest on the word of its point (core/regions.h),
// its gain code, and the signs of its leaves, the first leaf's lowest. A lane l = 4 g + t holds, of
// a chunk (16 rows x 128 columns, fragments.h), rows g and g + 8 (u = 0, 1) and columns 64 b + 16 t
// ... + 15 (b = 0, 1), in sets of four groups: group 2 b + u of the one set for D = 16; group
// 2 u + h of set b, h the half of the 16 columns, for D = 8. A set is a section for each power of
// two in the sum that makes `bits`, the largest first, which hold the numbers' next bits from the
// highest on:
//
//   32, 16, 8, 4, 2   4 fields a lane, group 0 lowest: 16, 8, 4, 2 and 1 bytes
//   1                 a byte for two lanes, the even one's four bits lowest
//
// So a set has 16 * bits bytes. All zeros are a number of a point; kernels look other numbers up
// unchecked, so that what comes from outside must be checked as an index (cuda/decode.h).
// weight = row_scale * level[gain] * y / ||y||.
#pragma once

#include "core/regions.h"
#include "cuda/fragments.h"
#include "cuda/index_form.h"

namespace pvq {

// Every 64 tokens decode the matrix anew: for more than so many it should be expanded once, and the
// library multiply.
constexpr int64_t kMaxIndexTokens = 128;

// Of a group, at most 60.
inline int index_group_bits(const Regions& regions, int gain_bits) {
  return regions.bits + regions.dim / 4 + gain_bits;
}
constexpr int64_t index_chunk_bytes(int dim, int bits) { return int64_t(16 / dim) * 16 * bits; }

// The form of a code on the current device, whose tables are made by the first call and kept for
// the life of the process; that call waits for a copy. levels: [2^gain_bits], the same array for
// the same levels (core/gain.h). Returns a cudaError_t.
int index_form_cuda(const Regions& regions, int gain_bits, const float* levels, IndexForm* form);

struct IndexProduct {
  const uint8_t* fragments;
  const uint16_t* row_scale;  // [rows] bfloat16
  const void* x;              // [tokens, cols] of `type`, 16-byte aligned
  void* y;                    // [tokens, rows] of `type`
  void* workspace;            // index_product_workspace bytes, 16-byte aligned
  int64_t rows, cols;         // cols a multiple of 128 and of block
  int tokens;                 // 1 or more
  int dim;                    // 8 or 16
  IndexForm form;
  int block;  // as product_block_supported says
  uint64_t seed;
  RealType type;
};

int64_t index_product_workspace(const IndexProduct& task);

// y = rotate(x) W^T, sums in float32 in a fixed order: of one or two tokens, if their columns fit
// shared memory, with activations of 16 bits (a scale for each 128 columns) and weights as they
// are; else with float16 activations (one power of two a token and 256 columns) and weights level *
// y /
// ||y|| rounded to float16. Two launches. Returns a cudaError_t.
int index_product_cuda(const IndexProduct& task, void* stream);

// w [rows, cols], from fragments. Returns a cudaError_t.
int index_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int dim, const IndexForm& form, RealType type, void* w,
                      void* stream);

}  // namespace pvq
