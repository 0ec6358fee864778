// Block Hadamard transform on the CPU.
//
// A contiguous [rows, cols] array is a sequence of rows * cols / block blocks. Each block v becomes
//   forward:  (1 / sqrt(block)) H (s v)        inverse:  s (H^T v) / sqrt(block)
// with H = H_m (x) H_(2^k) for block = m * 2^k (core/hadamard_factors.h), element i * 2^k + j, and
// s the signs of the block's columns (core/signs.h).
//
// Every instruction set adds in the same order, so results do not depend on it: the 2^k part first,
// butterflies of distance 1, 2, 4, ..., then H_m. The factor 1 / sqrt(block) is applied to the
// input.
#pragma once

#include <cstdint>

namespace pvq {

// Transforms blocks [first_block, last_block) of the array that starts at `in` into the array that
// starts at `out`; in == out is allowed, partial overlap is not. cols is a multiple of block, and
// block is supported (split_hadamard_block). sign_words: the signs of the cols columns, or null for
// none. Ranges of blocks may run on different threads.
void hadamard_blocks(const float* in, float* out, int64_t cols, int block,
                     const uint64_t* sign_words, bool inverse, int64_t first_block,
                     int64_t last_block);

// The same for float64 (computed in float64).
void hadamard_blocks(const double* in, double* out, int64_t cols, int block,
                     const uint64_t* sign_words, bool inverse, int64_t first_block,
                     int64_t last_block);

// The same for the bits of float16 and bfloat16: computed in float32, rounded once to nearest even.
void hadamard_blocks_float16(const uint16_t* in, uint16_t* out, int64_t cols, int block,
                             const uint64_t* sign_words, bool inverse, int64_t first_block,
                             int64_t last_block);
void hadamard_blocks_bfloat16(const uint16_t* in, uint16_t* out, int64_t cols, int block,
                              const uint64_t* sign_words, bool inverse, int64_t first_block,
                              int64_t last_block);

}  // namespace pvq
