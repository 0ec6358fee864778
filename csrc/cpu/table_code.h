// The stored form of a pyramid-table code (core/table_codes.h) as the CPU kernels see it.
#pragma once

#include <cstdint>

#include "core/bfloat16.h"
#include "core/table_codes.h"

namespace pvq {

struct TableView {
  const uint8_t* code;        // [rows, row_bytes()]
  const uint16_t* row_scale;  // [rows] bfloat16 bits
  int64_t rows, cols;         // cols is a multiple of kTableStep
  int bits;                   // 2, 3 or 4

  int64_t row_bytes() const { return table_row_bytes(bits, cols); }
  const uint8_t* row(int64_t r) const { return code + r * row_bytes(); }
  float scale(int64_t r) const { return from_bfloat16(row_scale[r]); }
};

// w [c1 - c0] = columns [c0, c1) of a row, exact in float32; c0 and c1 are multiples of kTableStep.
void dequantize_table(const TableView& code, int64_t row, int64_t c0, int64_t c1, float* w);

}  // namespace pvq
