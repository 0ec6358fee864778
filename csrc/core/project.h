// The nearest direction: the point y of P(D, K) that maximises the cosine  x.y / (||x|| ||y||).
//
// y carries the signs of x, so only a = |x| matters. Three facts lead the search:
//
//   1. Floor(a * K / sum(a)) places all but a few pulses; each further pulse goes where the cosine
//      grows most, argmax (x.y + a_i)^2 / (||y||^2 + 2 y_i + 1)   (as Opus does, celt/vq.c).
//   2. sqrt is concave, so a point with a smaller ||y - lambda x|| than y at lambda = ||y||^2 / x.y
//      has a larger cosine than y, and the best point of all minimises that distance at its own
//      lambda (derived here). Per pulse the distance separates: with the residual c = lambda a - y,
//      moving a pulse from i to j pays iff c_j - c_i > 1, and the best move is argmax c to argmin
//      c. Such moves, lambda renewed after each, end in a fixed point.
//   3. The optimum is one of the minimisers over all lambda, so trying several lambda around the
//      fixed point's finds better ones where the search ended early (quality 2).
//
// All arithmetic is IEEE float32 (ieee.h) with sums in a fixed order (lanes.h), so that every CPU
// and GPU finds the same point.
#pragma once

#include <cmath>
#include <cstring>

#include "core/ieee.h"
#include "core/lanes.h"
#include "core/platform.h"

namespace pvq::project {

PVQ_HD inline uint32_t float_bits(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

PVQ_HD inline float bits_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// 2^-exponent of the largest magnitude, given as bits, so that scaled values are of order one: a
// power of two, and normal, whatever the input.
PVQ_HD inline float unit_scale(uint32_t largest) {
  int exponent = int(largest >> 23) - 127;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  return bits_float(uint32_t(127 - exponent) << 23);
}

// A point in the making: a = |x| scaled, y as floats (exact), xy = a.y, yy = y.y.
template <class Lanes>
struct Search {
  using Values = typename Lanes::Values;

  const Lanes& lanes;
  const Values& a;
  Values& y;
  float xy, yy;

  PVQ_HD Search(const Lanes& lanes, const Values& a, Values& y) : lanes(lanes), a(a), y(y) {}

  PVQ_HD void copy(const Search& other) {
    lanes.each([&](int s) { y[s] = other.y[s]; });
    xy = other.xy;
    yy = other.yy;
  }

  PVQ_HD void start(int pulses) {
    const float wanted = float(pulses);
    const float t = ieee::divide(wanted, lanes.sum([&](int s) { return a[s]; }));
    lanes.each([&](int s) { y[s] = floorf(ieee::multiply(a[s], t)); });
    float placed = lanes.sum([&](int s) { return y[s]; });
    xy = lanes.sum([&](int s) { return ieee::multiply(a[s], y[s]); });
    yy = lanes.sum([&](int s) { return ieee::multiply(y[s], y[s]); });
    for (; placed < wanted; placed += 1) add_best();
    // Rounding cannot place a pulse too many for K <= 4096 and D <= 256; the count is exact anyway.
    for (; placed > wanted; placed -= 1) take_worst();
  }

  PVQ_HD float lambda() const { return ieee::divide(yy, xy); }

  PVQ_HD void add_best() {
    const int best = lanes.highest([&](int s) {
      const float product = xy + a[s];
      return ieee::divide(ieee::multiply(product, product), yy + ieee::multiply(2, y[s]) + 1);
    });
    xy += lanes.at(a, best);
    yy += ieee::multiply(2, lanes.at(y, best)) + 1;
    lanes.add(y, best, 1);
  }

  PVQ_HD float residual(float lambda, int s) const { return ieee::multiply(lambda, a[s]) - y[s]; }

  // The most and the least wanted pulse at this lambda.
  PVQ_HD Extremes extremes(float lambda) const {
    return lanes.extremes([&](int s) { return residual(lambda, s); },
                          [&](int s) { return y[s] > 0; });
  }

  PVQ_HD void take_worst() {
    const int from = extremes(lambda()).lowest.index;
    xy -= lanes.at(a, from);
    yy -= ieee::multiply(2, lanes.at(y, from)) - 1;
    lanes.add(y, from, -1);
  }

  // Moves the best pulse at this lambda; false if none pays.
  PVQ_HD bool move(float lambda) {
    const auto [to, from] = extremes(lambda);
    if (!(to.value - from.value > 1)) return false;
    xy = xy - lanes.at(a, from.index) + lanes.at(a, to.index);
    yy += ieee::multiply(2, lanes.at(y, to.index) - lanes.at(y, from.index)) + 2;
    lanes.add(y, from.index, -1);
    lanes.add(y, to.index, 1);
    return true;
  }

  // Every move shortens a distance, so the loops end by themselves but for rounding: hence the cap.
  PVQ_HD void settle() {
    for (int i = 0; i < 2 * lanes.dim() && move(lambda()); ++i) {
    }
  }
  PVQ_HD void settle_at(float lambda) {
    for (int i = 0; i < 2 * lanes.dim() && move(lambda); ++i) {
    }
  }

  // Settles from several lambda and keeps the best point.
  PVQ_HD void try_around() {
    constexpr int kTrials = 8;
    const float factors[kTrials] = {0.80f, 0.86f, 0.91f, 0.95f, 1.05f, 1.10f, 1.16f, 1.24f};
    const float start = lambda();
    Values trial_y;
    for (int t = 0; t < kTrials; ++t) {
      Search trial(lanes, a, trial_y);
      trial.copy(*this);
      trial.settle_at(ieee::multiply(start, factors[t]));
      trial.settle();
      const float gained = ieee::multiply(ieee::multiply(trial.xy, trial.xy), yy);
      const float kept = ieee::multiply(ieee::multiply(xy, xy), trial.yy);
      if (gained > kept) copy(trial);
    }
  }
};

enum class Found { kPoint, kZero, kNotFinite };

struct Nearest {
  Found found;
  // <x, y> / ||y||, the best multiple of the direction: 0 for kZero, NaN for kNotFinite.
  float amplitude;
};

// The magnitudes y of the nearest point to a vector x of magnitudes a; a is scaled on the way.
// quality 0: placement only; 1: with moves; 2: moves from several lambda, the best point kept.
// y is zero for a = 0 (kZero) and where a holds NaN or infinity (kNotFinite).
template <class Lanes>
PVQ_HD inline Nearest nearest(const Lanes& lanes, typename Lanes::Values& a, int pulses,
                              int quality, typename Lanes::Values& y) {
  // Magnitudes order as their bits do, infinity and NaN above all others.
  const uint32_t largest = lanes.highest_bits([&](int s) { return float_bits(a[s]); });
  if (largest == 0 || largest >= 0x7F800000) {
    lanes.each([&](int s) { y[s] = 0; });
    if (largest == 0) return {Found::kZero, 0};
    return {Found::kNotFinite, std::numeric_limits<float>::quiet_NaN()};
  }
  const float scale = unit_scale(largest);
  lanes.each([&](int s) { a[s] = ieee::multiply(a[s], scale); });

  Search<Lanes> search(lanes, a, y);
  search.start(pulses);
  if (quality >= 1) search.settle();
  if (quality >= 2) search.try_around();
  // Fresh sums, and the scale undone last: neither rounding in the search nor the magnitude of x
  // shows in the amplitude.
  const float xy = lanes.sum([&](int s) { return ieee::multiply(a[s], y[s]); });
  return {Found::kPoint, ieee::divide(ieee::divide(xy, ieee::root(search.yy)), scale)};
}

}  // namespace pvq::project
