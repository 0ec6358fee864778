// The stored form of an overlapping-pyramid code (core/overlap.h) as the CPU kernels see it: rows
// of symbols, lowest bit first, and a table of int8 with two points in each row, of groups of two
// weights or four.
#pragma once

#include <cstdint>

#include "core/bfloat16.h"
#include "core/overlap.h"
#include "cpu/overlap_decode.h"
#include "cpu/overlap_rows.h"

namespace pvq {

// Whether codes of this trellis are decoded: of such groups, of which kOverlapStep columns are
// whole bytes.
PVQ_HD constexpr bool overlap_decodes(const OverlapTrellis& t) {
  return t.spread ? t.dim == kSpreadDim && t.step_bits == 8 && t.window_bits == 8
                  : t.dim == 2 || (t.dim == 4 && t.step_bits % 2 == 0);
}

PVQ_HD constexpr int64_t overlap_row_bytes(const OverlapTrellis& t, int64_t cols) {
  return cols / t.dim * t.stored_bits() / 8;
}

struct OverlapView {
  const uint8_t* code;        // [rows, row_bytes()]
  const uint16_t* row_scale;  // [rows] bfloat16 bits
  const int8_t* table;        // [trellis.rows()][2][trellis.dim]
  int64_t rows, cols;         // cols is a multiple of kOverlapStep
  OverlapTrellis trellis;
  int spread;              // 0 without one
  OverlapWindows windows;  // of the trellis
  // Both null, or the functions for whole rings and what they need (overlap_rows.h).
  const OverlapRows* ring_rows = nullptr;
  const OverlapPlanes* planes = nullptr;

  int64_t row_bytes() const { return overlap_row_bytes(trellis, cols); }
  const uint8_t* row(int64_t r) const { return code + r * row_bytes(); }
  float scale(int64_t r) const { return from_bfloat16(row_scale[r]); }
  // Of a row's rings, the last one aside if it is shorter than the others.
  int64_t ring_columns() const { return cols / kOverlapBlock * kOverlapBlock; }
};

// y [c1 - c0] = the integers of columns [c0, c1) of a row; c0 and c1 are multiples of kOverlapStep.
void decode_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, int8_t* y);

// The same times the row's scale.
void dequantize_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, float* w);

}  // namespace pvq
