// What an algorithm asks of the threads that share a vector, and its form for one thread.
//
// The search (project.h) and the fit (fit.h) are written once, over a type `Lanes` that spreads a
// vector over one thread (here) or over several of the GPU (cuda/lanes.cuh). Floating-point sums
// are the same in every form, because their order is part of the definition: interleaved partial
// sums, term i to partial i % n, then a tree that adds partial l + n/2 to l, then l + n/4, ... l
// + 1.
//
// A Lanes type for vectors of `dim` coordinates has
//   Values                 one float a coordinate; a thread sees its own coordinates as slots
//   each(f)                f(slot) for every slot
//   sum(f)                 the sum of f(slot), over 16 interleaved partial sums
//   highest_bits(f)        the largest f(slot), unsigned integers
//   highest(f)             the coordinate with the highest f(slot), the first of equals
//   extremes(f, candidate) that and its value, and the lowest among the slots with candidate(slot)
//   at(v, i), add(v, i, x) reads and increases coordinate i
#pragma once

#include <limits>

#include "core/platform.h"

namespace pvq {

template <int kWidth, class T>
PVQ_HD inline void add_tree(T* partial) {
  if constexpr (kWidth > 0) {
    PVQ_UNROLL
    for (int l = 0; l < kWidth; ++l) partial[l] = partial[l] + partial[l + kWidth];
    add_tree<kWidth / 2>(partial);
  }
}

// The sum of term(0) ... term(count - 1) in the order above; kPartials is a power of two.
template <int kPartials, class F>
PVQ_HD inline auto interleaved_sum(int64_t count, F term) {
  using T = decltype(term(0));
  T partial[kPartials] = {};
  const int64_t whole = count / kPartials * kPartials;
  PVQ_UNROLL
  for (int64_t i = 0; i < whole; i += kPartials) {
    PVQ_UNROLL
    for (int l = 0; l < kPartials; ++l) partial[l] = partial[l] + term(i + l);
  }
  PVQ_UNROLL
  for (int l = 0; l < count - whole; ++l) partial[l] = partial[l] + term(whole + l);
  add_tree<kPartials / 2>(partial);
  return partial[0];
}

// A coordinate and its value.
struct Choice {
  int index;
  float value;
};

struct Extremes {
  Choice highest, lowest;
};

constexpr int kVectorPartials = 16;

// kDim 0: any dim <= kMaxDim, on the CPU only. A kDim known to the compiler: registers on the GPU.
template <int kDim = 0>
class OneThread {
 public:
  struct Values {
    float slot[kDim ? kDim : kMaxDim];
    PVQ_HD float& operator[](int s) { return slot[s]; }
    PVQ_HD float operator[](int s) const { return slot[s]; }
  };

  PVQ_HD explicit OneThread(int dim) : dim_(dim) {}
  PVQ_HD int dim() const { return kDim ? kDim : dim_; }

  template <class F>
  PVQ_HD void each(F f) const {
    PVQ_UNROLL
    for (int s = 0; s < dim(); ++s) f(s);
  }

  template <class F>
  PVQ_HD float sum(F f) const {
    return interleaved_sum<kVectorPartials>(dim(), [&](int64_t s) { return f(int(s)); });
  }

  template <class F>
  PVQ_HD uint32_t highest_bits(F f) const {
    uint32_t highest = 0;
    each([&](int s) { highest = f(s) > highest ? f(s) : highest; });
    return highest;
  }

  template <class F>
  PVQ_HD int highest(F f) const {
    Choice best = {0, -std::numeric_limits<float>::infinity()};
    each([&](int s) {
      const float value = f(s);
      if (value > best.value) best = {s, value};
    });
    return best.index;
  }

  template <class F, class Candidate>
  PVQ_HD Extremes extremes(F f, Candidate candidate) const {
    int high_at = 0, low_at = 0;
    float high = -std::numeric_limits<float>::infinity(), low = -high;
    each([&](int s) {
      const float value = f(s);
      if (value > high) high_at = s, high = value;
      if (candidate(s) && value < low) low_at = s, low = value;
    });
    return {{high_at, high}, {low_at, low}};
  }

  PVQ_HD float at(const Values& v, int index) const {
#ifdef __CUDA_ARCH__
    float value = 0;
    each([&](int s) {
      const float here = v[s];  // always read: a read under the condition would need an address
      value = s == index ? here : value;
    });
    return value;
#else
    return v[index];
#endif
  }

  PVQ_HD void add(Values& v, int index, float amount) const {
#ifdef __CUDA_ARCH__
    each([&](int s) { v[s] += s == index ? amount : 0.0f; });
#else
    v[index] += amount;
#endif
  }

 private:
  int dim_;
};

}  // namespace pvq
