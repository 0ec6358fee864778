// Between the stored form of a table code (core/table_codes.h) and the fragments that products read
// (cuda/table_matmul.h; cuda/table_decode.cuh says where a weight's bits lie), both ways, and
// single rows of the matrix behind fragments.
//
// Pointers are device memory, 16-byte aligned; cols is a multiple of 128. Functions launch on a
// stream (a cudaStream_t as void*), neither wait nor allocate, and return a cudaError_t.
#pragma once

#include <cstdint>

#include "core/table_codes.h"
#include "cuda/real_type.h"

namespace pvq {

// Word i holds the entries of code i, int8, first weight lowest.
struct TableWords {
  uint32_t word[kTablePoints];
};

// fragments [TableFormat::fragment_bytes] from code [rows, cols * bits / 8] and its table, which is
// host memory. Rows that fill the last tile are zero bytes.
int fragments_from_codes_cuda(const TableWords& table, const uint8_t* code, int64_t rows,
                              int64_t cols, int bits, uint8_t* fragments, void* stream);

// The inverse: the codes that the fragments were made from.
int codes_from_fragments_cuda(const uint8_t* fragments, int64_t rows, int64_t cols, int bits,
                              uint8_t* code, void* stream);

// w [count, cols]: row i is row ids[i] of row_scale * point, counted from the end if ids[i] is
// negative; NaN where there is no such row.
struct FragmentRows {
  const uint8_t* fragments;
  const uint16_t* row_scale;  // [rows] bfloat16
  const int64_t* ids;         // [count]
  int64_t count, rows, cols;
  int bits;
  RealType type;
  void* w;
};
int rows_from_fragments_cuda(const FragmentRows& task, void* stream);

}  // namespace pvq
