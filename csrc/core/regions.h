// Points of small pyramids as fixed-width words that a few multiplications undo: the order in which
// the GPU's product reads exact indices (cuda/index_matmul.h). It names the same points as the
// file's index (core/index.h), at 2.25 and 3.25 bits a weight in as many bits, at other sizes in up
// to one bit more, below 5 pulses in up to four, where the padding does not fit.
//
// D = 8 or 16 coordinates are cut into leaves of four. A region is the set of points whose leaves
// have given pulses k_1, k_2 (k_3, k_4). In it the point of a leaf is a number below
// M(k) = N(4, k) / 2 (1 for k = 0), its place among those whose first coordinate other than zero is
// positive, and one sign bit for the whole leaf. Leaf numbers a_1 ... a_4 are taken from a binary
// fraction by products alone, where other orders divide: what is above the point of a fraction
// times M is a number below M, and what is below the point is a fraction again.
//
//   D = 16   f n_1  =  b_1 2^32 + f'     f' n_2  =  b_2 2^32 + f''     and so on with n_3, n_4
//   D = 8    u share(k_2)  =  a_1 2^32 + f       share  =  floor(2^32 / M(k_2))
//            f M(k_2)      =  a_2 2^32 + ...               at most 2^32 - 1
//
// Every (a_1 ... a_4) has a word, because a step of u never passes a whole cell of the next line:
// cells of f that have the same a_2 are at least floor(2^32 / M) wide, and so on.
//
// D = 16: M(k) is a multiple of 4, for k > 0. Where fractions would take more than 32 bits, the
// numbers of the first `split` leaves leave their last two bits to the word, a = 4 b + c; there n =
// M / 4, but at least 1, else n = M. The word of a point is, from the highest bit on,
//
//   slot, fraction   word_bits - cell_bits - 2 split bits: which region of the cell, then the first
//                    bits of f; what follows in the word and behind it counts as f's next bits
//   cell             cell_bits
//   c of leaf l      2 split bits, at 2 l
//
// and a cell says how many bits are the slot's. Regions fall by size and fill cells; all regions of
// a cell take as much as its first.
//
// D = 8: the word is first * 2^unit_bits + u, where the region begins at `first`, one of at most
// 512 units: a table by unit finds it.
//
// The zero group is the region without pulses. A group has dim / 4 sign bits besides.
#pragma once

#include <cstdint>
#include <vector>

namespace pvq {

constexpr int kRegionPulses = 32;  // the most
constexpr int kCellBits = 7;       // the most
constexpr int kUnitBits = 9;       // log2 of the most units, D = 8

struct Region {
  uint8_t pulses[4];  // of the leaves; two for D = 8
  uint32_t first;     // D = 8, in units
  int cell, slot;     // D = 16
};

// Of regions that follow each other.
struct RegionCell {
  uint32_t first_region;
  int slot_bits;
};

class Regions {
 public:
  // dim 8 or 16, 1 <= pulses <= kRegionPulses.
  static bool supports(int dim, int pulses);
  // Cached for the life of the process. std::invalid_argument if not supported.
  static const Regions& get(int dim, int pulses);

  Regions(int dim, int pulses);

  // How many points of a leaf of k pulses the fraction tells apart.
  uint64_t fraction_count(int leaf, int k) const {
    return leaf < split && k > 0 ? count[k] / 4 : count[k];
  }

  int dim, pulses;
  int bits;                         // of a word, without the sign bits
  int unit_bits = 0;                // log2 of the words of a unit, D = 8
  int cell_bits = 0;                // D = 16
  int split = 0;                    // of four leaves: 0, 2 or 4
  std::vector<Region> regions;      // by `first`, or by cell and slot
  std::vector<RegionCell> cells;    // D = 16, at most 2^cell_bits
  std::vector<uint16_t> region_of;  // [2^(bits - unit_bits)] by unit, D = 8

  // M(k) and share(k) for k <= pulses.
  std::vector<uint32_t> count, share;
  // Leaves of four, int8 a coordinate: those of k pulses begin at start[k].
  std::vector<uint32_t> points, start;

 private:
  bool place_in_cells(int word_bits);
  bool place_by_unit(int word_bits);
};

}  // namespace pvq
