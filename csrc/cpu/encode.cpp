#include "cpu/encode.h"

#include <algorithm>
#include <cmath>

#include "core/bfloat16.h"
#include "core/bits.h"
#include "core/fit.h"
#include "core/index.h"
#include "core/project.h"

namespace pvq {
namespace {

bool is_zero(const int16_t* y, int dim) {
  for (int i = 0; i < dim; ++i)
    if (y[i]) return false;
  return true;
}

uint64_t rank_narrow(const PyramidView& p, const int16_t* y) {
  switch (p.dim) {
    case 8:
      return rank_fixed<8>(p, 0, y).index;
    case 16:
      return rank_fixed<16>(p, 0, y).index;
    case 32:
      return rank_fixed<32>(p, 0, y).index;
    default: {
      uint32_t index[2];
      rank_wide<2>(p, y, index);
      return limbs::low64(index, 2);
    }
  }
}

// As nearest_points; amplitude [count] may be null.
bool project_points(const float* x, int64_t count, int dim, int pulses, int quality, int16_t* y,
                    float* amplitude) {
  const OneThread<> lanes(dim);
  OneThread<>::Values a, point;
  for (int64_t g = 0; g < count; ++g, x += dim, y += dim) {
    for (int i = 0; i < dim; ++i) a[i] = std::fabs(x[i]);
    const project::Nearest nearest = project::nearest(lanes, a, pulses, quality, point);
    if (nearest.found == project::Found::kNotFinite) return false;
    for (int i = 0; i < dim; ++i) y[i] = int16_t(x[i] < 0 ? -point[i] : point[i]);
    if (amplitude) amplitude[g] = nearest.amplitude;
  }
  return true;
}

}  // namespace

bool nearest_points(const float* x, int64_t count, int dim, int pulses, int quality, int16_t* y) {
  return project_points(x, count, dim, pulses, quality, y, nullptr);
}

void encode_points(const Pyramid& pyramid, const int16_t* y, int64_t begin, int64_t count,
                   uint8_t* stream) {
  const PyramidView& p = pyramid.view();
  const int width = p.index_bits;
  const LevelView& root = p.level[0];
  uint32_t index[limbs::kMax];
  for (int64_t g = 0; g < count; ++g, y += p.dim) {
    const int64_t bit = (begin + g) * width;
    const bool zero = is_zero(y, p.dim);
    if (p.narrow) {
      bits::write(stream, bit, width, zero ? p.zero_index : rank_narrow(p, y));
    } else if (zero) {
      bits::write_limbs(stream, bit, width, root.counts + size_t(p.pulses) * root.limbs);
    } else {
      rank_wide<limbs::kMax>(p, y, index);
      bits::write_limbs(stream, bit, width, index);
    }
  }
}

bool check_points(const int16_t* y, int64_t count, int dim, int pulses, int64_t* bad) {
  for (int64_t g = 0; g < count; ++g, y += dim) {
    const int found = pulses_of(y, dim);
    if (found != pulses && found != 0) {
      *bad = g;
      return false;
    }
  }
  return true;
}

RowQuantizer::RowQuantizer(const Pyramid& pyramid, int64_t cols, int gain_bits,
                           const std::vector<float>& levels, int quality)
    : pyramid_(pyramid),
      cols_(cols),
      gain_bits_(gain_bits),
      quality_(quality),
      levels_(levels),
      y_(cols),
      amplitude_(cols / pyramid.view().dim) {}

bool RowQuantizer::operator()(const float* w, const RowCode& out) {
  const PyramidView& p = pyramid_.view();
  const int64_t groups = int64_t(amplitude_.size());
  if (!project_points(w, groups, p.dim, p.pulses, quality_, y_.data(), amplitude_.data()))
    return false;
  const fit::Levels levels = {levels_.data(), int(levels_.size())};
  const double scale =
      fit::row_scale(fit::OneThreadRow(), amplitude_.data(), groups, p.dim, levels);
  *out.row_scale = to_bfloat16(float(scale));

  const double stored = from_bfloat16(*out.row_scale);
  for (int64_t g = 0; g < groups; ++g) {
    int code = stored > 0 ? fit::nearest_level(amplitude_[g], stored, levels) : -1;
    if (code < 0) {
      std::fill_n(y_.data() + g * p.dim, p.dim, int16_t(0));
      code = 0;
    }
    if (gain_bits_) bits::write(out.gain, g * gain_bits_, gain_bits_, uint64_t(code));
  }
  encode_points(pyramid_, y_.data(), 0, groups, out.index);
  return true;
}

}  // namespace pvq
