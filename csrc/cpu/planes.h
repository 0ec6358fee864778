// Planes: the layout that the CPU multiplies from, made once from the stored form (code.h).
//
// The stored index costs tens of instructions a weight to undo; planes cost two and take 4 or 8
// bits a weight plus 32 bits a group. Rows are taken in panels of 16, one vector lane a row, so
// that one vector holds one column of a panel and a product needs neither shuffles nor a transposed
// input:
//
//   planes, 4 bits   int32 [panels, ceil(cols / 8), 16]: bits 4t .. 4t+3 of planes[p, q, j] are
//                    y[16p + j, 8q + t] in two's complement, -8 to 7, for every dim
//   planes, 8 bits   int8 [panels, cols, 16]: planes[p, c, j] = y[16p + j, c], -128 to 127
//   scale            float32 [panels, groups, 16]: row_scale * level / ||y|| of row 16p + j
//
// What rows after the last and columns after the last would hold is zero. An integer that does not
// fit is clipped, and what the clipping took away stands in a list, panel after panel:
//
//   outlier_start    int32 [panels + 1]: panel p owns entries start[p] to start[p + 1]
//   outlier_place    int32 [outliers]: 16c + j for row 16p + j, column c; ascending in a panel
//   outlier_value    float32 [outliers]: scale * (y - clipped y)
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/code.h"

namespace pvq {

constexpr int64_t kPanelRows = 16;

struct PlanesView {
  const int32_t* words;  // the one that the other is not
  const int8_t* bytes;
  const float* scale;
  const int32_t* outlier_start;
  const int32_t* outlier_place;
  const float* outlier_value;
  int64_t rows, groups, outliers;
  int dim;

  int64_t cols() const { return groups * dim; }
};

inline int64_t panel_count(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
inline int64_t words_per_row(int64_t cols) { return (cols + 7) / 8; }

// 4 where integers beyond -8 to 7 cannot occur or are rarer than about one in a hundred, else 8.
int plane_bits(int dim, int pulses);

struct Outlier {
  int32_t place;
  float value;
};

// Fills one panel's planes and scale, both zeroed by the caller, and its outliers. Returns -1, or
// the row whose index names no point.
int64_t write_panel(const CodeView& code, int64_t panel, int32_t* words, float* scale,
                    std::vector<Outlier>* outliers);
int64_t write_panel(const CodeView& code, int64_t panel, int8_t* bytes, float* scale,
                    std::vector<Outlier>* outliers);

}  // namespace pvq
