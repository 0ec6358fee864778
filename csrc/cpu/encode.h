// From vectors to the stored form: nearest points, their indices, gains and row scales.
#pragma once

#include <cstdint>
#include <vector>

namespace pvq {

class Pyramid;

// y [count, dim] nearest to x [count, dim] (core/project.h); dim <= kMaxDim.
// False if x holds NaN or infinity; y is then meaningless.
bool nearest_points(const float* x, int64_t count, int dim, int pulses, int quality, int16_t* y);

// Appends `count` indices of y [count, dim] to a stream whose first byte is field `begin`'s row
// start; the bytes there must be zero. Each y is a point of the pyramid or zero.
void encode_points(const Pyramid& pyramid, const int16_t* y, int64_t begin, int64_t count,
                   uint8_t* stream);

// True if every y [count, dim] is a point of P(dim, pulses) or zero; else *bad is the first that
// is not.
bool check_points(const int16_t* y, int64_t count, int dim, int pulses, int64_t* bad);

struct RowCode {
  uint8_t* index;  // zeroed stream
  uint8_t* gain;   // zeroed stream
  uint16_t* row_scale;
};

// Quantizes one row w [cols]: nearest directions, then gains and the row scale (core/fit.h).
class RowQuantizer {
 public:
  RowQuantizer(const Pyramid& pyramid, int64_t cols, int gain_bits,
               const std::vector<float>& levels, int quality);
  // False if w holds NaN or infinity; what was written is then meaningless.
  bool operator()(const float* w, const RowCode& out);

 private:
  const Pyramid& pyramid_;
  int64_t cols_;
  int gain_bits_, quality_;
  const std::vector<float>& levels_;
  std::vector<int16_t> y_;
  std::vector<float> amplitude_;
};

}  // namespace pvq
