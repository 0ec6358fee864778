// Several threads of a warp that share a vector: the forms of core/lanes.h for the GPU. Every
// thread of a group gets the same results, with the bits that one thread alone would get: the
// partial sums belong to the threads, and exchanging with the thread whose number differs in one
// bit adds them in the tree's order (an addition's operands may be swapped).
#pragma once

#include <limits>

#include "core/fit.h"
#include "core/lanes.h"

namespace pvq {

// Half a warp a vector: thread l holds coordinates l, l + 16, l + 32, ...; dim <= 16 kSlots. Slots
// beyond dim hold 0, which leaves sums as they are.
template <int kSlots>
class HalfWarp {
 public:
  struct Values {
    float slot[kSlots];
    __device__ float& operator[](int s) { return slot[s]; }
    __device__ float operator[](int s) const { return slot[s]; }
  };

  __device__ explicit HalfWarp(int dim)
      : dim_(dim), lane_(threadIdx.x % 16), mask_(0xFFFFu << (threadIdx.x & 16)) {}

  __device__ int dim() const { return dim_; }
  __device__ int coordinate(int s) const { return lane_ + 16 * s; }
  __device__ bool valid(int s) const { return coordinate(s) < dim_; }
  __device__ bool first() const { return lane_ == 0; }

  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) f(s);
  }

  template <class F>
  __device__ float sum(F f) const {
    float partial = 0;
    each([&](int s) { partial = partial + f(s); });
#pragma unroll
    for (int width = 8; width >= 1; width /= 2) partial = partial + exchange(partial, width);
    return partial;
  }

  template <class F>
  __device__ uint32_t highest_bits(F f) const {
    uint32_t highest = 0;
    each([&](int s) { highest = max(highest, f(s)); });
#pragma unroll
    for (int width = 8; width >= 1; width /= 2) highest = max(highest, exchange(highest, width));
    return highest;
  }

  template <class F>
  __device__ int highest(F f) const {
    Choice best = {lane_, -std::numeric_limits<float>::infinity()};
    each([&](int s) {
      const float value = f(s);
      if (valid(s) && value > best.value) best = {coordinate(s), value};
    });
#pragma unroll
    for (int width = 8; width >= 1; width /= 2) {
      const Choice other = exchange(best, width);
      if (other.value > best.value || (other.value == best.value && other.index < best.index))
        best = other;
    }
    return best.index;
  }

  template <class F, class Candidate>
  __device__ Extremes extremes(F f, Candidate candidate) const {
    Choice high = {lane_, -std::numeric_limits<float>::infinity()};
    Choice low = {lane_, std::numeric_limits<float>::infinity()};
    each([&](int s) {
      const float value = f(s);
      if (valid(s) && value > high.value) high = {coordinate(s), value};
      if (candidate(s) && value < low.value) low = {coordinate(s), value};
    });
#pragma unroll
    for (int width = 8; width >= 1; width /= 2) {
      const Choice higher = exchange(high, width), lower = exchange(low, width);
      if (higher.value > high.value || (higher.value == high.value && higher.index < high.index))
        high = higher;
      if (lower.value < low.value || (lower.value == low.value && lower.index < low.index))
        low = lower;
    }
    return {high, low};
  }

  __device__ float at(const Values& v, int index) const {
    float value = 0;
    each([&](int s) {
      const float here = v[s];  // always read: a read under the condition would need an address
      value = coordinate(s) - lane_ == (index & ~15) ? here : value;
    });
    return __shfl_sync(mask_, value, index & 15, 16);
  }

  __device__ void add(Values& v, int index, float amount) const {
    each([&](int s) { v[s] += coordinate(s) == index ? amount : 0.0f; });
  }

 private:
  template <class T>
  __device__ T exchange(T value, int width) const {
    return __shfl_xor_sync(mask_, value, width, 16);
  }
  __device__ Choice exchange(Choice c, int width) const {
    return {exchange(c.index, width), exchange(c.value, width)};
  }

  int dim_, lane_;
  unsigned mask_;
};

// A warp a row of amplitudes: the 32 partial sums of core/fit.h.
class WarpRow {
 public:
  template <class F>
  __device__ auto sum(int64_t count, F term) const {
    using T = decltype(term(0));
    T partial = {};
    for (int64_t i = threadIdx.x % 32; i < count; i += 32) partial = partial + term(i);
#pragma unroll
    for (int width = 16; width >= 1; width /= 2) partial = partial + exchange(partial, width);
    return partial;
  }

 private:
  template <class T>
  static __device__ T exchange(T value, int width) {
    return __shfl_xor_sync(0xFFFFFFFF, value, width);
  }
  static __device__ fit::Moments exchange(fit::Moments m, int width) {
    return {exchange(m.product, width), exchange(m.square, width)};
  }
};

}  // namespace pvq
