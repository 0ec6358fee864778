// The arguments of nearest, encode and quantize, checked: the same on every device.
#pragma once

#include "core/bits.h"
#include "ops/code.h"

namespace pvq::ops {

struct NearestArguments {
  int dim, pulses, quality;
  int64_t count;  // vectors
};

NearestArguments check_nearest(const Tensor& x, int64_t pulses, int64_t quality);

struct EncodeArguments {
  const Pyramid& pyramid;
  int64_t rows, groups, stride;
};

EncodeArguments check_encode(const Tensor& y, int64_t pulses);

struct QuantizeArguments {
  const Pyramid& pyramid;
  const std::vector<float>& levels;
  int64_t rows, cols, groups, index_stride, gain_stride;
  int gain_bits, quality;
};

QuantizeArguments check_quantize(const Tensor& w, int64_t dim, int64_t pulses, int64_t gain_bits,
                                 const std::string& law, int64_t quality);

// What the operators say of the values they refuse.
[[noreturn]] void refuse_vectors();
[[noreturn]] void refuse_point(int64_t row, int64_t group, int64_t pulses);
[[noreturn]] void refuse_row(int64_t row);

}  // namespace pvq::ops
