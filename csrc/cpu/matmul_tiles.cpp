#include "cpu/matmul_tiles.h"

#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/matmul_kernels.h"

namespace pvq {
namespace {

// Zeros lanes from `lanes` up to a multiple of 16.
void clear_padding(int64_t depth, int64_t lanes, float* tile, int64_t stride) {
  const int64_t padding = -lanes & (kLanes - 1);
  for (int64_t i = 0; i < depth; ++i) std::fill_n(tile + i * stride + lanes, padding, 0.0f);
}

}  // namespace

const MatmulKernels& matmul_kernels() {
#ifdef PVQ_X86
  switch (cpu_isa()) {
    case Isa::kAmx:
    case Isa::kAvx512:
      return matmul_kernels_avx512;
    case Isa::kAvx2:
      return matmul_kernels_avx2;
    default:
      break;
  }
#endif
  return matmul_kernels_portable;
}

int64_t WeightTiles::multiply_directly(int64_t, int64_t, const float*, int, float*, int64_t) const {
  return kNoRow;
}

// --- from the stored form ---------------------------------------------------------------------------

CodeTiles::CodeTiles(const CodeView& code, bool transposed)
    : WeightTiles(transposed ? code.rows : code.cols, transposed ? code.cols : code.rows,
                  transposed ? 1 : code.dim, transposed ? code.dim : 1),
      code_(code),
      transposed_(transposed) {}

int64_t CodeTiles::fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
                        int64_t stride) const {
  const int64_t row0 = transposed_ ? i0 : l0, row1 = transposed_ ? i1 : l1;
  const int64_t c0 = transposed_ ? l0 : i0, c1 = transposed_ ? l1 : i1;
  const int64_t row_step = transposed_ ? stride : 1, column_step = transposed_ ? 1 : stride;
  clear_padding(i1 - i0, l1 - l0, tile, stride);
  int16_t y[kMaxTile];
  float scale[kMaxTile];
  const int dim = code_.dim;
  const int64_t groups = (c1 - c0) / dim;
  for (int64_t row = row0; row < row1; ++row) {
    if (!decode_groups(code_, row, c0 / dim, c0 / dim + groups, y, scale)) return row;
    float* out = tile + (row - row0) * row_step;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t c = g * dim; c < (g + 1) * dim; ++c)
        out[c * column_step] = scale[g] * static_cast<float>(y[c]);
  }
  return kNoRow;
}

// --- from planes ------------------------------------------------------------------------------------

namespace {

// Calls use(lane, column, value) for the outliers of one panel in columns [c0, c1). The lists come
// from tensors that anybody may have made: nothing is read that they do not own. Returns kNoRow or
// a row whose list is damaged.
template <class Use>
int64_t visit_outliers(const PlanesView& planes, int64_t panel, int64_t c0, int64_t c1, Use use) {
  const int64_t row0 = panel * kPanelRows, row1 = std::min(row0 + kPanelRows, planes.rows);
  const int64_t cols = planes.cols();
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t begin = planes.outlier_start[row], end = planes.outlier_start[row + 1];
    if (begin == end) continue;
    if (begin < 0 || end < begin || end > planes.outliers) return row;
    const int32_t* column = planes.outlier_column;
    const int32_t* last = column + end;
    for (const int32_t* p = c0 > 0 ? std::lower_bound(column + begin, last, c0) : column + begin;
         p != last && *p < c1; ++p) {
      if (*p < c0 || *p >= cols) return row;
      use(row - row0, *p, planes.outlier_value[p - column]);
    }
  }
  return kNoRow;
}

}  // namespace

PlaneTiles::PlaneTiles(const PlanesView& planes, bool transposed)
    : WeightTiles(transposed ? planes.rows : planes.cols(), transposed ? planes.cols() : planes.rows,
                  transposed ? kPanelRows : planes.dim, transposed ? planes.dim : kPanelRows),
      planes_(planes),
      transposed_(transposed) {}

int64_t PlaneTiles::unpack(int64_t panel, int64_t c0, int64_t c1, float* tile,
                           int64_t stride) const {
  const MatmulKernels& kernels = matmul_kernels();
  const int64_t cols = planes_.cols(), g0 = c0 / planes_.dim, g1 = c1 / planes_.dim;
  const float* scale = planes_.scale + panel * planes_.groups * kPanelRows;
  if (planes_.words) {
    const int32_t* words = planes_.words + panel * words_per_row(cols) * kPanelRows;
    kernels.unpack4(words, scale, planes_.dim, g0, g1, tile, stride);
  } else {
    const int8_t* bytes = planes_.bytes + panel * cols * kPanelRows;
    kernels.unpack8(bytes, scale, planes_.dim, g0, g1, tile, stride);
  }
  return visit_outliers(planes_, panel, c0, c1, [&](int64_t lane, int64_t column, float value) {
    tile[(column - c0) * stride + lane] += value;
  });
}

int64_t PlaneTiles::fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
                         int64_t stride) const {
  if (!transposed_) {
    for (int64_t l = l0; l < l1; l += kPanelRows) {
      const int64_t row = unpack(l / kPanelRows, i0, i1, tile + (l - l0), stride);
      if (row != kNoRow) return row;
    }
    return kNoRow;
  }
  clear_padding(i1 - i0, l1 - l0, tile, stride);
  alignas(64) float columns[kMaxTile * kPanelRows];
  for (int64_t i = i0; i < i1; i += kPanelRows) {
    const int64_t bad = unpack(i / kPanelRows, l0, l1, columns, kPanelRows);
    if (bad != kNoRow) return bad;
    for (int64_t row = i; row < std::min(i + kPanelRows, i1); ++row)
      for (int64_t l = 0; l < l1 - l0; ++l)
        tile[(row - i0) * stride + l] = columns[l * kPanelRows + row - i];
  }
  return kNoRow;
}

bool PlaneTiles::prefers_direct(int64_t tokens) const {
  return !transposed_ && tokens <= kDirectTokens;
}

int64_t PlaneTiles::multiply_directly(int64_t l0, int64_t l1, const float* a, int tokens, float* c,
                                      int64_t stride) const {
  const MatmulKernels& kernels = matmul_kernels();
  const int64_t cols = planes_.cols();
  alignas(64) float sum[kDirectTokens * kLanes];
  for (int64_t panel = l0 / kPanelRows; panel * kPanelRows < l1; ++panel) {
    const float* scale = planes_.scale + panel * planes_.groups * kPanelRows;
    if (planes_.words) {
      const int32_t* words = planes_.words + panel * words_per_row(cols) * kPanelRows;
      kernels.direct4(words, scale, planes_.dim, planes_.groups, a, tokens, sum);
    } else {
      const int8_t* bytes = planes_.bytes + panel * cols * kPanelRows;
      kernels.direct8(bytes, scale, planes_.dim, planes_.groups, a, tokens, sum);
    }
    const int64_t bad =
        visit_outliers(planes_, panel, 0, cols, [&](int64_t lane, int64_t column, float value) {
          for (int t = 0; t < tokens; ++t) sum[t * kLanes + lane] += value * a[column * tokens + t];
        });
    if (bad != kNoRow) return bad;
    for (int t = 0; t < tokens; ++t)
      std::memcpy(c + t * stride + panel * kPanelRows - l0, sum + t * kLanes, kLanes * sizeof(float));
  }
  return kNoRow;
}

}  // namespace pvq
