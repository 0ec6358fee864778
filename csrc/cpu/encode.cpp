#include "cpu/encode.h"

#include <cmath>

#include "core/bits.h"
#include "core/index.h"
#include "core/project.h"

namespace pvq {
namespace {

// Rounded to the nearest bfloat16, ties to even.
uint16_t to_bfloat16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  return uint16_t((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

float from_bfloat16(uint16_t half) {
  const uint32_t word = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

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
      rank_wide_node(p, 0, y, index, 2);
      return limbs::low64(index, 2);
    }
  }
}

}  // namespace

void nearest_points(const float* x, int64_t count, int dim, int pulses, int quality, int16_t* y) {
  for (int64_t g = 0; g < count; ++g)
    project::nearest(x + g * dim, dim, pulses, quality, y + g * dim);
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
      rank_wide_node(p, 0, y, index, p.limbs);
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
    : pyramid_(pyramid), cols_(cols), gain_bits_(gain_bits), quality_(quality), levels_(levels),
      y_(cols), amplitude_(cols / pyramid.view().dim), code_(amplitude_.size()) {}

// The level nearest to amplitude / scale, the lower one at a tie; -1 where zero is nearer.
int RowQuantizer::nearest_level(float amplitude, double scale) const {
  if (2 * double(amplitude) < scale * levels_[0]) return -1;
  int code = 0;
  while (code + 1 < int(levels_.size()) &&
         2 * double(amplitude) > scale * (double(levels_[code]) + levels_[code + 1]))
    ++code;
  return code;
}

void RowQuantizer::operator()(const float* w, const RowCode& out) {
  const int dim = pyramid_.view().dim;
  const int64_t groups = int64_t(amplitude_.size());
  nearest_points(w, groups, dim, pyramid_.view().pulses, quality_, y_.data());
  double energy = 0;
  int64_t present = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int16_t* y = y_.data() + g * dim;
    amplitude_[g] = is_zero(y, dim) ? 0.0f : project::amplitude(w + g * dim, y, dim);
    energy += double(amplitude_[g]) * amplitude_[g];
    present += amplitude_[g] > 0;
  }

  // The levels' mean square is dim (gain.h), which gives the scale to start from.
  double scale = present ? std::sqrt(energy / (double(present) * dim)) : 0;
  for (int round = 0; round < 8 && scale > 0; ++round) {
    double product = 0, square = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int code = nearest_level(amplitude_[g], scale);
      if (code < 0) continue;
      product += double(amplitude_[g]) * levels_[code];
      square += double(levels_[code]) * levels_[code];
    }
    const double next = square > 0 ? product / square : 0;
    if (next == scale) break;
    scale = next;
  }

  *out.row_scale = to_bfloat16(float(scale));
  const double stored = from_bfloat16(*out.row_scale);
  for (int64_t g = 0; g < groups; ++g) {
    int code = stored > 0 ? nearest_level(amplitude_[g], stored) : -1;
    if (code < 0) {
      for (int i = 0; i < dim; ++i) y_[g * dim + i] = 0;
      code = 0;
    }
    if (gain_bits_) bits::write(out.gain, g * gain_bits_, gain_bits_, uint64_t(code));
  }
  encode_points(pyramid_, y_.data(), 0, groups, out.index);
}

}  // namespace pvq
