// Rows of the library's overlapping-pyramid codes (overlap_shape) in units of 64 groups, for
// instruction sets that look bytes up in registers.
//
// A unit is 64 * dim columns: a ring of groups of two weights, or two rings of groups of four, the
// second of which may be missing at a row's end. Columns behind a row's last whole ring are not
// their business.
#pragma once

#include <stdint.h>

#include "core/overlap.h"

namespace pvq {

constexpr int kUnitGroups = 64;
// The most tokens of products straight from the stored rows: for these few they are faster than
// tiles, and their sums stay in registers.
constexpr int kMostDirectTokens = 6;

// The table of a code by point and weight, for look-ups by byte: at[point][weight][old][byte] is of
// the window whose newest eight bits are `byte`, and whose oldest of nine is `old`.
struct OverlapPlanes {
  alignas(64) uint8_t at[2][4][2][256];
  int pair_bits;  // of the code: 4 to 8
  int spread;

  int dim() const { return overlap_shape(pair_bits).dim; }
  int unit_columns() const { return kUnitGroups * dim(); }
};

struct OverlapRows {
  // y [128 * rings] = the integers of so many rings; rings is 1, or 2 where a unit has two.
  // `readable`: bytes from rings_at on, in the rings or behind them.
  void (*decode)(const OverlapPlanes& planes, const uint8_t* rings_at, int rings, int64_t readable,
                 int8_t* y);

  // Columns [0, columns) of x [tokens, cols] for `direct`, whole units with zeros behind:
  // unit_columns() * tokens floats each.
  void (*pack)(const OverlapPlanes& planes, const float* x, int64_t cols, int64_t columns,
               int tokens, int64_t first_unit, int64_t end_unit, float* packed);
  // c[t * stride + r] += scale[r] * sum over the columns of units [first, end), below `columns`, of
  // row[r][column] * x[t][column], for rows r < count that lie row_bytes apart.
  void (*direct)(const OverlapPlanes& planes, const uint8_t* rows, int64_t row_bytes, int64_t count,
                 int64_t columns, int64_t first_unit, int64_t end_unit, const float* scale,
                 const float* packed, int tokens, float* c, int64_t stride);
};

// Fills *planes and returns the functions for a code; null if there are none for it here. `table`
// is [trellis.rows()][2][dim].
const OverlapRows* overlap_rows(const OverlapTrellis& trellis, const int8_t* table, int spread,
                                OverlapPlanes* planes);

#ifdef PVQ_X86
extern const OverlapRows overlap_rows_vbmi;
#endif

}  // namespace pvq
