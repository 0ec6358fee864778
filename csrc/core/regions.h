// Points of small pyramids as fixed-width words that a few multiplications undo: the order in which
// the GPU's product reads exact indices (cuda/index_matmul.h). It names the same points as the
// file's index (core/index.h) in as many bits from 16 pulses on, but for D = 8 and 22 pulses; there
// and below it takes up to one bit more, up to two below 7 pulses, where the padding does not fit.
//
// D = 8 or 16 coordinates are cut into leaves of four. A region is the set of points whose leaves
// have given pulses k_1, k_2 (k_3, k_4). In it the point of a leaf is a number below
// M(k) = N(4, k) / 2 (1 for k = 0), its place among those whose first coordinate other than zero is
// positive, and one sign bit for the whole leaf. Leaf numbers a_1 ... a_4 are taken from a number
// u >= 0 by products alone, where other orders divide: what is above the point of a binary fraction
// times M is a number below M, and what is below the point is a fraction again.
//
//   D = 16   u step(k_3, k_4)  =  q 2^32 + f       step  =  floor(2^32 / (M(k_3) M(k_4)))
//            f M(k_3)          =  a_3 2^32 + f'
//            f' M(k_4)         =  a_4 2^32 + ...
//   D = 8    q = u
//   both     q share(k_2)      =  a_1 2^32 + f''    share =  floor(2^32 / M(k_2))
//            f'' M(k_2)        =  a_2 2^32 + ...                       each at most 2^32 - 1
//
// Every (a_1 ... a_4) has a u, because a step of u never passes a whole cell of the next line:
// cells of f'' that have the same a_2 are at least floor(2^32 / M) wide, and so on. Regions need a
// few more values of u than they have points, as the floors say.
//
// The zero group is the region without pulses. The word of a point is first * 2^unit_bits + u,
// where the region begins at `first`; a group has dim / 4 sign bits besides.
//
//   D = 16   regions fall by size and fill 2^class_bits classes of 2^class_shift units each; all
//            regions of a class take as much as its first, so that a division by a constant of the
//            class finds the region
//   D = 8    regions begin at units, of which there are at most 512: a table by unit finds them
#pragma once

#include <cstdint>
#include <vector>

namespace pvq {

constexpr int kRegionPulses = 32;  // the most
constexpr int kClassBits = 5;      // the most
constexpr int kUnitBits = 9;       // log2 of the most units, D = 8

struct Region {
  uint8_t pulses[4];     // of the leaves; two for D = 8
  uint32_t step;         // D = 16
  uint32_t first, size;  // in units
};

struct RegionClass {
  uint32_t first_region, size;  // size: units of each region
  uint32_t reciprocal;          // of size: floor(within * reciprocal / 2^32) = within / size
};

class Regions {
 public:
  // dim 8 or 16, 1 <= pulses <= kRegionPulses.
  static bool supports(int dim, int pulses);
  // Cached for the life of the process. std::invalid_argument if not supported.
  static const Regions& get(int dim, int pulses);

  Regions(int dim, int pulses);

  int dim, pulses;
  int bits;       // of a word, without the sign bits
  int unit_bits;  // log2 of the words of a unit
  int class_shift = 0, class_bits = 0;
  std::vector<Region> regions;       // by `first`
  std::vector<RegionClass> classes;  // [2^class_bits], D = 16
  std::vector<uint16_t> region_of;   // [2^(bits - unit_bits)] by unit, D = 8

  // M(k) and share(k) for k <= pulses.
  std::vector<uint32_t> count, share;
  // Leaves of four, int8 a coordinate: those of k pulses begin at start[k].
  std::vector<uint32_t> points, start;

 private:
  bool place_by_class(int word_bits);
  bool place_by_unit(int word_bits);
};

}  // namespace pvq
