// The pyramid P(D, K) with the tables that ranking and unranking (index.h) read.
//
// The index order is a tree: D coordinates are halved (the left half gets the odd one) until four
// or fewer are left (leaf.h). At a node of d coordinates and k pulses the points are ordered by the
// pulses j of the left half, then by the left half's rank, then by the right half's:
//
//   rank = sum_{i<j} N(left, i) N(right, k-i)  +  rank_left * N(right, k-j)  +  rank_right
//
// so a node is undone by one search among k + 1 offsets and one division, and its halves are then
// independent of each other: log2(D) dependent steps instead of the D of the
// coordinate-by-coordinate order, and four coordinates at a time from a table. The order is part of
// the file format.
//
// N(D, K) itself, the first value that is no rank, stands for the zero vector.
#pragma once

#include <stddef.h>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/count.h"
#include "core/platform.h"

namespace pvq {

// One value of j at a node: where its points begin, N(right, k - j), and the reciprocal
// floor((2^64 - 1) / radix) that turns the division into a multiplication.
struct Split {
  uint64_t offset, radix, reciprocal;
};

// Where the splits of a node size begin for one k, and how to find one: the search starts at
// first[256 * buckets + (index >> shift)], which is below 256.
struct Row {
  uint32_t splits;
  uint16_t buckets, shift;
};

// A node size of the tree. Rows of `splits` exist for k in [0, tabled] and for k = top_row (the
// root's); other nodes add the products up. Sizes of four and less are leaves and have no rows.
struct LevelView {
  int dim, left_level, right_level;
  int limbs;               // of one count
  int narrow;              // largest k with N(dim, k) < 2^64
  int tabled, top_row;     // -1: none
  const uint32_t* counts;  // [pulses + 1, limbs]
  const Row* rows;         // [pulses + 1]
  const Split* splits;     // row k holds k + 1 splits and a sentinel whose offset is N(dim, k)
  const uint16_t* first;   // [256 * rows of splits] the j to start the search from, by bucket
};

constexpr int kMaxLevels = 16;   // at most two sizes a depth, from 256 down to the leaves
constexpr int kLeafPulses = 32;  // leaves of four coordinates with up to so many pulses are tabled

struct PyramidView {
  int dim, pulses, index_bits, limbs;
  bool narrow;          // the index, zero group included, fits 64 bits
  uint64_t zero_index;  // N(dim, pulses) if narrow
  // Otherwise where the root's points with j pulses on the left begin: [pulses + 1, limbs].
  const uint32_t* root_offsets;
  int num_levels;
  LevelView level[kMaxLevels];  // by falling dim, root first
  const uint32_t* leaf_points;  // four int8 a point: all of P(4, k), k <= kLeafPulses
  const uint32_t* leaf_start;   // [kLeafPulses + 1]
};

class Pyramid {
 public:
  // Cached by (dim, pulses) for the life of the process. std::invalid_argument outside the limits
  // of count.h.
  static const Pyramid& get(int dim, int pulses);

  Pyramid(int dim, int pulses);
  const PyramidView& view() const { return view_; }

  // The tables for another memory: appends them to `bytes` and returns the view that reads them
  // once bytes[0] stands at address `base`, 16-byte aligned. The rows of splits with their lookups,
  // which narrow decoding reads most, come first: *row_bytes of them.
  PyramidView relocated(uintptr_t base, std::vector<char>* bytes, size_t* row_bytes) const;

 private:
  struct Level {
    int dim = 0;
    CountRow counts;
    std::vector<Row> rows;
    std::vector<Split> splits;
    std::vector<uint16_t> first;
  };
  void tabulate(Level& level, LevelView& view);
  void tabulate_root();

  PyramidView view_;
  std::vector<uint32_t> root_offsets_;
  std::vector<std::unique_ptr<Level>> levels_;
};

}  // namespace pvq
