// The beam search of overlapping-pyramid codes (core/overlap.h): what CPU and GPU must agree on.
//
// Behind each group at most `beam` paths are kept, one for each of as many states, in the order of
// their states. Those of the same `old` = state >> step_bits stand next to each other and lead,
// with the same new symbol, to the same state: of these the cheapest is a candidate, the first one
// among equals. Candidates are ordered by symbol and old, which is the order of their states. Those
// of least cost are kept, the first ones among equals. With a beam as wide as the states that is
// Viterbi's algorithm.
//
// A group's cost is sum over d of weight_d e_d^2, e = ((x - T1) - T2) - T0, where the windows of T1
// and T2 are those of the state, and that of T0 is the new symbol and the newest bits of `old`.
#pragma once

#include <cstring>

#include "core/ieee.h"
#include "core/overlap.h"

namespace pvq {

// The symbols that a group may have: [begin, begin + count).
struct SymbolRange {
  int begin, count;
};

struct BeamTrellis {
  OverlapTrellis trellis;
  const float* table;  // [rows][terms][dim]

  PVQ_HD int old_of(int state) const { return state >> trellis.step_bits; }
  PVQ_HD int next_state(int old, int symbol) const {
    return symbol << (trellis.state_bits() - trellis.step_bits) | old;
  }
  PVQ_HD int symbol_of(int state) const {
    return state >> (trellis.state_bits() - trellis.step_bits);
  }
  PVQ_HD const float* point(int window, int term) const {
    return table + (window * trellis.terms + term) * trellis.dim;
  }
  // The bits of `old` that a new symbol's window has beside it, and the point that the symbol adds.
  PVQ_HD int newest_of(int old) const {
    return old >> (trellis.state_bits() - trellis.window_bits);
  }
  PVQ_HD const float* own_point(int old, int symbol) const {
    return point(symbol << (trellis.window_bits - trellis.step_bits) | newest_of(old), 0);
  }
  // What is left for T0 to meet, of one coordinate.
  PVQ_HD float residual(float x, int state, int d) const {
    for (int term = 1; term < trellis.terms; ++term) {
      const int shift = (trellis.terms - 1 - term) * trellis.reach();
      x -= point((state >> shift) & (trellis.rows() - 1), term)[d];
    }
    return x;
  }
  // residual [dim] at `stride`, weight [dim] or null.
  PVQ_HD float distance(const float* residual, int64_t stride, const float* weight,
                        const float* own) const {
    float sum = 0;
    for (int d = 0; d < trellis.dim; ++d) {
      const float error = residual[d * stride] - own[d];
      const float square = ieee::multiply(error, error);
      sum += weight ? ieee::multiply(weight[d], square) : square;
    }
    return sum;
  }

  // The i-th of `count` states to begin from where any may be: spread over all, in order.
  PVQ_HD int free_state(int i, int count) const {
    const int stride = trellis.states() / count;
    return i * stride + int((uint32_t(i) * 2654435761u >> 16) % uint32_t(stride));
  }
  // Symbols of a group after which `left` groups follow up to the state `end`.
  PVQ_HD SymbolRange symbols(int left, int end) const {
    const int s = trellis.step_bits, place = trellis.state_bits() - s * (left + 1);
    if (end == kFreeState || place <= -s) return {0, trellis.symbols()};
    if (place >= 0) return {(end >> place) & (trellis.symbols() - 1), 1};
    return {(end & ((1 << (s + place)) - 1)) << -place, 1 << -place};  // its lowest bits are gone
  }
};

// Unsigned numbers in the order of the costs; NaN behind all others.
PVQ_HD inline uint32_t cost_key(float cost) {
  uint32_t bits;
#ifdef __CUDA_ARCH__
  bits = __float_as_uint(cost);
#else
  std::memcpy(&bits, &cost, sizeof bits);
#endif
  if (cost != cost) return ~0u;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// How a path came to be: the number of the one before it, and its symbol.
PVQ_HD inline uint32_t path_link(int before, int symbol) {
  return uint32_t(before) << 8 | uint32_t(symbol);
}
PVQ_HD inline int link_before(uint32_t link) { return int(link >> 8); }
PVQ_HD inline int link_symbol(uint32_t link) { return int(link & 255); }

}  // namespace pvq
