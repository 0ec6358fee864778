// Activation points: the choice of kernels, and the driver of the product with planes.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/bfloat16.h"
#include "cpu/isa.h"
#include "cpu/matmul_tiles.h"
#include "cpu/points.h"
#include "cpu/points_kernels.h"

namespace pvq {
namespace {

constexpr int kDigit = 128;

// The bytes of y [count]: y itself, or, if `split`, the low (shift 0) or high (shift 1) digit of
// y = low + 128 * high with -64 <= low < 64.
void take_digits(const int16_t* y, int64_t count, bool split, int shift, int8_t* out) {
  if (!split) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int8_t>(y[i]);
  } else if (shift == 0) {
    for (int64_t i = 0; i < count; ++i)
      out[i] = static_cast<int8_t>(((y[i] + kDigit / 2) & (kDigit - 1)) - kDigit / 2);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int8_t>((y[i] + kDigit / 2) >> 7);
  }
}

// Bytes 0 2 4 6 and then 1 3 5 7 of a word (little endian, as all of the library).
uint64_t even_then_odd(uint64_t word) {
  const auto gathered = [](uint64_t bytes) {  // the even bytes, in the lower half
    bytes &= 0x00FF00FF00FF00FFull;
    bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFFull;
    return (bytes | bytes >> 16) & 0xFFFFFFFFull;
  };
  return gathered(word) | gathered(word >> 8) << 32;
}

}  // namespace

const PointsKernels& points_kernels() {
#ifdef PVQ_X86
  return for_isa(points_kernels_portable, points_kernels_avx2, points_kernels_avx512);
#else
  return points_kernels_portable;
#endif
}

bool activation_points(const float* x, int64_t count, int dim, int pulses, int16_t* y,
                       uint16_t* amplitude) {
  return points_kernels().round(x, count, dim, pulses, y, amplitude);
}

bool PointsProduct::supports(int planes_dim, int points_dim) {
  return planes_dim % 8 == 0 && points_dim % planes_dim == 0;
}

PointsProduct::PointsProduct(const PointsView& points, const PlanesView& planes)
    : points_(points), planes_(planes) {
  const int64_t count = points.tokens * points.cols;
  digits_.resize(points.largest < kDigit ? 1 : 2);
  for (size_t shift = 0; shift < digits_.size(); ++shift) pack(int(shift), &digits_[shift]);
  if (planes.outliers == 0) return;
  // Group after group, so that the columns that are written stay in the cache.
  const int64_t tokens = points.tokens, cols = points.cols, groups = cols / points.dim;
  decoded_.resize(count);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t t = 0; t < tokens; ++t) {
      const float amplitude = from_bfloat16(points.amplitude[t * groups + g]);
      for (int64_t c = g * points.dim; c < (g + 1) * points.dim; ++c)
        decoded_[c * tokens + t] = amplitude * points.y[t * cols + c];
    }
}

void PointsProduct::pack(int shift, Digits* digits) const {
  const bool nibbles = planes_.words != nullptr;
  const int64_t cols = points_.cols, groups = planes_.groups, amplitudes = cols / points_.dim;
  digits->y.resize(points_.tokens * cols);
  digits->offset.resize(points_.tokens * groups);
  digits->amplitude.resize(points_.tokens * amplitudes);
  std::vector<int8_t> row(cols);
  for (int64_t first = 0; first < points_.tokens; first += kPointTokens) {
    const int64_t tokens = std::min<int64_t>(kPointTokens, points_.tokens - first);
    int8_t* y = digits->y.data() + first * cols;
    int32_t* offset = digits->offset.data() + first * groups;
    float* amplitude = digits->amplitude.data() + first * amplitudes;
    for (int64_t t = 0; t < tokens; ++t) {
      take_digits(points_.y + (first + t) * cols, cols, digits_.size() > 1, shift, row.data());
      for (int64_t g = 0; g < groups; ++g) {
        const int8_t* group = row.data() + g * planes_.dim;
        offset[g * tokens + t] = std::accumulate(group, group + planes_.dim, int32_t{0});
      }
      if (nibbles) {
        for (int64_t c = 0; c < cols; c += 8) {
          uint64_t word;
          std::memcpy(&word, row.data() + c, sizeof(word));
          word = even_then_odd(word);
          std::memcpy(y + c * tokens + t * 8, &word, sizeof(word));
        }
      } else {
        for (int64_t c = 0; c < cols; c += 4)
          std::memcpy(y + c * tokens + t * 4, row.data() + c, 4);
      }
      for (int64_t a = 0; a < amplitudes; ++a)
        amplitude[a * tokens + t] =
            from_bfloat16(points_.amplitude[(first + t) * amplitudes + a]) * (shift ? kDigit : 1);
    }
  }
}

int64_t PointsProduct::multiply(int64_t begin, int64_t end, float* out) const {
  const PointsKernels& kernels = points_kernels();
  const PlaneTiles tiles(planes_, /*transposed=*/false);
  const int64_t rows = planes_.rows, tokens = points_.tokens, cols = points_.cols;
  std::vector<float> c(tokens * kPanelRows), missing(tiles.has_missing() ? c.size() : 0);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t l0 = panel * kPanelRows, l1 = std::min(l0 + kPanelRows, rows);
    const float* scale = planes_.scale + panel * planes_.groups * kPanelRows;
    std::fill(c.begin(), c.end(), 0.0f);
    for (const Digits& digits : digits_) {
      for (int64_t t = 0; t < tokens; t += kPointTokens) {
        const PointsBlock block = {digits.y.data() + t * cols,
                                   digits.offset.data() + t * planes_.groups,
                                   digits.amplitude.data() + t * (cols / points_.dim),
                                   planes_.groups,
                                   planes_.dim,
                                   points_.dim / planes_.dim,
                                   static_cast<int>(std::min<int64_t>(kPointTokens, tokens - t))};
        float* sums = c.data() + t * kPanelRows;
        if (planes_.words)
          kernels.multiply4(planes_.words + panel * words_per_row(cols) * kPanelRows, scale, block,
                            sums, kPanelRows);
        else
          kernels.multiply8(planes_.bytes + panel * cols * kPanelRows, scale, block, sums,
                            kPanelRows);
      }
    }
    if (tiles.has_missing()) {
      std::fill(missing.begin(), missing.end(), 0.0f);
      const int64_t bad = tiles.add_missing(l0, l1, decoded_.data(), tokens, missing.data());
      if (bad != kNoRow) return bad;
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t l = 0; l < l1 - l0; ++l) c[t * kPanelRows + l] += missing[l * tokens + t];
    }
    for (int64_t t = 0; t < tokens; ++t)
      std::copy_n(c.data() + t * kPanelRows, l1 - l0, out + t * rows + l0);
  }
  return kNoRow;
}

}  // namespace pvq
