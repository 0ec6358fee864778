// The rounding of a group of activations x to amplitude * y, a point of a pyramid (cpu/points.h
// says which): written once for the CPU and the GPU, which so find the same bits.
//
//   unit = pulses / sum |x|, then y = the integers nearest to |x| * unit; where they do not add up
//   to `pulses`, those change by one whose change costs least. Once more with unit / a, where a is
//   the multiple of y that is nearest to |x| * unit. Amplitude: that of the last y, / unit.
//
// A type `Lanes` spreads the places of a group over the vectors of a CPU (cpu/points_rounding.h) or
// the threads of a GPU (cuda/activation_points.cu). Places from `dim` up to a power of two are
// zero. It has
//   Floats, Integers   one a place; a thread sees its own places as slots
//   dim()              places of the group
//   place(slot)        which place it is
//   each(f)            f(slot) for every slot
//   at(place, f)       f(slot) of that place
//   sum<T>(f)          of f(slot), with the upper half of the places added to the lower, over and
//                      over: the order is part of the definition
//   largest(f), smallest(f)   of int32 f(slot)
//   repeat(count, f)   f(active) `count` times; `active` is false where groups that run together
//                      have gone through theirs
//   any(condition)     false if no group that runs together meets it
#pragma once

#include <cfloat>

#include "core/bfloat16.h"
#include "core/ieee.h"
#include "core/platform.h"

namespace pvq {

template <class Lanes>
class PointRounding {
 public:
  PVQ_HD explicit PointRounding(const Lanes& lanes) : lanes(lanes) {}

  const Lanes lanes;
  typename Lanes::Floats magnitude;  // |x|, zero from dim on: the input, lost
  typename Lanes::Floats rounded;    // |y|

  struct Result {
    bool finite;         // false: the group holds NaN or infinity, and becomes zero
    uint16_t amplitude;  // bfloat16
  };

  PVQ_HD Result round(int pulses) {
    const double total = lanes.template sum<double>([&](int s) { return double(magnitude[s]); });
    const bool finite = total <= DBL_MAX, is_point = finite && total > 0;
    if (!lanes.any(is_point)) {
      lanes.each([&](int s) { rounded[s] = 0; });
      return {finite, 0};
    }
    if (!is_point) {  // beside points, it goes through the same steps
      lanes.each([&](int s) { magnitude[s] = 0; });
      pulses = 0;
    }
    double unit = ieee::divide(double(pulses), is_point ? total : 1.0);
    round_to_sum(pulses, unit);
    unit = ieee::divide(unit, best_multiple());
    round_to_sum(pulses, unit);
    const double amplitude = ieee::divide(best_multiple(), unit);
    return {finite, is_point ? to_bfloat16(static_cast<float>(amplitude)) : uint16_t(0)};
  }

 private:
  // value + kRound - kRound is `value` rounded to the nearest integer, ties to even, for magnitudes
  // below 2^22: not every machine has vectors with such an instruction.
  static constexpr float kRound = 12582912.0f;
  static constexpr float kRemainderUnits = 1 << 21;
  static constexpr int32_t kLeast = INT32_MIN, kMost = INT32_MAX;

  // The remainder of a place, to 2^-21 and at most 3 either way, in the upper bits: with the place
  // in the lower eight, one comparison of integers finds the extreme, and the first of equals.
  PVQ_HD int32_t remainder_key(int s) const {
    const float remainder = exact[s] - rounded[s];
    const float bounded = remainder < -3 ? -3 : remainder > 3 ? 3 : remainder;
    return static_cast<int32_t>(ieee::multiply(bounded, kRemainderUnits)) * 256;
  }
  PVQ_HD int32_t key_to_add(int s) const { return remainder_key(s) + (255 - lanes.place(s)); }
  // Without a pulse to give, a place comes last.
  PVQ_HD int32_t key_to_take(int s) const {
    return rounded[s] > 0 ? remainder_key(s) + lanes.place(s) : kMost;
  }

  // Adds pulses where the remainders are largest, one after the other.
  PVQ_HD void add_pulses(int count) {
    lanes.each([&](int s) { key[s] = lanes.place(s) < lanes.dim() ? key_to_add(s) : kLeast; });
    lanes.repeat(count, [&](bool active) {
      const int32_t best = lanes.largest([&](int s) { return key[s]; });
      if (!active) return;
      lanes.at(255 - (best & 255), [&](int s) {
        rounded[s] += 1;
        key[s] = key_to_add(s);
      });
    });
  }

  // Takes pulses from where the remainders are smallest, one after the other.
  PVQ_HD void take_pulses(int count) {
    lanes.each([&](int s) { key[s] = key_to_take(s); });
    lanes.repeat(count, [&](bool active) {
      const int32_t best = lanes.smallest([&](int s) { return key[s]; });
      if (!active) return;
      lanes.at(best & 255, [&](int s) {
        rounded[s] -= 1;
        key[s] = key_to_take(s);
      });
    });
  }

  // The integers of sum `pulses` that are nearest to magnitude * unit.
  PVQ_HD void round_to_sum(int pulses, double unit) {
    lanes.each([&](int s) {
      exact[s] = static_cast<float>(ieee::multiply(double(magnitude[s]), unit));
      rounded[s] = (exact[s] + kRound) - kRound;
    });
    const float sum = lanes.template sum<float>([&](int s) { return rounded[s]; });  // exact
    const int missing = pulses - static_cast<int>(sum);
    if (lanes.any(missing > 0)) add_pulses(missing);
    if (lanes.any(missing < 0)) take_pulses(-missing);
  }

  PVQ_HD double best_multiple() const {
    const auto product =
        lanes.template sum<float>([&](int s) { return ieee::multiply(exact[s], rounded[s]); });
    const auto square =
        lanes.template sum<float>([&](int s) { return ieee::multiply(rounded[s], rounded[s]); });
    return square > 0 ? ieee::divide(double(product), double(square)) : 1.0;
  }

  typename Lanes::Floats exact;
  typename Lanes::Integers key;
};

}  // namespace pvq
