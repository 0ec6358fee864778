// The inner loops of the search of overlap_search.h, one table of functions for each instruction
// set. Sequences are sixteen, one in each lane: arrays of them end in [16].
#pragma once

#include "core/overlap.h"

namespace pvq {

constexpr int kOverlapLanes = 16;
struct OverlapKernels {
  // cross over the words' a and b; see cross_offset. `table` is [2][dim][rows], weight [dim].
  void (*cross)(const OverlapTrellis& trellis, const float* table, const float* weight,
                float* cross);
  // One group: costs [states][16] of the states before and after it, for x [dim][16]. `scratch` is
  // [2][rows][16].
  void (*step)(const OverlapTrellis& trellis, const float* table, const float* weight,
               const float* cross, const float* x, const float* before, float* after,
               float* scratch);
  // The same where each weight may be `spread` above or below the sum of its points. `scratch` is
  // [symbols][dim][16].
  void (*spread_step)(const OverlapTrellis& trellis, float spread, const float* table,
                      const float* weight, const float* x, const float* before, float* after,
                      float* scratch);
};

// The table of the instruction set in use (isa.h); all give the same bits.
const OverlapKernels& overlap_kernels();

extern const OverlapKernels overlap_kernels_portable;
#ifdef PVQ_X86
extern const OverlapKernels overlap_kernels_avx2;
extern const OverlapKernels overlap_kernels_avx512;
#endif

// Place in `cross` of the transitions into state n, 2^step_bits in a row, ordered by the symbol
// that leaves. Where windows overlap a place is a word; where they leave bits out it is a pair (a,
// b).
[[gnu::always_inline]] inline int cross_offset(const OverlapTrellis& t, int n) {
  const int word = n << t.step_bits;
  if (t.reach() <= t.window_bits) return word;
  return word >> t.reach() << t.window_bits | (word & (t.rows() - 1));
}
[[gnu::always_inline]] inline int cross_bits(const OverlapTrellis& t) {
  return t.reach() <= t.window_bits ? t.word_bits() : 2 * t.window_bits;
}

}  // namespace pvq
