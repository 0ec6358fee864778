// The amplitudes of a row in its stored form: a level each (gain.h) times one scale.
//
// Codes and scale are fitted in turns, the least squares fit of each given the other, until neither
// changes: the nearest level to amplitude / scale, then scale = sum(amplitude * level) /
// sum(level^2). Sums are float64 in 32 interleaved partial sums (lanes.h): bit for bit the same on
// CPU and GPU.
#pragma once

#include "core/ieee.h"
#include "core/lanes.h"
#include "core/platform.h"

namespace pvq::fit {

constexpr int kPartials = 32;

struct Levels {
  const float* value;  // ascending
  int count;
};

// The level nearest to amplitude / scale, the lower one at a tie; -1 where zero is nearer. scale >
// 0.
PVQ_HD inline int nearest_level(float amplitude, double scale, const Levels& levels) {
  const double twice = 2 * double(amplitude);
  if (twice < ieee::multiply(scale, double(levels.value[0]))) return -1;
  int low = 0, high = levels.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    const double edges = double(levels.value[middle]) + double(levels.value[middle + 1]);
    if (twice > ieee::multiply(scale, edges))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct Moments {
  double product, square;
  PVQ_HD Moments operator+(const Moments& o) const {
    return {product + o.product, square + o.square};
  }
};

// One thread's way to add up a row; the GPU has another (cuda/lanes.cuh).
struct OneThreadRow {
  template <class F>
  PVQ_HD auto sum(int64_t count, F term) const {
    return interleaved_sum<kPartials>(count, term);
  }
};

// The scale of a row of amplitudes >= 0; 0 for a row of zeros, NaN if an amplitude is NaN.
template <class Row>
PVQ_HD inline double row_scale(const Row& row, const float* amplitude, int64_t groups, int dim,
                               const Levels& levels) {
  const double energy = row.sum(groups, [&](int64_t g) {
    return ieee::multiply(double(amplitude[g]), double(amplitude[g]));
  });
  const int64_t present =
      row.sum(groups, [&](int64_t g) { return int64_t(amplitude[g] > 0 ? 1 : 0); });
  if (!(energy > 0)) return energy;
  // The levels' mean square is dim, which gives the scale to start from.
  double scale = ieee::root(ieee::divide(energy, double(present * dim)));
  for (int round = 0; round < 8 && scale > 0; ++round) {
    const Moments moments = row.sum(groups, [&](int64_t g) -> Moments {
      const int code = nearest_level(amplitude[g], scale, levels);
      if (code < 0) return {0, 0};
      const double level = levels.value[code];
      return {ieee::multiply(double(amplitude[g]), level), ieee::multiply(level, level)};
    });
    const double next = moments.square > 0 ? ieee::divide(moments.product, moments.square) : 0;
    if (next == scale) break;
    scale = next;
  }
  return scale;
}

}  // namespace pvq::fit
