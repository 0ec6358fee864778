// Overlapping-pyramid codes: every word of a bit stream names two small-integer points, one for the
// group of weights that it belongs to and one for a later group, so that neighbouring groups
// overlap like the branches of a trellis.
//
// Symbols of `step_bits` bits follow each other in a stream; symbol i belongs to group i, `dim`
// weights. Window i is the `window_bits` bits that end with symbol i, the newest on top. With a
// table T of 2^window_bits rows, two points each,
//
//   y_i = T[window_i][0] + T[window_(i - lag)][1]
//
// and weight = scale * y. (Searches also know tables of three terms, which add
// T[window_(i - 2 lag)][2]; benchmarks/overlap_design.py measures what that is worth.) Windows go
// around: the symbols of a block of kOverlapBlock columns (the last block of a row is what is left)
// form a ring, so that blocks do not depend on each other and no bits are spent on a beginning.
//
// A code may have a further bit for each weight beside the trellis, which takes a step: the weight
// is `spread` above the sum of its points or below it. In the stream these bits follow each symbol,
// first weight lowest, and windows are then whole symbols.
//
// A trellis code (Marcellin and Fischer, IEEE Trans. Commun. 38, 1990): group i depends on the
// word_bits() bits up to and with symbol i, the oldest ones being of the last term's window, and of
// these all but the newest symbol are the state. What is new is the table: not one point for each
// word, but a sum of two from a table small enough for each lane of a GPU to own a copy, both read
// at once, and of integers so small that the sum is the operand of an integer product.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace pvq {

constexpr int kOverlapBlock = 128;  // columns whose symbols form a ring
constexpr int kOverlapStep = 16;    // columns come in multiples of it: whole bytes at every rate
constexpr int kMaxOverlapLag = 8;
constexpr int kSpreadDim = 4;  // weights of a group with a spread

// Searches. A state that may be any; and the groups on either side of a ring's seam that settle the
// state there, at least five times the groups in a word of the library's codes.
constexpr int kFreeState = -1;
constexpr int kOverlapSeam = 24;

// Inlined even where nothing is optimised: files compiled for different instruction sets include
// it.
#define PVQ_ALWAYS [[gnu::always_inline]] PVQ_HD

struct OverlapTrellis {
  int dim;          // weights of a group
  int step_bits;    // of a symbol, without further bits
  int window_bits;  // of a window, step_bits at least
  int lag;          // groups from a window's own group to the other that it has a point for
  int terms = 2;    // points of a window
  bool spread = false;

  // Of a symbol in the stream, with the further bits of its weights.
  PVQ_ALWAYS constexpr int stored_bits() const { return step_bits + (spread ? dim : 0); }

  PVQ_ALWAYS int reach() const { return lag * step_bits; }
  PVQ_ALWAYS int word_bits() const { return window_bits + (terms - 1) * reach(); }
  PVQ_ALWAYS int state_bits() const { return word_bits() - step_bits; }
  PVQ_ALWAYS int rows() const { return 1 << window_bits; }
  PVQ_ALWAYS int states() const { return 1 << state_bits(); }
  PVQ_ALWAYS int symbols() const { return 1 << step_bits; }
};

// Groups of four weights have tables whose points are tied: without a spread, with the first point
// as a word of four bytes, each an integer plus 64, the second point is kOverlapFactor times that
// word, cut off at 32 bits, in the same bytes. A multiplication and an addition then make four
// weights of two words of 32 bits; bytes are such that none of them carries into the next.
constexpr uint32_t kOverlapFactor = 16;

// With a spread a first point is a byte less 60, and the second one kSpreadFactor times the byte's
// lower three bits, less 44.
constexpr uint32_t kSpreadMask = 0x07070707, kSpreadFactor = 12;
constexpr int kSpread = 24;

// The trellises of the library's codes, by the bits of two weights: 4 to 8.
struct OverlapShape {
  int dim, step_bits, window_bits, lag;
  bool spread = false;
};
PVQ_HD constexpr OverlapShape overlap_shape(int pair_bits) {
  return pair_bits == 4   ? OverlapShape{4, 8, 9, 1}
         : pair_bits == 5 ? OverlapShape{2, 5, 8, 2}
         : pair_bits == 6 ? OverlapShape{4, 8, 8, 1, true}
                          : OverlapShape{2, pair_bits, 9, 1};
}

}  // namespace pvq
