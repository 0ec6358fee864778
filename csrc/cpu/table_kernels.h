// The inner loops of products with pyramid-table codes, one table of functions for each instruction
// set and width. Rows are given by their stored bytes (core/table_codes.h), columns in multiples
// of 8.
#pragma once

#include <stdint.h>

namespace pvq {

constexpr int kTileLanes = 16;  // rows that `fill` takes, kLanes of matmul_kernels.h

struct TableKernels {
  // tile[(c - c0) * stride + lane] = columns [c0, c1) of 16 rows, times scale[lane].
  void (*fill)(const uint8_t* const* rows, int64_t cols, int64_t c0, int64_t c1, const float* scale,
               float* tile, int64_t stride);

  // The product without a tile, for so few tokens, up to direct_tokens, that it is faster:
  // c[t * stride + r] += scale[r] * sum over columns [c0, c1) of row[r][column] * x[t][column],
  // for rows r < count that lie row_bytes apart. c0 is a multiple of direct_step, and so is c1
  // unless it is cols. x is [tokens, cols], or what `pack` makes of it.
  int direct_tokens;
  int64_t direct_step;
  void (*direct)(const uint8_t* rows, int64_t row_bytes, int64_t count, int64_t cols, int64_t c0,
                 int64_t c1, const float* scale, const float* x, int tokens, float* c,
                 int64_t stride);

  // Columns [c0, c1) of x [tokens, cols] into packed, packed_columns(cols) * tokens floats; both
  // null where `direct` takes x as it is.
  void (*pack)(const float* x, int64_t cols, int64_t c0, int64_t c1, int tokens, float* packed);
  int64_t (*packed_columns)(int64_t cols);
};

// For 2, 3 or 4 bits, the table of the instruction set in use (isa.h).
const TableKernels& table_kernels(int bits);

extern const TableKernels table_kernels_portable[3];
#ifdef PVQ_X86
extern const TableKernels table_kernels_avx2[3];
extern const TableKernels table_kernels_avx512[3];
#endif

}  // namespace pvq
