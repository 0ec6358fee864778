// From the stored form to planes (planes.h).
#include "cpu/planes.h"

#include <algorithm>

namespace pvq {
namespace {

template <class Store>
int64_t write_rows(const CodeView& code, int64_t panel, int low, int high, float* scale,
                   std::vector<Outlier>* outliers, Store store) {
  const int64_t groups = code.cols / code.dim;
  std::vector<int16_t> y(code.cols);
  std::vector<float> row_scale(groups);
  const int64_t first = panel * kPanelRows, last = std::min(first + kPanelRows, code.rows);
  for (int64_t row = first; row < last; ++row) {
    const int64_t lane = row - first;
    if (!decode_groups(code, row, 0, groups, y.data(), row_scale.data())) return row;
    for (int64_t g = 0; g < groups; ++g) {
      const float s = row_scale[g];
      scale[g * kPanelRows + lane] = s;
      for (int64_t c = g * code.dim; c < (g + 1) * code.dim; ++c) {
        const int clipped = std::clamp<int>(y[c], low, high);
        store(c, lane, clipped);
        if (clipped != y[c])
          outliers->push_back({static_cast<int32_t>(c * kPanelRows + lane),
                               s * static_cast<float>(y[c] - clipped)});
      }
    }
  }
  std::sort(outliers->begin(), outliers->end(),
            [](const Outlier& a, const Outlier& b) { return a.place < b.place; });
  return -1;
}

}  // namespace

// A coordinate of a quantized Gaussian group is about normal with mean magnitude K / D, so its
// standard deviation is K / D * sqrt(pi / 2). Beyond 7.5 lies one in a hundred when that is
// 7.5 / 2.576 = 2.91, K / D = 2.32. An outlier costs about as much as the 4 bits a weight that a
// hundred of them save.
int plane_bits(int dim, int pulses) { return pulses <= 7 || 3 * pulses <= 7 * dim ? 4 : 8; }

int64_t write_panel(const CodeView& code, int64_t panel, int32_t* words, float* scale,
                    std::vector<Outlier>* outliers) {
  return write_rows(code, panel, -8, 7, scale, outliers, [&](int64_t c, int64_t lane, int value) {
    uint32_t word = static_cast<uint32_t>(words[c / 8 * kPanelRows + lane]);
    word |= (static_cast<uint32_t>(value) & 15u) << (c % 8 * 4);
    words[c / 8 * kPanelRows + lane] = static_cast<int32_t>(word);
  });
}

int64_t write_panel(const CodeView& code, int64_t panel, int8_t* bytes, float* scale,
                    std::vector<Outlier>* outliers) {
  return write_rows(code, panel, -128, 127, scale, outliers,
                    [&](int64_t c, int64_t lane, int value) {
                      bytes[c * kPanelRows + lane] = static_cast<int8_t>(value);
                    });
}

}  // namespace pvq
