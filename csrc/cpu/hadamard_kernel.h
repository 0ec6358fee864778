// What the instruction sets' Hadamard kernels share with the code that chooses among them: plain
// data and declarations only, so that no inline function is merged across instruction sets.
#pragma once

#include <cstdint>

namespace pvq::hadamard {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// H_m by sums shared among its rows. The inputs are taken in groups of four; up to sign there are
// eight sums +-v0 +-v1 +-v2 +-v3, numbered so that sum s is
//   (s & 2 ? v0 - v1 : v0 + v1)  - or +, by (s & 1),  (s & 4 ? v2 - v3 : v2 + v3)
// and each output is a signed sum of m / 4 of them: 3 + m / 4 additions an element instead of m.
struct Term {
  int32_t sum;  // group * 8 + s
  float sign;   // +1 or -1
};

struct Plan {
  int factor, log2;   // block = factor << log2
  double scale;       // 1 / sqrt(block)
  const Term* terms;  // [factor, factor / 4], for H_m or its transpose; null for factor 1
};

// Blocks [first_block, last_block) of a [rows, cols] array of Elements.
template <class Element, class Real>
struct Job {
  const Element* in;
  Element* out;
  int64_t cols;
  const uint64_t* sign_words;  // or null
  bool inverse;
  int64_t first_block, last_block;
  Real* work;  // max(block, kWork) values where Element is not Real
  Real* sums;  // factor * 2 * kPanel values where factor > 1
};

constexpr int kWork = 4096;  // what one pass completes is done in pieces of this many values
constexpr int kPanel = 32;   // H_m is applied to this many columns j at a time

// An instruction set takes plans with (1 << log2) a multiple of its vector.
constexpr int kLog2WidthAvx2 = 3, kLog2WidthAvx512 = 4;

void run_avx2(const Plan& plan, const Job<float, float>& job);
void run_avx2(const Plan& plan, const Job<Float16, float>& job);
void run_avx2(const Plan& plan, const Job<BFloat16, float>& job);
void run_avx512(const Plan& plan, const Job<float, float>& job);
void run_avx512(const Plan& plan, const Job<Float16, float>& job);
void run_avx512(const Plan& plan, const Job<BFloat16, float>& job);

}  // namespace pvq::hadamard
