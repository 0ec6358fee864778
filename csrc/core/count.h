// N(D, K): how many integer vectors of D coordinates have an L1 norm of exactly K. Exact.
//
//   N(d, 0) = 1,  N(0, k > 0) = 0,  N(d, k) = N(d-1, k) + N(d, k-1) + N(d-1, k-1)
//   (Fischer, "A pyramid vector quantizer", IEEE Trans. Inf. Theory 32, 1986)
//
//   k      0   1    2    3     4     5
//   d=1    1   2    2    2     2     2
//   d=2    1   4    8   12    16    20
//   d=3    1   6   18   38    66   102
//   d=4    1   8   32   88   192   360
//   d=5    1  10   50  170   450  1002
//
// One 64-bit word holds N(8, 865), N(16, 58) and N(32, 22).
#pragma once

#include <stddef.h>
#include <cstdint>
#include <vector>

namespace pvq {

// N(dim, k) for k = 0 ... pulses, each as `limbs` 32-bit limbs, least significant first.
struct CountRow {
  int dim = 0;
  int pulses = 0;
  int limbs = 0;
  std::vector<uint32_t> values;

  const uint32_t* operator[](int k) const { return values.data() + size_t(k) * limbs; }
};

// 1 <= dim <= kMaxDim, 0 <= pulses <= kMaxPulses; std::invalid_argument otherwise.
void check_pyramid(int dim, int pulses);

// The rows of the given dims, which must ascend.
std::vector<CountRow> count_rows(const std::vector<int>& dims, int pulses);

// N(dim, pulses), little endian, without leading zero limbs.
std::vector<uint32_t> count(int dim, int pulses);

// Bits of a stored index: enough for N(dim, pulses) points and one value more, the zero group.
int index_bits(int dim, int pulses);

}  // namespace pvq
