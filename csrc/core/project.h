// The nearest direction: the point y of P(D, K) that maximises the cosine  x.y / (||x|| ||y||).
//
// y carries the signs of x, so only a = |x| matters. Two facts lead the search:
//
//   1. Floor(a * K / sum(a)) places all but a few pulses; each further pulse goes where the cosine
//      grows most, argmax (x.y + a_i)^2 / (||y||^2 + 2 y_i + 1)   (as Opus does, celt/vq.c).
//   2. sqrt is concave, so a point with a smaller ||y - lambda x|| than y at lambda = ||y||^2 / x.y
//      has a larger cosine than y, and the best point of all minimises that distance at its own
//      lambda (derived here). Per pulse the distance separates: with the residual c = lambda a - y,
//      moving a pulse from i to j pays iff c_j - c_i > 1, and the best move is argmax c to argmin c.
//      Such moves, lambda renewed after each, end in a fixed point.
//   3. The optimum is one of the minimisers over all lambda, so trying several lambda around the
//      fixed point's finds better ones where the search ended early (quality 2).
//
// All arithmetic is IEEE float32 in a fixed order (sums over 16 interleaved partial sums, then a
// tree), without fused operations, so that every CPU and GPU finds the same point.
#pragma once

#include <cmath>
#include <cstring>

#include "core/platform.h"

namespace pvq::project {

constexpr int kLanes = 16;
constexpr float kScales[] = {0.80f, 0.86f, 0.91f, 0.95f, 1.05f, 1.10f, 1.16f, 1.24f};

// 2^-exponent of the largest magnitude, so that scaled values are of order one: a power of two, and
// normal, whatever the input.
inline float unit_scale(float largest) {
  uint32_t word;
  std::memcpy(&word, &largest, 4);
  int exponent = int(word >> 23) - 127;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  word = uint32_t(127 - exponent) << 23;
  float scale;
  std::memcpy(&scale, &word, 4);
  return scale;
}

// Sums of 16 lanes as a tree: lanes l and l + 8, then + 4, + 2, + 1.
inline float tree_sum(float* lanes) {
  for (int width = 8; width >= 1; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

inline float sum(const float* a, int dim) {
  float lanes[kLanes] = {};
  for (int i = 0; i < dim; ++i) lanes[i % kLanes] += a[i];
  return tree_sum(lanes);
}

inline float dot(const float* a, const float* b, int dim) {
  float lanes[kLanes] = {};
  for (int i = 0; i < dim; ++i) lanes[i % kLanes] += a[i] * b[i];
  return tree_sum(lanes);
}

// A point in the making: a = |x| scaled, y as floats (exact), xy = a.y, yy = y.y.
struct Search {
  const float* a;
  float* y;
  int dim;
  float xy, yy;

  void start(float total, int pulses) {
    const float t = float(pulses) / total;
    float placed = 0;
    for (int i = 0; i < dim; ++i) {
      y[i] = std::floor(a[i] * t);
      placed += y[i];
    }
    xy = dot(a, y, dim);
    yy = dot(y, y, dim);
    for (; placed < float(pulses); placed += 1) add_best();
    // Rounding cannot place a pulse too many for K <= 4096 and D <= 256; the count is exact anyway.
    for (; placed > float(pulses); placed -= 1) take(lowest(yy / xy));
  }

  void add_best() {
    int best = 0;
    float best_score = -1;
    for (int i = 0; i < dim; ++i) {
      const float product = xy + a[i], score = product * product / (yy + 2 * y[i] + 1);
      if (score > best_score) best = i, best_score = score;
    }
    xy += a[best];
    yy += 2 * y[best] + 1;
    y[best] += 1;
  }

  void take(int i) {
    xy -= a[i];
    yy -= 2 * y[i] - 1;
    y[i] -= 1;
  }

  int lowest(float lambda) const {
    int best = -1;
    float best_value = 0;
    for (int i = 0; i < dim; ++i) {
      const float c = lambda * a[i] - y[i];
      if (y[i] > 0 && (best < 0 || c < best_value)) best = i, best_value = c;
    }
    return best;
  }

  // Moves the best pulse at this lambda; false if none pays.
  bool move(float lambda) {
    int to = 0, from = -1;
    float high = 0, low = 0;
    for (int i = 0; i < dim; ++i) {
      const float c = lambda * a[i] - y[i];
      if (i == 0 || c > high) to = i, high = c;
      if (y[i] > 0 && (from < 0 || c < low)) from = i, low = c;
    }
    if (!(high - low > 1)) return false;
    xy = xy - a[from] + a[to];
    yy += 2 * (y[to] - y[from]) + 2;
    y[from] -= 1;
    y[to] += 1;
    return true;
  }

  // Every move shortens a distance, so the loops end by themselves but for rounding: hence the cap.
  void settle() {
    for (int i = 0; i < 2 * dim && move(yy / xy); ++i) {}
  }
  void settle_at(float lambda) {
    for (int i = 0; i < 2 * dim && move(lambda); ++i) {}
  }
};

// y [dim] for x [dim], dim <= kMaxDim, 1 <= pulses <= kMaxPulses, x finite.
// quality 0: placement only; 1: with moves; 2: moves from several lambda, the best point kept.
// All zeros for x = 0.
inline void nearest(const float* x, int dim, int pulses, int quality, int16_t* y) {
  float a[kMaxDim], point[kMaxDim], largest = 0;
  for (int i = 0; i < dim; ++i) {
    a[i] = std::fabs(x[i]);
    largest = a[i] > largest ? a[i] : largest;
  }
  if (!(largest > 0)) {
    for (int i = 0; i < dim; ++i) y[i] = 0;
    return;
  }
  const float scale = unit_scale(largest);
  for (int i = 0; i < dim; ++i) a[i] *= scale;

  Search search{a, point, dim, 0, 0};
  search.start(sum(a, dim), pulses);
  if (quality >= 1) search.settle();
  if (quality >= 2) {
    const float lambda = search.yy / search.xy;
    float trial[kMaxDim];
    for (const float factor : kScales) {
      Search other{a, trial, dim, search.xy, search.yy};
      std::memcpy(trial, point, sizeof(float) * dim);
      other.settle_at(lambda * factor);
      other.settle();
      if (other.xy * other.xy * search.yy > search.xy * search.xy * other.yy) {
        std::memcpy(point, trial, sizeof(float) * dim);
        search.xy = other.xy;
        search.yy = other.yy;
      }
    }
  }
  for (int i = 0; i < dim; ++i) y[i] = int16_t(x[i] < 0 ? -point[i] : point[i]);
}

// The amplitude <x, y> / ||y|| of a non-zero point: the best multiple of its direction.
inline float amplitude(const float* x, const int16_t* y, int dim) {
  float point[kMaxDim];
  for (int i = 0; i < dim; ++i) point[i] = y[i];
  return dot(x, point, dim) / std::sqrt(dot(point, point, dim));
}

}  // namespace pvq::project
