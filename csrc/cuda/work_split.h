// How products share out their work: every block takes an equal run of steps.
//
// The steps of a group (some rows times some tokens) follow each other, groups follow each other,
// and the first blocks take a step more where the steps do not divide. So a run starts and ends
// inside a group, and a group that is cut belongs to blocks that follow each other.
//
// A kernel finds its run before all else, and a division takes it 250 clocks: the host divides.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace pvq {

// Divides numbers of at most 31 bits by multiplying: n m / 2^(31 + s) with m = (2^(31 + s) + e) /
// d, d <= 2^s and 0 < e <= d, is less than 1 / d above n / d.
class Divisor {
 public:
  Divisor() = default;
  // d > 0.
  explicit Divisor(int d) {
    while (int64_t(1) << shift_ < d) ++shift_;
    multiplier_ = uint32_t((uint64_t(1) << (31 + shift_)) / uint64_t(d) + 1);
  }
  // floor(n / d), n >= 0.
  PVQ_HD int quotient(int n) const {
    return int((uint64_t(2 * uint32_t(n)) * multiplier_ >> 32) >> shift_);
  }

 private:
  uint32_t multiplier_ = 0;
  int shift_ = 0;
};

// Of up to 2^31 - 1 steps.
struct WorkSplit {
  int blocks = 0;
  int run = 0, longer = 0;  // steps of a block; blocks that take one more

  WorkSplit() = default;
  WorkSplit(int64_t steps, int blocks)
      : blocks(blocks), run(int(steps / blocks)), longer(int(steps % blocks)) {}

  PVQ_HD int first_step(int block) const { return block * run + (block < longer ? block : longer); }
  // The block that takes the step before `end`, which is not before `block`.
  PVQ_HD int block_until(int block, int end) const {
    while (first_step(block + 1) < end) ++block;
    return block;
  }
};

}  // namespace pvq
