// The inner loops of activation points, one table of functions for each instruction set: the
// rounding (points.h), and the product of one panel of 16 weight rows and one block of tokens.
#pragma once

#include <stdint.h>

namespace pvq {

// The most tokens of a block: as many as keep their sums in registers.
constexpr int kPointTokens = 8;

struct PointsBlock {
  // Bytes of the activations, [cols / unit][tokens][unit]. 4-bit planes: unit 8, columns in the
  // order 0 2 4 6 1 3 5 7, which is how masks take them from a word; 8-bit planes: unit 4.
  const int8_t* y;
  const int32_t* offset;   // [groups][tokens]: the sum of a group's activations
  const float* amplitude;  // [groups / amplitude_groups][tokens]
  int64_t groups;          // of the weights
  int dim;                 // columns of such a group, a multiple of 8
  int amplitude_groups;    // groups that share an amplitude
  int tokens;
};

struct PointsKernels {
  // As activation_points of points.h.
  bool (*round)(const float* x, int64_t count, int dim, int pulses, int16_t* y,
                uint16_t* amplitude);

  // c[t][lane] += sum over groups of scale * amplitude * (sum over the group of weight * y),
  // rows of `stride` floats.
  void (*multiply4)(const int32_t* words, const float* scale, const PointsBlock& block, float* c,
                    int64_t stride);
  void (*multiply8)(const int8_t* bytes, const float* scale, const PointsBlock& block, float* c,
                    int64_t stride);
};

// The table of the instruction set in use (isa.h).
const PointsKernels& points_kernels();

extern const PointsKernels points_kernels_portable;
#ifdef PVQ_X86
extern const PointsKernels points_kernels_avx2;
extern const PointsKernels points_kernels_avx512;
#endif

}  // namespace pvq
