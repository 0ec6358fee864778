// Activations as points of a pyramid, and their integer product with planes (planes.h).
//
// A group of `dim` neighbouring activations x becomes amplitude * y, y an integer vector with
// sum |y_i| = pulses, amplitude a bfloat16. y is the point nearest to x * unit, with unit = pulses
// / sum |x| first and then, again, with the inverse of the amplitude that fits best: the nearest
// integers, and where their magnitudes do not add up to `pulses`, those change by one whose change
// costs least (remainders to 2^-21, the first of equals). The amplitude is the best multiple of y,
// <x, y> / <y, y>. A search for the nearest direction (core/project.h) would have up to 0.6 % less
// error, and takes more than ten times as long; the amplitude's rounding adds 1 % to the error at 6
// bits and 4 % at 7.
//
// The product with a row of planes is a sum over groups of (scale * amplitude) * <weights, y> with
// an integer dot product, which no 32-bit sum can overflow: |<w, y>| <= pulses * max |w| < 2^20.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/planes.h"

namespace pvq {

// y and the amplitudes (bfloat16) of groups x [count, dim]. A group of zeros has y = 0 and
// amplitude 0. False if x holds NaN or infinity; what was written is then meaningless.
bool activation_points(const float* x, int64_t count, int dim, int pulses, int16_t* y,
                       uint16_t* amplitude);

// Activations [tokens, cols] in groups of `dim`, a multiple of the planes' dim.
struct PointsView {
  const int16_t* y;           // [tokens, cols]
  const uint16_t* amplitude;  // [tokens, cols / dim]
  int64_t tokens, cols;
  int dim;
  int largest;  // magnitude of y, at most kMaxPulses
};

// Prepared once, then threads multiply ranges of panels.
class PointsProduct {
 public:
  // Whether the kernels take these group sizes.
  static bool supports(int planes_dim, int points_dim);

  PointsProduct(const PointsView& points, const PlanesView& planes);

  int64_t panels() const { return panel_count(planes_.rows); }
  // out [tokens, rows]. Returns kNoRow or a row whose outliers are damaged.
  int64_t multiply(int64_t begin, int64_t end, float* out) const;

 private:
  // y = low + 128 * high where a magnitude exceeds 127, as the kernels take bytes.
  struct Digits {
    std::vector<int8_t> y;         // token blocks of [cols / unit][tokens][unit], see pack()
    std::vector<int32_t> offset;   // token blocks of [groups][tokens]: sum of y in a planes' group
    std::vector<float> amplitude;  // token blocks of [cols / dim][tokens]
  };

  void pack(int shift, Digits* digits) const;

  const PointsView points_;
  const PlanesView planes_;
  std::vector<Digits> digits_;
  std::vector<float> decoded_;  // [cols, tokens], only where planes have outliers
};

}  // namespace pvq
