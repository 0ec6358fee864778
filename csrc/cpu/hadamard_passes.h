// The passes of the block Hadamard transform, written once over a vector type V that each
// instruction set defines in its own anonymous namespace (so nothing here is shared at link time).
//
// The 2^k part takes log2(width) stages within a vector and kLog2Registers stages across registers
// while the input is loaded, scaled and signed; then kLog2Registers stages at a time in place; then
// H_m. The stages run in order of distance, so every V gives the same bits.
//
// V: Real, Reg, kLog2Width, kLog2Registers, load (from each element type), store (to each), add,
// subtract, multiply, broadcast, negate(reg, bits) (bit i flips lane i), add_signed(sum, sign, reg)
// = sum + sign * reg for sign = +-1 (fusing is then exact), and butterflies_within(reg).
#pragma once

#include <type_traits>

#include "cpu/hadamard_kernel.h"

namespace pvq::hadamard {

template <class V>
struct Passes {
  using Real = typename V::Real;
  using Reg = typename V::Reg;
  static constexpr int kWidth = 1 << V::kLog2Width;
  static constexpr int kPanelRegs = kPanel / kWidth;

  // Butterflies of distance kDistance, 2 kDistance, ... below kSize across v[0 .. kSize).
  template <int kSize, int kDistance = 1>
  static inline __attribute__((always_inline)) void butterflies_across(Reg* v) {
    if constexpr (kDistance < kSize) {
#pragma GCC unroll 16
      for (int i = 0; i < kSize; ++i) {
        if (i & kDistance) continue;
        const Reg a = v[i], b = v[i + kDistance];
        v[i] = V::add(a, b);
        v[i + kDistance] = V::subtract(a, b);
      }
      butterflies_across<kSize, 2 * kDistance>(v);
    }
  }

  static inline __attribute__((always_inline)) Reg negate_columns(Reg v, const uint64_t* sign_words,
                                                                  int64_t col) {
    return V::negate(v, static_cast<uint32_t>(sign_words[col >> 6] >> (col & 63)));
  }

  // Loads `size` elements that start at column `col`, scales and signs them, and runs the stages of
  // distance below kRegs * kWidth into out. sign_words may be null.
  template <int kRegs, class Element>
  static void first_pass(const Element* in, Real* out, int64_t size, Real scale,
                         const uint64_t* sign_words, int64_t col) {
    const Reg scales = V::broadcast(scale);
    for (int64_t at = 0; at < size; at += kRegs * kWidth) {
      Reg v[kRegs];
#pragma GCC unroll 16
      for (int i = 0; i < kRegs; ++i) {
        v[i] = V::multiply(V::load(in + at + i * kWidth), scales);
        if (sign_words) v[i] = negate_columns(v[i], sign_words, col + at + i * kWidth);
        v[i] = V::butterflies_within(v[i]);
      }
      butterflies_across<kRegs>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kRegs; ++i) V::store(out + at + i * kWidth, v[i]);
    }
  }

  // Stages of distance h, 2 h, ... below kRegs * h, in place.
  template <int kRegs>
  static void next_pass(Real* x, int64_t size, int64_t h) {
    for (int64_t base = 0; base < size; base += kRegs * h) {
#pragma GCC ivdep
      for (int64_t j = base; j < base + h; j += kWidth) {
        Reg v[kRegs];
#pragma GCC unroll 16
        for (int i = 0; i < kRegs; ++i) v[i] = V::load(x + j + i * h);
        butterflies_across<kRegs>(v);
#pragma GCC unroll 16
        for (int i = 0; i < kRegs; ++i) V::store(x + j + i * h, v[i]);
      }
    }
  }

  // The eight sums of each group of four among the m rows x[i * stride], kRegs vectors wide, to
  // sums[group][s][panel]; then every output row from them, in place.
  template <int kRegs>
  static void factor_panel(const Plan& plan, Real* x, int64_t stride, Real* sums) {
    const int groups = plan.factor / 4;
    for (int group = 0; group < groups; ++group) {
      for (int i = 0; i < kRegs; ++i) {
        const Real* from = x + 4 * group * stride + i * kWidth;
        Real* to = sums + (group * 8 * kRegs + i) * kWidth;
        const Reg v0 = V::load(from), v1 = V::load(from + stride);
        const Reg v2 = V::load(from + 2 * stride), v3 = V::load(from + 3 * stride);
        const Reg first[2] = {V::add(v0, v1), V::subtract(v0, v1)};
        const Reg second[2] = {V::add(v2, v3), V::subtract(v2, v3)};
#pragma GCC unroll 8
        for (int s = 0; s < 8; s += 2) {
          const Reg a = first[s >> 1 & 1], b = second[s >> 2];
          V::store(to + s * kRegs * kWidth, V::add(a, b));
          V::store(to + (s + 1) * kRegs * kWidth, V::subtract(a, b));
        }
      }
    }
    const Term* term = plan.terms;
    for (int row = 0; row < plan.factor; ++row) {
      Reg total[kRegs] = {};
      for (int group = 0; group < groups; ++group, ++term) {
        const Reg sign = V::broadcast(term->sign);
        const Real* from = sums + term->sum * (kRegs * kWidth);
#pragma GCC unroll 8
        for (int i = 0; i < kRegs; ++i)
          total[i] = V::add_signed(total[i], sign, V::load(from + i * kWidth));
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRegs; ++i) V::store(x + row * stride + i * kWidth, total[i]);
    }
  }

  static void factor_pass(const Plan& plan, Real* x, Real* sums) {
    const int64_t stride = int64_t{1} << plan.log2;
    int64_t j = 0;
    for (; j + kPanel <= stride; j += kPanel) factor_panel<kPanelRegs>(plan, x + j, stride, sums);
    for (; j < stride; j += kWidth) factor_panel<1>(plan, x + j, stride, sums);
  }

  // The stages of distance 2^done and more, and H_m.
  static void remaining_passes(const Plan& plan, Real* x, int done, Real* sums) {
    const int64_t size = int64_t{plan.factor} << plan.log2;
    while (done < plan.log2) {
      const int left = plan.log2 - done;
      const int passes = (left + V::kLog2Registers - 1) / V::kLog2Registers;
      const int stages = (left + passes - 1) / passes;
      const int64_t h = int64_t{1} << done;
      if (stages == 1) next_pass<2>(x, size, h);
      if (stages == 2) next_pass<4>(x, size, h);
      if (stages == 3) next_pass<8>(x, size, h);
      if constexpr (V::kLog2Registers > 3)
        if (stages == 4) next_pass<16>(x, size, h);
      done += stages;
    }
    if (plan.factor > 1) factor_pass(plan, x, sums);
  }

  template <class Element>
  static void last_pass(const Real* x, Element* out, int64_t size, const uint64_t* sign_words,
                        int64_t col) {
    for (int64_t at = 0; at < size; at += kWidth) {
      Reg v = V::load(x + at);
      if (sign_words) v = negate_columns(v, sign_words, col + at);
      V::store(out + at, v);
    }
  }

  template <class Element>
  static void run(const Plan& plan, const Job<Element, Real>& job) {
    constexpr bool kInPlace = std::is_same_v<Element, Real>;
    const int64_t block = int64_t{plan.factor} << plan.log2, blocks_per_row = job.cols / block;
    const int across = plan.log2 - V::kLog2Width < V::kLog2Registers ? plan.log2 - V::kLog2Width
                                                                     : V::kLog2Registers;
    const int done = V::kLog2Width + across;
    const bool one_pass = plan.factor == 1 && plan.log2 == done;
    const uint64_t* signs_in = job.inverse ? nullptr : job.sign_words;
    const uint64_t* signs_out = job.inverse ? job.sign_words : nullptr;
    const Real scale = static_cast<Real>(plan.scale);
    // Blocks that the first pass completes are taken several at a time, within a row.
    const int64_t together = one_pass && block < kWork ? kWork / block : 1;
    int64_t in_row = job.first_block % blocks_per_row;
    for (int64_t at = job.first_block; at < job.last_block;) {
      int64_t count = together;
      if (count > blocks_per_row - in_row) count = blocks_per_row - in_row;
      if (count > job.last_block - at) count = job.last_block - at;
      const int64_t size = count * block, col = in_row * block;
      const Element* in = job.in + at * block;
      Element* out = job.out + at * block;
      Real* work;
      if constexpr (kInPlace)
        work = out;
      else
        work = job.work;

      if (across == 0) first_pass<1>(in, work, size, scale, signs_in, col);
      if (across == 1) first_pass<2>(in, work, size, scale, signs_in, col);
      if (across == 2) first_pass<4>(in, work, size, scale, signs_in, col);
      if (across == 3) first_pass<8>(in, work, size, scale, signs_in, col);
      if constexpr (V::kLog2Registers > 3)
        if (across == 4) first_pass<16>(in, work, size, scale, signs_in, col);
      remaining_passes(plan, work, done, job.sums);
      if (!kInPlace || signs_out) last_pass(work, out, size, signs_out, col);

      at += count;
      in_row += count;
      if (in_row == blocks_per_row) in_row = 0;
    }
  }
};

}  // namespace pvq::hadamard
