#include <cmath>

#include "core/bfloat16.h"
#include "core/bits.h"
#include "core/index.h"
#include "cpu/code.h"

namespace pvq {
namespace {

// One word an index; false if it is above the zero group's.
template <class Unrank>
bool decode_narrow(const PyramidView& p, const uint8_t* stream, int64_t begin, int64_t end,
                   int16_t* y, Unrank unrank) {
  const int width = p.index_bits;
  for (int64_t g = begin; g < end; ++g, y += p.dim) {
    const uint64_t index = bits::read(stream, g * width, width);
    if (index < p.zero_index) {
      unrank(index, y);
    } else if (index == p.zero_index) {
      for (int i = 0; i < p.dim; ++i) y[i] = 0;
    } else {
      return false;
    }
  }
  return true;
}

template <int D>
bool decode_fixed(const PyramidView& p, const uint8_t* stream, int64_t begin, int64_t end,
                  int16_t* y) {
  return decode_narrow(p, stream, begin, end, y, [&p](uint64_t index, int16_t* out) {
    unrank_fixed<D>(p, p.pulses, index, out);
  });
}

bool decode_wide(const PyramidView& p, const uint8_t* stream, int64_t begin, int64_t end,
                 int16_t* y) {
  const LevelView& root = p.level[0];
  const uint32_t* zero_index = root.counts + size_t(p.pulses) * root.limbs;
  uint32_t index[limbs::kMax];
  for (int64_t g = begin; g < end; ++g, y += p.dim) {
    bits::read_limbs(stream, g * p.index_bits, p.index_bits, index);
    const int order = limbs::compare(index, p.limbs, zero_index, root.limbs);
    if (order > 0) return false;
    if (order < 0) {
      unrank_wide<limbs::kMax>(p, index, y);
    } else {
      for (int i = 0; i < p.dim; ++i) y[i] = 0;
    }
  }
  return true;
}

}  // namespace

bool decode_points(const Pyramid& pyramid, const uint8_t* stream, int64_t begin, int64_t end,
                   int16_t* y) {
  const PyramidView& p = pyramid.view();
  if (!p.narrow) return decode_wide(p, stream, begin, end, y);
  switch (p.dim) {
    case 8:
      return decode_fixed<8>(p, stream, begin, end, y);
    case 16:
      return decode_fixed<16>(p, stream, begin, end, y);
    case 32:
      return decode_fixed<32>(p, stream, begin, end, y);
    default:
      return decode_narrow(p, stream, begin, end, y, [&p](uint64_t index, int16_t* out) {
        unrank_narrow(p, 0, p.pulses, index, out);
      });
  }
}

bool check_indices(const Pyramid& pyramid, const uint8_t* stream, int64_t begin, int64_t end) {
  const PyramidView& p = pyramid.view();
  const LevelView& root = p.level[0];
  const uint32_t* zero_index = root.counts + size_t(p.pulses) * root.limbs;
  uint32_t index[limbs::kMax];
  for (int64_t g = begin; g < end; ++g) {
    bits::read_limbs(stream, g * p.index_bits, p.index_bits, index);
    if (limbs::compare(index, p.limbs, zero_index, root.limbs) > 0) return false;
  }
  return true;
}

bool decode_groups(const CodeView& code, int64_t row, int64_t begin, int64_t end, int16_t* y,
                   float* scale) {
  if (!decode_points(*code.pyramid, code.index + row * code.index_stride, begin, end, y))
    return false;
  const uint8_t* gains = code.gain + row * code.gain_stride;
  const float row_scale = from_bfloat16(code.row_scale[row]);
  for (int64_t g = begin; g < end; ++g, y += code.dim) {
    int squared_norm = 0;
    for (int i = 0; i < code.dim; ++i) squared_norm += int(y[i]) * y[i];
    const int level =
        code.gain_bits ? int(bits::read(gains, g * code.gain_bits, code.gain_bits)) : 0;
    scale[g - begin] =
        squared_norm ? row_scale * code.levels[level] / std::sqrt(float(squared_norm)) : 0.0f;
  }
  return true;
}

void dequantize_groups(const CodeView& code, int64_t begin, int64_t end, const int16_t* y,
                       const float* scale, float* w) {
  for (int64_t g = 0; g < end - begin; ++g)
    for (int i = 0; i < code.dim; ++i) w[g * code.dim + i] = scale[g] * float(y[g * code.dim + i]);
}

}  // namespace pvq
