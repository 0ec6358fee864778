#include "cpu/matmul_tiles.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/matmul.h"
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
  return for_isa(matmul_kernels_portable, matmul_kernels_avx2, matmul_kernels_avx512);
#else
  return matmul_kernels_portable;
#endif
}

bool WeightTiles::has_missing() const { return false; }

int64_t WeightTiles::add_missing(int64_t, int64_t, const float*, int64_t, float*) const {
  return kNoRow;
}

bool WeightTiles::prefers_direct(int64_t) const { return false; }

std::unique_ptr<Product> WeightTiles::make_direct(int64_t) const { return nullptr; }

void WeightTiles::multiply_directly(int64_t, int64_t, const float*, int, float*, int64_t) const {}

// --- from the stored form
// ---------------------------------------------------------------------------

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

// --- from planes
// ------------------------------------------------------------------------------------

PlaneTiles::PlaneTiles(const PlanesView& planes, bool transposed)
    : WeightTiles(transposed ? planes.rows : planes.cols(),
                  transposed ? planes.cols() : planes.rows, transposed ? kPanelRows : planes.dim,
                  transposed ? planes.dim : kPanelRows),
      planes_(planes),
      transposed_(transposed) {}

void PlaneTiles::unpack(int64_t panel, int64_t c0, int64_t c1, float* tile, int64_t stride) const {
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
}

int64_t PlaneTiles::fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
                         int64_t stride) const {
  if (!transposed_) {
    for (int64_t l = l0; l < l1; l += kPanelRows)
      unpack(l / kPanelRows, i0, i1, tile + (l - l0), stride);
    return kNoRow;
  }
  clear_padding(i1 - i0, l1 - l0, tile, stride);
  alignas(64) float columns[kMaxTile * kPanelRows];
  for (int64_t i = i0; i < i1; i += kPanelRows) {
    unpack(i / kPanelRows, l0, l1, columns, kPanelRows);
    for (int64_t row = i; row < std::min(i + kPanelRows, i1); ++row)
      for (int64_t l = 0; l < l1 - l0; ++l)
        tile[(row - i0) * stride + l] = columns[l * kPanelRows + row - i];
  }
  return kNoRow;
}

bool PlaneTiles::has_missing() const { return planes_.outliers > 0; }

// The list comes from tensors that anybody may have made: nothing is read that they do not own.
int64_t PlaneTiles::add_missing(int64_t l0, int64_t l1, const float* a, int64_t tokens,
                                float* sum) const {
  const int64_t row0 = transposed_ ? 0 : l0, row1 = transposed_ ? planes_.rows : l1;
  const int64_t c0 = transposed_ ? l0 : 0, c1 = transposed_ ? l1 : planes_.cols();
  for (int64_t panel = row0 / kPanelRows; panel * kPanelRows < row1; ++panel) {
    const int64_t begin = planes_.outlier_start[panel], end = planes_.outlier_start[panel + 1];
    if (begin < 0 || end < begin || end > planes_.outliers) return panel * kPanelRows;
    const int32_t* const place = planes_.outlier_place;
    const int32_t* const last = place + end;
    for (const int32_t* p = std::lower_bound(place + begin, last, c0 * kPanelRows);
         p != last && *p < c1 * kPanelRows; ++p) {
      const int64_t row = panel * kPanelRows + *p % kPanelRows, column = *p / kPanelRows;
      if (row >= planes_.rows || column < c0 || *p < 0) return panel * kPanelRows;
      const int64_t i = transposed_ ? row : column, l = (transposed_ ? column : row) - l0;
      const float d = planes_.outlier_value[p - place];
      for (int64_t t = 0; t < tokens; ++t) sum[l * tokens + t] += d * a[i * tokens + t];
    }
  }
  return kNoRow;
}

bool PlaneTiles::prefers_direct(int64_t tokens) const {
  return !transposed_ && tokens <= matmul_kernels().direct_tokens;
}

void PlaneTiles::multiply_directly(int64_t l0, int64_t l1, const float* a, int tokens, float* c,
                                   int64_t stride) const {
  const MatmulKernels& kernels = matmul_kernels();
  const int64_t cols = planes_.cols();
  for (int64_t l = l0; l < l1; l += kPanelRows, c += kPanelRows) {
    const int64_t panel = l / kPanelRows;
    const float* scale = planes_.scale + panel * planes_.groups * kPanelRows;
    if (planes_.words) {
      const int32_t* words = planes_.words + panel * words_per_row(cols) * kPanelRows;
      kernels.direct4(words, scale, planes_.dim, planes_.groups, a, tokens, c, stride);
    } else {
      const int8_t* bytes = planes_.bytes + panel * cols * kPanelRows;
      kernels.direct8(bytes, scale, planes_.dim, planes_.groups, a, tokens, c, stride);
    }
  }
}

}  // namespace pvq
