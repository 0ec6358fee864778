#include "cpu/table_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bfloat16.h"
#include "core/table_codes.h"
#include "cpu/isa.h"

namespace pvq {
namespace {

constexpr float kLowest = 0.4f, kHighest = 2.5f, kStep = 1.13f;
constexpr float kFineSteps[] = {1.06f, 1.03f, 1.015f, 1.0075f};
constexpr int kRefits = 2;

struct Trial {
  double gain;  // by how much the points reduce the row's energy
  float scale, refit;
};

Trial attempt(const TableSearch& search, const float* sorted, int64_t groups, float scale) {
  const TableFit fit = search.fit(sorted, groups, scale);
  if (!(fit.square > 0)) return {0, scale, scale};
  return {fit.product * fit.product / fit.square, scale, float(fit.product / fit.square)};
}

template <int kBits>
constexpr float largest_magnitude() {
  int largest = 0;
  for (const auto& leader : TableCode<kBits>::kLeaders) largest = std::max<int>(largest, leader[0]);
  return float(table_magnitude<kBits>(largest));
}

struct Scales {
  float gaussian, largest_magnitude;
};
constexpr Scales kScales[] = {{TableCode<2>::kGaussianScale, largest_magnitude<2>()},
                              {TableCode<3>::kGaussianScale, largest_magnitude<3>()},
                              {TableCode<4>::kGaussianScale, largest_magnitude<4>()}};

}  // namespace

const TableSearch& table_search(int bits) {
#ifdef PVQ_X86
  return for_isa(table_search_portable[bits - 2], table_search_avx2[bits - 2],
                 table_search_avx512[bits - 2]);
#else
  return table_search_portable[bits - 2];
#endif
}

TableQuantizer::TableQuantizer(int bits, int64_t cols)
    : bits_(bits),
      cols_(cols),
      groups_(cols / table_dim(bits)),
      search_(table_search(bits)),
      sorted_(make_buffer<float>(round_up(groups_, kSearchGroups) * table_dim(bits))) {}

float TableQuantizer::best_scale(float largest) const {
  const auto [gaussian, largest_magnitude] = kScales[bits_ - 2];
  const auto energy = float(search_.energy(sorted_.get(), groups_) / double(cols_));
  const float nominal = std::sqrt(energy) * gaussian;
  const float highest = std::max(kHighest * nominal, largest / largest_magnitude);
  Trial best = {-1, 0, 0};
  const auto consider = [&](float scale) {
    const Trial trial = attempt(search_, sorted_.get(), groups_, scale);
    if (trial.gain > best.gain) best = trial;
  };
  for (float scale = kLowest * nominal; scale < highest * kStep; scale *= kStep) consider(scale);
  for (const float step : kFineSteps) {
    const float middle = best.scale;
    consider(middle * step);
    consider(middle / step);
  }
  for (int i = 0; i < kRefits; ++i) consider(best.refit);
  return best.refit;
}

void TableQuantizer::operator()(const float* w, uint8_t* code, uint16_t* row_scale) {
  std::fill_n(code, table_row_bytes(bits_, cols_), uint8_t{0});
  *row_scale = 0;
  float largest = 0;
  for (int64_t i = 0; i < cols_; ++i) largest = std::max(largest, std::fabs(w[i]));
  if (largest == 0) return;

  // In units of 2^exponent nothing overflows and no square is lost. Half of the exponent at a time,
  // because 2^149 is no float.
  int exponent;
  std::frexp(largest, &exponent);
  const float factors[] = {std::ldexp(1.0f, -exponent / 2),
                           std::ldexp(1.0f, exponent / 2 - exponent)};
  search_.sort(w, groups_, factors, sorted_.get());
  const float scale = best_scale(largest * factors[0] * factors[1]);

  const uint16_t stored = to_bfloat16(std::ldexp(scale, exponent));
  if (stored == 0) return;
  *row_scale = stored;
  search_.name(w, sorted_.get(), groups_, std::ldexp(from_bfloat16(stored), -exponent),
               table_names(bits_), code);
  if (bits_ == 3) {
    uint8_t* signs = code + groups_;
    for (int64_t i = 0; i < cols_; ++i) signs[i / 8] |= uint8_t(w[i] < 0) << (i % 8);
  }
}

}  // namespace pvq
